"""SKNet (https://arxiv.org/abs/1903.06586): ResNets whose 3x3 convolutions choose their reach."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.selective_kernel import SelectiveKernel
from opsin.models._family import Family
from opsin.models.resnet import Config, ResidualBlock, ResNet

__all__ = ["Config", "SKNet", "SelectiveKernelBasic", "SelectiveKernelBottleneck"]


class SelectiveKernelBasic(ResidualBlock):
    """A selective kernel, then a 3x3 convolution."""

    def build(
        self, in_chs: int, planes: int, c: Config, *, stride: int, dilation: int, first_dilation: int,
        sk_kwargs: Any = None,
    ) -> None:  # fmt: skip
        if c.cardinality != 1 or c.base_width != 64:
            raise ValueError("SelectiveKernelBasic has cardinality 1 and base_width 64; use SelectiveKernelBottleneck")
        mid_chs = planes // c.block_reduce_first
        layers = {"act_layer": c.act_layer, "norm_layer": c.norm_layer} | (sk_kwargs or {})
        self.conv1 = SelectiveKernel(in_chs, mid_chs, stride=stride, dilation=first_dilation, **layers)
        self.conv2 = ConvNormAct(mid_chs, planes, 3, dilation=dilation, norm_layer=c.norm_layer, apply_act=False)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.conv2.bn.weight)  # type: ignore[arg-type]


class SelectiveKernelBottleneck(ResidualBlock):
    """1x1, a selective kernel (grouped, strided), 1x1 with four times the channels."""

    expansion = 4

    def build(
        self, in_chs: int, planes: int, c: Config, *, stride: int, dilation: int, first_dilation: int,
        sk_kwargs: Any = None,
    ) -> None:  # fmt: skip
        width = planes * c.base_width // 64 * c.cardinality
        first, out_chs = width // c.block_reduce_first, planes * self.expansion
        layers = {"act_layer": c.act_layer, "norm_layer": c.norm_layer} | (sk_kwargs or {})
        self.conv1 = ConvNormAct(in_chs, first, 1, act_layer=c.act_layer, norm_layer=c.norm_layer)
        self.conv2 = SelectiveKernel(
            first, width, stride=stride, dilation=first_dilation, groups=c.cardinality, **layers
        )
        self.conv3 = ConvNormAct(width, out_chs, 1, norm_layer=c.norm_layer, apply_act=False)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.conv3.bn.weight)  # type: ignore[arg-type]


class SKNet(ResNet):
    """ResNet with selective kernels; `block_args` takes their arguments as `sk_kwargs`."""

    blocks = {
        **ResNet.blocks,
        "SelectiveKernelBasic": SelectiveKernelBasic,
        "SelectiveKernelBottleneck": SelectiveKernelBottleneck,
    }


SPLIT = {"sk_kwargs": {"rd_ratio": 1 / 8, "rd_divisor": 16, "split_input": True}}
FULL = {"sk_kwargs": {"rd_ratio": 1 / 16, "rd_divisor": 32, "split_input": False}}
Basic = partial(Config, block="SelectiveKernelBasic", zero_init_last=False, block_args=SPLIT)
Bottle = partial(Config, block="SelectiveKernelBottleneck", zero_init_last=False)

VARIANTS = {
    "skresnet18": Basic(layers=(2, 2, 2, 2)),
    "skresnet34": Basic(layers=(3, 4, 6, 3)),
    "skresnet50": Bottle(layers=(3, 4, 6, 3), block_args={"sk_kwargs": {"split_input": True}}),
    "skresnet50d": Bottle(
        layers=(3, 4, 6, 3),
        stem_width=32,
        stem_type="deep",
        avg_down=True,
        block_args={"sk_kwargs": {"split_input": True}},
    ),
    "skresnext50_32x4d": Bottle(layers=(3, 4, 6, 3), cardinality=32, base_width=4, block_args=FULL),
}

family = Family(SKNet, VARIANTS)
__getattr__ = family.module_getattr(__name__)
