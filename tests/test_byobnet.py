"""ByobNet: each argument beside the judge, tables of blocks in plain form, merging of branches, the layout of CLIP."""

import json
from dataclasses import replace

import pytest
import torch
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.errors import UnknownArgumentError
from opsin.inference.optimize import prepare_for_inference, report
from opsin.layers.norm_act import EvoNorm2dS0a
from opsin.models.byobnet import BottleneckBlock, ByoBlockCfg, ByobNet, adapt, family

timm = pytest.importorskip("timm")


def rows(kind="bottle", **kwargs):
    """Four small stages; the first keeps the map of the stem."""
    return tuple(
        ByoBlockCfg(kind, d=d, c=c, s=s, **kwargs) for d, c, s in ((1, 16, 1), (2, 32, 2), (2, 32, 2), (1, 48, 2))
    )


SMALL = {
    "num_classes": 5, "blocks": rows(br=0.5), "stem_chs": 16, "attn_layer": None, "attn_kwargs": {},
    "downsample": "conv1x1", "stem_pool": "",
}  # fmt: skip
SELF = {"blocks": rows("self_attn", br=0.5), "img_size": (64, 128), "stem_type": "deep"}
PATHS = {
    "plain": {},
    "stride_8": {"output_stride": 8},
    "stride_16": {"output_stride": 16},
    "fifth_stage_stride_8": {"output_stride": 8, "blocks": (*rows(br=0.5), ByoBlockCfg("bottle", d=2, c=48, s=1))},
    "avg": {"downsample": "avg"},
    "avg_stride_8": {"downsample": "avg", "output_stride": 8},
    "no_shortcut": {"downsample": ""},
    "blur": {"aa_layer": "blur"},
    "blur_basic": {"aa_layer": "blur", "blocks": rows("basic")},
    "stem_7x7": {"stem_type": "7x7"},
    "stem_7x7_pool": {"stem_type": "7x7", "stem_pool": "maxpool"},
    "stem_3x3_pool": {"stem_pool": "avg2"},
    "stem_deep": {"stem_type": "deep", "stem_pool": "max2"},
    "stem_tiered": {"stem_type": "tiered"},
    "stem_quad": {"stem_type": "quad"},
    "stem_quad2": {"stem_type": "quad2", "stem_pool": "maxpool"},
    "stem_listed": {"stem_type": "", "stem_chs": (8, 24), "width_factor": 1.5},
    "stem_rep": {"stem_type": "rep", "attn_layer": "se", "blocks": rows("rep")},
    "stem_one": {"stem_type": "one", "blocks": rows("one", block_kwargs={"num_conv_branches": 2})},
    "rep_groups": {"blocks": rows("rep", gs=8), "output_stride": 16},
    "one_wide": {"blocks": rows("one", gs=16, block_kwargs={"kernel_size": 5}), "output_stride": 16},
    "basic": {"blocks": rows("basic", gs=8, br=0.5), "attn_layer": "se", "output_stride": 16},
    "basic_attn_between": {"blocks": rows("basic", block_kwargs={"attn_last": False}), "attn_layer": "eca"},
    "dark": {"blocks": rows("dark", gs=8, br=0.5), "attn_layer": "se", "output_stride": 16},
    "dark_attn_between": {"blocks": rows("dark", block_kwargs={"attn_last": False}), "attn_layer": "gc"},
    "edge": {"blocks": rows("edge", gs=16)[:3], "attn_layer": "ese", "output_stride": 16},
    "edge_attn_last": {"blocks": rows("edge", block_kwargs={"attn_last": True}), "attn_layer": "gca"},
    "bottle": {"blocks": rows(gs=8), "block_kwargs": {"extra_conv": True, "bottle_in": True, "linear_out": True}},
    "bottle_wide": {"block_kwargs": {"kernel_size": 5, "attn_last": True}, "attn_layer": "bat", "output_stride": 8,
                    "attn_kwargs": {"block_size": 4, "groups": 4, "rd_ratio": 0.5}},
    "own_attention": {
        "blocks": (*rows(br=0.5)[:2], *rows(br=0.5, attn_layer="se", attn_kwargs={"rd_ratio": 0.5})[2:]),
        "attn_layer": "gc",
    },
    "own_keywords": {"blocks": (*rows()[:2], *rows(block_kwargs={})[2:]), "block_kwargs": {"extra_conv": True}},
    "rows_of_blocks": {"blocks": (*rows()[:2], (rows()[2], ByoBlockCfg("edge", d=1, c=40)), rows()[3])},
    "self_attn": {**SELF, "self_attn_layer": "bottleneck", "block_kwargs": {"linear_out": True, "bottle_in": True}},
    "silu": {"act_layer": "silu"},
    "closing": {"num_features": 40, "width_factor": 2.0},
    "max_pool": {"global_pool": "max"},
    "mlp": {"head_type": "mlp", "head_hidden_size": 24, "act_layer": "silu"},
    "attn_abs": {"head_type": "attn_abs", "head_hidden_size": 128, "img_size": (64, 128), "global_pool": "token"},
    "attn_rot": {"head_type": "attn_rot", "head_hidden_size": 64, "img_size": (64, 128), "global_pool": "token"},
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_same_numbers(path):
    args = SMALL | PATHS[path]
    theirs = randomize(timm.create_model("test_byobnet", **args)).eval().double()
    ours = opsin.create_model("test_byobnet", **args).eval().double()
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (final_a, maps_a), (final_b, maps_b) = ours.forward_intermediates(x), theirs.forward_intermediates(x)
    for a, b in zip([ours(x), final_a, *maps_a], [theirs(x), final_b, *maps_b], strict=True):
        assert relative_error(a, b) < 1e-9
    levels = [[(f["num_chs"], f["reduction"], f["module"]) for f in m.feature_info] for m in (ours, theirs)]
    assert levels[0] == levels[1]
    assert ours.head_hidden_size == theirs.head_hidden_size == ours.forward_head(final_a, pre_logits=True).shape[1]


def small(**kwargs):
    torch.manual_seed(0)
    return ByobNet(**(SMALL | kwargs))


X = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": rows("rep", gs=8)},
        {"blocks": rows("rep"), "attn_layer": "se", "stem_type": "rep"},
        {"blocks": rows("one", block_kwargs={"num_conv_branches": 3}), "stem_type": "one"},
        {"blocks": rows("one"), "output_stride": 8},
        {"blocks": rows("rep"), "aa_layer": "blur"},
    ],
)
def test_merging_keeps_the_numbers(options):
    model = randomize(small(**options)).eval().double()
    ready = prepare_for_inference(model, example_input=X)
    with torch.inference_mode():
        assert relative_error(ready(X), model(X)) < 1e-12
    assert not report(ready).undone
    assert report(ready).reparameterized == 6 + ("stem_type" in options)
    assert not [name for name, m in ready.named_modules() if isinstance(m, nn.BatchNorm2d)]


def test_branches_without_batch_norm_stay():
    model = randomize(small(blocks=rows("rep"), norm_layer="groupnorm", norm_args={"group_size": 8})).eval().double()
    ready = prepare_for_inference(model, example_input=X)
    assert hasattr(ready.stages[0][0], "conv_1x1")
    assert relative_error(ready(X), model(X)) < 1e-12


def test_tables_in_plain_form():
    config = family.variants["resnet61q"]
    plain = json.loads(json.dumps(config.to_dict()))
    assert plain["blocks"][0] == {"type": "edge", "d": 1, "c": 256, "s": 1, "block_kwargs": {}}
    with torch.device("meta"):
        ours, again = ByobNet(**plain), opsin.create_model("resnet61q")
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [(k, v.shape) for k, v in again.state_dict().items()]
    plain["blocks"][0]["kind"] = "edge"
    with pytest.raises(UnknownArgumentError, match="ByoBlockCfg takes no argument 'kind'"):
        ByobNet(**plain)


def test_blocks_of_ones_own():
    class Plain(nn.Module):
        def __init__(self, f, *, bias=True):
            super().__init__()
            self.conv = nn.Conv2d(f.in_chs, f.out_chs, 3, f.stride, 1, bias=bias)

        def forward(self, x):
            return self.conv(x)

    model = small(blocks=rows(Plain, block_kwargs={"bias": False})).double()
    assert model(X).shape == (2, 5)
    assert model.stages[3][0].conv.bias is None


def test_options():
    rates = [block.drop_path for stage in small(drop_path_rate=0.5).stages for block in stage]
    assert isinstance(rates[0], nn.Identity)
    assert rates[-1].drop_prob == 0.5
    kinds = {"rep": rows("rep"), "one": rows("one", gs=8)}
    for blocks in kinds.values():  # without a way around, nothing is dropped
        drops = [block.drop_path for stage in small(blocks=blocks, drop_path_rate=0.5).stages for block in stage]
        assert [hasattr(drop, "drop_prob") for drop in drops] == [False, False, True, False, True, False]
    assert small(drop_rate=0.3).head.drop.p == 0.3
    assert small(head_type="attn_rot", global_pool="token", drop_rate=0.3, num_features=64).head.drop.p == 0.3
    norm = small(norm_layer="evonorm2ds0a", norm_args={"group_size": 4}).stages[1][0].conv1_1x1.bn
    assert isinstance(norm, EvoNorm2dS0a)
    assert norm.num_groups == 4
    assert small(blocks=rows("bottle", gs=8)).stages[3][0].conv2_kxk.conv.groups == 6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"blocks": ()}, "needs blocks"),
        ({"blocks": rows("botle")}, "Did you mean bottle"),
        ({"blocks": rows("bottle", gs=5)}, "groups of 5 do not divide 16"),
        ({"blocks": rows("self_attn")}, "needs self_attn_layer"),
        ({"blocks": rows("self_attn"), "self_attn_layer": "hallo"}, "Did you mean halo"),
        ({"blocks": rows("self_attn"), "self_attn_layer": "bottleneck"}, "give img_size"),
        ({"head_type": "atn_abs"}, "Did you mean attn_abs"),
        ({"head_type": "attn_abs", "global_pool": "token", "num_features": 64}, "give img_size"),
        ({"head_type": "attn_rot", "num_features": 64}, "global_pool='token'"),
        ({"stem_type": "teared"}, "Did you mean tiered"),
        ({"stem_type": ""}, "several widths go with ''"),
        ({"stem_chs": (8, 16)}, "several widths go with ''"),
        ({"stem_type": "rep", "stem_pool": "max2"}, "has no pool"),
        ({"stem_pool": "min2"}, "no stem_pool 'min2'"),
        ({"downsample": "conv"}, "conv1x1"),
        ({"output_stride": 4}, "8, 16 and 32"),
        ({"img_size": 64}, "img_size has no effect"),
        ({"head_hidden_size": 64}, "head_hidden_size has no effect"),
        ({"global_pool": ""}, "num_classes=0"),
    ],
)
def test_errors(options, match):
    with pytest.raises((ValueError, UnknownArgumentError), match=match):
        small(**options)


@pytest.mark.parametrize("name", ["test_byobnet", "repvgg_a0", "mobileone_s0", "resnet50_mlp"])
def test_initial_values(name):
    ours, theirs = opsin.create_model(name).state_dict(), timm.create_model(name).state_dict()
    for key, value in theirs.items():
        if value.is_floating_point() and value.numel() > 1000:
            std = value.std().item()
            assert ours[key].std().item() == pytest.approx(std, rel=0.1, abs=1e-9), key
            assert (ours[key].mean() - value.mean()).abs() <= 0.1 * std, key
        elif key.endswith("bn.weight") and "repvgg" not in name:
            assert torch.equal(ours[key], value), key


def test_norms_of_repvgg_start_small():
    ours, theirs = (
        torch.cat([v for k, v in m("repvgg_a0").state_dict().items() if k.endswith(("bn.weight", "identity.weight"))])
        for m in (opsin.create_model, timm.create_model)
    )
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=0.01)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_last_norms_start_at_zero_where_there_is_a_way_around():
    model = small(blocks=(*rows("basic")[:1], *rows("dark")[1:2], *rows("edge")[2:3], *rows()[3:]))
    assert not any(block.last_norm().weight.any() for stage in model.stages for block in stage)
    lasting = small(downsample="").stages[1]
    assert [bool(block.last_norm().weight.any()) for block in lasting] == [True, False]
    assert small(zero_init_last=False).stages[0][0].last_norm().weight.all()


def test_attention_pooling_is_a_head():
    args = {"head_type": "attn_abs", "img_size": (64, 96), "global_pool": "token", "num_features": 64}
    model = small(**args).double().eval()
    assert next(name for name, _ in model.head.named_parameters()) == "pos_embed"
    assert model.head.q.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)
    assert model(X).shape == (2, 5)
    assert model(X[..., :32, :64]).shape == (2, 5)  # positions are resampled for other maps
    model.reset_classifier(7)
    assert model(X).shape == (2, 7)
    model.reset_classifier(0)
    assert model(X).shape == (2, 64)
    model.reset_classifier(0, "")
    assert torch.equal(model(X), model.forward_features(X))
    assert sum(p.numel() for p in model.head.parameters())
    model.remove_head()
    assert not sum(p.numel() for p in model.parameters() if p is model.head)
    assert not list(model.head.parameters())


def test_bilinear_attention_needs_whole_blocks():
    model = small(attn_layer="bat", attn_kwargs={"block_size": 4}).double().eval()
    with pytest.raises(ValueError, match="4 blocks cannot split a map of 24x18: .* multiples of 4"):
        model(X[..., :48, :36])
    drop = small(attn_layer="bat", attn_kwargs={"drop_rate": 0.5}).stages[0][0].attn.dropout
    assert drop.p == 0.5


# -- the layout of CLIP ------------------------------------------------------------------------------------------------


def clip_tower(pool=True):
    """The names of CLIP's own code, for a tower of 16 channels and one block a stage."""
    state = {}

    def conv(name, norm, out, into, kernel=1):
        state[f"visual.{name}.weight"] = torch.randn(out, into, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"visual.{norm}.{part}"] = torch.rand(out)
        state[f"visual.{norm}.num_batches_tracked"] = torch.tensor(3)

    for i, (out, into) in enumerate(((8, 3), (8, 8), (16, 8)), 1):
        conv(f"conv{i}", f"bn{i}", out, into, 3)
    into = 16
    for i, out in enumerate((32, 64, 96, 128), 1):
        mid, block = out // 4, f"layer{i}.0"
        conv(f"{block}.conv1", f"{block}.bn1", mid, into)
        conv(f"{block}.conv2", f"{block}.bn2", mid, mid, 3)
        conv(f"{block}.conv3", f"{block}.bn3", out, mid)
        conv(f"{block}.downsample.0", f"{block}.downsample.1", out, into)
        into = out
    if pool:
        state["visual.attnpool.positional_embedding"] = torch.randn(1 + 4 * 4, 128)
        for name, out in (("q_proj", 128), ("k_proj", 128), ("v_proj", 128), ("c_proj", 20)):
            state[f"visual.attnpool.{name}.weight"] = torch.randn(out, 128)
            state[f"visual.attnpool.{name}.bias"] = torch.randn(out)
    return state | {"logit_scale": torch.tensor(1.0), "transformer.resblocks.0.ln_1.weight": torch.randn(4)}


CLIP = {
    "blocks": tuple(ByoBlockCfg("bottle", d=1, c=c, s=1 + (c > 32), br=0.25) for c in (32, 64, 96, 128)),
    "stem_chs": (8, 8, 16), "num_classes": 20,
}  # fmt: skip


@pytest.mark.parametrize("pools", [True, False])
def test_clip_layout(pools):
    from timm.models.byobnet import checkpoint_filter_fn

    state = clip_tower()
    name, args = ("resnet50_clip", {"img_size": 128}) if pools else ("resnet50_clip_gap", {})
    ours, theirs = opsin.create_model(name, **CLIP, **args), timm.create_model(name, **CLIP, **args)
    adapted, known = adapt(state, ours), checkpoint_filter_fn(state, theirs)
    assert adapted.keys() == known.keys()
    assert all(adapted[key] is known[key] for key in known)
    missing, extra = ours.load_state_dict(adapted, strict=False)
    assert not extra
    assert missing == ([] if pools else ["head.fc.weight", "head.fc.bias"])
    same = ours.state_dict()
    assert adapt(same, ours) is same


def test_clip_positions_fit_the_image_size():
    state = clip_tower()
    model = opsin.create_model("resnet50_clip", **CLIP, img_size=(128, 192), pretrained=state)
    known = state["visual.attnpool.positional_embedding"]
    assert model.head.pos_embed.shape == (1 + 4 * 6, 128)
    assert torch.equal(model.head.pos_embed[0], known[0])
    assert torch.isfinite(model(torch.randn(1, 3, 128, 192))).all()


def test_bottleneck_with_another_convolution():
    args = {"blocks": rows("self_attn", br=0.5), "self_attn_layer": "bottleneck", "img_size": (64, 96)}
    model = small(**args, block_kwargs={"extra_conv": True, "post_attn_na": False}, stem_type="deep").double()
    assert model(X).shape == (2, 5)
    block = model.stages[1][0]
    assert isinstance(block.post_attn, nn.Identity)
    assert block.conv2_kxk.conv.stride == (2, 2)
    assert block.self_attn.feat_size == (8, 12)
    assert isinstance(small().stages[0][0], BottleneckBlock)
    assert replace(rows()[0], d=3).d == 3
