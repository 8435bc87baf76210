"""`timm.loss`: opsin's losses with the arguments of timm's."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin import loss
from opsin.errors import OpsinError, check_choice
from opsin.loss.classification import as_shares

__all__ = [
    "AsymmetricLossMultiLabel",
    "AsymmetricLossSingleLabel",
    "BinaryCrossEntropy",
    "JsdCrossEntropy",
    "LabelSmoothingCrossEntropy",
    "PolyBinaryCrossEntropy",
    "PolyCrossEntropy",
    "SoftTargetCrossEntropy",
    "TwoWayLoss",
    "ZlprLoss",
]

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "none": lambda each: each,
    "batchmean": lambda each: each.sum() / len(each),
}


def _reduced(each: Tensor, reduction: str) -> Tensor:
    check_choice(reduction, REDUCTIONS, what="reduction")
    return REDUCTIONS[reduction](each)


class LabelSmoothingCrossEntropy(loss.CrossEntropy):
    """For classes (B,)."""

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__(smoothing)


class SoftTargetCrossEntropy(nn.Module):
    """For shares of the classes, which are the last dimension."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return -(target * x.log_softmax(-1)).sum(-1).mean()


class JsdCrossEntropy(loss.JsdLoss):
    """The divergence belongs to it in evaluation, too."""

    def __init__(self, num_splits: int = 3, alpha: float = 12, smoothing: float = 0.1) -> None:
        super().__init__(num_splits, alpha, smoothing)

    def train(self, mode: bool = True) -> "JsdCrossEntropy":
        super().train(True)
        return self


class BinaryCrossEntropy(nn.Module):
    """`smooth_dense` smooths targets (B, K) as well, halfway between yes and no; else only classes are smoothed."""

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        smoothing: float = 0.1,
        target_threshold: float | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        sum_classes: bool = False,
        pos_weight: Tensor | float | None = None,
        smooth_dense: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise OpsinError(f"smoothing must be from 0 to below 1, not {smoothing}")
        check_choice(reduction, [name for name in REDUCTIONS if name != "batchmean"], what="reduction")
        self.smoothing, self.target_threshold, self.smooth_dense = smoothing, target_threshold, smooth_dense
        self.reduction = "none" if sum_classes else reduction
        self.sum_classes = sum_classes
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", None if pos_weight is None else torch.as_tensor(pos_weight))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        s, k = self.smoothing, x.shape[-1]
        if target.ndim == 1:
            target = as_shares(target, k, on=1 - s + s / k, off=s / k)
        elif self.smooth_dense:
            target = target * (1 - s) + s / 2
        if self.target_threshold is not None:
            target = target > self.target_threshold
        each = F.binary_cross_entropy_with_logits(
            x, target.to(x.dtype), self.weight, pos_weight=self.pos_weight, reduction="none"
        )
        return each.sum(-1).mean() if self.sum_classes else _reduced(each, self.reduction)


class PolyCrossEntropy(nn.Module):
    """Poly-1 (https://arxiv.org/abs/2204.12511) for classes (B,), which are smoothed, or shares (B, K)."""

    def __init__(self, epsilon: float = 2.0, smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        check_choice(reduction, [name for name in REDUCTIONS if name != "batchmean"], what="reduction")
        self.epsilon, self.smoothing, self.reduction = epsilon, smoothing, reduction

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        off = self.smoothing / x.shape[1]
        shares = as_shares(target, x.shape[1], on=1 - self.smoothing + off, off=off)
        log_p = x.log_softmax(1)
        each = -(shares * log_p).sum(1) + self.epsilon * (1 - (shares * log_p.exp()).sum(1))
        return _reduced(each, self.reduction)


class PolyBinaryCrossEntropy(nn.Module):
    """Poly-1 of each class by itself, on focal loss where `gamma` or `alpha` say so."""

    def __init__(
        self,
        epsilon: float = 2.0,
        gamma: float = 0.0,
        alpha: float | None = None,
        smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_choice(reduction, REDUCTIONS, what="reduction")
        self.epsilon, self.gamma, self.alpha = epsilon, gamma, alpha
        self.smoothing, self.reduction = smoothing, reduction

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        soft = target.to(x.dtype) * (1 - self.smoothing) + self.smoothing / 2
        p = x.sigmoid()
        missing = 1 - (soft * p + (1 - soft) * (1 - p))
        each = missing**self.gamma * F.binary_cross_entropy_with_logits(x, soft, reduction="none")
        each = each + self.epsilon * missing ** (self.gamma + 1)
        if self.alpha is not None:
            each = each * (self.alpha * soft + (1 - self.alpha) * (1 - soft))
        return _reduced(each, self.reduction)


class AsymmetricLossMultiLabel(loss.AsymmetricLoss):
    """For several labels (B, K). `disable_torch_grad_focal_loss`: no gradient through the focusing."""

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        gamma_neg: float = 4,
        gamma_pos: float = 1,
        clip: float | None = 0.05,
        eps: float = 1e-8,
        disable_torch_grad_focal_loss: bool = False,
        smoothing: float = 0.0,
        reduction: str = "batchmean",
        weight: Tensor | None = None,
        pos_weight: Tensor | float | None = None,
    ) -> None:
        check_choice(reduction, REDUCTIONS, what="reduction")
        focus = not disable_torch_grad_focal_loss
        super().__init__(gamma_neg, gamma_pos, clip or 0.0, smoothing=smoothing, focus_grad=focus)
        self.eps, self.reduction = eps, reduction
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", None if pos_weight is None else torch.as_tensor(pos_weight))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        each = self.several(x, y.to(x.dtype), self.pos_weight)
        return _reduced(each if self.weight is None else each * self.weight, self.reduction)


class AsymmetricLossSingleLabel(loss.AsymmetricLoss):
    """For classes (B,); `eps` is the smoothing. Any `reduction` but "mean" gives the loss of each sample."""

    def __init__(self, gamma_pos: float = 1, gamma_neg: float = 4, eps: float = 0.1, reduction: str = "mean") -> None:
        super().__init__(gamma_neg, gamma_pos, single_label=True, smoothing=eps, focus_grad=True)
        self.reduction = reduction

    def forward(self, inputs: Tensor, target: Tensor, reduction: str | None = None) -> Tensor:
        each = self.single(inputs, as_shares(target, inputs.shape[1]))
        return each.mean() if (reduction or self.reduction) == "mean" else each


class ZlprLoss(nn.Module):
    """Zero-bounded log-sum-exp and pairwise ranks (https://arxiv.org/abs/2208.02955): all labels above 0, all others
    below."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        zero = x.new_zeros(len(x), 1)
        far = torch.finfo(x.dtype).min
        above = torch.cat([(-x).masked_fill(y < 0.5, far), zero], 1).logsumexp(1)
        below = torch.cat([x.masked_fill(y > 0.5, far), zero], 1).logsumexp(1)
        return (above + below).mean()


class TwoWayLoss(nn.Module):
    """Two-way multi-label loss (Kobayashi, CVPR 2023): labels above the others in each sample, and samples that have a
    label above those without in each class."""

    def __init__(self, tp: float = 4.0, tn: float = 1.0) -> None:
        super().__init__()
        self.tp, self.tn = tp, tn

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self._ranked(x, y, 1) + self._ranked(x, y, 0)

    def _ranked(self, x: Tensor, y: Tensor, dim: int) -> Tensor:
        yes = y > 0.5
        there = yes.any(dim)
        above = self.tp * (-x / self.tp).masked_fill(~yes, -torch.inf).logsumexp(dim)
        below = self.tn * (x / self.tn).masked_fill(yes, -torch.inf).logsumexp(dim)
        return F.softplus((above + below)[there]).sum() / there.sum().clamp(min=1)
