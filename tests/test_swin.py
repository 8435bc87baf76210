"""Swin transformers: other sizes and windows, older checkpoints, and that every option acts; beside the judge."""

from importlib import import_module

import pytest
import torch
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.errors import UnknownArgumentError, WeightsError
from opsin.layers import resize_rel_pos_bias_table
from opsin.models._registry import find_family

timm = pytest.importorskip("timm")

SMALL = {"embed_dim": 24, "depths": (2, 2), "num_heads": (3, 3), "num_classes": 5, "img_size": (64, 80)}
ARCHES = ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"]
TABLE = "layers.0.blocks.1.attn.relative_position_bias_table"


def pair(arch, **kwargs):
    """The judge's model and ours with the same values."""
    theirs = randomize(timm.create_model(arch, **(SMALL | kwargs))).eval()
    ours = opsin.create_model(arch, **(SMALL | kwargs)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@torch.no_grad()
def differ(ours, theirs, size) -> float:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    return relative_error(ours(x), theirs(x))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    ("kwargs", "size"),
    [
        ({"window_size": (4, 6)}, (64, 80)),
        ({"window_size": ((4, 6), 5)}, (64, 80)),
        ({"window_size": 32}, (64, 80)),
        ({"window_size": 12, "always_partition": True}, (64, 80)),
        ({"dynamic_img_size": True}, (36, 100)),
        ({"strict_img_size": False}, (48, 48)),
        ({"patch_size": 8, "qkv_bias": False, "mlp_ratio": 2.0}, (64, 80)),
    ],
)
def test_options_as_timm(arch, kwargs, size):
    assert differ(*pair(arch, **kwargs), size) < 1e-5


@pytest.mark.parametrize(
    "kwargs", [{"head_dim": 4}, {"head_dim": (4, 6)}, {"mlp_ratio": (2.0, 3.0)}, {"norm_layer": nn.RMSNorm}]
)
def test_options_of_the_first_version_as_timm(kwargs):
    assert differ(*pair("swin_tiny_patch4_window7_224", **kwargs), (64, 80)) < 1e-5


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    ("kwargs", "size"),
    [
        ({"img_size": (96, 128)}, (96, 128)),
        ({"img_size": (80, 64), "window_size": 5}, (80, 64)),
        ({"img_size": 96, "window_ratio": (4, 8)}, (96, 96)),
        ({"patch_size": 8}, (64, 80)),
        ({"always_partition": True, "window_size": (18, 22)}, (64, 80)),
    ],
)
def test_another_size_as_timm(arch, kwargs, size):
    ours, theirs = pair(arch)
    ours.set_input_size(**kwargs)
    theirs.set_input_size(**kwargs)
    assert differ(ours, theirs, size) < 1e-4
    config = find_family(arch).model(**{name: getattr(ours.config, name) for name in ours.config.names()})
    config.eval().load_state_dict(ours.state_dict())
    assert differ(config, ours, size) == 0
    assert [row["reduction"] for row in ours.feature_info] == [row["reduction"] for row in theirs.feature_info]


def test_the_second_version_counts_offsets_in_trained_windows():
    kwargs = {"pretrained_window_sizes": (4, 6), "act_layer": "relu"}
    assert differ(*pair("swinv2_tiny_window8_256", **kwargs), (64, 80)) < 1e-5
    ours, theirs = pair("swinv2_tiny_window8_256", **kwargs)
    ours.set_input_size(window_size=6)
    theirs.set_input_size(window_size=6)
    assert differ(ours, theirs, (64, 80)) < 1e-5
    fresh = opsin.create_model("swinv2_tiny_window8_256", **SMALL)
    assert not fresh.layers[1].blocks[1].norm2.weight.any()
    assert not fresh.layers[0].blocks[0].norm1.weight.any()


def test_another_size_and_back_scales_windows():
    ours, _ = pair(ARCHES[0], window_size=4)
    ours.set_input_size((128, 160))
    assert ours.layers[0].blocks[0].window_size == (8, 8)
    ours.set_input_size((64, 80))
    assert ours.layers[0].blocks[1].window_size == (4, 4)
    assert ours.layers[0].blocks[1].attn_mask.shape == (20, 16, 16)


@pytest.mark.parametrize("arch", ARCHES)
def test_original_layout_as_timm(arch):
    ours, theirs = pair(arch, img_size=64, window_size=6, patch_size=2, depths=(2, 2, 2), num_heads=(3, 3, 3))
    source = timm.create_model(arch, **(SMALL | {"img_size": 64, "window_size": 4, "depths": (2, 2, 2),
                                                 "num_heads": (3, 3, 3)}))  # fmt: skip
    old = {}
    for key, value in randomize(source, 3).state_dict().items():
        for stage in (1, 2):
            key = key.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        old[key.replace("head.fc.", "head.")] = value
    old |= {
        "layers.0.blocks.1.attn_mask": torch.zeros(1),
        "layers.0.blocks.1.attn.relative_position_index": torch.zeros(1),
    }
    module = import_module(f"timm.models.{find_family(arch).model.__module__.rpartition('.')[2]}")
    wanted = module.checkpoint_filter_fn(old, theirs)
    got = find_family(arch).adapt(old, ours)
    assert got.keys() == wanted.keys()
    for key in wanted:
        assert got[key].shape == wanted[key].shape
        assert torch.allclose(got[key], wanted[key], atol=1e-5), key
    today = ours.state_dict()
    assert all(torch.equal(value, today[key]) for key, value in find_family(arch).adapt(today, ours).items())


@pytest.mark.parametrize("window", [(4, 4), (7, 7), (8, 12), (20, 20)])
def test_geometric_tables_as_timm(window):
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table as judge

    table = torch.randn(13 * 13 + 3, 4)
    positions = (2 * window[0] - 1) * (2 * window[1] - 1) + 3
    got = resize_rel_pos_bias_table(table, window, num_extra=3, interpolation="geometric")
    assert torch.allclose(got, judge(table, window, (positions, 4)), atol=1e-4)
    flat = torch.randn(7 * 13, 4)
    got = resize_rel_pos_bias_table(flat, window, old_window_size=(4, 7), interpolation="geometric")
    assert torch.allclose(got, judge(flat, window, (positions - 3, 4), (4, 7)), atol=1e-4)
    assert torch.equal(resize_rel_pos_bias_table(flat, (4, 7)), flat)
    with pytest.raises(WeightsError, match="91"):
        resize_rel_pos_bias_table(flat, (5, 5))


def test_dropouts_and_initial_values_act():
    x = torch.randn(2, 3, 64, 80)
    for name in ("proj_drop_rate", "attn_drop_rate", "drop_path_rate", "drop_rate"):
        model = opsin.create_model(ARCHES[0], **(SMALL | {"drop_path_rate": 0.0} | {name: 0.5})).train()
        assert not torch.equal(model(x), model(x)), name
    model = opsin.create_model(ARCHES[0], **SMALL, weight_init="jax_nlhb", norm_layer="rmsnorm")
    assert type(model.norm).__name__ == "RmsNorm"
    assert model.norm.eps == 1e-5
    assert torch.allclose(model.head.fc.bias, -torch.tensor(5.0).log())
    with pytest.raises(UnknownArgumentError, match="weight_init"):
        opsin.create_model(ARCHES[0], **SMALL, weight_init="nix")
    with pytest.raises(ValueError, match="window_size"):
        opsin.create_model(ARCHES[0], **SMALL, window_size=(7, 7, 7))
    with pytest.raises(ValueError, match="window_ratio"):
        opsin.create_model(ARCHES[0], **SMALL).set_input_size(window_ratio=(1, 2, 3))
    with pytest.raises(ValueError, match="one per stage"):
        opsin.create_model(ARCHES[0], **(SMALL | {"depths": (1,)}))
