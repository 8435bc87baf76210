"""Which split of a dataset is meant, and a stratified one where a dataset is not divided.

With several labels a sample the rarest label goes first, after Sechidis et al., "On the Stratification of Multi-Label
Data" (2011).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from opsin.errors import OpsinError, did_you_mean

__all__ = ["SPLIT_NAMES", "find_split", "split_kind", "stratified_split"]

SPLIT_NAMES = {
    "train": ("train", "training", "trainval", "train-standard"),
    "validation": ("validation", "val", "valid", "eval", "evaluation", "dev"),
    "test": ("test", "testing"),
}
_KINDS = {name: kind for kind, names in SPLIT_NAMES.items() for name in names}


def split_kind(name: str) -> str | None:
    """ "train", "validation" or "test" for any of the names they go by; None for other names."""
    return _KINDS.get(name.strip().lower())


def find_split(wanted: str | None, available: Iterable[str], *, owner: str) -> tuple[str | None, str | None]:
    """Which of a dataset's splits to read, and which part of it to take, "train" or "validation", None for all of it.

    Args:
        wanted: a split of the dataset by its own name, or one of `SPLIT_NAMES`. "validation" is the test split where
            there is no other; where there is none either, a part of the training split. None is the one split of an
            undivided dataset.
        available: the names of the dataset's splits; none if it is not divided.
        owner: the dataset, for messages.

    Raises:
        OpsinError: no such split, or None where there are several.
    """
    available = list(available)
    listed = ", ".join(available)
    if wanted is None:
        if len(available) > 1:
            raise OpsinError(f"{owner} is divided into {listed}: say which with split={available[0]!r}")
        return (available[0] if available else None), None
    kind = split_kind(wanted)
    if not available:
        if kind in ("train", "validation"):
            return None, kind
        raise OpsinError(f'{owner} is not divided, so it has no split {wanted!r}; "train" and "validation" are cut out')
    kinds = {split_kind(name): name for name in reversed(available)}
    if kind == "train" and "train" in kinds:
        return kinds["train"], None if kinds.keys() & {"validation", "test"} else "train"
    if wanted in available:
        return wanted, None
    if kind in kinds and kind is not None:
        return kinds[kind], None
    if kind == "validation" and "test" in kinds:
        return kinds["test"], None
    if kind == "validation" and "train" in kinds:
        return kinds["train"], "validation"
    raise OpsinError(f"{owner} has no split {wanted!r}, but {listed}.{did_you_mean(wanted, available)}")


def stratified_split(
    targets: np.ndarray | Sequence[tuple[int, ...]] | int, *, fraction: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples in two so that both parts have about the same distribution of targets.

    Args:
        targets: classes, int (N,); values, float (N,) or (N, K); a tuple of classes per sample; or, for samples without
            labels, how many there are.
        fraction: of the samples that goes to the second part, between 0 and 1. A class of two samples or more has
            samples in both parts; for several labels a sample as far as the others allow it. A class of one sample
            stays in the first.
        seed: the same one gives the same division.

    Returns:
        The sorted indices of the first part and of the second.

    Raises:
        OpsinError: a fraction that leaves a part empty.
    """
    if not 0 < fraction < 1:
        raise OpsinError(f"the fraction held out must lie between 0 and 1, not {fraction}")
    rng = np.random.default_rng(seed)
    if isinstance(targets, int):
        held = _from_blocks(rng.permutation(targets), fraction, rng)
    elif not isinstance(targets, np.ndarray):
        held = _by_labels(targets, fraction, rng)
    elif targets.dtype.kind in "iu":
        held = _by_class(targets, fraction, rng)
    else:
        spread = targets.reshape(len(targets), -1)
        spread = (spread - spread.mean(0)) / np.where(spread.std(0) > 0, spread.std(0), 1)
        held = _from_blocks(np.argsort(spread.sum(1), kind="stable"), fraction, rng)
    count = targets if isinstance(targets, int) else len(targets)
    mask = np.zeros(count, dtype=bool)
    mask[held] = True
    if not mask.any() or mask.all():
        raise OpsinError(f"{count} samples cannot be divided with {fraction:g} of them held out: a part is empty")
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def _wanted(count: int, fraction: float) -> int:
    """How many of `count` to hold out: at least one, and not all, where there are two."""
    return min(max(round(count * fraction), 1), count - 1)


def _by_class(targets: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(targets[order])) + 1)
    sizes = np.array([len(group) for group in groups])
    wanted = np.minimum(np.maximum(np.floor(sizes * fraction).astype(np.int64), 1), sizes - 1)
    # what rounding down left over goes where most of a sample was lost, so that the whole fraction is right
    room = np.flatnonzero((wanted < sizes * fraction) & (wanted < sizes - 1))
    room = room[np.argsort(wanted[room] - sizes[room] * fraction, kind="stable")]
    wanted[room[: max(round(len(targets) * fraction) - wanted.sum(), 0)]] += 1
    return np.concatenate([group[:count] for group, count in zip(groups, wanted, strict=True)])


def _from_blocks(order: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """One sample of each of equal stretches of an ordering."""
    if len(order) < 2:
        return order[:0]
    edges = np.linspace(0, len(order), _wanted(len(order), fraction) + 1)
    return order[np.floor(rng.uniform(edges[:-1], edges[1:])).astype(np.int64)]


def _by_labels(rows: Sequence[tuple[int, ...]], fraction: float, rng: np.random.Generator) -> np.ndarray:
    owners: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        for label in set(row) or {-1}:  # samples without a label are a class of their own
            owners.setdefault(label, []).append(index)
    held = np.zeros(len(rows), dtype=bool)
    settled = np.zeros(len(rows), dtype=bool)
    groups = {label: np.array(members) for label, members in owners.items()}
    for members in sorted(groups.values(), key=lambda members: (len(members), members[0])):
        free = rng.permutation(members[~settled[members]])
        missing = max(_wanted(len(members), fraction) - int(held[members].sum()), 0)
        held[free[:missing]] = True
        settled[members] = True
    counts = {label: [len(m) - int(held[m].sum()), int(held[m].sum())] for label, m in groups.items()}
    for label, members in groups.items():  # a label that the others pushed to one side, moved where no other is lost
        for index in members if len(members) > 1 and 0 in counts[label] else ():
            side = int(held[index])
            if all(counts[other][side] > 1 for other in set(rows[index]) or {-1}):
                for other in set(rows[index]) or {-1}:
                    counts[other][side] -= 1
                    counts[other][1 - side] += 1
                held[index] = not held[index]
                break
    return np.flatnonzero(held)
