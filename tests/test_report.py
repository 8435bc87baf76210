"""The report of a run: built from real digits, and opened in a browser where there is one."""

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from opsin.data.augment.mix import Mix
from opsin.data.dataset import create_dataset
from opsin.data.loader import create_loader
from opsin.data.preprocess import Preprocess
from opsin.data.readers import Relabelled, StreamReader, Tuples, open_reader
from opsin.data.transforms import EvalTransform, TrainTransform
from opsin.errors import ImageError, OpsinError
from opsin.train.checkpoint import RunDirectory
from opsin.train.config import from_dict
from opsin.train.distributed import World
from opsin.train.report import Report
from opsin.train.report.callback import first_pictures
from opsin.train.report.charts import Series, line_chart, thinned, ticks
from opsin.train.report.examples import mistakes, samples, seen
from opsin.train.report.judged import Judged
from opsin.train.report.page import duration, number, picture, text
from opsin.train.report.scores import scores
from opsin.train.task import Task

FIT = Preprocess(
    input_size=(1, 16, 16), interpolation="bicubic", crop_pct=1.0, crop_mode="center", mean=(0.45,), std=(0.22,)
)
HOSTILE = '</table><script>alert("x")</script>&\x00\u202e" onload=\'y\''


def readers(kind):
    train, judge = (open_reader("digits", split=split) for split in ("train", "validation"))
    if kind == "single":
        return train, judge
    if kind == "multi":  # what digits have in common
        names = ("even", "round", "small", HOSTILE)
        has = [
            tuple(c for c, yes in enumerate((d % 2 == 0, d in (0, 6, 8, 9), d < 5, d == 7)) if yes) for d in range(10)
        ]
        return tuple(Relabelled(r, Tuples([has[d] for d in r.targets]), names, "multi") for r in (train, judge))
    return tuple(Relabelled(r, r.targets * 10.0 + 3, None, "regression") for r in (train, judge))


def make_run(path, kind="single", *, epochs=3, classes=None, metric=None, augment=None):
    """A run as callbacks see it, with real pictures."""
    train, judge = readers(kind)
    if classes is not None:
        train, judge = (Relabelled(r, r.targets, classes, "single") for r in (train, judge))
    values = {
        "data": {"data": "digits", "batch_size": 48},
        "model": {"model": "nearest-mean"},
        "schedule": {"epochs": epochs},
        "run": {"metric": metric, "ema": (metric or "").startswith("ema_")},
        "augment": augment or {},
    }
    config = from_dict(values)
    task = Task.of(train, config)
    mix = Mix(mixup_alpha=0.4, cutmix_alpha=1.0, num_classes=task.outputs) if augment and augment.get("mixup") else None
    transform = TrainTransform((16, 16), mean=FIT.mean)
    shared = {"batch_size": 48, "preprocess": FIT, "num_workers": 0}
    train_loader = create_loader(create_dataset(train, transform=transform), shuffle=True, mix=mix, **shared)
    eval_loader = create_loader(create_dataset(judge, transform=EvalTransform(FIT)), **shared)
    directory = RunDirectory(path)
    directory.open()
    run = SimpleNamespace(
        config=config, world=World(torch.device("cpu")), directory=directory, task=task, train_loader=train_loader,
        eval_loader=eval_loader, model=nn.Linear(256, task.outputs), history=[], best=None,
        epochs=epochs, epoch=0, update=0, updates_per_epoch=len(train_loader), pictures=len(train), skipped={},
        judging="",
    )  # fmt: skip
    run.best_row = lambda: run.history[run.best[0]] if run.best else {}
    return run


def outputs_of(run, images, targets, noise, seed):
    """What a model would say after some training: the truth, more or less."""
    k, generator = run.task.outputs, torch.Generator().manual_seed(seed)
    random = torch.randn(len(images), k, generator=generator) * noise
    targets = run.task.prepare(targets)
    if run.task.kind == "single":
        return nn.functional.one_hot(targets, k) * 4.0 + random * 2
    return targets + random * 0.3 if run.task.kind == "regression" else (targets - 0.5) * 4 + random * 2


def go(run, report, *, ema=False, until=None):
    """Tell the report what the loop would tell it."""
    report.on_start(run)
    while run.epoch < (run.epochs if until is None else until):
        for _ in range(run.updates_per_epoch):
            loss = 2.3 / (1 + run.update / 40)
            run.directory.add_log({"update": run.update, "epoch": run.epoch, "loss": loss, "lr": 1e-3})
            run.update += 1
            report.on_update(run, loss)
        row = {"epoch": run.epoch, "lr": 1e-3, "train_loss": 2 / (1 + run.epoch)}
        for prefix in ("", "ema_")[: 1 + ema]:
            metrics, run.judging = run.task.metrics(), prefix
            for i, batch in enumerate(run.eval_loader):
                noise = (1.6 if prefix else 2.4) / (1 + run.epoch)
                said = outputs_of(run, batch.images, batch.targets, noise, i)
                metrics.update(run.task.in_units(said), run.task.in_units(run.task.prepare(batch.targets)))
                report.on_eval_batch(run, batch, said)
            run.eval_loader.epoch = 0
            row |= {f"{prefix}{name}": value for name, value in ({"loss": 0.9} | metrics.compute()).items()}
        row["seconds"] = 4.5 * (run.epoch + 1)
        score = row[run.task.metric]
        if run.task.better(score, run.best[1] if run.best else None):
            run.best = (run.epoch, score)
        run.history.append(row)
        run.epoch += 1
        report.on_epoch(run, row)
    report.on_end(run)
    return run.directory.report.read_text(encoding="utf-8")


# --- structure ------------------------------------------------------------------------------------------------------

VOID = {"meta", "img", "input", "br", "circle", "path", "polyline", "rect"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what they hold."""

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.heads, self.said = [], [], [], []
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.heads.append(data)
        if self.open and self.open[-1] not in ("script", "style"):
            self.said.append(data)

    def count(self, tag):
        return sum(one == tag for one, _ in self.tags)


def check_alone(page):
    """Nothing is fetched from anywhere."""
    for _, attrs in page.tags:
        assert not {"href", "srcset", "action", "data", "poster"} & attrs.keys()
        assert attrs.get("src", "data:image/").startswith("data:image/")
        assert not [name for name in attrs if name.startswith("on")]


def matrix(page):
    """The confusion matrix as the page has it."""
    counts = np.zeros((10, 10), int)
    for cell in filter(None, (re.match(r"(\d) taken for (\d): (\d+) of", one) for one in page.said)):
        counts[int(cell[1]), int(cell[2])] = int(cell[3])
    return counts


def test_a_run_with_one_label(tmp_path):
    run = make_run(tmp_path, augment={"mixup": 0.4, "cutmix": 1.0})
    content = go(run, Report(), ema=True)
    page = Page(content)
    check_alone(page)
    assert page.heads == [
        "nearest-mean", "Course", "Time and all scores", "Confusion matrix", "Class by class", "Calibration",
        "Worst mistakes", "What training sees", "Every epoch", "Settings",
    ]  # fmt: skip
    best = run.best_row()
    assert f"{100 * best['top1']:.2f}\N{NARROW NO-BREAK SPACE}%" in page.said
    assert "13.5 s" in content
    assert number(round(1438 / 4.5)) in page.said  # pictures a second
    # the matrix holds every picture of the validation, on the diagonal as many as top1 says
    counts = matrix(page)
    assert counts.sum() == 359
    assert np.trace(counts) / 359 == pytest.approx(best["top1"])
    wrong = 359 - np.trace(counts)
    assert page.count("img") == min(wrong, 24) + 24
    assert "average of the weights" in content
    assert not list(tmp_path.glob(".*.part"))


def test_worst_mistakes_are_the_ones(tmp_path):
    run = make_run(tmp_path, epochs=1)
    report = Report()
    go(run, report)
    losses, names = [], []
    for i, batch in enumerate(run.eval_loader):
        said = outputs_of(run, batch.images, batch.targets, 2.4, i)
        loss = nn.functional.cross_entropy(said, batch.targets, reduction="none")
        wrong = said.argmax(1) != batch.targets
        losses += loss[wrong].tolist()
        names += [run.eval_loader.dataset.reader.name(int(j)) for j in batch.indices[wrong]]
    order = np.argsort(losses)[::-1][:24]
    assert len(losses) > 24
    content = run.directory.report.read_text(encoding="utf-8")
    assert re.findall(r'class="file" title="([^"]+)"', content) == [names[i] for i in order]
    assert [one.loss for one in report.shown[0].worst()] == pytest.approx([losses[i] for i in order])


def test_several_labels(tmp_path):
    run = make_run(tmp_path, "multi", epochs=2)
    page = Page(content := go(run, Report()))
    check_alone(page)
    assert "Confusion matrix" not in page.heads
    assert "average precision" in page.said
    rows = content.split("average precision</button>")[1].split("</tbody>")[0].split("<tr>")[1:]
    aps = [float(re.findall(r'data-v="([\d.]+)"', row)[3]) for row in rows]
    assert len(aps) == 4
    assert aps == sorted(aps)
    assert np.mean(aps) == pytest.approx(run.best_row()["mAP"], abs=1e-5)


def test_numbers(tmp_path):
    run = make_run(tmp_path, "regression", epochs=2)
    content = go(run, Report())
    page = Page(content)
    check_alone(page)
    assert "Predictions" in page.heads
    assert "Class by class" not in page.heads
    points = content.split('class="points">')[1].split("</g>")[0]
    assert points.count("<circle") == 359
    assert number(run.best_row()["mae"]) in page.said


def test_names_are_only_text(tmp_path):
    classes = (HOSTILE, *"abcdefgh", "<img src=x onerror=alert(1)>")
    run = make_run(tmp_path, classes=classes)
    run.config.data.data = run.config.model.model = HOSTILE
    run.skipped["<b>\udcff.jpg"] = "</td><script>"
    page = Page(content := go(run, Report()))
    check_alone(page)
    assert page.count("script") == 1
    assert page.count("b") == content.count("<b>") + content.count("<b title")
    assert "\x00" not in content
    assert "Pictures that could not be read: 1" in page.heads
    assert html.escape(HOSTILE.replace("\x00", "\ufffd")) in content


def test_a_thousand_classes(tmp_path):
    classes = tuple(f"class number {i}, or one of its many other names" for i in range(1000))
    run = make_run(tmp_path, classes=classes, epochs=2)
    content = go(run, Report())
    page = Page(content)
    assert "Confusion matrix" not in page.heads
    assert "Most confused" in page.heads
    assert len(content) < 1_200_000
    table = content.split("<h2>Class by class</h2>")[1].split("</table>")[0]
    assert table.count("<tr>") == 1001


def test_the_report_follows_the_run(tmp_path):
    run = make_run(tmp_path, epochs=4, metric="ema_top1")
    report = Report()
    first = go(run, report, ema=True, until=2)
    assert "2 of 4" in first
    assert "Of the average of the weights after epoch 1 (the best)" in first
    row = run.history[1]
    assert np.trace(matrix(Page(first))) / 359 == pytest.approx(row["ema_top1"])
    assert row["ema_top1"] != row["top1"]
    # another process goes on, and shows what it has seen itself
    again = Report()
    best = run.best
    run.best = (0, 2.0)  # nothing will be better
    second = go(run, again, ema=True)
    assert "4 of 4" in second
    assert "Of the average of the weights after epoch 3, on 359 pictures" in second
    # a run that has ended keeps its report
    run.best = best
    assert go(run, Report(), ema=True) == second


class Stream(StreamReader):
    """Digits that cannot be asked for by number."""

    def __init__(self, reader):
        self.reader, self.classes, self.length = reader, reader.classes, len(reader)

    def stream(self, *, epoch=0, part=0, parts=1, shuffle=False, seed=0):
        return (self.reader[i] for i in range(part, self.length, parts))


def test_streams(tmp_path):
    run = make_run(tmp_path, epochs=1)
    reader = Stream(readers("single")[1])
    shared = {"batch_size": 48, "preprocess": FIT, "num_workers": 0}
    run.eval_loader = create_loader(create_dataset(reader, transform=EvalTransform(FIT)), **shared)
    run.train_loader = create_loader(create_dataset(reader, transform=TrainTransform((16, 16))), **shared)
    report = Report()
    page = Page(go(run, report))
    assert page.count("img") == 48
    one = report.shown[0].worst()[0]
    assert one.sample == -1
    shown = seen(one.pixels[None], FIT)[0]
    transform, rng = EvalTransform(FIT), np.random.default_rng(0)
    images = (transform(record.image, rng=rng) for record in reader.stream())
    assert any(np.array_equal(shown, image.permute(1, 2, 0)) for image in images)


def test_a_picture_that_went_away(tmp_path, monkeypatch):
    run = make_run(tmp_path, epochs=1)
    report = Report()
    go(run, report)

    def gone(self, index):
        raise ImageError(f"<{self.name(index)}> is gone")

    monkeypatch.setattr(type(run.eval_loader.dataset.reader), "__getitem__", gone)
    page = Page(mistakes(run, *report.shown))
    assert page.count("img") == 0
    assert sum(one.endswith("> is gone") for one in page.said) == 24


def test_versions_of_a_picture_stand_side_by_side(tmp_path):
    run = make_run(tmp_path, augment={"aug_splits": 3})
    run.train_loader = create_loader(
        create_dataset(readers("single")[0], transform=TrainTransform((16, 16), num_aug_splits=3)),
        batch_size=48, preprocess=FIT, num_workers=0, shuffle=True,
    )  # fmt: skip
    batch = first_pictures(run, 8)
    assert len(batch.images) == 24
    section = samples(run.task, batch, FIT, splits=3)
    labels = re.findall(r"<bdi>(\d)</bdi>", section)
    names = [run.task.classes[int(target)] for target in batch.targets[:8]]
    assert labels == [name for name in names for _ in range(3)]


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_outputs_that_are_no_numbers(tmp_path, kind):
    run = make_run(tmp_path, kind, epochs=1)
    go(run, Report())
    judged = Judged(run.task, 0)
    for batch in run.eval_loader:
        outputs = torch.full((len(batch.images), run.task.outputs), float("nan"))
        judged.add(batch, *run.task.parts(outputs, run.task.prepare(batch.targets)))
    Page(scores(run, judged) + mistakes(run, judged))


def test_a_full_disk_leaves_the_old_report(tmp_path, monkeypatch):
    run = make_run(tmp_path, epochs=1)
    report = Report()
    old = go(run, report)

    def full(path, content, **how):
        path.write_bytes(content[:100].encode())
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "write_text", full)
        with pytest.raises(OpsinError, match="No space left on device"):
            report.on_end(run)
    assert run.directory.report.read_text(encoding="utf-8") == old
    assert not list(tmp_path.glob(".*.part"))


def test_the_loader_is_left_where_it_stands(tmp_path):
    run = make_run(tmp_path)
    before, state = run.train_loader.state_dict(), torch.get_rng_state()
    Report().on_start(run)
    assert run.train_loader.state_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


# --- parts ----------------------------------------------------------------------------------------------------------


def test_lines_are_thinned_by_means():
    long = thinned(Series("x", range(1000), [1.0, 3.0] * 500, "train"))
    assert len(long.xs) <= 400
    assert np.mean(long.ys) == pytest.approx(2.0, abs=0.01)
    assert thinned(Series("x", [0, 1, 2], [1.0, float("nan"), 2.0], "train")).ys == [1.0, 2.0]
    assert line_chart([Series("x", [], [], "train")], x_name="epoch") == ""
    assert "circle" in line_chart([Series("x", [1.0], [0.5], "train")], x_name="epoch")


def test_ticks_are_round():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.5, 3, whole=True) == [1, 2, 3]
    assert ticks(1e-6, 1e-3) == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])


def test_words_for_numbers():
    assert duration(12.345) == "12.3 s"
    assert duration(59.99) == "60 s"
    assert duration(185) == "3 min 05 s"
    assert duration(3 * 3600 + 125) == "3 h 02 min"
    assert number(1234567) == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"
    assert number(0.123456) == "0.1235"
    assert text("a\udcff<") == "a\\udcff&lt;"


def test_pictures_are_small():
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    assert len(picture(noise, "")) < 30_000
    assert "image/png" in picture(noise[:8, :8, :1], "")
    for channels in (1, 2, 3, 4, 7):
        assert picture(np.zeros((64, 64, channels), np.uint8), "x").startswith("<img src")


# --- a browser ------------------------------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PROBE = """<script>
addEventListener("load", () => {
  const part = [...document.querySelectorAll("section")].find(one => one.innerText.startsWith("Class by class"));
  const table = part.querySelector("table");
  const column = () => [...table.tBodies[0].rows].map(row => row.cells[1].textContent).join(",");
  const before = column();
  table.tHead.rows[0].cells[1].click();
  const chart = document.querySelector(".chart");
  const box = chart.getBoundingClientRect();
  chart.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width / 2, clientY: box.top + 50 }));
  document.title = JSON.stringify({ before, after: column(), told: chart.querySelector(".told").textContent,
    wide: document.documentElement.scrollWidth - innerWidth });
});
</script>"""


@pytest.mark.parametrize("width", [1200, 420])
def test_in_a_browser(tmp_path, width):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        assert "CI" not in os.environ, "a run that decides opens the page"
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    run = make_run(tmp_path, classes=tuple(f"a rather long name of the class {i}" for i in range(10)))
    page = tmp_path / "probe.html"
    page.write_text(go(run, Report()) + PROBE, encoding="utf-8")
    made = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = html.unescape(re.search(r"<title>(.*?)</title>", made.stdout, re.S)[1])
    found = json.loads(title)
    assert found["before"] != found["after"]
    counts = [int(one) for one in found["after"].split(",")]
    assert counts == sorted(counts)
    assert re.match(r"epochs done [\d.]+\neach step [\d.]+\ntraining [\d.]+\nvalidation [\d.]+", found["told"])
    assert found["wide"] <= 0  # the page itself never scrolls sideways
