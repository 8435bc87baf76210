"""Adaptation of stems, position embeddings and relative tables, beside timm's numbers."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import pos_embed_rel
from timm.layers import resample_abs_pos_embed as timm_pos_embed
from timm.layers import resample_patch_embed as timm_patch_embed
from timm.models._manipulate import adapt_input_conv as timm_input_conv

from opsin.errors import WeightsError
from opsin.weights.adapt import (
    INPUT_STRATEGIES,
    adapt_input_conv,
    resample_abs_pos_embed,
    resample_patch_embed,
    resize_rel_pos_bias_table,
)


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 7, 25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_input_conv_as_timm(in_chans, dtype):
    weight = torch.randn(8, 3, 7, 7).to(dtype)
    got = adapt_input_conv(weight, in_chans)
    assert got.dtype == dtype
    assert torch.equal(got, timm_input_conv(in_chans, weight))


@pytest.mark.parametrize("in_chans", [1, 3, 4, 25])
def test_grey_input_gives_the_same_response(in_chans):
    weight = torch.randn(8, 3, 3, 3, dtype=torch.float64).float()
    grey = torch.rand(2, 1, 9, 9)
    wanted = F.conv2d(grey.expand(-1, 3, -1, -1), weight)
    if in_chans in (1, 3):
        got = F.conv2d(grey.expand(-1, in_chans, -1, -1), adapt_input_conv(weight, in_chans))
        assert torch.allclose(got, wanted, atol=1e-5)
    mean = adapt_input_conv(weight, in_chans, strategy="mean")
    assert torch.allclose(F.conv2d(grey.expand(-1, in_chans, -1, -1), mean), wanted, atol=1e-5)


def test_space_to_depth_stem_as_timm_for_grey():
    weight = torch.randn(8, 48, 3, 3)
    got = adapt_input_conv(weight, 1, strategy="space_to_depth")
    assert torch.equal(got, timm_input_conv(1, weight))


@pytest.mark.parametrize("in_chans", [1, 5])
@pytest.mark.parametrize("strategy", ["space_to_depth", "pixel_unshuffle"])
def test_folded_stems_equal_the_unfolded_convolution(in_chans, strategy):
    """A stem on folded pixels is a strided convolution: adapting either must give the same network."""
    r = 2
    conv = torch.randn(8, 3, r, r)

    def fold(x):
        x = F.pixel_unshuffle(x, r)  # (colour, position)
        channels = x.shape[1] // (r * r)
        return x if strategy == "pixel_unshuffle" else x.unflatten(1, (channels, r * r)).transpose(1, 2).flatten(1, 2)

    def folded(weight):
        flat = weight.flatten(2)  # (out, colour, position)
        flat = flat if strategy == "pixel_unshuffle" else flat.transpose(1, 2)
        return flat.flatten(1)

    x = torch.rand(2, in_chans, 8, 8)
    wanted = F.conv2d(x, adapt_input_conv(conv, in_chans), stride=r)
    linear = adapt_input_conv(folded(conv), in_chans, strategy=strategy)  # (out, in): a linear patch layer
    assert torch.allclose(F.conv2d(fold(x), linear[:, :, None, None]), wanted, atol=1e-5)
    stem = adapt_input_conv(folded(conv)[:, :, None, None], in_chans, strategy=strategy)
    assert torch.equal(stem[:, :, 0, 0], linear)


def test_a_stem_of_unknown_meaning_raises():
    with pytest.raises(WeightsError, match="12 input channels.*space_to_depth, pixel_unshuffle, mean"):
        adapt_input_conv(torch.randn(8, 12, 3, 3), 1)
    with pytest.raises(WeightsError, match="three colours"):
        adapt_input_conv(torch.randn(8, 10, 3, 3), 1, strategy="space_to_depth")
    with pytest.raises(WeightsError, match="no input strategy 'average'"):
        adapt_input_conv(torch.randn(8, 3, 3, 3), 1, strategy="average")
    for strategy in INPUT_STRATEGIES:
        assert adapt_input_conv(torch.randn(8, 12, 3, 3), 6, strategy=strategy).shape[0] == 8


@pytest.mark.parametrize("new_size", [(7, 7), (14, 14), (16, 20), (24, 24)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
def test_abs_pos_embed_as_timm(new_size, prefix, interpolation, antialias):
    posemb = torch.randn(1, 196 + prefix, 24)
    options = {"num_prefix_tokens": prefix, "interpolation": interpolation, "antialias": antialias}
    got = resample_abs_pos_embed(posemb, new_size, **options)
    assert torch.equal(got, timm_pos_embed(posemb, list(new_size), **options))


def test_abs_pos_embed_of_an_oblong_grid():
    posemb = torch.randn(1, 1 + 6 * 8, 16).half()
    got = resample_abs_pos_embed(posemb, (12, 9), old_size=(6, 8))
    assert torch.equal(got, timm_pos_embed(posemb, [12, 9], old_size=[6, 8]))
    with pytest.raises(WeightsError, match="48 position embeddings do not make a square"):
        resample_abs_pos_embed(posemb, (12, 9))


@pytest.mark.parametrize("new_size", [(8, 8), (14, 14), (32, 32), (10, 12)])
def test_patch_embed_as_timm(new_size):
    weight = torch.randn(6, 3, 16, 16)
    got, wanted = resample_patch_embed(weight, new_size), timm_patch_embed(weight, list(new_size))
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_patch_embed_undoes_the_resize():
    weight, patch = torch.randn(6, 3, 8, 8), torch.randn(1, 3, 8, 8)
    larger = F.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    got = F.conv2d(larger, resample_patch_embed(weight, (16, 16)))
    assert torch.allclose(got, F.conv2d(patch, weight), atol=1e-3)


@pytest.mark.parametrize("window", [(4, 4), (7, 7), (8, 12), (12, 12)])
@pytest.mark.parametrize("extra", [0, 3])
def test_rel_pos_table_as_timm(window, extra):
    table = torch.randn(13 * 13 + extra, 4)
    positions = (2 * window[0] - 1) * (2 * window[1] - 1) + extra
    wanted = pos_embed_rel.resize_rel_pos_bias_table_simple(table, window, (positions, 4))
    assert torch.equal(resize_rel_pos_bias_table(table, window, num_extra=extra), wanted)
    heads_first = torch.randn(4, 13, 13)
    wanted = pos_embed_rel.resize_rel_pos_bias_table_simple(
        heads_first, window, (4, 2 * window[0] - 1, 2 * window[1] - 1)
    )
    assert torch.equal(resize_rel_pos_bias_table(heads_first, window), wanted)
