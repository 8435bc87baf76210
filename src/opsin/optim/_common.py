"""What all optimizers of this house share. Each writes its step once, over lists of tensors."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from opsin.errors import OpsinError

__all__ = ["ListOptimizer", "cautious", "check_saved", "decay", "moments", "root", "sliced"]

Group = dict[str, Any]
Tensors = list[Tensor]
SLICE = 1 << 17  # values of a tensor that are taken at a time on the CPU: half a megabyte, which caches hold


class ListOptimizer(torch.optim.Optimizer):
    """An optimizer whose `update` gets lists: one tensor each on the CPU, where a tensor that stays in the cache is
    worth more than a kernel saved; all tensors of a group on other devices, with one kernel for all.

    `slots` names the tensors that are kept for each parameter, shaped like it and zero at first.

    Args:
        params: parameters, named or not, or groups of them.
        defaults: of the groups. `foreach=True` or False chooses lists or single tensors on any device.

    Raises:
        OpsinError: a setting out of its range; at a step, a sparse gradient or complex parameter.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    numbers: ClassVar[tuple[str, ...]] = ("step",)  # what else is kept for each parameter
    elementwise: ClassVar[bool] = False  # every value moves by itself, so that an update may be given slices

    def __init__(self, params: Iterable[Any], **defaults: Any) -> None:
        check_ranges(type(self).__name__, defaults)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; `closure` computes the loss and the gradients first, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check()
        self.begin()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self._prepare(p, group)
            for same in self._lists(params, group):
                states = [self.state[p] for p in same]
                slots = [[state[name] for state in states] for name in self.slots_of(group)]
                grads = [p.grad for p in same if p.grad is not None]
                columns = [same, grads, *slots]
                for part in self.parts(group, columns) if self.elementwise else [columns]:
                    self.update(group, states[0]["step"], *part)
        return loss

    def begin(self) -> None:
        """What is done once before the groups of a step."""

    def slots_of(self, group: Group) -> tuple[str, ...]:
        """The slots that the settings of a group need."""
        return self.slots

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        """What a slot begins with, where that is not zero."""

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        """Step number `step`, counted from 1, of parameters with the same settings. `grads` may not be changed."""
        raise NotImplementedError(f"{type(self).__name__} must define update")

    def full_rate(self, group: Group) -> float:
        """The rate of a group that the scheduler starts from."""
        return group.get("initial_lr", group["full_lr"]) * group.get("lr_scale", 1.0)

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group.get("corrected_weight_decay"):
            group.setdefault("full_lr", group["lr"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of such an optimizer; one of another library's raises where it lacks something."""
        check_saved(self, state_dict)
        for group in state_dict["param_groups"]:
            states = [state_dict["state"][i] for i in group["params"] if i in state_dict["state"]]
            for state in filter(None, states):
                check_keys(self, state, {*self.numbers, *self.slots_of(group)})
        super().load_state_dict(state_dict)

    def _check(self) -> None:
        name = type(self).__name__
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            if p.is_complex():
                raise OpsinError(f"{name} does not take complex parameters; adam and sgd do")
            if p.grad.is_sparse:
                raise OpsinError(f"{name} does not take sparse gradients: use sparse=False in the embedding")

    def _prepare(self, p: Tensor, group: Group) -> None:
        state = self.state[p]
        if not state:
            state["step"] = 0
            for slot in self.slots_of(group):
                state[slot] = torch.zeros_like(p)
            self.first(state, p, group)
        state["step"] += 1

    def _lists(self, params: Tensors, group: Group) -> Iterator[Tensors]:
        buckets: dict[Any, Tensors] = {}
        for i, p in enumerate(params):
            together = p.device.type != "cpu" if group["foreach"] is None else group["foreach"]
            key = (p.device, p.dtype, self.state[p]["step"]) if together else i
            buckets.setdefault(key, []).append(p)
        yield from buckets.values()

    def parts(self, group: Group, columns: list[Tensors]) -> Iterator[list[Tensors]]:
        """Columns as `update` gets them, those of one long tensor in slices: for lines in which every value moves by
        itself. Caution does not."""
        if len(columns[0]) > 1 or group.get("caution"):
            yield columns
            return
        for part in sliced([column[0] for column in columns]):
            yield [[tensor] for tensor in part]


def sliced(tensors: Tensors) -> Iterator[Tensors]:
    """Tensors of one shape; long ones on the CPU in slices, which stay in the cache from line to line."""
    p = tensors[0]
    plain = p.device.type == "cpu" and not hasattr(p, "to_local")  # sharded ones have no flat view
    if not plain or p.numel() <= 2 * SLICE or not _aligned(tensors):
        yield tensors
        return
    flat = [tensor.as_strided((p.numel(),), (1,)).split(SLICE) for tensor in tensors]
    yield from map(list, zip(*flat, strict=True))


def _aligned(tensors: Tensors) -> bool:
    """Whether values at the same place belong together in memory, too, without gaps."""
    p = tensors[0]
    dense = p.is_contiguous() or (p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last))
    return dense and all(tensor.stride() == p.stride() for tensor in tensors)


def check_saved(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Raise where the groups of a saved state lack a setting."""
    for group in state_dict["param_groups"]:
        needs = {*optimizer.defaults} | ({"full_lr"} if group.get("corrected_weight_decay") else set())
        check_keys(optimizer, group, needs)


def check_keys(optimizer: torch.optim.Optimizer, saved: dict[str, Any], needs: set[str]) -> None:
    if lacking := sorted(needs - saved.keys()):
        raise OpsinError(
            f"this is no state of opsin's {type(optimizer).__name__}, it lacks {', '.join(lacking)}: one of another "
            "library's optimizer of that name cannot be gone on from. Load the weights alone"
        )


def check_ranges(name: str, settings: Group) -> None:
    """Raise for rates, decays and factors that cannot be meant."""
    for key in ("lr", "weight_decay", "eps"):
        if settings.get(key) is not None and not settings[key] >= 0:
            raise OpsinError(f"{name}: {key}={settings[key]} is negative")
    for beta in (settings.get("momentum", 0), settings.get("alpha", 0), *(settings.get("betas") or ())):
        if not 0 <= beta < 1:
            raise OpsinError(f"{name}: a decay rate (momentum, alpha, betas) is at least 0 and less than 1, not {beta}")
    if settings.get("nesterov") and "dampening" in settings and (not settings["momentum"] or settings["dampening"]):
        raise OpsinError(f"{name}: Nesterov's momentum is more than 0 and not dampened; or pass nesterov=False")


def moments(exp_avg: Tensors, exp_avg_sq: Tensors, grads: Tensors, beta1: float, beta2: float) -> None:
    """Move Adam's two means on by one gradient."""
    torch._foreach_lerp_(exp_avg, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sq, beta2)
    torch._foreach_addcmul_(exp_avg_sq, grads, grads, 1 - beta2)


def root(squares: Tensors, correction: float, eps: float) -> Tensors:
    """sqrt(squares / correction) + eps."""
    roots = list(torch._foreach_sqrt(squares))
    if correction != 1:
        torch._foreach_div_(roots, correction**0.5)
    torch._foreach_add_(roots, eps)
    return roots


def decay(
    optimizer: ListOptimizer, group: Group, params: Tensors, grads: Tensors, *, decoupled: bool = True
) -> Tensors:
    """Apply the weight decay of a group; returns the gradients to go on with.

    Decoupled (https://arxiv.org/abs/1711.05101) it shrinks the weights by lr x weight_decay, and with
    `corrected_weight_decay` (https://arxiv.org/abs/2506.02285) by another lr / full rate. Else it is added to the
    gradients.
    """
    if not group["weight_decay"]:
        return grads
    if not decoupled:
        return list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
    rate = group["lr"]
    if group.get("corrected_weight_decay"):
        rate *= rate / optimizer.full_rate(group)
    torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
    return grads


def cautious(updates: Tensors, grads: Tensors) -> Tensors:
    """Only the parts of an update that the gradient agrees with, enlarged by as much as is left out.

    Cautious Optimizers (https://arxiv.org/abs/2411.16085).
    """
    kept = []
    for update, grad in zip(updates, grads, strict=True):
        mask = (update * grad).gt_(0)
        kept.append(mask.div_(mask.mean().clamp_(min=1e-3)).mul_(update))
    return kept
