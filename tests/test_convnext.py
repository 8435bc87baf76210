"""ConvNeXt beside the judge, where the tests over all families do not reach; and the older layouts of its weights."""

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.models.convnext import ConvNeXt, ConvNeXtBlock, adapt

timm = pytest.importorskip("timm")

SMALL = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)}
PATHS = {
    "plain": {},
    "conv_mlp": {"conv_mlp": True},
    "overlap": {"stem_type": "overlap"},
    "overlap_tiered": {"stem_type": "overlap_tiered"},
    "overlap_act": {"stem_type": "overlap_act", "conv_mlp": True},
    "rms": {"norm_layer": "rmsnorm2d", "conv_mlp": True},
    "rms_linear": {"norm_layer": "rmsnorm"},
    "simple": {"norm_layer": "simplenorm", "conv_mlp": True},
    "group": {"norm_layer": "groupnorm1", "conv_mlp": True},
    "norm_first": {"head_norm_first": True, "conv_mlp": True},
    "v2": {"use_grn": True, "ls_init_value": None},
    "v2_conv": {"use_grn": True, "ls_init_value": None, "conv_mlp": True},
    "hidden_head": {"head_hidden_size": 48},
    "eps": {"norm_eps": 1e-2},
    "kernels": {"kernel_sizes": (7, 5, 5, 3), "act_layer": "silu"},
    "gelu_tanh": {"act_layer": "gelu_tanh"},
    "no_bias": {"conv_bias": False},
    "patch_2": {"patch_size": 2},
    "stride_16": {"output_stride": 16},
    "stride_8": {"output_stride": 8},
    "max_pool": {"global_pool": "max"},
}


def pair(**kwargs):
    theirs = randomize(timm.models.ConvNeXt(num_classes=7, **SMALL, **kwargs)).eval()
    ours = ConvNeXt(num_classes=7, **SMALL, **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_same_numbers(path):
    ours, theirs = pair(**PATHS[path])
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    assert relative_error(ours(x), theirs(x)) < 1e-5
    (final_a, maps_a), (final_b, maps_b) = ours.forward_intermediates(x), theirs.forward_intermediates(x)
    assert relative_error(final_a, final_b) < 1e-5
    assert [m.shape for m in maps_a] == [m.shape for m in maps_b]
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(maps_a, maps_b, strict=True))
    assert [f["reduction"] for f in ours.feature_info] == [f["reduction"] for f in theirs.feature_info]
    embedding = ours.forward_head(final_a, pre_logits=True)
    assert relative_error(embedding, theirs.forward_head(final_b, pre_logits=True)) < 1e-5
    assert embedding.shape[1] == ours.head_hidden_size == theirs.head_hidden_size


@pytest.mark.parametrize("path", ["plain", "v2", "conv_mlp"])
def test_same_gradients(path):
    ours, theirs = pair(**PATHS[path])
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for model in (ours, theirs):
        model.train()(x).square().sum().backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, wanted[name].grad) < 1e-4, name


def test_feature_net_has_the_published_keys():
    ours = opsin.create_model("test_convnext", features_only=True, out_indices=(0, 2))
    theirs = timm.create_model("test_convnext", features_only=True, out_indices=(0, 2))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert "stem_0.weight" in ours.state_dict()


def test_pruned_model_gives_maps_of_the_last_level_kept():
    model = opsin.create_model("test_convnext").eval()
    model.prune_intermediate_layers([1])
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 32, 8, 8)


def test_hidden_head_survives_a_reset():
    ours = ConvNeXt(num_classes=5, head_hidden_size=48, **SMALL)
    hidden, norm = ours.head.pre_logits.fc.weight.clone(), ours.head.norm.weight
    ours.reset_classifier(9)
    assert torch.equal(ours.head.pre_logits.fc.weight, hidden)
    assert ours.head.norm.weight is norm
    assert ours(torch.randn(1, 3, 64, 64)).shape == (1, 9)
    ours.reset_classifier(0, "")
    assert ours(torch.randn(1, 3, 64, 64)).shape == (1, 48, 2, 2)


def test_initial_values():
    torch.manual_seed(0)
    model = ConvNeXt(num_classes=500, head_init_scale=0.5, ls_init_value=1e-3, **SMALL)
    block = model.stages[0].blocks[0]
    assert isinstance(block, ConvNeXtBlock)
    assert (block.gamma == 1e-3).all()
    assert block.conv_dw.weight.abs().max() <= 0.04
    assert not block.conv_dw.bias.any()
    assert 0.0085 < model.head.fc.weight.std() < 0.0091  # 0.01 cut at two sigma
    assert block.mlp.fc1.weight.std() > 0.016


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"output_stride": 4}, "8, 16 and 32"),
        ({"stem_type": "patches"}, "overlap_tiered"),
        ({"norm_layer": "groupnorm"}, "conv_mlp=True"),
        ({"kernel_sizes": (3, 3)}, "one per stage"),
        ({"head_norm_first": True, "head_hidden_size": 8}, "head_norm_first=False"),
        ({"global_pool": "catavgmax"}, "changes the width"),
        ({"global_pool": ""}, "num_classes=0"),
    ],
)
def test_bad_arguments_say_what_would_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ConvNeXt(**(SMALL | kwargs))


def original_layout(state, grn_ndim=4):
    """A state dict as the papers' code writes it."""
    out = {}
    for key, value in state.items():
        key = key.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".").replace("conv_dw", "dwconv")
        for i in (1, 2, 3):
            key = key.replace(f"stages.{i}.downsample", f"downsample_layers.{i}")
        if ".grn." in key:
            key = key.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
            value = value.reshape((1,) * (grn_ndim - 1) + (-1,))
        if ".mlp.fc" in key and value.ndim == 4:
            value = value.flatten(1)
        key = key.replace("mlp.fc", "pwconv").replace("head.norm.", "norm.").replace("head.fc.", "head.")
        out[key] = value
    return out


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize("path", ["plain", "conv_mlp", "v2", "v2_conv"])
@pytest.mark.parametrize("grn_ndim", [2, 4])
def test_original_layout(path, grn_ndim):
    model, judge = pair(**PATHS[path])
    old = original_layout(model.state_dict(), grn_ndim)
    old |= {"projectors.0.weight": torch.zeros(2, 2), "norms.0.weight": torch.zeros(3)}
    assert not set(old) & set(model.state_dict())
    adapted = adapt(old, model)
    assert_same(adapted, timm.models.convnext.checkpoint_filter_fn(old, judge))
    assert_same(adapted, model.state_dict())


@pytest.mark.parametrize("hidden", [None, 48])
def test_clip_towers(hidden):
    model, judge = pair(head_hidden_size=hidden)
    state = model.state_dict()
    tower = {f"visual.trunk.{k}": v for k, v in state.items() if not k.startswith(("head.fc", "head.pre_logits"))}
    if hidden:
        tower |= {f"visual.head.mlp.fc1.{p}": state[f"head.pre_logits.fc.{p}"] for p in ("weight", "bias")}
        tower["visual.head.mlp.fc2.weight"] = state["head.fc.weight"]
    else:
        tower["visual.head.proj.weight"] = state["head.fc.weight"]
    tower |= {"text.token_embedding.weight": torch.zeros(3, 3), "logit_scale": torch.zeros(())}
    adapted = adapt(tower, model)
    assert_same(adapted, timm.models.convnext.checkpoint_filter_fn(tower, judge))
    assert_same(adapted, state | {"head.fc.bias": torch.zeros(7)})


@pytest.mark.parametrize("path", ["plain", "norm_first", "v2"])
def test_todays_layout_is_left_alone(path):
    model, _ = pair(**PATHS[path])
    assert_same(adapt(model.state_dict(), model), model.state_dict())
