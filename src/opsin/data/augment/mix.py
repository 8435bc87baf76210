"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch, with soft targets.

A picture's partner is the one at the same place from the end of the batch. Mixup averages the two, CutMix lays a
rectangle of the partner over the picture; the targets are averaged in the same proportion.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from opsin.data.augment.chance import host_rng
from opsin.errors import OpsinError, check_choice

__all__ = ["Mix", "soft_targets"]

MODES = ("batch", "pair", "elem", "half")


class Draw(NamedTuple):
    """How one picture is mixed: the share of its own in the target, and of the pixels as well unless there is a box."""

    lam: float = 1.0
    box: tuple[slice, slice] | None = None  # rows and columns that come from the partner


class Mix:
    """Mixup and CutMix. A batch may have any size; in one of odd size the middle picture is its own partner.

    Args:
        mixup_alpha: concentration of the Beta distribution of Mixup's proportion; 0 is no Mixup.
        cutmix_alpha: the same of CutMix; 0 is no CutMix.
        cutmix_minmax: least and greatest side of CutMix's rectangle as a share of the picture's. It turns CutMix on
            and takes the place of `cutmix_alpha`.
        prob: how often there is any mixing.
        switch_prob: how often it is CutMix where both are on.
        mode: what shares a proportion and rectangle: the whole batch (`batch`), a picture and its partner (`pair`), or
            each has its own (`elem`). `half` is `elem`, of which the first half of the batch is returned: each picture
            is then used once.
        correct_lam: take the proportion from the rectangle as it was cut off at the picture's edge.
        label_smoothing: moved from the target to all classes evenly.
        num_classes: columns of the targets.
        multi_label: targets are several independent labels a picture (B, num_classes): smoothing then moves each of
            them towards one half.
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        *,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
    ) -> None:
        check_choice(mode, MODES, what="mixing mode")
        for name, value in (("prob", prob), ("switch_prob", switch_prob), ("label_smoothing", label_smoothing)):
            if not 0 <= value <= 1:
                raise OpsinError(f"{name} must be from 0 to 1, not {value}")
        if cutmix_minmax is not None:
            if len(cutmix_minmax) != 2 or not 0 <= cutmix_minmax[0] <= cutmix_minmax[1] <= 1:
                raise OpsinError(f"cutmix_minmax must be two shares 0 <= min <= max <= 1, not {cutmix_minmax}")
            cutmix_alpha = 1.0
        if min(mixup_alpha, cutmix_alpha) < 0 or max(mixup_alpha, cutmix_alpha) == 0:
            raise OpsinError("mixup_alpha and cutmix_alpha must not be negative, and one of them above 0")
        self.mixup_alpha, self.cutmix_alpha, self.cutmix_minmax = mixup_alpha, cutmix_alpha, cutmix_minmax
        self.prob, self.switch_prob, self.mode, self.correct_lam = prob, switch_prob, mode, correct_lam
        self.label_smoothing, self.num_classes, self.multi_label = label_smoothing, num_classes, multi_label

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix floats (B, C, H, W) and targets, classes (B,) or one row a picture (B, num_classes); neither is changed.

        Returns:
            The images (B, C, H, W) and float32 targets (B, num_classes); ((B + 1) // 2 of each in mode `half`).
        """
        if images.ndim != 4 or not images.is_floating_point() or len(images) != len(targets):
            raise OpsinError(
                f"expected floats (B, C, H, W) and B targets, got {tuple(images.shape)} {images.dtype} "
                f"and {tuple(targets.shape)}"
            )
        rows = soft_targets(targets, self.num_classes, smoothing=self.label_smoothing, multi_label=self.multi_label)
        draws = self._draw(len(images), images.shape[2], images.shape[3], host_rng(generator))
        lam = torch.tensor([draw.lam for draw in draws], device=rows.device)[:, None]
        own = rows[: len(draws)]
        mixed = torch.lerp(rows.flip(0)[: len(draws)], own, lam)
        # what is not mixed keeps its target even if its partner has none (NaN)
        return _mix_images(images, draws), torch.where(lam == 1, own, mixed)

    def _draw(self, batch: int, height: int, width: int, rng: np.random.Generator) -> list[Draw]:
        """How each picture is mixed."""
        half = batch // 2
        if self.mode == "batch":
            return [self._draw_one(height, width, rng)] * batch
        if self.mode == "pair":
            first = [self._draw_one(height, width, rng) for _ in range(half)]
            return first + [Draw()] * (batch % 2) + first[::-1]
        return [self._draw_one(height, width, rng) for _ in range(batch - half if self.mode == "half" else batch)]

    def _draw_one(self, height: int, width: int, rng: np.random.Generator) -> Draw:
        if rng.random() >= self.prob:
            return Draw()
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        cut = rng.random() < self.switch_prob if both else self.cutmix_alpha > 0
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        lam = float(rng.beta(alpha, alpha))
        if not cut:
            return Draw(lam)
        if self.cutmix_minmax is not None:
            rows, columns = (_side_within(self.cutmix_minmax, side, rng) for side in (height, width))
        else:
            rows, columns = (_side_about_centre(math.sqrt(1 - lam), side, rng) for side in (height, width))
        if self.correct_lam or self.cutmix_minmax is not None:
            lam = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return Draw(lam, (rows, columns))


def soft_targets(targets: Tensor, num_classes: int, *, smoothing: float = 0.0, multi_label: bool = False) -> Tensor:
    """Targets as float32 rows (B, num_classes), smoothed.

    `targets` are classes (B,) or rows (B, num_classes). Smoothing moves its share to all classes evenly; with
    `multi_label` every entry is a yes or no of its own and moves towards one half.
    """
    if targets.ndim == 1 and not targets.is_floating_point() and not multi_label:
        if targets.device.type == "cpu" and len(targets):  # to look at them elsewhere is to wait for the device
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= num_classes:
                raise OpsinError(f"targets from {low} to {high}, but classes are 0 to {num_classes - 1}")
        targets = one_hot(targets.long(), num_classes)
    if targets.ndim != 2 or targets.shape[1] != num_classes:
        wanted = f"(B, {num_classes})" if multi_label else f"classes (B,) or rows (B, {num_classes})"
        raise OpsinError(f"targets must be {wanted}, not {tuple(targets.shape)} {targets.dtype}")
    return targets.float() * (1 - smoothing) + smoothing / (2 if multi_label else num_classes)


def _mix_images(images: Tensor, draws: Sequence[Draw]) -> Tensor:
    own, box = images[: len(draws)], draws[0].box if draws else None
    if box is not None and all(draw is draws[0] for draw in draws):  # only what is in the box is touched
        mixed = own.clone()
        mixed[:, :, *box] = images[:, :, *box].flip(0)[: len(draws)]
        return mixed
    if all(draw.box is not None for draw in draws):
        mixed = own.clone()
    else:
        shares = torch.tensor([draw.lam if draw.box is None else 1.0 for draw in draws], dtype=images.dtype)
        mixed = images.flip(0)[: len(draws)].lerp_(own, shares[:, None, None, None].to(images.device))
    for i, draw in enumerate(draws):
        if draw.box is not None:
            mixed[i, :, *draw.box] = images[-1 - i, :, *draw.box]
    return mixed


def _side_about_centre(share: float, side: int, rng: np.random.Generator) -> slice:
    """`share` of a side about a centre drawn evenly from it, cut off at the ends."""
    length = int(side * share)
    start = int(rng.integers(side)) - length // 2
    return slice(max(start, 0), min(start + length, side))


def _side_within(shares: Sequence[float], side: int, rng: np.random.Generator) -> slice:
    """A stretch of a side with a length between two shares of it, anywhere in it."""
    low, high = (int(side * share) for share in shares)
    length = int(rng.integers(low, max(high, low + 1)))
    start = int(rng.integers(side - length, endpoint=True))
    return slice(start, start + length)
