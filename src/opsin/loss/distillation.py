"""Learning from a teacher: its logits, its features, or by a token of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import OpsinError
from opsin.loss.classification import CrossEntropy

__all__ = ["FeatureDistillation", "LogitDistillation", "TokenDistillation"]


def _check(alpha: float, temperature: float) -> None:
    if not 0 <= alpha <= 1 or temperature <= 0:
        raise OpsinError(f"alpha is from 0 to 1 and temperature above 0, not {alpha} and {temperature}")


def _from_teacher(student: Tensor, teacher: Tensor, temperature: float, hard: bool, multi_label: bool) -> Tensor:
    t = temperature
    if multi_label:
        if hard:
            return F.binary_cross_entropy_with_logits(student, (teacher > 0).to(student.dtype))
        return F.binary_cross_entropy_with_logits(student / t, (teacher / t).sigmoid()) * t * t
    if hard:
        return F.cross_entropy(student, teacher.argmax(1))
    divergence = F.kl_div(
        (student / t).log_softmax(1), (teacher / t).log_softmax(1), log_target=True, reduction="batchmean"
    )
    return divergence * t * t  # keeps the size of the gradients


class LogitDistillation(nn.Module):
    """Between `loss` of the targets and the teacher's softened logits (https://arxiv.org/abs/1503.02531).

    Args:
        loss: of (logits, targets); by default cross entropy.
        alpha: the teacher's share.
        temperature: by which both logits are softened.
        hard: the teacher's best class as the target instead.
        multi_label: several labels may hold at once: what the teacher says of each class by itself is learnt, by
            binary cross entropy, and its `hard` targets are the classes that it finds more likely than not.

    Called with (student logits, targets, teacher logits).
    """

    def __init__(
        self,
        loss: nn.Module | None = None,
        *,
        alpha: float = 0.5,
        temperature: float = 3.0,
        hard: bool = False,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        _check(alpha, temperature)
        self.loss, self.alpha, self.temperature, self.hard = loss or CrossEntropy(), alpha, temperature, hard
        self.multi_label = multi_label

    def forward(self, logits: Tensor, targets: Tensor, teacher: Tensor) -> Tensor:
        learnt = _from_teacher(logits, teacher.detach(), self.temperature, self.hard, self.multi_label)
        return (1 - self.alpha) * self.loss(logits, targets) + self.alpha * learnt


class TokenDistillation(nn.Module):
    """DeiT's (https://arxiv.org/abs/2012.12877): the class token learns the targets, the other one the teacher.

    Called with ((class logits, distillation logits), targets, teacher logits). Arguments as `LogitDistillation`.
    """

    def __init__(
        self,
        loss: nn.Module | None = None,
        *,
        alpha: float = 0.5,
        temperature: float = 1.0,
        hard: bool = True,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        _check(alpha, temperature)
        self.loss, self.alpha, self.temperature, self.hard = loss or CrossEntropy(), alpha, temperature, hard
        self.multi_label = multi_label

    def forward(self, logits: tuple[Tensor, Tensor], targets: Tensor, teacher: Tensor) -> Tensor:
        if not isinstance(logits, tuple) or len(logits) != 2:
            raise OpsinError("token distillation needs a model with a distillation token, in training mode")
        learnt = _from_teacher(logits[1], teacher.detach(), self.temperature, self.hard, self.multi_label)
        return (1 - self.alpha) * self.loss(logits[0], targets) + self.alpha * learnt


class FeatureDistillation(nn.Module):
    """Feature maps or vectors as the teacher's (https://arxiv.org/abs/1412.6550): a linear layer takes the student's
    channels to the teacher's, maps are resized, and both are normalised over channels.

    Args:
        student_chs, teacher_chs: channels of each pair of features.

    Called with (student features, teacher features), lists of (B, C, H, W) or (B, C): the squared distance, from 0 to 4
    whatever the number of channels, as a mean over places and features.
    """

    def __init__(self, student_chs: list[int], teacher_chs: list[int]) -> None:
        super().__init__()
        if len(student_chs) != len(teacher_chs) or not student_chs:
            raise OpsinError("each of the student's features needs one of the teacher's")
        self.project = nn.ModuleList(nn.Linear(s, t) for s, t in zip(student_chs, teacher_chs, strict=True))

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        losses = []
        for layer, ours, theirs in zip(self.project, student, teacher, strict=True):
            if ours.ndim == 4:
                if ours.shape[2:] != theirs.shape[2:]:
                    ours = F.interpolate(ours, theirs.shape[2:], mode="bilinear", align_corners=False)
                ours, theirs = ours.movedim(1, -1), theirs.movedim(1, -1)
            apart = F.normalize(layer(ours).float(), dim=-1) - F.normalize(theirs.detach().float(), dim=-1)
            losses.append(apart.square().sum(-1).mean())
        return torch.stack(losses).mean()
