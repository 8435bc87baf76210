"""FastViT: merging of branches, checkpoints of the papers' own code, and that every figure of its Config acts."""

import re

import pytest
import torch
from support import randomize, relative_error
from torch import nn

from opsin.errors import UnknownArgumentError
from opsin.inference.optimize import prepare_for_inference, report
from opsin.models import fastvit
from opsin.models.fastvit import FastVit, RepConditionalPosEnc

ATTN = ("repmixer", "attention")
SMALL = {"layers": (1, 2), "embed_dims": (16, 32), "mlp_ratios": (2, 2), "downsamples": (False, True)}
SMALL |= {"token_mixers": ATTN, "pos_embs": (None, "RepConditionalPosEnc"), "se_downsamples": (False, True)}
SMALL["num_classes"] = 7


def small(**kwargs):
    torch.manual_seed(0)
    return FastVit(**SMALL | kwargs)


X = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "merged"),
    # stem 3, a mixer of 3 (norm, mixer, both), downsampling 2, position encoding 1, closing convolution 1
    [
        ({}, 10),
        ({"layer_scale_init_value": None}, 10),
        ({"lkc_use_act": True, "stem_use_scale_branch": False, "norm_layer": "layernorm2d"}, 10),
        ({"token_mixers": ("repmixer",) * 2, "pos_embs": (None, None)}, 15),
    ],
)
def test_merging_keeps_the_numbers(change, merged):
    model = randomize(small(**change)).eval().double()
    ready = prepare_for_inference(model, example_input=X)
    with torch.inference_mode():
        assert relative_error(ready(X), model(X)) < 1e-12
    assert not report(ready).undone
    assert report(ready).reparameterized == merged
    mixer = ready.stages[0].blocks[0].token_mixer
    assert isinstance(mixer, nn.Conv2d)
    left = [name for name, m in ready.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(re.fullmatch(r"stages\.1\.blocks\.\d\.norm", name) for name in left)  # ahead of attention


def original(key, row):
    """Today's key as the papers' code has it."""
    for prefix, place in row.items():
        key = re.sub("^" + re.escape(prefix), f"network.{place}.", key)
    key = key.replace("stem.", "patch_embed.").replace("final_conv.", "conv_exp.").replace("identity", "rbr_skip")
    key = key.replace("conv_kxk", "rbr_conv").replace("conv_scale", "rbr_scale").replace("large_conv", "lkb_origin")
    key = key.replace("se.fc1", "se.reduce").replace("se.fc2", "se.expand").replace(".mlp.", ".convffn.")
    return key.replace("pos_enc", "pe").replace(".gamma", "").replace("head.fc.", "head.")


ROW = {"stages.0.blocks.": 0, "stages.1.downsample.": 1, "stages.1.pos_emb.": 2, "stages.1.blocks.": 3}


@pytest.mark.parametrize("prefix", ["", "image_encoder.model."])
def test_original_layout(prefix):
    judge = pytest.importorskip("timm.models.fastvit")
    model = small()
    state = randomize(model).state_dict()
    assert fastvit.adapt(state, model) is state
    old = {prefix + original(k, ROW): v for k, v in state.items()}
    if prefix:  # the tower of MobileCLIP projects by a matrix, and text stands beside it
        del old[f"{prefix}head.bias"]
        old[f"{prefix}head.proj"] = old.pop(f"{prefix}head.weight").T
        old["text_encoder.projection"] = torch.zeros(3)
    read, wanted = fastvit.adapt(old, model), judge.checkpoint_filter_fn(dict(old), model)
    assert set(read) == set(wanted) == set(state)
    for key, value in read.items():
        expected = torch.zeros(7) if prefix and key == "head.fc.bias" else state[key]
        assert torch.equal(value, wanted[key])
        assert torch.equal(value, expected)


def test_towers_are_read_without_their_text():
    model = small()
    state = model.state_dict()
    tower = {f"visual.trunk.{k}": v for k, v in state.items()} | {"text.positional_embedding": torch.zeros(3)}
    assert list(fastvit.adapt(tower, model)) == list(state)


@pytest.mark.parametrize(
    "change",
    [
        {"token_mixers": ("attention", "repmixer"), "embed_dims": (32, 32)},
        {"mlp_ratios": (2, 3)},
        {"downsamples": (True, True)},
        {"se_downsamples": (False, False)},
        {"pos_embs": (RepConditionalPosEnc, None)},
        {"repmixer_kernel_size": 5},
        {"down_patch_size": 5},
        {"stem_use_scale_branch": False},
        {"cls_ratio": 3.0},
        {"layer_scale_init_value": None},
        {"norm_layer": "layernorm2d"},
        {"act_layer": "prelu"},
    ],
)
def test_fields_change_the_model(change):
    base, other = small().state_dict(), small(**change).state_dict()
    assert {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in other.items()}


def test_options_without_parameters():
    assert small(down_stride=4).feature_levels()[1].reduction == 16
    assert small(down_stride=4).forward_features(X.float()).shape[2:] == (3, 4)
    assert isinstance(small(lkc_use_act=True).stages[1].downsample.proj[0].act, nn.GELU)
    assert isinstance(small().stages[1].downsample.proj[0].act, nn.Identity)
    assert small(layer_scale_init_value=0.5).stages[1].blocks[0].layer_scale_1.gamma.eq(0.5).all()


@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate", "proj_drop_rate"])
def test_rates_act_in_training_only(rate):
    model = randomize(small(**{rate: 0.5}))
    x = X.float().repeat(4, 1, 1, 1)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_mixers": ("repmixr", "attention")}, "Did you mean repmixer"),
        ({"pos_embs": (None, "cpe")}, "RepConditionalPosEnc"),
        ({"mlp_ratios": (3,)}, "mlp_ratios must have as many"),
    ],
)
def test_says_what_it_cannot_build(change, said):
    with pytest.raises(UnknownArgumentError, match=said):
        small(**change)
    with pytest.raises(ValueError, match="heads of 32"):
        small(embed_dims=(16, 48))
