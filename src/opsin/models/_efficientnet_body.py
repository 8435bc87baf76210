"""What EfficientNet and MobileNetV3 have in common: a strided stem, and stages of blocks given by a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from torch import nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers import SelectAdaptivePool2d
from opsin.layers.norm_act import get_norm_act_layer
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._efficientnet_blocks import SE_LAYERS, Parts, build_stages
from opsin.models._efficientnet_tables import round_channels
from opsin.models._model import Model

__all__ = ["BodyConfig", "BodyModel"]


@dataclass(frozen=True, kw_only=True)
class BodyConfig(ModelConfig):
    """`block_args` has a list of rows per stage; a row is a dict of the fields of `_efficientnet_tables.Row`."""

    block_args: Any = ()
    num_features: int = 1280  # width of the last 1x1 convolution
    stem_size: int = 32
    fix_stem: bool = False  # the width multiplier leaves the stem alone
    output_stride: int = 32  # 8 or 16 trade stride for dilation
    pad_type: str = ""  # "same" pads as TensorFlow does
    act_layer: Any = "relu"
    norm_layer: Any = "batchnorm2d"  # one of those in `layers.norm_act`
    norm_args: Mapping[str, Any] = field(default_factory=dict)  # eps, momentum, group_size
    aa_layer: Any = None  # anti-aliased downsampling: "avg", "blur", "blurpc"
    se_layer: Any = "se"  # "gc" for global context; or a class called with channels, `rd_ratio` and `act_layer`
    channel_multiplier: float = 1.0
    divisor: int = 8  # widths are multiples of this …
    round_limit: float = 0.9  # … and not less than this share of the exact figure
    round_chs_fn: Any = None  # a function of the width, in place of these three
    drop_path_rate: float = 0.0


class BodyModel(Model, config=BodyConfig):
    """Builds stem and stages; what follows them is the family's."""

    positional: ClassVar[tuple[str, ...]] = ("block_args", "num_classes", "num_features", "in_chans")
    classifier_path = "classifier"
    first_conv = "conv_stem"

    def build_body(self, c: Any, stem_kernel_size: int = 3, **parts_args: Any) -> tuple[Parts, list[Stage], int]:
        """Creates `conv_stem`, `bn1` and `blocks`; the layers' makers, the chain so far, and the width at its end."""
        name = type(self).__name__
        if not c.block_args:
            raise ValueError(f"{name} needs block_args: a list of rows per stage")
        if c.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={c.output_stride}: {name} has 8, 16 and 32")
        round_chs = c.round_chs_fn or partial(
            round_channels, multiplier=c.channel_multiplier, divisor=c.divisor, round_limit=c.round_limit
        )
        parts = Parts(
            norm_act=get_norm_act_layer(c.norm_layer or "batchnorm2d", c.norm_args),
            act_layer=c.act_layer or "relu",
            pad_type=c.pad_type or "",
            aa_layer=c.aa_layer,
            **({"se_layer": find_se_layer(c.se_layer or "se")} | parts_args),
        )
        stem = c.stem_size if c.fix_stem else round_chs(c.stem_size)
        self.conv_stem = parts.conv(c.in_chans, stem, stem_kernel_size, stride=2)
        self.bn1 = parts.norm(stem)
        rules: dict[str, Any] = {"output_stride": c.output_stride, "drop_path_rate": c.drop_path_rate}
        stages = build_stages(c.block_args, stem, parts, stride=2, round_chs=round_chs, **rules)
        self.blocks = nn.Sequential(*[blocks for blocks, *_ in stages])
        asks = [asked for *_, asked in stages] + [2]  # a level is where the next stage asks for a stride, and the end
        chain = [Stage(("conv_stem", "bn1"), stem if asks[0] > 1 else None, 2, checkpoint=False)]
        width = stem
        for i, (_, width, stride, _) in enumerate(stages):
            chain.append(Stage((f"blocks.{i}",), width if asks[i + 1] > 1 else None, stride))
        return parts, chain, width

    def build_classifier(self, c: Any, width: int, pool: SelectAdaptivePool2d) -> None:
        """Creates `global_pool` and `classifier`, which takes `width` features."""
        if c.num_classes and not c.global_pool:
            raise ValueError("global_pool='' leaves a map: it needs num_classes=0")
        self.global_pool = pool
        self.classifier = nn.Linear(width, c.num_classes) if c.num_classes else nn.Identity()

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d):  # by fan out, of which a depthwise kernel has only its own
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            bound = module.out_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound)
        else:
            return False
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


def find_se_layer(layer: Any) -> Any:
    """A class by name, or what was given; called with channels, `rd_ratio` and `act_layer`."""
    if callable(layer):
        return layer
    if layer not in SE_LAYERS:
        near = did_you_mean(layer, SE_LAYERS)
        raise UnknownArgumentError(f"no se_layer {layer!r}.{near} Known: {', '.join(SE_LAYERS)}")
    return SE_LAYERS[layer]
