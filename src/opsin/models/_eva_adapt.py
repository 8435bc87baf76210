"""Checkpoints of EVA and its lineages as their authors wrote them, under today's names.

Known layouts: EVA and EVA-02 (pre-trained, fine-tuned, and as towers of CLIP), Perception Encoder, RoPE-ViT, DINOv3
(the authors' own and that of Hugging Face).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from opsin.models._vit_adapt import CLIP_RULES, Rules, below, fit, fuse_qkv, rename

__all__ = ["adapt", "checkpoint_filter_fn"]

State = dict[str, Any]

# what only pre-training used, and tables that are computed
UNUSED = re.compile(
    r"(^|\.)(mask_token|lm_head\..*|rope\.freqs_(cos|sin)|rope_embed\.periods|relative_position_index|bias_mask"
    r"|freqs_t_[xy]|local_cls_norm\..*|cls_norm\..*)$"
)
RULES: Rules = (
    (r"^freqs$", "rope.freqs"),
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.inner_attn_ln\.", ".norm."),
    (r"\.ffn_ln\.", ".norm."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
PE_RULES: Rules = (
    (r"^attn_pool\.probe$", "attn_pool.latent"),
    (r"^attn_pool\.attn\.", "attn_pool."),
    (r"^attn_pool\.layernorm\.", "attn_pool.norm."),
    *CLIP_RULES,
)
HF_RULES: Rules = (
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.", ""),
    (r"^(model\.)?layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.gate_proj\.", ".fc1_g."),
    (r"\.down_proj\.", ".fc2."),
)


def adapt(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Names, shapes and sizes of any known layout made those of `model`; today's layout stays as it is."""
    return checkpoint_filter_fn(state_dict, model)


def checkpoint_filter_fn(
    state_dict: Mapping[str, Any], model: Any, interpolation: str = "bicubic", antialias: bool = True
) -> dict[str, Tensor]:
    """`adapt`, with a choice of how position embeddings and patch projections are resampled."""
    state = dict(state_dict)
    for wrapper in ("model_ema", "model", "module", "state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            state = dict(state[wrapper])
    for prefix in ("visual.trunk.", "visual."):  # the tower of a CLIP
        if any(key.startswith(prefix) for key in state):
            state = below(state, prefix)
    norm_rules: Rules = ()
    if "lm_head.weight" in state and isinstance(getattr(model, "fc_norm", None), nn.LayerNorm):
        norm_rules = ((r"^norm\.", "fc_norm."),)  # it predicted from each token; now from the mean of all
    state = {key: value for key, value in state.items() if not UNUSED.search(key)}
    if "conv1.weight" in state:
        state = perception(state)
    if "embeddings.patch_embeddings.weight" in state:
        gated = any(".gate_proj." in key for key in state)
        rules = (*HF_RULES, (r"\.up_proj\.", ".fc1_x." if gated else ".fc1."))
        state = fuse_qkv(rename(state.items(), rules))
    state = rename(state.items(), RULES + norm_rules)
    if "rope.freqs" in state:  # heads apart
        state["rope.freqs"] = state["rope.freqs"].reshape(model.rope.freqs.shape)
    return fit(split_bias(state, model), model, {"interpolation": interpolation, "antialias": antialias})


def perception(state: State) -> State:
    """The layout of CLIP, with a pool that attends."""
    out = rename(state.items(), PE_RULES)
    if "cls_token" in out:
        out["cls_token"] = out["cls_token"].reshape(1, 1, -1)
    out["pos_embed"] = out["pos_embed"].reshape(1, *out["pos_embed"].shape[-2:])
    for name in ("weight", "bias"):
        if f"attn_pool.qkv.{name}" in out:
            packed = out.pop(f"attn_pool.qkv.{name}")
            out[f"attn_pool.q.{name}"], out[f"attn_pool.kv.{name}"] = packed.tensor_split([len(packed) // 3])
    if "proj" in out:
        weight = out.pop("proj").T
        out |= {"head.weight": weight, "head.bias": weight.new_zeros(len(weight))}
    return out


def split_bias(state: State, model: Any) -> State:
    """One bias of queries, keys and values where the model has none of keys, or none at all."""
    own = dict(model.named_parameters())
    for key in [key for key in state if key.endswith("attn.qkv.bias") and key not in own]:
        query, _, value = state.pop(key).chunk(3)
        base = key.removesuffix("qkv.bias")
        if f"{base}q_bias" in own:
            state |= {f"{base}q_bias": query, f"{base}v_bias": value}
    return state
