"""Checkpoints of NaFlex models, and those of plain vision transformers, SigLIP 2 and RADIO as NaFlex models."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from opsin.errors import WeightsError
from opsin.layers.pos_embed import resample_abs_pos_embed_nhwc, resample_patch_embed
from opsin.models._naflex import stretch
from opsin.models._vit_adapt import is_radio, radio, to_today

__all__ = ["adapt", "checkpoint_filter_fn"]

State = dict[str, Any]


def adapt(state_dict: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Names, shapes and sizes of any known layout made those of `model`; today's layout stays as it is."""
    state = dict(state_dict)
    if not any(key.startswith("embeds.") for key in state):
        state = of_plain(radio(state) if is_radio(state) else to_today(state, model), model)
    return fit(state, model)


checkpoint_filter_fn = adapt


def of_plain(state: State, model: Any) -> State:
    """What a plain vision transformer has before its blocks is part of the embedding here."""
    own = ("patch_embed.", "cls_token", "reg_token", "pos_embed")
    out = {f"embeds.{k.removeprefix('patch_embed.')}" if k.startswith(own) else k: v for k, v in state.items()}
    weight = out.get("embeds.proj.weight")
    if weight is not None and weight.ndim == 2:  # of flat patches, colours last
        patch = patch_of(weight.shape[1], model)
        out["embeds.proj.weight"] = weight.unflatten(1, (*patch, -1)).permute(0, 3, 1, 2)
    if (table := out.get("embeds.pos_embed")) is not None:
        out |= split_positions(table, out, model)
    return out


def split_positions(table: Tensor, state: State, model: Any) -> State:
    """A table (1, N, C) as a map (1, H, W, C); its entries for prefix tokens are added to these."""
    if table.ndim > 3 or (table.ndim == 3 and table.shape[0] > 1):  # a map already
        return {"embeds.pos_embed": table.reshape(1, *table.shape[-3:])}
    table = table.reshape(1, -1, table.shape[-1])
    tokens = [(key, state[key]) for key in ("embeds.cls_token", "embeds.reg_token") if key in state]
    prefix = sum(token.shape[1] for _, token in tokens)
    prefix = 0 if is_square(table.shape[1]) else prefix
    count = table.shape[1] - prefix
    if not is_square(count):
        raise WeightsError(f"{count} position embeddings of patches make no square: their grid is not known")
    out, start = {"embeds.pos_embed": table[:, prefix:].unflatten(1, (math.isqrt(count),) * 2)}, 0
    for key, token in tokens if prefix else ():
        out[key] = token + table[:, start : start + token.shape[1]]
        start += token.shape[1]
    return out


def is_square(count: int) -> bool:
    return math.isqrt(max(count, 0)) ** 2 == count


def patch_of(width: int, model: Any) -> tuple[int, int]:
    """Height and width of a flat patch of `width` values, in as many channels as the model has, or in three."""
    own: tuple[int, int] = model.embeds.patch_size
    areas = [width // chans for chans in (model.in_chans, 3) if width % chans == 0]
    if own[0] * own[1] in areas:
        return own
    for area in filter(is_square, areas):
        return math.isqrt(area), math.isqrt(area)
    raise WeightsError(f"flat patches of {width} values are no squares in {model.in_chans} or 3 channels")


def fit(state: State, model: Any) -> dict[str, Tensor]:
    """Patch projection and position tables at the model's sizes and in its order."""
    embeds, key = model.embeds, "embeds.proj.weight"
    if key in state:
        weight = state[key]
        if weight.ndim == 2 and (not embeds.linear or patch_of(weight.shape[1], model) != embeds.patch_size):
            weight = embeds.kernels(weight, patch_of(weight.shape[1], model))
        if weight.ndim == 4:
            weight = resample_patch_embed(weight, embeds.patch_size)
            weight = embeds.flat(weight) if embeds.linear else weight
        state[key] = weight.contiguous()
    table, own = state.get("embeds.pos_embed"), embeds.pos_embed
    if table is not None and own is not None:
        c = embeds.config
        state["embeds.pos_embed"] = resample_abs_pos_embed_nhwc(
            table, own.shape[1:3], c.pos_embed_interp_mode, c.pos_embed_antialias
        )
    for name in ("y", "x"):
        table, own = state.get(f"embeds.pos_embed_{name}"), getattr(embeds, f"pos_embed_{name}")
        if table is not None and own is not None:
            state[f"embeds.pos_embed_{name}"] = stretch(table, own.shape[1])
    return state
