"""Vision transformers with relative position biases in place of position embeddings, after Swin V2
(https://arxiv.org/abs/2111.09883); "srelpos" variants share the biases between blocks, "rpn" ones have norms behind."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.attention import Attention, add_bias
from opsin.layers.pos_embed import resize_rel_pos_bias_table
from opsin.layers.rel_pos_bias import RelPosBias, RelPosMlp
from opsin.models import vision_transformer as vit
from opsin.models._chain import Stage
from opsin.models._family import Family
from opsin.models._vit_adapt import adapt as adapt_vit

__all__ = ["Config", "RelPosAttention", "VisionTransformerRelPos"]

REL_POS = ("mlp", "mlp-swin", "bias")


@dataclass(frozen=True, kw_only=True)
class Config(vit.Config):
    """Without absolute positions and class token unless asked for."""

    global_pool: str = "avg"
    init_values: float | None = 1e-6
    class_token: bool = False
    pos_embed: str = "none"
    fc_norm: bool | None = False
    weight_init: str = "reset"
    # mlp: a network on log-spaced offsets; mlp-swin: the same as in Swin V2, from 0 to 16; bias: a learned table
    rel_pos_type: str = "mlp"
    rel_pos_dim: int | None = None  # hidden width of the network; None for 128
    shared_rel_pos: bool = False  # one for all blocks


class RelPosAttention(Attention):
    """Attention with a module whose `(1, heads, N, N)` are added to the scores; `rel_pos(num_heads=…)` makes it."""

    def __init__(self, dim: int, num_heads: int = 8, *, rel_pos: Any, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        proj = self._modules.pop("proj")  # checkpoints list it behind the biases
        self.rel_pos = rel_pos(num_heads=num_heads)
        self.proj = proj  # type: ignore[assignment]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return super().forward(x, add_bias(self.rel_pos(), attn_mask, is_causal))


class VisionTransformerRelPos(vit.VisionTransformer, config=Config):
    """A vision transformer whose blocks know positions by the biases of their attention."""

    positional = (
        "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads",
        "mlp_ratio", "qkv_bias", "qk_norm", "init_values", "class_token", "fc_norm", "rel_pos_type", "rel_pos_dim",
        "shared_rel_pos",
    )  # fmt: skip
    shared_rel_pos: Any

    def build_embed(self, c: Config) -> None:  # type: ignore[override]
        if c.dynamic_img_size or c.patch_drop_rate or c.attn_layer not in ("attn", "Attention", Attention):
            raise UnknownArgumentError(
                "position biases belong to one grid of patches and to plain attention: leave out dynamic_img_size, "
                "patch_drop_rate and attn_layer (set_input_size gives another grid)"
            )
        super().build_embed(c)
        self.shared_rel_pos = self.rel_pos(c)(num_heads=c.num_heads) if c.shared_rel_pos else None

    def rel_pos(self, c: Config) -> partial[Any]:
        """What makes the biases of a number of heads."""
        if c.rel_pos_type not in REL_POS:
            near = did_you_mean(c.rel_pos_type, REL_POS)
            raise UnknownArgumentError(f"rel_pos_type={c.rel_pos_type!r}.{near} Known: {', '.join(REL_POS)}")
        where: dict[str, Any] = {"window_size": self.patch_embed.grid_size, "prefix_tokens": self.num_prefix_tokens}
        if c.rel_pos_type == "bias":
            return partial(RelPosBias, **where)
        mode = "swin" if c.rel_pos_type == "mlp-swin" else "cr"
        return partial(RelPosMlp, hidden_dim=c.rel_pos_dim or 128, mode=mode, **where)

    def build_blocks(self, c: Config, norm: Any) -> list[nn.Module]:  # type: ignore[override]
        if not c.shared_rel_pos:
            c = replace(c, attn_layer=partial(RelPosAttention, rel_pos=self.rel_pos(c)))
        return super().build_blocks(c, norm)

    def declare_chain(self, c: Config) -> tuple[Stage, ...]:  # type: ignore[override]
        first, *rest = super().declare_chain(c)
        if c.shared_rel_pos:
            first = first._replace(params=(*first.params, "shared_rel_pos"))
        return (first, *rest)

    def block_args(self, attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
        if self.shared_rel_pos is None:
            return super().block_args(attn_mask, is_causal)
        return {"attn_mask": add_bias(self.shared_rel_pos(), attn_mask, is_causal)}

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make the model take another image or patch size; kernels and position biases are resampled."""
        super().set_input_size(img_size, patch_size)
        for module in self.modules():
            if isinstance(module, RelPosBias | RelPosMlp):
                module.set_window_size(self.patch_embed.grid_size)


def adapt(state_dict: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Read checkpoints for other image and patch sizes."""
    state, own = adapt_vit(state_dict, model), model.state_dict()
    for key, value in state.items():
        if key.endswith("relative_position_bias_table") and key in own:
            table: Any = model.get_submodule(key.rpartition(".")[0])
            extra = {"num_extra": table.table_extra}
            state[key] = resize_rel_pos_bias_table(value, table.window_size, **extra, interpolation="geometric")
    return state


S: dict[str, Any] = {"embed_dim": 384, "num_heads": 6, "qkv_bias": False}
M: dict[str, Any] = {"embed_dim": 512, "num_heads": 8, "qkv_bias": False}
B: dict[str, Any] = {"qkv_bias": False}
PLUS: dict[str, Any] = {"embed_dim": 896, "num_heads": 14}
RPN: dict[str, Any] = {"block_fn": "ResPostBlock"}
GAP: dict[str, Any] = {"fc_norm": True}
CLS: dict[str, Any] = {"class_token": True, "global_pool": "token"}

VARIANTS = {
    "test_vit_relpos": Config(
        img_size=160, embed_dim=96, depth=9, num_heads=3, mlp_ratio=2, qkv_bias=False, fc_norm=True
    ),
    "vit_relpos_base_patch16_224": Config(**B, **GAP),
    "vit_relpos_base_patch16_cls_224": Config(**B, **CLS),
    "vit_relpos_base_patch16_clsgap_224": Config(**B, **GAP, class_token=True),
    "vit_relpos_base_patch16_plus_240": Config(img_size=240, **PLUS),
    "vit_relpos_base_patch16_rpn_224": Config(**B, **RPN),
    "vit_relpos_base_patch32_plus_rpn_256": Config(img_size=256, patch_size=32, **PLUS, **RPN),
    "vit_relpos_medium_patch16_224": Config(**M, **GAP),
    "vit_relpos_medium_patch16_cls_224": Config(**M, **CLS, rel_pos_dim=256),
    "vit_relpos_medium_patch16_rpn_224": Config(**M, **RPN),
    "vit_relpos_small_patch16_224": Config(**S, **GAP),
    "vit_relpos_small_patch16_rpn_224": Config(**S, **RPN),
    "vit_srelpos_medium_patch16_224": Config(**M, rel_pos_dim=512, shared_rel_pos=True),
    "vit_srelpos_small_patch16_224": Config(**S, rel_pos_dim=384, shared_rel_pos=True),
}

family = Family(VisionTransformerRelPos, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
