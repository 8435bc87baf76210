"""The contract of a model. A family declares its chain; everything on this page is derived from it."""

import inspect
import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.pool import SelectAdaptivePool2d
from opsin.layers.weight_init import skip_init
from opsin.models._chain import Stage, as_it_was_on_error, locate, normalize_indices, run_stage, split_blocks, to_map
from opsin.models._config import ModelConfig

__all__ = ["Model", "Outputs", "deferred_init"]

# Set around a build whose values will come from a checkpoint: modules are made, initial values are not.
deferred_init: ContextVar[bool] = ContextVar("deferred_init", default=False)


class Outputs(NamedTuple):
    """All that one pass can give: feature maps, the pooled embedding, and logits."""

    features: list[Tensor]
    embedding: Tensor
    logits: Tensor


class Model(nn.Module):
    """Base of all architectures: `forward(x) = forward_head(forward_features(x))` for `x` of shape (B, C, H, W).

    A family sets `Config`, and in `build(config)` creates its modules, its `chain`, `num_features` and
    `head_hidden_size`. The class takes the fields of its Config as keywords (and those named in `positional` by place).
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    positional: ClassVar[tuple[str, ...]] = ()
    classifier_path: ClassVar[str | tuple[str, ...]] = "fc"  # where the classifier is
    first_conv: ClassVar[str | tuple[str, ...]] = "conv1"
    in_chans_strategy: ClassVar[str | None] = None  # what the inputs of `first_conv` stand for, if not for colours
    layout: ClassVar[str] = "NCHW"  # of what runs along the chain: NCHW, NHWC or NLC

    config: Any
    chain: tuple[Stage, ...]
    num_features: int
    head_hidden_size: int
    global_pool: Any
    head: Any

    def __init_subclass__(cls, config: type[ModelConfig] | None = None, **kwargs: Any) -> None:
        """`class ResNet(Model, config=Config)` names the fields that the class takes as keywords."""
        super().__init_subclass__(**kwargs)
        if config is not None:
            cls.Config = config
        if isinstance(cls.__dict__.get("classifier"), str | tuple):
            raise TypeError(f"{cls.__name__}.classifier would hide a module of that name: call it classifier_path")
        if "Config" in cls.__dict__:
            cls.__signature__ = inspect.signature(cls.Config)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        name = type(self).__name__
        if len(args) > len(self.positional):
            raise TypeError(f"{name} takes at most {len(self.positional)} arguments by place; name the others")
        if doubled := [word for word in self.positional[: len(args)] if word in kwargs]:
            raise TypeError(f"{name} got {doubled[0]} both by place and by name")
        config = self.Config.make(name, **dict(zip(self.positional, args, strict=False)), **kwargs)
        self.config = config
        self.architecture = ""
        self.pretrained_cfg: dict[str, Any] = {}
        self.published = False  # whether it began with the weights that `pretrained_cfg` tells of
        self.num_classes = config.num_classes
        self.in_chans = config.in_chans
        self.drop_rate = config.drop_rate
        self.grad_checkpointing = False
        self.frozen: list[str] = []
        with skip_init():
            self.build(config)
        if not deferred_init.get():
            self.init_weights()

    def build(self, config: Any) -> None:
        """Create the modules and the chain. Values are given by `init_weights` or by a checkpoint."""
        raise NotImplementedError(f"{type(self).__name__} must define build(config)")

    # -- initial values ------------------------------------------------------------------------------------------

    def init_module(self, module: nn.Module, name: str) -> bool:
        """Give a module the family's initial values; False leaves it to the module's own default."""
        return False

    @torch.no_grad()
    def init_weights(self, only: Sequence[str] | None = None) -> None:
        """Initialise all modules, or just the owners of the parameters named in `only`."""
        owners = None if only is None else {key.rpartition(".")[0] for key in only}
        for name, module in self.named_modules():
            if owners is not None and name not in owners:
                continue
            if not self.init_module(module, name) and module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        if only is None:
            self.init_last()

    def init_last(self) -> None:
        """What must follow the initialisation of all parts (a zeroed last norm, rescaled branches)."""

    def reset_buffers(self) -> None:
        """Compute the non-persistent buffers again: after a build on the meta device, where they hold nothing."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_buffers"):
                module.reset_buffers()  # type: ignore[operator]

    # -- running the chain ---------------------------------------------------------------------------------------

    def forward_features(self, x: Tensor) -> Tensor:
        """Everything before pooling, in the model's own layout."""
        for stage in self.chain:
            x = run_stage(self, stage, x, self.grad_checkpointing)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool what `forward_features` gives and classify it; `pre_logits` stops at the embedding."""
        x = self.global_pool(x)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_outputs(self, x: Tensor, indices: int | Sequence[int] | None = None) -> Outputs:
        """Feature maps at `indices` (all by default), embedding and logits from one pass."""
        final, features = self.forward_intermediates(x, indices)
        embedding = self.forward_head(final, pre_logits=True)
        return Outputs(features, embedding, self.forward_logits(embedding))

    def forward_logits(self, embedding: Tensor) -> Tensor:
        """Logits of what `forward_head(..., pre_logits=True)` gave."""
        return self.get_classifier()(embedding)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """The maps at feature levels, in the order of `indices`; with the final features as well unless
        `intermediates_only`.

        Args:
            x: images (B, C, H, W).
            indices: None for all levels, an int for the last n, or a sequence; negatives count from the end.
            norm: apply the model's closing norm to each map (only where one fits all levels).
            stop_early: do not run past the last chosen level (only with `intermediates_only`).
            output_fmt: NCHW for (B, C, H, W) maps, NHWC for (B, H, W, C).
        """
        self.check_output_fmt(output_fmt)
        if stop_early and not intermediates_only:
            raise UnknownArgumentError("stop_early leaves no final features: pass intermediates_only=True with it")
        size = (x.shape[-2], x.shape[-1])
        x, taken = self.run_chain(x, indices, norm=norm, stop_early=stop_early)
        maps = [self.as_map(level, size, output_fmt) for level in taken]
        return maps if intermediates_only else (x, maps)

    def run_chain(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        block_args: dict[str, Any] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """What leaves the chain, and what left the chosen levels, in the model's own layout."""
        chosen = normalize_indices(indices, len(self.feature_levels()))
        closing = self._closing_norm() if norm else None
        taken, level = {}, 0
        for stage in self.chain:
            x = run_stage(self, stage, x, self.grad_checkpointing, block_args)
            if not stage.is_level:
                continue
            if level in chosen:
                taken[level] = closing(stage.pick(x)) if closing else stage.pick(x)
            if stop_early and level == max(chosen):
                break
            level += 1
        return x, [taken[i] for i in chosen]

    def check_output_fmt(self, output_fmt: str) -> None:
        if output_fmt not in ("NCHW", "NHWC"):
            raise UnknownArgumentError(f"output_fmt is NCHW or NHWC for {type(self).__name__}, not {output_fmt!r}")

    def _closing_norm(self):
        norms = [stage for stage in self.chain if stage.any_depth]
        if not norms:
            raise UnknownArgumentError(
                f"{type(self).__name__} has no closing norm that fits its levels: leave norm=False"
            )
        return lambda x: run_stage(self, norms[0], x)

    def as_map(self, x: Tensor, image_size: tuple[int, int], output_fmt: str = "NCHW") -> Tensor:
        """What runs along the chain as a map in `output_fmt`; `image_size` is (H, W) of the input."""
        return to_map(x, self.layout, output_fmt)

    # -- what the chain tells --------------------------------------------------------------------------------------

    def feature_levels(self) -> list[Stage]:
        """The stages at which features can be taken."""
        return [stage for stage in self.chain if stage.is_level]

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and module name of each feature level."""
        return [{"num_chs": s.num_chs, "reduction": s.reduction, "module": s.name} for s in self.feature_levels()]

    def layer_groups(self, coarse: bool = False) -> list[list[str]]:
        """Module paths from stem to head, one group a block (or a stage when `coarse`); they cover all parameters."""
        groups: list[list[str]] = [[]]
        closing: list[str] = []
        seen_level = False
        for i, stage in enumerate(self.chain):
            later = any(s.is_level for s in self.chain[i:])
            if not later:
                closing += stage.owners
            elif not stage.checkpoint or (not seen_level and not stage.is_level):
                groups[0] += stage.owners
            else:
                groups += [list(stage.owners)] if coarse else self._blocks_of(stage)
            seen_level = seen_level or stage.is_level
        covered = tuple(f"{p}." for g in [*groups, closing] for p in g)
        rest = {n for n, _ in self.named_parameters() if not f"{n}.".startswith(covered)}
        tops = dict.fromkeys(n.split(".")[0] for n, _ in self.named_parameters() if n in rest)
        return [g for g in groups if g] + [closing + list(tops)]

    def _blocks_of(self, stage: Stage) -> list[list[str]]:
        """Paths of a stage's blocks with parameters, a downsampling with the block that follows it; parameters of no
        block belong to the first."""
        parts = [pair for path in stage.owners for pair in split_blocks(locate(self, path), path)]
        paths = [p for p, part in parts if isinstance(part, nn.Module) and any(True for _ in part.parameters())]
        names = [f"{path}.{name}" for path in stage.owners for name, _ in locate(self, path).named_parameters()]
        blocks = [[name for name in names if not name.startswith(tuple(f"{path}." for path in paths))]]
        for i, path in enumerate(paths):
            blocks[-1].append(path)
            if i + 1 < len(paths) and "downsample" not in path.split("."):
                blocks.append([])
        return blocks

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layer groups as regular expressions with their order: `{"stem": regex, "blocks": [(regex, (i,)), …]}`.

        The head matches none of them and makes the last group; see `group_parameters`.
        """
        first, *blocks, last = self.layer_groups(coarse)
        pattern = lambda paths: r"^(?:" + "|".join(re.escape(p) for p in paths) + r")(?:\.|$)"  # noqa: E731
        rows = [(pattern(paths), (i,)) for i, paths in enumerate(blocks)]
        levels = [i for i, stage in enumerate(self.chain) if stage.is_level]
        closing = {path for stage in self.chain[max(levels, default=-1) + 1 :] for path in stage.owners}
        if closing := closing.intersection(last):
            rows.append((pattern(sorted(closing)), (99999,)))  # by convention: together with the block before it
        return {"stem": pattern(first), "blocks": rows}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone (beside biases and norms)."""
        return set()

    # -- training services -----------------------------------------------------------------------------------------

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def freeze_stages(self, stages: int | None = None) -> None:
        """Freeze the stem and the first `stages` feature levels (all of the body for None); 0 unfreezes everything.

        Frozen norms keep their statistics: `train()` leaves frozen parts in evaluation mode.
        """
        count = len(self.feature_levels())
        if stages is not None and not 0 <= stages <= count:
            raise IndexError(f"freeze_stages({stages}): the model has {count} stages")
        self.requires_grad_(True)
        self.frozen = []
        if stages != 0:
            seen = 0
            for stage in self.chain:
                if stages is not None and seen == stages:
                    break
                self.frozen += stage.owners
                seen += stage.is_level
        for path in self.frozen:
            locate(self, path).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        for path in self.frozen:
            part = locate(self, path)
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what comes after the last chosen level, the closing layers if `prune_norm`, the head if `prune_head`.

        Returns the chosen levels as non-negative indices.
        """
        chosen = normalize_indices(indices, len(self.feature_levels()))
        kept, seen, cut = [], 0, max(chosen) < len(self.feature_levels()) - 1
        for stage in self.chain:
            past = seen > max(chosen)
            if past and (prune_norm or (cut and not stage.any_depth)):
                for path in stage.owners:
                    self._remove(path)
            else:
                kept.append(stage)
            seen += stage.is_level
        self.chain = tuple(kept)
        if prune_head:
            self.remove_head()
        return chosen

    def _remove(self, path: str) -> None:
        parent, _, name = path.rpartition(".")
        owner = locate(self, parent) if parent else self
        if name in owner._modules:
            del owner._modules[name]
        elif name in owner._parameters:
            setattr(owner, name, None)

    # -- head ------------------------------------------------------------------------------------------------------

    def get_classifier(self) -> Any:
        """The layer that gives the logits (a tuple of them where there are several); Identity for `num_classes=0`."""
        if isinstance(self.classifier_path, str):
            return locate(self, self.classifier_path)
        return tuple(locate(self, path) for path in self.classifier_path)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes` (0: none), and another pooling if named. After an error all is as it was."""
        pool = self.config.global_pool if global_pool is None else global_pool
        config = replace(self.config, num_classes=num_classes, global_pool=pool)
        like = next((p for p in self.parameters()), None)
        held = (*self.modules(), *self.parameters())  # kept alive: the id of a freed part could be given to a new one
        before = {id(part) for part in held}
        with skip_init(), as_it_was_on_error(self):
            self.config, self.num_classes = config, config.num_classes
            self.build_head(config)
        for module in self.modules():
            if id(module) not in before:
                module.training = self.training
                if like is not None:
                    module.to(device=like.device, dtype=like.dtype)
        if fresh := [name for name, p in self.named_parameters() if id(p) not in before]:
            self.init_weights(only=fresh)
        self.pretrained_cfg = {k: v for k, v in self.pretrained_cfg.items() if not k.startswith("label_")}

    def remove_head(self) -> None:
        """Give the maps as they leave the chain; a head that holds more than pooling and classifier drops that too."""
        self.reset_classifier(0, "")

    def build_head(self, config: Any) -> None:
        """Create pooling and classifier for `config.num_classes` and `config.global_pool`.

        Here: `global_pool`, and a linear layer by the name in `classifier_path`. Other heads are built by their family.
        """
        if config.num_classes and not config.global_pool:
            raise ValueError("global_pool='' leaves a map: it needs num_classes=0")
        self.global_pool = SelectAdaptivePool2d(
            pool_type=config.global_pool, flatten=bool(config.global_pool), input_fmt=self.layout
        )
        width = self.num_features * self.global_pool.feat_mult()
        linear = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        setattr(self, str(self.classifier_path), linear)

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The older name of `pretrained_cfg`."""
        return self.pretrained_cfg

    @default_cfg.setter
    def default_cfg(self, cfg: dict[str, Any]) -> None:
        self.pretrained_cfg = cfg

    # -- names that subclasses and wrappers written for timm call ------------------------------------------------------

    def _init_weights(self, module: nn.Module) -> None:
        """The initial values of one module: `self.apply(self._init_weights)`."""
        if not self.init_module(module, "") and module is not self and hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]

    def init_non_persistent_buffers(self) -> None:
        """As `reset_buffers`; transformers calls it after a build on the meta device."""
        self.reset_buffers()
