"""CoAtNet (https://arxiv.org/abs/2106.04803), MaxViT (https://arxiv.org/abs/2204.01697), and CoAtNeXt and MaxxViT,
which have ConvNeXt blocks (https://arxiv.org/abs/2201.03545) for their convolutions."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.classifier import ClassifierHead, NormMlpClassifierHead
from opsin.layers.drop import drop_path_rates
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.pos_embed import resize_rel_pos_bias_table
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage
from opsin.models._family import Family
from opsin.models._headed import HeadedModel
from opsin.models._maxxvit import Config, Stem
from opsin.models._maxxvit_attn import (
    ParallelPartitionAttention,
    PartitionAttention,
    ResidualParts,
    TransformerBlock2d,
    make_block,
    partition_sizes,
    resize_rel_pos,
)
from opsin.models._maxxvit_tables import VARIANTS

__all__ = ["Config", "MaxxVit"]


class MaxxVit(HeadedModel, config=Config):
    """A convolutional stem and stages of blocks, each halving the map; norm and linear head, or a head with both."""

    first_conv = "stem.conv1"

    def build(self, c: Config) -> None:
        count = len(c.depths)
        if not len(c.embed_dim) == len(c.block_type) == count:
            raise ValueError(f"depths={c.depths}, embed_dim={c.embed_dim}, block_type={c.block_type}: one per stage")
        check_init(c.weight_init)
        check_size(c)
        self.stem = Stem(c)
        self.stages = nn.Sequential()
        chain, width = [Stage(("stem",), self.stem.out_chs, 2, checkpoint=False)], self.stem.out_chs
        for i, drops in enumerate(drop_path_rates(c.drop_path_rate, tuple(c.depths))):
            dim, kinds = c.embed_dim[i], c.block_type[i]
            kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
            blocks = [
                make_block(
                    kinds[min(j, len(kinds) - 1)], c, dim if j else width, dim, 1 if j else 2, drop, stage_size(c, i)
                )
                for j, drop in enumerate(drops)
            ]
            self.stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks))))
            chain.append(Stage((f"stages.{i}",), dim, 2 ** (i + 2)))
            width = dim
        self.num_features = width
        self.norm = nn.Identity() if c.head_hidden_size else closing_norm(c)(width)
        self.chain = (*chain, Stage(("norm",)))
        self.build_head(c)
        self.head_hidden_size = self.head.num_features

    def make_head(self, c: Config) -> nn.Module:
        args: dict[str, Any] = {"pool_type": c.global_pool, "drop_rate": c.drop_rate}
        if not c.head_hidden_size:
            return ClassifierHead(self.num_features, c.num_classes, **args)
        args |= {"hidden_size": c.head_hidden_size, "norm_layer": closing_norm(c)}
        return NormMlpClassifierHead(self.num_features, c.num_classes, **args)

    def remove_head(self) -> None:
        super().remove_head()
        if isinstance(self.head, NormMlpClassifierHead):
            self.head.remove()

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        window_size: int | tuple[int, int] | None = None,
        grid_size: int | tuple[int, int] | None = None,
        partition_ratio: int | None = None,
    ) -> None:
        """Make the model take another image size; position biases are resampled.

        Windows and grids are the image divided by `partition_ratio` (None: as it was), or `window_size`, `grid_size`.
        """
        c = replace(
            self.config,
            img_size=self.config.img_size if img_size is None else to_2tuple(img_size),
            transformer_window_size=window_size,
            transformer_grid_size=grid_size,
            transformer_partition_ratio=partition_ratio or self.config.transformer_partition_ratio,
        )
        check_size(c)
        for i, stage in enumerate(self.stages):
            for module in stage.modules():
                if isinstance(module, TransformerBlock2d):
                    module.feat_size = stage_size(c, i)
                    resize_rel_pos(module.attn, module.feat_size)
                elif isinstance(module, PartitionAttention | ParallelPartitionAttention):
                    module.set_sizes(*partition_sizes(c))
        self.config = c

    def no_weight_decay(self) -> set[str]:
        names = ("relative_position_bias_table", "rel_pos.mlp")
        return {name for name, _ in self.named_parameters() if any(part in name for part in names)}

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Conv2d | nn.Linear) or name.startswith("head."):
            return False
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        scheme, weight = self.config.weight_init, module.weight
        if scheme in SCHEMES:
            SCHEMES[scheme](weight)
            return True
        if self._in_attention(name):
            nn.init.xavier_uniform_(weight)
        else:
            fan_out = weight.shape[0] * weight[0, 0].numel() / getattr(module, "groups", 1)
            nn.init.normal_(weight, std=math.sqrt(2 / fan_out))
        if ".mlp." in name and module.bias is not None:
            nn.init.normal_(module.bias, std=1e-6)
        return True

    def _in_attention(self, name: str) -> bool:
        parts = name.split(".")
        return any(isinstance(self.get_submodule(".".join(parts[:i])), ResidualParts) for i in range(1, len(parts)))


SCHEMES: dict[str, Any] = {
    "normal": lambda weight: nn.init.normal_(weight, std=0.02),
    "trunc_normal": lambda weight: trunc_normal_(weight, std=0.02),
    "xavier_normal": nn.init.xavier_normal_,
}


def check_init(scheme: str) -> None:
    known = ("vit_eff", *SCHEMES)
    if scheme not in known:
        near = did_you_mean(scheme, known)
        raise UnknownArgumentError(f"weight_init={scheme!r}.{near} Known: {', '.join(known)}")


def closing_norm(c: Config) -> Any:
    return get_norm_layer(c.transformer_norm_layer, eps=c.transformer_norm_eps)


def stage_size(c: Config, stage: int) -> tuple[int, int]:
    """(height, width) of the map that leaves a stage."""
    height, width = to_2tuple(c.img_size)
    return -(-height // 2 ** (stage + 2)), -(-width // 2 ** (stage + 2))


def check_size(c: Config) -> None:
    """Refuse images whose maps are odd where a pool without padding halves them: position biases would be too many."""
    kinds = [(kind,) if isinstance(kind, str) else tuple(kind) for kind in c.block_type]
    whole = [i for i, kind in enumerate(kinds) if "T" in kind and c.transformer_rel_pos_type]
    for i in range(max(whole, default=-1) + 1):
        pools = [c.transformer_pool_type]
        if kinds[i][0] != "T":
            pools = [c.conv_pool_type, *([c.conv_downsample_pool_type] if c.conv_stride_mode == "pool" else [])]
            pools = [] if c.conv_padding == "same" else pools
        if any(pool.endswith("2") for pool in pools) and any(side % 2 for side in stage_size(c, i - 1)):
            unit, sides = 2 ** (whole[-1] + 2), to_2tuple(c.img_size)
            near = [max(unit, round(side / unit) * unit) for side in sides]
            raise ValueError(
                f"img_size={sides}: a map of {stage_size(c, i - 1)} cannot be halved; sides that are multiples of "
                f"{unit} work, such as {tuple(near)}"
            )


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Position biases for the model's windows; linear layers that are kept as 1x1 convolutions, and the reverse."""
    own, state = model.state_dict(), {}
    for key, value in state_dict.items():
        if key.endswith("relative_position_bias_table") and key in own:
            window = model.get_submodule(key.rpartition(".")[0]).window_size
            value = resize_rel_pos_bias_table(value, window, interpolation="geometric")
        elif key in own and value.ndim != own[key].ndim and value.numel() == own[key].numel():
            value = value.reshape(own[key].shape)
        state[key] = value
    return state


family = Family(MaxxVit, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
