"""Kill training runs at random moments, start them again until they are done, and compare what they end with.

python tools/kill_campaign.py                     # 30 kills of each kind of run
python tools/kill_campaign.py one --kills 3       # a short one

A small network learns the digits: with an average, mixing that ends before the last epoch, augmentation in two data
workers, a warm-up and a falling rate, and a checkpoint after each update. First once from beginning to end; then runs
are killed with SIGKILL, at moments spread evenly over the time that is left to each; four in ten then wait until a
checkpoint or the best model is being written. Of two processes, which torchrun starts, both are killed, or by the same
chance only one. Checkpoint (weights, average, optimizer, random states), log, history and best model must be those of
the first run, bit for bit, and no file may be left over.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from runs import ENV, HARD, command, differences, lines

from opsin.train.checkpoint import RunDirectory

Kind = Literal["one", "two", "sharded"]
KINDS: dict[Kind, tuple[str, int, list[str]]] = {
    "one": ("one process", 1, []),
    "two": ("two processes", 2, []),
    "sharded": ("two processes, sharded", 2, ["--fsdp"]),
}
BATCH = 32  # of all ranks together
RUN = ["--model", "test_resnet", "--epochs", "3", "--warmup-epochs", "1", "--mixup-off-epoch", "2", "--workers", "2"]
PHASES = ("starting", "training", "saving", "judging", "writing best")
SAVING, BEST = (".last.pt.part", ".last.part", ".last-*.old"), (".best.*.tmp", "best/.best.*.tmp")
AIMED = 0.4  # chance that a kill waits until one of these is being written, which takes little of the time
PATIENCE = 300  # seconds for what should end by itself


class Fault(Exception):
    """A run that did not end as it should."""


class Attempt:
    """One start of a run. Several ranks are the children of torchrun; the clock begins when they are there."""

    def __init__(self, kind: Kind, out: Path) -> None:
        _, ranks, args = KINDS[kind]
        line = command("digits", out, *HARD, *RUN, *args, "--batch-size", str(BATCH // ranks))
        if ranks > 1:
            line = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *line]
        self.out, self.said = out, out.with_name(f"{out.name}.said")
        with self.said.open("w") as said:
            self.process = subprocess.Popen([sys.executable, *line], env=ENV, stdout=said, stderr=said)
        self.ranks = [self.process.pid]
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while ranks > 1 and len(self.ranks) != ranks and self.process.poll() is None:
            self.ranks = [int(pid) for pid in children.read_text().split()]
            time.sleep(0.01)
        self.begun = time.time()

    def ends(self, seconds: float = PATIENCE) -> bool:
        """Whether it ends within so many seconds; raises `Fault` for a bad end."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        if code:
            raise Fault(f"a run ended by itself, with {code}:\n{self.said.read_text()[-3000:]}")
        return True

    def kill(self, rng: random.Random) -> None:
        """Kill all ranks, or one of several, after which the others must end."""
        _kill(self.ranks if rng.random() < 0.5 else [rng.choice(self.ranks)])
        if self.process.poll() is None:
            try:
                self.process.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                _kill([self.process.pid, *self.ranks])
                raise Fault(f"a rank went on for {PATIENCE} s after another one was killed") from None

    def fresh(self, *patterns: str) -> bool:
        """Whether one of these files was written by this start."""
        found = (file for pattern in patterns for file in self.out.glob(pattern))
        return any(_changed(file) >= self.begun for file in found)

    def wait_for(self, patterns: tuple[str, ...]) -> None:
        """Until one of these is being written, or to the end."""
        while not self.fresh(*patterns) and self.process.poll() is None:
            time.sleep(0.001)

    def phase(self, kept: int, per_epoch: int) -> str:
        """What was going on when it was killed, told from what lies about; it began after `kept` updates."""
        if self.fresh(*SAVING):
            return "saving"
        if self.fresh(*BEST):
            return "writing best"
        if not self.fresh("log.jsonl") or len(lines(self.out)) <= kept:
            return "starting"
        return "training" if len(lines(self.out)) % per_epoch else "judging"


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # renamed just now
        return 0.0


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass
class Whole:
    """The run that nobody interrupts, and how long it took: until the first update, and in all."""

    out: Path
    start: float
    seconds: float
    updates: int
    per_epoch: int


def run_whole(kind: Kind, out: Path) -> Whole:
    attempt = Attempt(kind, out)
    start = 0.0
    while not attempt.ends(0.05):
        start = start or (time.time() - attempt.begun if lines(out) else 0.0)
    epochs = [json.loads(line)["epoch"] for line in lines(out)]
    return Whole(out, start, time.time() - attempt.begun, len(epochs), epochs.count(0))


def saved(out: Path) -> int:
    """How many updates the last checkpoint has."""
    directory = RunDirectory(out)
    files = [directory.last] if directory.last.exists() else [folder / "rest.pt" for folder in directory.folders()]
    return torch.load(files[-1], weights_only=True)["update"] if files else 0


def run_killed(kind: Kind, out: Path, whole: Whole, kills: int, rng: random.Random) -> Iterator[str]:
    """A run that is killed so many times, or until it is done before, then goes on to its end; what was going on at
    each kill."""
    for _ in range(kills):
        kept = saved(out)
        attempt = Attempt(kind, out)
        left = whole.start + (whole.seconds - whole.start) * (1 - kept / whole.updates)
        if attempt.ends(rng.uniform(0, left)):
            return
        if rng.random() < AIMED:
            attempt.wait_for(rng.choice((SAVING, BEST)))
            if attempt.ends(rng.uniform(0, 0.02)):
                return
        attempt.kill(rng)
        phase = attempt.phase(kept, whole.per_epoch)
        print(f"  killed after {len(lines(out))} of {whole.updates} updates: {phase}", flush=True)
        yield phase
    if not Attempt(kind, out).ends():
        raise Fault(f"a run did not end within {PATIENCE} s")


@dataclass
class Result:
    """What became of the runs of a kind."""

    runs: int = 0
    equal: int = 0
    phases: Counter[str] = field(default_factory=Counter)


def campaign(kind: Kind, kills: int, per_run: int, seed: int, work: Path) -> Result:
    whole = run_whole(kind, work / f"{kind}-whole")
    print(f"{KINDS[kind][0]}: {whole.updates} updates in {whole.seconds:.1f} s, the first after {whole.start:.1f} s")
    result = Result()
    while (left := kills - result.phases.total()) > 0 and result.runs < kills:
        out = work / f"{kind}-{result.runs}"
        result.runs += 1
        rng = random.Random(f"{seed} {kind} {result.runs}")
        try:
            for phase in run_killed(kind, out, whole, min(per_run, left), rng):
                result.phases[phase] += 1
            found = differences(whole.out, out)
        except Fault as fault:
            found = [str(fault)]
        if found:
            print(f"  DIFFERENT: {len(found)}, in {out}\n    " + "\n    ".join(found[:20]), flush=True)
        else:
            result.equal += 1
            shutil.rmtree(out)
        print(f"  {result.equal} of {result.runs} runs equal bit for bit", flush=True)
    return result


def table(results: dict[Kind, Result]) -> str:
    rows = [f"| run | kills | {' | '.join(PHASES)} | runs | equal bit for bit |", "|---|" + "---:|" * (len(PHASES) + 3)]
    for kind, r in results.items():
        counts = " | ".join(str(r.phases[phase]) for phase in PHASES)
        rows.append(f"| {KINDS[kind][0]} | {r.phases.total()} | {counts} | {r.runs} | {r.equal} |")
    return "\n".join(rows)


def main(
    kinds: Annotated[tuple[Kind, ...], tyro.conf.Positional] = get_args(Kind),
    kills: int = 30,
    per_run: int = 5,
    seed: int = 0,
) -> int:
    """Kill runs, and compare.

    Args:
        kinds: Which runs; all by default.
        kills: Of each kind.
        per_run: Kills of one run at most.
        seed: Of the moments.
    """
    work = Path(tempfile.mkdtemp(prefix="kill-campaign-"))
    results = {kind: campaign(kind, kills, per_run, seed, work) for kind in kinds}
    print(f"\n{table(results)}")
    good = all(result.equal == result.runs for result in results.values())
    if good:
        shutil.rmtree(work)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
