"""Checkpoints of vision transformers as others wrote them, under today's names.

Known layouts: Flax (the first ViT release, AugReg, big_vision), OpenAI CLIP and OpenCLIP, DeiT III, DINOv2 and TIPS,
I-JEPA, AIMv2, BEiT-3, RADIO, and those of Hugging Face's ViT, DeiT, DINOv2, CLIP and SigLIP.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import WeightsError
from opsin.layers.pos_embed import resample_abs_pos_embed, resample_patch_embed

__all__ = [
    "CLIP_RULES", "Rules", "adapt", "below", "checkpoint_filter_fn", "fit", "fuse_qkv", "is_radio", "radio", "rename",
    "to_today",
]  # fmt: skip

State = dict[str, Any]
Rules = tuple[tuple[str, str], ...]


def adapt(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Names, shapes and sizes of any known layout made those of `model`; today's layout stays as it is."""
    return _convert(state_dict, model, True, dict(getattr(model.config, "resample", None) or {}))


def checkpoint_filter_fn(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    adapt_layer_scale: bool = False,
    interpolation: str = "bicubic",
    antialias: bool = True,
    align_corners: bool | None = None,
) -> dict[str, Tensor]:
    """`adapt` with its choices as arguments: whether DeiT III's `gamma_1` is renamed, and how tables are resampled."""
    how = {"interpolation": interpolation, "antialias": antialias, "align_corners": align_corners}
    return _convert(state_dict, model, adapt_layer_scale, how)


def _convert(given: Mapping[str, Any], model: Any, layer_scale: bool, how: dict[str, Any]) -> dict[str, Tensor]:
    state = _unwrap(dict(given))
    how = ({"interpolation": "bilinear", "antialias": False} if _is_flax(state) else {}) | how
    return fit(to_today(state, model, layer_scale, how), model, how)


def to_today(state: State, model: Any, layer_scale: bool = True, how: dict[str, Any] | None = None) -> State:
    """Names and shapes of any known layout, at the sizes of the checkpoint."""
    state = _unwrap(state)
    for known, convert in LAYOUTS:
        if known(state):
            state = convert(state, model, how or {})
            break
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if "pre_logits" in key:  # a layer that the published classifiers do not use
            continue
        if key.startswith("attn_pool.") and getattr(model, "attn_pool", None) is None:
            continue  # a model that pools by the mean takes the rest of a checkpoint with attention pooling
        if layer_scale:
            key = re.sub(r"\bgamma_([0-9])", r"ls\1.gamma", key)
        out[key] = value
    return out


def _unwrap(state: State) -> State:
    for wrapper in ("model", "state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            state = dict(state[wrapper])
    if isinstance(state.get("encoder"), Mapping):  # I-JEPA keeps predictor and optimiser beside it
        state = {k.removeprefix("module."): v for k, v in state["encoder"].items()}
    return state


def fit(state: dict[str, Tensor], model: Any, how: dict[str, Any]) -> dict[str, Tensor]:
    """Patch projection and position embedding at the model's sizes."""
    projection, table = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    embed, target = model.patch_embed, getattr(model, "pos_embed", None)
    if table is not None and target is not None:
        prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
        old = _old_grid(table.shape[1] - prefix, projection, model)
        state["pos_embed"] = resample_abs_pos_embed(table, embed.grid_size, old, prefix, **how)
    if projection is not None and isinstance(getattr(embed, "proj", None), nn.Conv2d):
        size = embed.proj.kernel_size
        if projection.ndim < 4:  # a linear layer over flattened patches
            projection = projection.reshape(len(projection), -1, *size)
        kernels = {k: v for k, v in how.items() if k != "align_corners"}
        state["patch_embed.proj.weight"] = resample_patch_embed(projection, size, **kernels)
    return state


def _old_grid(count: int, projection: Tensor | None, model: Any) -> tuple[int, int]:
    """The grid of a checkpoint's position embedding: the record's image size tells where it is no square."""
    patch = projection.shape[-2:] if projection is not None and projection.ndim == 4 else model.patch_embed.patch_size
    record = (model.pretrained_cfg or {}).get("input_size")
    for size in filter(None, (record and record[-2:], model.patch_embed.img_size)):
        grid = (size[0] // patch[0], size[1] // patch[1])
        if grid[0] * grid[1] == count:
            return grid
    if math.prod(model.patch_embed.grid_size) == count:  # patches of a map, of which the image size tells nothing
        return model.patch_embed.grid_size
    side = math.isqrt(max(count, 0))
    if side * side != count:
        raise WeightsError(
            f"the checkpoint has {count} position embeddings for patches, which is no square, and the model's record "
            "names no image size that fits: build the model with the img_size it was trained at"
        )
    return side, side


# -- layouts -----------------------------------------------------------------------------------------------------------


def rename(items: Iterable[tuple[str, Any]], rules: Rules) -> State:
    out = {}
    for key, value in items:
        for old, new in rules:
            key = re.sub(old, new, key)
        out[key] = value
    return out


def below(state: State, prefix: str) -> State:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def fuse_qkv(state: State, names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")) -> State:
    """Three projections `…attn.<name>.weight` become one `…attn.qkv.weight`; absent biases (of keys) count as zero."""
    out = {k: v for k, v in state.items() if k.split(".")[-2:][0] not in names}
    for key in [k for k in state if k.endswith(f".{names[0]}.weight")]:
        base = key.removesuffix(f"{names[0]}.weight")
        weights = [state[f"{base}{n}.weight"] for n in names]
        biases = [state.get(f"{base}{n}.bias") for n in names]
        out[f"{base}qkv.weight"] = torch.cat(weights)
        if any(b is not None for b in biases):
            filled = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
            out[f"{base}qkv.bias"] = torch.cat(filled)
    return out


CLIP_RULES: Rules = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^positional_embedding$", "pos_embed"),
    (r"^class_embedding$", "cls_token"),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ls_([12])\.", r".ls\1."),
    (r"\.in_proj_", ".qkv."),
    (r"\.out_proj\.", ".proj."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
)


def _clip(state: State, model: Any, how: dict[str, Any]) -> State:
    prefix = next(k for k in state if k.endswith("class_embedding")).removesuffix("class_embedding")
    out = rename(below(state, prefix).items(), CLIP_RULES)
    out["cls_token"] = out["cls_token"].reshape(1, 1, -1)
    out["pos_embed"] = out["pos_embed"].unsqueeze(0)
    return _as_head(out, out.pop("proj", None), transpose=True)


def _as_head(state: State, projection: Tensor | None, *, transpose: bool = False) -> State:
    """A projection without bias as the classifier."""
    if projection is not None:
        weight = projection.T if transpose else projection
        state |= {"head.weight": weight, "head.bias": weight.new_zeros(len(weight))}
    return state


def _trunk(state: State, model: Any, how: dict[str, Any]) -> State:
    """OpenCLIP around a model of this layout."""
    prefix = next(k for k in state if ".trunk." in k).split("trunk.")[0]
    head = state.get(f"{prefix}head.proj.weight") if isinstance(model.head, nn.Linear) else None
    return _as_head(below(state, f"{prefix}trunk."), head)


def _dinov2(state: State, model: Any, how: dict[str, Any]) -> State:
    state = {k: v for k, v in state.items() if k != "mask_token"}
    out = rename(state.items(), ((r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")))
    return _split_positions(out, out.pop("register_tokens", None))


def _split_positions(state: State, registers: Tensor | None) -> State:
    """With registers the class token's position is added to it: the model's table is of patches alone."""
    if registers is not None:
        table = state["pos_embed"]
        state |= {"reg_token": registers, "pos_embed": table[:, 1:], "cls_token": state["cls_token"] + table[:, :1]}
    return state


BEIT3_RULES: Rules = (
    (r"^beit3\.", ""),
    (r"^vision_embed\.cls_token$", "cls_token"),
    (r"^vision_embed\.", "patch_embed."),
    (r"^encoder\.", ""),
    (r"^embed_positions\.A\.weight$", "pos_embed"),
    (r"^layers\.", "blocks."),
    (r"\.A\.", "."),
    (r"\.ffn\.ffn_layernorm\.", ".mlp.norm."),
    (r"\.ffn\.", ".mlp."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.inner_attn_ln\.", ".norm."),
    (r"\.out_proj\.", ".proj."),
)


def _beit3(state: State, model: Any, how: dict[str, Any]) -> State:
    """The vision branch (A) of the multiway network; its position table begins with two padding rows."""
    unused = ("beit3.text_embed.weight", "beit3.vision_embed.mask_token")
    kept = {k: v for k, v in state.items() if ".B." not in k and k not in unused}
    out = fuse_qkv(rename(kept.items(), BEIT3_RULES))
    return out | {"pos_embed": out["pos_embed"][2:].unsqueeze(0)}


AIMV2_RULES: Rules = (
    (r"^preprocessor\.patchifier\.", "patch_embed."),
    (r"^preprocessor\.pos_embed", "pos_embed"),
    (r"^trunk\.post_trunk_norm\.", "norm."),
    (r"^trunk\.", ""),
    (r"\.norm_([12])\.", r".norm\1."),
    (r"\.mlp\.fc1\.", ".mlp.fc1_g."),
    (r"\.mlp\.fc3\.", ".mlp.fc1_x."),
)


def _aimv2(state: State, model: Any, how: dict[str, Any]) -> State:
    return rename(state.items(), AIMV2_RULES)


RADIO = "radio_model.model."


def is_radio(state: Mapping[str, Any]) -> bool:
    return f"{RADIO}patch_generator.embedder.weight" in state


def radio(state: State) -> State:
    """One class token per teacher, then registers: the first stays the class token. Input scaling and heads go."""
    own = below(state, RADIO)
    generator = below(own, "patch_generator.")
    weight, tokens = generator["embedder.weight"], generator["cls_token.token"]
    patch = math.isqrt(weight.shape[1] // 3)
    out = {k.replace(".grandma", ".gamma"): v for k, v in own.items() if k.startswith("blocks.")}
    return out | {
        "patch_embed.proj.weight": weight.reshape(len(weight), 3, patch, patch),
        "patch_embed.proj.bias": weight.new_zeros(len(weight)),
        "pos_embed": generator["pos_embed"],
        "cls_token": tokens[None, :1],
        "reg_token": tokens[None, 1:],
    }


def _radio(state: State, model: Any, how: dict[str, Any]) -> State:
    """The big square position table is resized to the larger side of the grid and cropped, as RADIO itself does."""
    out = radio(state)
    height, width = model.patch_embed.grid_size
    table = resample_abs_pos_embed(out["pos_embed"], (max(height, width),) * 2, None, 0, **how)
    return out | {"pos_embed": table.unflatten(1, (max(height, width),) * 2)[:, :height, :width].flatten(1, 2)}


# -- Flax --------------------------------------------------------------------------------------------------------------

FLAX_RULES: Rules = (
    (r"^embedding/", "patch_embed.proj/"),
    (r"^cls$", "cls_token"),
    (r"^(Transformer/posembed_input/)?pos_embedding$", "pos_embed"),
    (r"^Transformer/encoder_norm/", "norm/"),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    (r"^MAPHead_0/probe$", "attn_pool.latent"),
    (r"^MAPHead_0/MultiHeadDotProductAttention_0/", "attn_pool."),
    (r"^MAPHead_0/LayerNorm_0/", "attn_pool.norm/"),
    (r"^MAPHead_0/MlpBlock_0/", "attn_pool.mlp."),
    (r"\.MultiHeadDotProductAttention_\d/", ".attn."),
    (r"\.MlpBlock_\d/", ".mlp."),
    (r"\.LayerNorm_0/", ".norm1/"),
    (r"\.LayerNorm_[12]/", ".norm2/"),
    (r"\.Dense_0/", ".fc1/"),
    (r"\.Dense_1/", ".fc2/"),
    (r"\.out/", ".proj/"),
    (r"/scale$", ".weight"),
    (r"/", "."),
)


def _is_flax(state: State) -> bool:
    return any(k.endswith("embedding/kernel") for k in state)


def _flax(state: State, model: Any, how: dict[str, Any]) -> State:
    prefix = next(k for k in state if k.endswith("embedding/kernel")).removesuffix("embedding/kernel")
    state = below(state, prefix)
    stacked = {k: v for k, v in state.items() if k.startswith("Transformer/encoderblock/")}
    for key, value in stacked.items():  # all blocks in one array
        del state[key]
        state |= {key.replace("encoderblock", f"encoderblock_{i}"): part for i, part in enumerate(value)}
    out = {k: _flax_tensor(k, v) for k, v in rename(state.items(), FLAX_RULES).items()}
    out = fuse_qkv({re.sub(r"\.kernel$", ".weight", k): v for k, v in out.items()}, ("query", "key", "value"))
    pool = {k: out.pop(k) for k in list(out) if k.startswith("attn_pool.qkv.")}
    for key, value in pool.items():  # the pool keeps its query apart
        name = key.rpartition(".")[2]
        out[f"attn_pool.q.{name}"], out[f"attn_pool.kv.{name}"] = value.tensor_split([len(value) // 3])
    return {k: v.contiguous() for k, v in out.items()}


def _flax_tensor(key: str, value: Tensor) -> Tensor:
    """Flax keeps inputs first and heads apart; PyTorch outputs first and heads joined."""
    owner = key.split(".")[-2:-1]
    if key.endswith(".kernel"):
        if value.ndim == 4:  # convolution (h, w, in, out)
            return value.permute(3, 2, 0, 1)
        joined = value.flatten(0, 1) if owner == ["proj"] and value.ndim == 3 else value.flatten(1)
        return joined.T
    return value.flatten() if key.endswith(".bias") else value


# -- Hugging Face transformers -----------------------------------------------------------------------------------------

HF_RULES: Rules = (
    (r"^(vit|deit|dinov2|dinov2_with_registers|vision_model)\.", ""),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.", "attn_pool."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^encoder\.layers?\.", "blocks."),
    (r"^layers\.", "blocks."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.(attention\.output\.dense|self_attn\.out_proj|attention\.o_proj)\.", ".attn.proj."),
    (r"\.(self_attn|attention)\.", ".attn."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.(intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.weights_out)\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^(classifier|cls_classifier)\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
    (r"\.out_proj\.", ".proj."),
    (r"\.(q_proj|query)\.", ".q_proj."),
    (r"\.(k_proj|key)\.", ".k_proj."),
    (r"\.(v_proj|value)\.", ".v_proj."),
)
HF_UNUSED = re.compile(
    r"^(text_model\.|text_projection|logit_|visual_projection|(\w+\.)?pooler\.)|(mask_token|position_ids)$"
)


def _is_hf(state: State) -> bool:
    return any(re.search(r"(^|\.)embeddings\.patch_embeddings?\.", k) for k in state)


def _hf(state: State, model: Any, how: dict[str, Any]) -> State:
    """The vision tower; of CLIP the projection becomes the classifier, as in the original layout."""
    projection = state.get("visual_projection.weight")
    out = fuse_qkv(rename(((k, v) for k, v in state.items() if not HF_UNUSED.search(k)), HF_RULES))
    if out["pos_embed"].ndim == 2:
        out["pos_embed"] = out["pos_embed"].unsqueeze(0)
    if "cls_token" in out:
        out["cls_token"] = out["cls_token"].reshape(1, 1, -1)
    for name in ("weight", "bias"):
        joined = out.pop(f"attn_pool.in_proj_{name}", None)
        if joined is not None:
            out[f"attn_pool.q.{name}"], out[f"attn_pool.kv.{name}"] = joined.tensor_split([len(joined) // 3])
    return _as_head(_split_positions(out, out.pop("register_tokens", None)), projection)


def _has(*keys: str) -> Callable[[State], bool]:
    return lambda state: any(key in state for key in keys)


LAYOUTS: tuple[tuple[Callable[[State], bool], Callable[[State, Any, dict[str, Any]], State]], ...] = (
    (_is_flax, _flax),
    (_has("class_embedding", "visual.class_embedding", "module.visual.class_embedding"), _clip),
    (_is_hf, _hf),
    (_has("vision_encoder.mask_token"), lambda s, m, how: _dinov2(below(s, "vision_encoder."), m, how)),
    (_has("mask_token"), _dinov2),
    (lambda state: any(k.startswith("beit3.") for k in state), _beit3),
    (lambda state: any(k.startswith(("visual.trunk.", "module.visual.trunk.")) for k in state), _trunk),
    (_has("preprocessor.patchifier.proj.weight"), _aimv2),
    (is_radio, _radio),
)
