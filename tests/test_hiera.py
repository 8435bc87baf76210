"""Hiera: masks and patch dropout, other image sizes, the paper's own names, every figure of its Config."""

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.errors import UnknownArgumentError
from opsin.models import hiera
from opsin.models.hiera import Hiera

SMALL = {"img_size": (64, 96), "embed_dim": 16, "stages": (1, 2, 1, 1), "num_classes": 7}
X = torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def small(**kwargs):
    torch.manual_seed(0)
    return Hiera(**SMALL | kwargs)


@pytest.mark.parametrize("options", [{}, {"abs_win_pos_embed": True, "use_expand_proj": False}, {"q_pool": 1}])
def test_the_judge_sees_the_same_masked_units(options):
    timm = pytest.importorskip("timm")
    args = SMALL | {"global_pos_size": (5, 7)} | options
    theirs = randomize(timm.models.hiera.Hiera(**args)).eval().double()
    ours = small(**args).eval().double()
    ours.load_state_dict(theirs.state_dict())
    x, mask = X.double(), torch.zeros(4, 6, dtype=torch.bool)
    mask[:, 1:5] = True
    mask[2] = mask[2].roll(2)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) < 1e-9
        kept, kept_there = ours(x, mask), theirs(x, mask)  # without the head; where units do not end as one token each
        assert kept.shape == kept_there.shape  # their order inside is another one, which the head does not see
        assert relative_error(ours.forward_head(kept), theirs.forward_head(kept_there)) < 1e-9
        for a, b in zip(ours.forward_intermediates(x)[1], theirs.forward_intermediates(x)[1], strict=True):
            assert relative_error(a, b) < 1e-9


def test_half_precision_with_resampled_positions():
    model = randomize(small(abs_win_pos_embed=True)).eval()
    with torch.inference_mode():
        reference, half = model(X), model.bfloat16()(X.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative_error(half.float(), reference) < 0.1


def test_patch_dropout_leaves_out_mask_units():
    model = randomize(small(patch_drop_rate=0.5)).train()
    assert model.forward_features(X).shape == (4, 3, 128)
    assert not torch.equal(model(X), model(X))
    with pytest.raises(ValueError, match="holes in the maps"):
        model.forward_intermediates(X)
    model.eval()
    assert model.forward_intermediates(X)[1][-1].shape == (4, 128, 2, 3)
    assert torch.equal(model(X), model(X))


def test_original_names_and_other_image_sizes():
    judge = pytest.importorskip("timm.models.hiera")
    model = small()
    state = randomize(model).state_dict()
    old = {k.replace("head.norm.", "norm.").replace("head.fc.", "head.projection."): v for k, v in state.items()}
    read, wanted = hiera.adapt(old, model), judge.checkpoint_filter_fn(dict(old), model)
    assert list(read) == list(wanted) == list(state)
    assert all(torch.equal(read[k], v) and torch.equal(wanted[k], v) for k, v in state.items())
    mae = {k.replace("head.norm.", "encoder_norm."): v for k, v in state.items()}
    assert list(hiera.adapt(mae, model)) == list(judge.checkpoint_filter_fn(dict(mae), model)) == list(state)
    for options in ({}, {"abs_win_pos_embed": True}):
        source = randomize(small(img_size=64, **options)).eval()
        args = SMALL | options | {"img_size": (128, 96)}
        larger = opsin.create_model("hiera_tiny_224", pretrained=source.state_dict(), **args).eval()
        larger_image = torch.nn.functional.interpolate(X, size=(128, 96))
        assert larger.forward_intermediates(larger_image)[1][0].shape == (4, 16, 32, 24)
        with pytest.raises(ValueError, match="built for 128x96"):
            larger(X)


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 3},
        {"img_size": (96, 96)},
        {"stages": (1, 1, 1, 1)},
        {"dim_mul": 3.0},
        {"use_expand_proj": False},
        {"patch_kernel": 5, "patch_padding": 2},
        {"patch_stride": 2},
        {"mlp_ratio": 2.0},
        {"init_values": 1e-5},
        {"abs_win_pos_embed": True},
        {"abs_win_pos_embed": True, "global_pos_size": (3, 5)},
        {"abs_win_pos_embed": True, "mask_unit_size": 16, "img_size": 128},
        {"norm_layer": "rmsnorm"},
    ],
)
def test_fields_change_the_model(change):
    base = {k: v.shape for k, v in small().state_dict().items()}
    if len(change) > 1 and "abs_win_pos_embed" in change:
        base = {k: v.shape for k, v in small(abs_win_pos_embed=True).state_dict().items()}
    assert base != {k: v.shape for k, v in small(**change).state_dict().items()}


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 4},
        {"head_mul": 4.0},
        {"q_pool": 1},
        {"q_stride": (1, 2)},
        {"mask_unit_size": 4, "q_pool": 2},
        {"mask_unit_attn": (False, True, False, False)},
        {"global_pool": "max"},
        {"global_pool": "avgmax"},
    ],
)
def test_fields_change_the_numbers(change):
    base, other = randomize(small()).eval(), randomize(small(**change)).eval()
    other.load_state_dict(base.state_dict())
    assert not torch.allclose(other(X), base(X), atol=1e-4)


@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate"])
def test_rates_act_in_training_only(rate):
    model = randomize(small(**{rate: 0.5}))
    assert not torch.equal(model.train()(X), model(X))
    assert torch.equal(model.eval()(X), model(X))


def test_initial_values():
    def std(path, **kwargs):
        return small(**kwargs).get_parameter(path).std().item()

    assert std("blocks.4.mlp.fc2.weight") == pytest.approx(0.0176 / 10**0.5, rel=0.05)  # 0.02, cut at two sigma
    assert std("blocks.4.mlp.fc2.weight", fix_init=False) == pytest.approx(0.0176, rel=0.05)
    assert std("head.fc.weight") == pytest.approx(1.76e-5, rel=0.1)
    assert std("head.fc.weight", head_init_scale=1.0) == pytest.approx(0.0176, rel=0.1)
    assert std("head.fc.weight", weight_init="jax") == 0
    assert small(init_values=0.5).blocks[0].ls1.gamma.eq(0.5).all()
    assert small(num_classes=0).head.fc.state_dict() == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"img_size": 80}, "no whole mask units of 8x8"),
        ({"num_heads": 3}, "cannot be split into 3 heads"),
        ({"mask_unit_attn": (True,)}, "as many entries"),
        ({"patch_drop_rate": 1.0}, "below 1"),
        ({"q_stride": 3}, "cannot be pooled by"),
        ({"use_expand_proj": False, "dim_mul": 3.0}, "needs dim_mul=2"),
        ({"global_pool": ""}, "needs num_classes=0"),
    ],
)
def test_says_what_it_cannot_build(change, said):
    with pytest.raises(ValueError, match=said):
        small(**change)
    with pytest.raises(UnknownArgumentError, match="Did you mean avgmax"):
        small(global_pool="avgmx")
    with pytest.raises(UnknownArgumentError, match="Did you mean jax"):
        small(weight_init="jaxx")
