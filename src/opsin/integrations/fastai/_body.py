"""Models as fastai has them: a body that gives a map, and a head."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from fastai.vision.all import apply_init, create_head
from torch import Tensor, nn

from opsin.errors import OpsinError, UnknownArgumentError, WeightsError
from opsin.factory import Pretrained, create_model
from opsin.layers.patch_embed import to_2tuple
from opsin.models._model import Model

__all__ = ["Body", "Cut", "Init", "create", "create_body", "create_vision_model", "strip_head"]

# options of fastai's head; all other arguments go to the architecture
HEAD_ARGS = signature(create_head).parameters.keys() - {"nf", "n_out"}

Cut = int | Callable[[Model], nn.Module] | None
Init = Callable[[Tensor], Any] | None


class Body(nn.Module):
    """An opsin model without its head: images (B, C, H, W) to one map (B, `num_features`, h, w), whatever its layout.

    What a model does to its last map only for the head's sake, such as class attention, is left out.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        model.remove_head()
        strip_head(model)
        self.model = model
        self.num_features = model.chain[-1].num_chs or model.num_features

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.model.forward_intermediates(x, [-1])
        return self.model.as_map(self.model.chain[-1].pick(out), (x.shape[-2], x.shape[-1]))


def strip_head(model: Model) -> None:
    """Remove what is there for the head alone: norms behind the pooling, class attention. The chain ends with a map."""
    kept = tuple(stage for stage in model.chain if not stage.to_tokens)
    used = {path.split(".")[0] for stage in kept for path in stage.owners}
    for name in {name.split(".")[0] for name, _ in model.named_parameters()} - used:
        model._remove(name)
    model.chain = kept


def create_body(
    arch: str,
    pretrained: Pretrained = True,
    cut: Cut = None,
    n_in: int = 3,
    *,
    image_size: tuple[int, int] | None = None,
    **model_args: Any,
) -> nn.Module:
    """Any model by name as an unpooled body that gives one map (B, C, h, w).

    Args:
        arch: as for `opsin.create_model`.
        pretrained: as for `opsin.create_model`: True, or where the weights are.
        cut: None keeps all but the head. An int keeps the first `cut` of the model's children, or with a negative one
            all but the last, and must fall behind a feature level. A function is called with the model without its
            head and returns the body.
        n_in: channels of the images.
        image_size: (height, width) of the images, for architectures that are built for one size; others need none.
        **model_args: further arguments of the architecture.

    Raises:
        OpsinError: there is nothing to cut there; the message lists the cut points.
    """
    if not isinstance(arch, str):
        raise OpsinError(f"arch is the name of a model, such as 'resnet34', not {arch!r}")
    model = create(arch, pretrained, image_size, in_chans=n_in, **model_args)
    record = model.pretrained_cfg
    if cut is not None and not callable(cut):
        _cut_behind_level(model, cut, arch)
    body = _cut_by(cut, model) if callable(cut) else Body(model)
    body.pretrained_cfg = record  # type: ignore[assignment]
    return body


@torch.no_grad()
def _cut_by(cut: Callable[[Model], nn.Module], model: Model) -> nn.Module:
    """What a function makes of the model; it is run once to see that it gives a map, and of how many channels."""
    shape = (
        model.in_chans,
        *to_2tuple(getattr(model.config, "img_size", None) or model.pretrained_cfg["input_size"][1:]),
    )
    model.remove_head()
    body = cut(model)
    if isinstance(body, Model):
        return Body(body)
    if not isinstance(body, nn.Module):
        raise OpsinError(f"cut must return a module, not {type(body).__name__}")
    out = body.eval()(torch.zeros(1, *shape))
    if not isinstance(out, Tensor) or out.ndim != 4:
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise OpsinError(f"a body must give a map (B, C, h, w); what cut returned gives {found}")
    body.num_features = out.shape[1]  # type: ignore[assignment]
    return body.train()


def create(arch: str, pretrained: Pretrained, image_size: tuple[int, int] | None, **args: Any) -> Model:
    """The model with its published head, for images of this size where it is built for one."""
    if image_size is None or "img_size" in args:
        model = create_model(arch, pretrained, **args)
    else:
        model = _create_for_size(arch, pretrained, image_size, args)
    if not isinstance(model, Model):
        raise OpsinError(f"{arch} gives a {type(model).__name__}; a body is made of opsin's own models")
    return model


def _create_for_size(arch: str, pretrained: Pretrained, image_size: tuple[int, int], args: dict[str, Any]) -> nn.Module:
    try:
        return create_model(arch, pretrained, img_size=image_size, **args)
    except WeightsError as error:
        if "of another shape" not in str(error):
            raise
        raise WeightsError(
            f"{error}\nThese weights fit one image size only; resize the images to it: `opsin info {arch}` names it"
        ) from error
    except (UnknownArgumentError, ValueError):
        model = create_model(arch, pretrained, **args)
        if getattr(getattr(model, "config", None), "img_size", None):
            raise
        return model  # one for images of any size


def _cut_behind_level(model: Model, cut: int, arch: str) -> None:
    """Remove what comes behind the first `cut` children."""
    names = [name for name, _ in model.named_children()]
    points = _cut_points(model, names)
    whole = isinstance(cut, int) and not isinstance(cut, bool)
    count = len(names) + cut if whole and cut < 0 else cut
    if not whole or count not in points:
        listed = ", ".join(f"{point} (behind {names[point - 1]})" for point in points)
        raise OpsinError(
            f"cut={cut!r}: {arch} can be cut after this many of its {len(names)} children: {listed}; negative numbers "
            "count from the end. Or pass a function that takes the model and returns the body."
        )
    if (level := points[count]) is not None:
        model.prune_intermediate_layers([level], prune_norm=True)


def _cut_points(model: Model, names: list[str]) -> dict[int, int | None]:
    """How many children lead up to a feature level, and which level that is; None stands for the end of the chain."""
    places = [{names.index(top) for p in s.owners if (top := p.split(".")[0]) in names} for s in model.chain]
    points: dict[int, int | None] = {}
    level = -1
    for i, stage in enumerate(model.chain):
        level += stage.is_level
        end = 1 + max(set().union(*places[: i + 1]))
        later = set().union(*places[i + 1 :])
        if i + 1 == len(model.chain):
            points[end] = None
        elif stage.is_level and end <= min(later, default=end):
            points[end] = level
    return points


def create_vision_model(
    arch: str,
    n_out: int,
    cut: Cut = None,
    pretrained: Pretrained = True,
    n_in: int = 3,
    init: Init = nn.init.kaiming_normal_,
    custom_head: nn.Module | None = None,
    concat_pool: bool = True,
    **kwargs: Any,
) -> nn.Sequential:
    """`nn.Sequential(body, head)`: a body as `create_body` makes it, and fastai's head for `n_out` outputs.

    Args:
        arch, cut, pretrained, n_in: as for `create_body`.
        init: initialises the head; None leaves the values that its layers give themselves.
        custom_head: in place of fastai's head.
        concat_pool: average and maximum side by side, or the average alone.
        **kwargs: options of fastai's `create_head` (`lin_ftrs`, `ps`, `bn_final`, `y_range`, ...); others go to
            `create_body`.
    """
    head_args = {name: kwargs.pop(name) for name in HEAD_ARGS & kwargs.keys() if kwargs[name] is not None}
    body = create_body(arch, pretrained, cut, n_in, **kwargs)
    if custom_head is None:
        head = create_head(body.num_features, n_out, concat_pool=concat_pool, **head_args)
    elif head_args:
        raise UnknownArgumentError(f"{next(iter(head_args))} is an option of fastai's head; custom_head replaces that")
    else:
        head = custom_head
    if init is not None:
        apply_init(head, init)
    return nn.Sequential(body, head)
