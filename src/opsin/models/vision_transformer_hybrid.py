"""Vision transformers on the maps of a convolutional net (https://arxiv.org/abs/2010.11929), as AugReg trained them
(https://arxiv.org/abs/2106.10270), and the ViT of MobileCLIP (https://arxiv.org/abs/2311.17049)."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_embed import PatchEmbed, to_2tuple
from opsin.layers.pos_embed import resample_patch_embed
from opsin.models import resnetv2
from opsin.models import vision_transformer as vit
from opsin.models._family import Family
from opsin.models._model import Model, deferred_init
from opsin.models._vit_adapt import adapt as adapt_vit
from opsin.models.resnet import ResNet

__all__ = ["Config", "HybridEmbed", "HybridVisionTransformer"]


@dataclass(frozen=True, kw_only=True)
class Config(vit.Config):
    """`patch_size` counts in pixels of the backbone's map."""

    patch_size: int | tuple[int, int] = 1
    backbone: str = "resnetv2"  # or resnet (ResNet-D), stem (that of resnetv2), conv (three convolutions to stride 16)
    backbone_layers: tuple[int, ...] = (2, 2, 2, 2)  # blocks per stage of resnetv2 and resnet


class HybridEmbed(PatchEmbed):
    """`(B, C, H, W)` images to tokens: patches of the map of `width` channels that `backbone` gives at 1/`ratio`.

    Arguments are those of `PatchEmbed`, with `patch_size` in pixels of that map. With `proj=False` the map's pixels are
    the tokens as they are.
    """

    def __init__(
        self, backbone: nn.Module, ratio: int, width: int, *, img_size: int | tuple[int, int] | None = 224,
        patch_size: int | tuple[int, int] = 1, embed_dim: int = 768, norm_layer: Any = None, bias: bool = True,
        proj: bool = True, output_fmt: str = "NLC", strict_img_size: bool = True, dynamic_img_pad: bool = False,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)  # not that of PatchEmbed, whose projection sees the image
        kernel = to_2tuple(patch_size)
        if not proj and (kernel != (1, 1) or width != embed_dim):
            raise ValueError(
                f"patch_size={patch_size}, embed_dim={embed_dim}: the {width} channels of the map are tokens"
            )
        self.ratio, self.patch_size = ratio, (ratio * kernel[0], ratio * kernel[1])
        self.output_fmt, self.strict_img_size, self.dynamic_img_pad = output_fmt, strict_img_size, dynamic_img_pad
        self._set_img_size(img_size)
        self.backbone: Any = backbone
        self.proj: Any = nn.Conv2d(width, embed_dim, kernel, kernel, bias=bias) if proj else nn.Identity()
        self.norm = get_norm_layer(norm_layer)(embed_dim) if norm_layer else nn.Identity()

    def project(self, x: Tensor) -> Tensor:
        return self.proj(self.backbone(x))

    @torch.no_grad()
    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Another image size, patch size (in pixels of the map), or both; the kernels are resampled."""
        if patch_size is not None:
            kernel = to_2tuple(patch_size)
            if isinstance(self.proj, nn.Identity):
                raise ValueError("the pixels of the backbone's map are the tokens: there is no patch_size to change")
            weight = resample_patch_embed(self.proj.weight, kernel)
            self.proj.weight = nn.Parameter(weight, requires_grad=self.proj.weight.requires_grad)
            self.proj.kernel_size = self.proj.stride = kernel
            self.patch_size = (self.ratio * kernel[0], self.ratio * kernel[1])
        super().set_input_size(img_size)


def build_backbone(c: Config) -> tuple[nn.Module, int, int, str]:
    """The net, its stride, the channels of its map, and the name of its first convolution."""
    layers: dict[str, Any] = {"layers": c.backbone_layers, "in_chans": c.in_chans, "num_classes": 0, "global_pool": ""}
    count = len(c.backbone_layers)
    bit: dict[str, Any] = {"preact": False, "stem_type": "same", "conv_layer": "std_conv2d_same", "conv_args": BIT_CONV}
    if c.backbone == "conv":
        mid = c.embed_dim // 4
        first = ConvNormAct(c.in_chans, mid, 4, 4, padding=0, act_layer="gelu")
        second = ConvNormAct(mid, mid, 2, 2, padding=0, act_layer="gelu")
        last = nn.Sequential(OrderedDict(conv=nn.Conv2d(mid, c.embed_dim, 2, 2)))
        return nn.Sequential(first, second, last), 16, c.embed_dim, "0.conv"
    if c.backbone == "stem":
        return resnetv2.build_stem(resnetv2.Config(in_chans=c.in_chans, **bit), 64), 4, 64, "conv"
    token = deferred_init.set(True)  # its values are given together with those of the whole
    try:
        if c.backbone == "resnetv2":
            net: Model = resnetv2.ResNetV2(**layers, **bit, channels=resnetv2.Config().channels[:count])
        elif c.backbone == "resnet":
            net = ResNet(**layers, block="Bottleneck", stem_width=32, stem_type="deep", avg_down=True)
        else:
            near = did_you_mean(c.backbone, BACKBONES)
            raise UnknownArgumentError(f"no backbone {c.backbone!r}.{near} Known: {', '.join(BACKBONES)}")
    finally:
        deferred_init.reset(token)
    return net, 2 ** (count + 1), net.num_features, "stem.conv" if c.backbone == "resnetv2" else "conv1.0"


BACKBONES = ("resnetv2", "resnet", "stem", "conv")
BIT_CONV = {"eps": 1e-8}


class HybridVisionTransformer(vit.VisionTransformer, config=Config):
    """A vision transformer whose patches are cut from the map of a convolutional net."""

    def build_embed(self, c: Config) -> None:  # type: ignore[override]
        backbone, ratio, width, first_conv = build_backbone(c)
        self.first_conv = f"patch_embed.backbone.{first_conv}"  # type: ignore[misc]
        embed = partial(HybridEmbed, backbone, ratio, width, proj=c.backbone != "conv")
        super().build_embed(replace(c, embed_layer=lambda in_chans, **kwargs: embed(**kwargs)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        if isinstance(self.patch_embed.backbone, Model):
            self.patch_embed.backbone.set_grad_checkpointing(enable)

    def init_module(self, module: nn.Module, name: str) -> bool:
        inner = name.removeprefix("patch_embed.backbone.")
        if inner == name:
            return super().init_module(module, name)
        backbone = self.patch_embed.backbone
        return isinstance(backbone, Model) and backbone.init_module(module, inner)

    def init_last(self) -> None:
        super().init_last()
        if isinstance(self.patch_embed.backbone, Model):
            self.patch_embed.backbone.init_last()


# -- checkpoints -------------------------------------------------------------------------------------------------------

FLAX = re.compile(r"(?:.*/)?(?:(conv|gn)_root|block(\d+)/unit(\d+)/(conv|gn)(\d|_proj))/(kernel|scale|bias)")
MOBILECLIP = (
    (r"^patch_emb\.(\d)\.block\.", r"patch_embed.backbone.\1."),
    (r"\.norm\.(?=\w+$)", ".bn."),
    (r"^pos_embed\.pos_embed\.pos_embed$", "pos_embed"),
    (r"^transformer\.", "blocks."),
    (r"\.pre_norm_mha\.0\.", ".norm1."),
    (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attn.qkv."),
    (r"\.pre_norm_mha\.1\.out_proj\.", ".attn.proj."),
    (r"\.pre_norm_ffn\.0\.", ".norm2."),
    (r"\.pre_norm_ffn\.1\.", ".mlp.fc1."),
    (r"\.pre_norm_ffn\.4\.", ".mlp.fc2."),
    (r"^post_transformer_norm\.", "norm."),
)


def adapt(state_dict: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Read what the vision transformer reads, with the backbones of its Flax archives, and MobileCLIP's towers."""
    state, trunk = dict(state_dict), {}
    if any(key.startswith("image_encoder.model.") for key in state):
        state = mobileclip(state)
    stem = "stem." if hasattr(model.patch_embed.backbone, "stem") else ""
    for key in state_dict:
        if match := FLAX.fullmatch(key):
            value = torch.as_tensor(state.pop(key))
            value = value.permute(3, 2, 0, 1).contiguous() if match[6] == "kernel" else value.flatten()
            trunk[f"patch_embed.backbone.{flax_name(match, stem)}"] = value
    return adapt_vit(state, model) | trunk


def flax_name(match: re.Match[str], stem: str) -> str:
    root, block, unit, kind, which, leaf = match.groups()
    name = {"conv": "conv", "gn": "norm"}[root or kind]
    leaf = "bias" if leaf == "bias" else "weight"
    if root:
        return f"{stem}{name}.{leaf}"
    part = f"downsample.{name}" if which == "_proj" else f"{name}{which}"
    return f"stages.{int(block) - 1}.blocks.{int(unit) - 1}.{part}.{leaf}"


def mobileclip(state: Mapping[str, Any]) -> dict[str, Any]:
    """The image tower of a MobileCLIP checkpoint; the projection to the space of texts is the classifier."""
    out: dict[str, Any] = {}
    for key, value in state.items():
        if not key.startswith("image_encoder.model."):
            continue
        key = key.removeprefix("image_encoder.model.")
        for old, new in MOBILECLIP:
            key = re.sub(old, new, key)
        if key == "classifier.proj":
            out |= {"head.weight": value.T, "head.bias": value.new_zeros(value.shape[1])}
        else:
            out[key] = value.squeeze(0) if key == "pos_embed" and value.ndim == 4 else value
    return out


S: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
R50: dict[str, Any] = {"backbone_layers": (3, 4, 6, 3)}
R50_S16: dict[str, Any] = {"backbone_layers": (3, 4, 9)}
TI: dict[str, Any] = {"embed_dim": 192, "num_heads": 3, "patch_size": 8, "backbone": "stem"}
RESNET: dict[str, Any] = {"backbone": "resnet"}
SMALL: dict[str, Any] = RESNET | {"depth": 8, "num_heads": 8, "mlp_ratio": 3}

VARIANTS = {
    "vit_base_mci_224": Config(backbone="conv", no_embed_class=True),
    "vit_base_r26_s32_224": Config(),
    "vit_base_r50_s16_224": Config(**R50_S16),
    "vit_base_r50_s16_384": Config(img_size=384, **R50_S16),
    "vit_base_resnet26d_224": Config(**RESNET),
    "vit_base_resnet50d_224": Config(**RESNET, **R50),
    "vit_large_r50_s32_224": Config(**L, **R50),
    "vit_large_r50_s32_384": Config(img_size=384, **L, **R50),
    "vit_small_r26_s32_224": Config(**S),
    "vit_small_r26_s32_384": Config(img_size=384, **S),
    "vit_small_resnet26d_224": Config(**SMALL),
    "vit_small_resnet50d_s16_224": Config(**SMALL, backbone_layers=(3, 4, 6)),
    "vit_tiny_r_s16_p8_224": Config(**TI),
    "vit_tiny_r_s16_p8_384": Config(img_size=384, **TI),
}

family = Family(HybridVisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
