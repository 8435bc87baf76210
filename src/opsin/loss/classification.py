"""Losses over classes. All take logits (B, K); targets are classes (B,) or what each class has of the sample (B, K)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import OpsinError

__all__ = ["AsymmetricLoss", "BinaryCrossEntropy", "CrossEntropy", "FocalLoss", "JsdLoss", "PolyLoss", "as_shares"]


def as_shares(targets: Tensor, num_classes: int, *, on: float = 1.0, off: float = 0.0) -> Tensor:
    """Targets (B, K): classes become `on` at their place and `off` elsewhere; what is (B, K) already stays."""
    if targets.ndim == 2:
        return targets.float()
    shares = torch.full((len(targets), num_classes), off, device=targets.device)
    return shares.scatter_(1, targets[:, None], on)


class _Weighted(nn.Module):
    """Keeps class weights on the device, out of the state."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)


class CrossEntropy(_Weighted):
    """Cross entropy, with `smoothing` of the targets (https://arxiv.org/abs/1512.00567) and class weights (K,).

    Targets of shares sum to 1 a sample. A weighted mean is over the weights of the targets' classes.
    """

    def __init__(self, smoothing: float = 0.0, weight: Tensor | None = None) -> None:
        super().__init__(weight)
        if not 0 <= smoothing < 1:
            raise OpsinError(f"smoothing must be from 0 to below 1, not {smoothing}")
        self.smoothing = smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1:
            return F.cross_entropy(logits, targets, self.weight, label_smoothing=self.smoothing)
        shares = targets * (1 - self.smoothing) + self.smoothing / logits.shape[1] if self.smoothing else targets
        if self.weight is None:
            return -(shares * logits.log_softmax(1)).sum(1).mean()
        return -(shares * self.weight * logits.log_softmax(1)).sum() / (targets * self.weight).sum()


class BinaryCrossEntropy(_Weighted):
    """Binary cross entropy of each class by itself, as in ResNet strikes back (https://arxiv.org/abs/2110.00476).

    Args:
        smoothing: moves the target of a class towards 1 / K; of several labels, halfway between yes and no.
        target_threshold: targets above it count as 1, the others as 0.
        sum_classes: sum over the classes instead of their mean.
        pos_weight: weight of each class's positives.
        weight: of the classes.
        multi_label: targets are several labels.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        smoothing: float = 0.0,
        *,
        target_threshold: float | None = None,
        sum_classes: bool = False,
        pos_weight: Tensor | float | None = None,
        weight: Tensor | None = None,
        multi_label: bool = False,
    ) -> None:
        super().__init__(weight)
        if not 0 <= smoothing < 1:
            raise OpsinError(f"smoothing must be from 0 to below 1, not {smoothing}")
        self.smoothing, self.target_threshold = smoothing, target_threshold
        self.sum_classes, self.multi_label = sum_classes, multi_label
        self.register_buffer(
            "pos_weight", None if pos_weight is None else torch.as_tensor(pos_weight), persistent=False
        )

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        k = logits.shape[1]
        off = self.smoothing / k
        if targets.ndim == 1:
            shares = as_shares(targets, k, on=1 - self.smoothing + off, off=off)
        elif self.multi_label:
            shares = targets * (1 - self.smoothing) + self.smoothing / 2
        else:
            shares = targets * (1 - self.smoothing) + off if self.smoothing else targets.float()
        if self.target_threshold is not None:
            shares = (shares > self.target_threshold).to(logits.dtype)
        each = F.binary_cross_entropy_with_logits(
            logits, shares, self.weight, pos_weight=self.pos_weight, reduction="none"
        )
        return each.sum(1).mean() if self.sum_classes else each.mean()


class FocalLoss(nn.Module):
    """Focal loss (https://arxiv.org/abs/1708.02002): binary cross entropy of each class, less for what is easy already.

    `alpha` weighs positives, 1 - `alpha` negatives; None neither. Summed over classes.
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = 0.25, smoothing: float = 0.0) -> None:
        super().__init__()
        self.gamma, self.alpha, self.smoothing = gamma, alpha, smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        shares = as_shares(targets, logits.shape[1])
        if self.smoothing:
            shares = shares * (1 - self.smoothing) + self.smoothing / 2
        p = logits.sigmoid()
        missed = (shares - p).abs()  # 1 - p for a positive, p for a negative
        loss = missed**self.gamma * F.binary_cross_entropy_with_logits(logits, shares, reduction="none")
        if self.alpha is not None:
            loss = loss * (self.alpha * shares + (1 - self.alpha) * (1 - shares))
        return loss.sum(1).mean()


class PolyLoss(nn.Module):
    """Poly-1 (https://arxiv.org/abs/2204.12511): cross entropy plus `epsilon` times what is missing to certainty."""

    def __init__(self, epsilon: float = 1.0, smoothing: float = 0.0, weight: Tensor | None = None) -> None:
        super().__init__()
        self.epsilon, self.entropy = epsilon, CrossEntropy(smoothing, weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        shares = as_shares(targets, logits.shape[1])
        if s := self.entropy.smoothing:
            shares = shares * (1 - s) + s / logits.shape[1]
        missing = 1 - (shares * logits.softmax(1)).sum(1)
        return self.entropy(logits, targets) + self.epsilon * missing.mean()


class AsymmetricLoss(nn.Module):
    """Asymmetric loss (https://arxiv.org/abs/2009.14119): easy negatives count less than easy positives.

    Args:
        gamma_neg, gamma_pos: focusing of negatives and positives.
        clip: shift of the negatives' probability, below which they count nothing; for several labels.
        single_label: one class a sample, over a softmax, as in the paper's appendix.
        smoothing: of the targets.
        focus_grad: let the gradient flow through the focusing, too.
    """

    eps = 1e-8  # least probability that a logarithm is taken of

    def __init__(
        self,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
        *,
        single_label: bool = False,
        smoothing: float = 0.0,
        focus_grad: bool = False,
    ) -> None:
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip
        self.single_label, self.smoothing, self.focus_grad = single_label, smoothing, focus_grad

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        shares = as_shares(targets, logits.shape[1])
        return (self.single(logits, shares) if self.single_label else self.several(logits, shares).sum(1)).mean()

    def single(self, logits: Tensor, shares: Tensor) -> Tensor:
        """The loss of each sample (B,)."""
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        far = torch.where(shares > 0.5, 1 - p, p)
        focus = far ** torch.where(shares > 0.5, self.gamma_pos, self.gamma_neg)
        smooth = shares * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        return -(smooth * (focus if self.focus_grad else focus.detach()) * log_p).sum(1)

    def several(self, logits: Tensor, shares: Tensor, pos_weight: Tensor | None = None) -> Tensor:
        """The loss of each label (B, K); `pos_weight` is a weight of positives."""
        shares = shares * (1 - self.smoothing) + self.smoothing / 2 if self.smoothing else shares
        yes = logits.sigmoid()
        no = (1 - yes + self.clip).clamp_max(1)
        right = shares if pos_weight is None else shares * pos_weight
        loss = right * yes.clamp_min(self.eps).log() + (1 - shares) * no.clamp_min(self.eps).log()
        sure = yes * shares + no * (1 - shares)
        with torch.set_grad_enabled(self.focus_grad and torch.is_grad_enabled()):
            focus = (1 - sure) ** (self.gamma_pos * shares + self.gamma_neg * (1 - shares))
        return -(loss * focus)


class JsdLoss(nn.Module):
    """Cross entropy of the clean part of a batch plus the Jensen-Shannon divergence between its splits (AugMix,
    https://arxiv.org/abs/1912.02781). The batch holds one split after the other, the clean one first."""

    def __init__(
        self, num_splits: int = 3, alpha: float = 12.0, smoothing: float = 0.1, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        if num_splits < 2:
            raise OpsinError(f"the jsd loss compares at least 2 splits, not {num_splits}")
        self.num_splits, self.alpha, self.entropy = num_splits, alpha, CrossEntropy(smoothing, weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if len(logits) % self.num_splits:
            raise OpsinError(f"a batch of {len(logits)} does not hold {self.num_splits} splits of equal size")
        size = len(logits) // self.num_splits
        entropy = self.entropy(logits[:size], targets[:size])
        if not self.training:
            return entropy
        parts = torch.stack([part.softmax(1) for part in logits.split(size)])
        middle = parts.mean(0).clamp(1e-7, 1).log()
        divergence = sum(F.kl_div(middle, part, reduction="batchmean") for part in parts) / self.num_splits
        return entropy + self.alpha * divergence
