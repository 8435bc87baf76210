"""Vision transformers: what users build directly, what each argument does, and what only token models have."""

from dataclasses import fields
from functools import partial

import pytest
import torch
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.errors import UnknownArgumentError
from opsin.layers.attention import Attention, DiffAttention
from opsin.layers.attn_pool import AttentionPoolLatent
from opsin.layers.glu import GluMlp, SwiGLU
from opsin.layers.layer_scale import LayerScale
from opsin.layers.patch_dropout import PatchDropout
from opsin.layers.patch_embed import PatchEmbed
from opsin.models import deit, vision_transformer
from opsin.models._vit_blocks import BLOCKS, DiffParallelScalingBlock, ParallelScalingBlock, ParallelThingsBlock
from opsin.models.vision_transformer import Block, Config, Mlp, VisionTransformer, global_pool_nlc

timm = pytest.importorskip("timm")
from timm.models import vision_transformer as judge  # noqa: E402

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}


def images(*size, batch=2, seed=0):
    return torch.randn(batch, 3, *(size or (32, 32)), generator=torch.Generator().manual_seed(seed))


def tiny(**config):
    return randomize(VisionTransformer(**(TINY | config))).eval()


def pair(**config):
    """Ours and the judge's with one set of values."""
    theirs = randomize(judge.VisionTransformer(**(TINY | config))).eval()
    ours = VisionTransformer(**(TINY | config)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


# -- building directly -------------------------------------------------------------------------------------------------


def test_parts_can_be_built_by_the_names_the_field_uses():
    model = VisionTransformer(img_size=96, patch_size=8, embed_dim=192, num_heads=3, depth=1)
    assert model(images(96, 96)).shape == (2, 1000)
    tokens = PatchEmbed(img_size=96, patch_size=8, in_chans=3, embed_dim=192)(images(96, 96))
    assert tokens.shape == (2, 144, 192)
    for part in (Block(dim=192, num_heads=3), Attention(192, num_heads=3), Mlp(192), LayerScale(192)):
        out = part(tokens)
        assert out.shape == tokens.shape
        assert torch.isfinite(out).all()


def test_by_place_and_with_callables():
    model = VisionTransformer(
        32, 8, 3, 5, "token", 32, 2, 4, norm_layer=partial(nn.LayerNorm, eps=1e-3), act_layer=nn.ReLU, block_fn=Block
    )
    assert model.norm.eps == model.blocks[0].norm1.eps == 1e-3
    assert isinstance(model.blocks[1].mlp.act, nn.ReLU)
    assert VisionTransformer(**TINY, norm_layer=None, act_layer=None).norm.eps == 1e-6


def test_a_subclass_may_read_features_its_own_way():
    class Masked(VisionTransformer):
        def forward_features(self, x):
            x = self._pos_embed(self.patch_embed(x))
            for block in self.blocks:
                x = block(x)
            return self.norm(x)

    model = tiny()
    own = Masked(**TINY).eval()
    own.load_state_dict(model.state_dict())
    assert torch.equal(own(images()), model(images()))


def test_attention_and_mlp_of_users_may_take_just_x():
    class Mean(nn.Module):
        def __init__(self, dim, **kwargs):
            super().__init__()
            self.proj = nn.Linear(dim, dim)

        def forward(self, x):
            return self.proj(x.mean(1, keepdim=True)).expand_as(x)

    model = VisionTransformer(**TINY, attn_layer=Mean)
    assert model(images()).shape == (2, 5)


def test_lineages_are_found_where_people_import_them():
    assert vision_transformer.vit_small_patch14_dinov2.args == ("vit_small_patch14_dinov2",)
    assert vision_transformer.vit_tiny_patch16_224(depth=1).num_classes == 1000
    with pytest.raises(AttributeError, match="vit_tiny_patch16_224"):
        _ = vision_transformer.vit_tiny_patch16_22


# -- every argument acts -----------------------------------------------------------------------------------------------

CHANGES = {
    "img_size": 40, "patch_size": 4, "in_chans": 1, "num_classes": 7, "global_pool": "avg", "embed_dim": 64, "depth": 3,
    "num_heads": 2, "mlp_ratio": 2.0, "qkv_bias": False, "proj_bias": False, "qk_norm": True, "scale_attn_norm": True,
    "scale_mlp_norm": True, "init_values": 0.5, "class_token": False, "pos_embed": "none", "no_embed_class": True,
    "reg_tokens": 2, "pre_norm": True, "final_norm": False, "fc_norm": True, "embed_norm_layer": "layernorm",
    "norm_layer": "rmsnorm", "norm_eps": 0.1, "act_layer": "relu", "block_fn": "ParallelScalingBlock",
    "mlp_layer": "SwiGLU", "attn_layer": "diff",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_figure_changes_the_model(name):
    config = {name: CHANGES[name]}
    if name == "class_token":
        config["global_pool"] = "avg"
    before, after = VisionTransformer(**TINY), VisionTransformer(**(TINY | config))
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (before, after)]
    if shapes[0] != shapes[1]:
        return
    randomize(before).eval(), after.load_state_dict(before.state_dict())
    size = (40, 40) if name == "img_size" else (32, 32)
    assert name in ("num_heads", "norm_eps", "act_layer")
    assert not torch.allclose(before(images()), after.eval()(images(*size)), rtol=1e-3)


@pytest.mark.parametrize(
    "rate", ["drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"]
)
def test_each_rate_acts_while_training_only(rate):
    model = randomize(VisionTransformer(**TINY, **{rate: 0.5}))
    x = images(batch=8)
    model.train()
    torch.manual_seed(0)
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(x), model(x))


def test_all_fields_are_covered():
    other = {
        "dynamic_img_size",
        "dynamic_img_pad",
        "weight_init",
        "fix_init",
        "embed_layer",
        "pool_include_prefix",
        "resample",
    }
    rates = {f.name for f in fields(Config) if f.name.endswith("_rate")}
    assert {f.name for f in fields(Config)} == set(CHANGES) | other | rates


def test_prefix_tokens_in_the_pool():
    x = images()
    config = {"global_pool": "avg", "reg_tokens": 2}
    ours, theirs = pair(**config, pool_include_prefix=True)
    assert relative_error(ours(x), theirs(x)) < 1e-5
    without, _ = pair(**config)
    assert not torch.allclose(ours(x), without(x), rtol=1e-3)


def test_own_patch_embedding():
    class Doubled(PatchEmbed):
        def forward(self, x):
            return 2 * super().forward(x)

    plain = tiny()
    model = VisionTransformer(**TINY, embed_layer=Doubled).eval()
    model.load_state_dict(plain.state_dict())
    assert not torch.allclose(model(images()), plain(images()), rtol=1e-3)


@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax", "map", ""])
@pytest.mark.parametrize("fc_norm", [None, True, False])
def test_pools(pool, fc_norm):
    ours, theirs = pair(global_pool=pool, fc_norm=fc_norm, reg_tokens=1)
    x = images()
    assert relative_error(ours(x), theirs(x)) < 1e-5
    assert relative_error(ours.forward_head(ours.forward_features(x), pre_logits=True),
                          theirs.forward_head(theirs.forward_features(x), pre_logits=True)) < 1e-5  # fmt: skip


def test_pool_by_another_name():
    model = tiny(reg_tokens=1)
    x = model.forward_features(images())
    assert torch.equal(model.pool(x, "avg"), x[:, 2:].mean(1))
    assert torch.equal(global_pool_nlc(x, "avg", 2, reduce_include_prefix=True), x.mean(1))
    with pytest.raises(UnknownArgumentError, match="Did you mean avg"):
        global_pool_nlc(x, "avgg")
    with pytest.raises(UnknownArgumentError, match="reset_classifier"):
        model.pool(x, "map")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"global_pool": "tokens"}, "Did you mean token"),
        ({"class_token": False}, "needs class_token"),
        ({"weight_init": "jaxx"}, "weight_init"),
        ({"pos_embed": "rope"}, "pos_embed"),
        ({"block_fn": "Blok"}, "Did you mean Block"),
        ({"mlp_layer": "SwiGlu"}, "Did you mean SwiGLU"),
        ({"attn_layer": "dif"}, "Did you mean diff"),
        ({"num_head": 3}, "Did you mean num_heads"),
        ({"block_fn": "ParallelScalingBlock", "scale_mlp_norm": True}, "no scale_mlp_norm"),
        ({"block_fn": "ParallelScalingBlock", "attn_layer": "diff"}, "its own attention"),
    ],
)
def test_what_does_not_fit_raises(config, message):
    with pytest.raises(UnknownArgumentError, match=message):
        VisionTransformer(**(TINY | config))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim=32.*num_heads=5"):
        VisionTransformer(**(TINY | {"num_heads": 5}))


# -- image size --------------------------------------------------------------------------------------------------------


def test_a_wrong_image_size_names_the_fix():
    with pytest.raises(ValueError, match=r"32x32 images and got 40x48.*set_input_size\(\(40, 48\)\)"):
        tiny()(images(40, 48))


def test_dynamic_img_size():
    ours, theirs = pair(dynamic_img_size=True, reg_tokens=1)
    for size in ((32, 32), (48, 24), (64, 64)):
        x = images(*size)
        assert relative_error(ours(x), theirs(x)) < 1e-5
        assert ours.forward_intermediates(x, 1)[1][0].shape == (2, 32, size[0] // 8, size[1] // 8)
    with pytest.raises(ValueError, match="dynamic_img_pad=True"):
        ours(images(33, 40))


def test_dynamic_img_pad():
    ours, theirs = pair(dynamic_img_size=True, dynamic_img_pad=True)
    x = images(30, 41)
    assert relative_error(ours(x), theirs(x)) < 1e-5
    assert ours.forward_intermediates(x, 1)[1][0].shape == (2, 32, 4, 6)


@pytest.mark.parametrize("config", [{}, {"no_embed_class": True, "reg_tokens": 2}])
@pytest.mark.parametrize(
    "sizes", [{"img_size": (48, 24)}, {"patch_size": 4}, {"img_size": (64, 64), "patch_size": (16, 16)}]
)
def test_set_input_size(config, sizes):
    ours, theirs = pair(**config)
    for model in (ours, theirs):
        model.set_input_size(**sizes)
    x = images(*sizes.get("img_size", (32, 32)))
    assert relative_error(ours(x), theirs(x)) < 1e-5
    again = VisionTransformer(**{f.name: getattr(ours.config, f.name) for f in fields(Config)})
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert again.feature_info == ours.feature_info


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_prefix_tokens_with_the_maps():
    ours, theirs = pair(reg_tokens=2)
    x = images()
    kwargs = {"indices": [1, 0], "return_prefix_tokens": True, "norm": True, "intermediates_only": True}
    for (a, pa), (b, pb) in zip(ours.forward_intermediates(x, **kwargs),
                                reversed(theirs.forward_intermediates(x, **kwargs)), strict=True):  # fmt: skip
        assert relative_error(a, b) < 1e-5
        assert relative_error(pa, pb) < 1e-5
        assert pa.shape == (2, 3, 32)
    for reshape in (False, True):
        a, b = ours.get_intermediate_layers(x, 1, reshape), theirs.get_intermediate_layers(x, 1, reshape)
        assert relative_error(a[0], b[0]) < 1e-5
    nhwc = ours.forward_intermediates(x, 1, output_fmt="NHWC")[1][0]
    assert torch.equal(nhwc.permute(0, 3, 1, 2), ours.forward_intermediates(x, 1)[1][0])


def test_a_closing_norm_is_not_promised_where_there_is_none():
    with pytest.raises(UnknownArgumentError, match="no closing norm"):
        tiny(global_pool="avg").forward_intermediates(images(), norm=True)


def test_holes_in_the_maps_are_refused():
    model = tiny(patch_drop_rate=0.5).train()
    with pytest.raises(ValueError, match="patch dropout"):
        model.forward_intermediates(images())


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_attention_mask(block):
    config = {"attn_layer": "diff"} if block == "Block" else {}
    theirs = randomize(judge.VisionTransformer(**TINY, block_fn=getattr(judge, block), **config)).eval()
    model = VisionTransformer(**TINY, block_fn=block, **config).eval()
    model.load_state_dict(theirs.state_dict())
    x = images()
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    a, b = model.forward_features(x, attn_mask=mask), theirs.forward_features(x, attn_mask=mask)
    assert relative_error(a, b) < 1e-5
    assert relative_error(model.forward_features(x, is_causal=True), a) < 1e-5
    assert not torch.allclose(a, model.forward_features(x), rtol=1e-3)
    assert relative_error(model(x, attn_mask=mask), model.forward_head(a)) < 1e-6
    assert torch.equal(model.forward_intermediates(x, attn_mask=mask)[0], a)
    model.set_grad_checkpointing()
    assert relative_error(model.forward_features(x, attn_mask=mask), a) < 1e-6


# -- head --------------------------------------------------------------------------------------------------------------


def test_reset_classifier_keeps_the_norm_where_it_was_trained():
    model = tiny()
    x = images()
    tokens = model.forward_features(x)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)
    assert torch.equal(model.forward_features(x), tokens)
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 1:].mean(1))
    again = VisionTransformer(**{f.name: getattr(model.config, f.name) for f in fields(Config)})
    assert again.state_dict().keys() == model.state_dict().keys()


def test_reset_classifier_can_bring_attention_pooling():
    model = tiny().eval()
    model.reset_classifier(3, "map")
    assert isinstance(model.attn_pool, AttentionPoolLatent)
    assert not any(part.training for part in model.modules())
    assert model.attn_pool.latent.std() > 0.05  # has its values
    assert torch.isfinite(model(images())).all()
    model.reset_classifier(0, "token")
    assert model.attn_pool is None
    assert model(images()).shape == (2, 32)


def test_features_have_no_idle_parameters():
    net = opsin.create_model("test_vit2", features_only=True, out_indices=(-2, 1), img_size=32)
    maps = net(images())
    assert [m.shape for m in maps] == [(2, 64, 2, 2)] * 2
    sum(m.square().sum() for m in maps).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_distilled_training_gives_two_answers():
    model = randomize(deit.VisionTransformerDistilled(**TINY))
    x = images()
    model.train()
    assert isinstance(model(x), torch.Tensor)
    model.set_distilled_training()
    first, second = model(x)
    assert first.shape == second.shape == (2, 5)
    model.eval()
    assert torch.allclose(model(x), (first + second) / 2, atol=1e-5)
    outputs = model.forward_outputs(x)
    assert torch.equal(outputs.logits, model(x))
    assert model.get_classifier() == (model.head, model.head_dist)
    with pytest.raises(UnknownArgumentError, match="two tokens"):
        deit.VisionTransformerDistilled(**TINY, global_pool="avg")


# -- initial values ----------------------------------------------------------------------------------------------------


def test_plain_start():
    torch.manual_seed(0)
    model = VisionTransformer(**(TINY | {"embed_dim": 128}))
    weight = model.blocks[0].mlp.fc1.weight
    assert weight.abs().max() <= 0.04
    assert weight.std().item() == pytest.approx(0.0176, rel=0.05)  # 0.02 cut at two sigma
    assert not model.blocks[0].mlp.fc1.bias.any()
    assert 0 < model.cls_token.abs().max() < 1e-5
    assert model.pos_embed.std().item() == pytest.approx(0.0176, rel=0.1)


def test_jax_start():
    torch.manual_seed(0)
    model = VisionTransformer(**(TINY | {"embed_dim": 128}), weight_init="jax")
    fc1 = model.blocks[0].mlp.fc1
    assert not model.head.weight.any()
    assert not model.head.bias.any()
    assert fc1.weight.abs().max() <= (6 / (128 + 512)) ** 0.5
    assert 0 < fc1.bias.abs().max() < 1e-5
    assert not model.blocks[0].attn.qkv.bias.any()
    assert model.patch_embed.proj.weight.std().item() == pytest.approx((1 / 192) ** 0.5, rel=0.05)
    biased = VisionTransformer(**TINY, weight_init="jax_nlhb")
    assert biased.head.bias[0].item() == pytest.approx(-1.6094, abs=1e-3)  # -log(5)


def test_moco_start():
    torch.manual_seed(0)
    qkv = VisionTransformer(**TINY, weight_init="moco").blocks[0].attn.qkv.weight
    bound = (6 / (32 + 32)) ** 0.5
    assert bound * 0.95 < qkv.abs().max() <= bound


@pytest.mark.parametrize("scheme", ["reset", "skip"])
def test_torch_start(scheme):
    torch.manual_seed(0)
    model = VisionTransformer(**TINY, weight_init=scheme)
    fc1 = model.blocks[0].mlp.fc1
    assert (32**-0.5) * 0.9 < fc1.weight.abs().max() <= 32**-0.5
    assert fc1.bias.abs().max() > 0.01
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_fix_init():
    def built(**config):
        torch.manual_seed(0)
        return VisionTransformer(**TINY, **config)

    plain, fixed = built(), built(fix_init=True)
    for i in range(2):
        ratio = plain.blocks[i].attn.proj.weight / fixed.blocks[i].attn.proj.weight
        assert torch.allclose(ratio, torch.tensor((2.0 * (i + 1)) ** 0.5))
        assert torch.allclose(fixed.blocks[i].mlp.fc2.weight * (2.0 * (i + 1)) ** 0.5, plain.blocks[i].mlp.fc2.weight)


def test_special_parts_start_right():
    post = VisionTransformer(**TINY, block_fn="ResPostBlock", init_values=1e-3)
    assert (post.blocks[0].norm1.weight == 1e-3).all()
    assert (post.blocks[1].norm2.weight == 1e-3).all()
    scaled = VisionTransformer(**TINY, init_values=1e-3)
    assert (scaled.blocks[0].ls1.gamma == 1e-3).all()
    parallel = VisionTransformer(**TINY, block_fn="ParallelScalingBlock", qkv_bias=False)
    assert not parallel.blocks[0].mlp_bias.any()
    diff = VisionTransformer(**(TINY | {"embed_dim": 256}), block_fn="DiffParallelScalingBlock").blocks[1]
    assert diff.lambda_q1.std().item() == pytest.approx(0.1, rel=0.5)
    assert diff.lambda_init == pytest.approx(0.8 - 0.6 * 2.718281828**-0.3)


def test_parts_alone_are_initialised():
    for part in (DiffAttention(32, 4), ParallelScalingBlock(32, 4), DiffParallelScalingBlock(32, 4, qkv_bias=True),
                 ParallelThingsBlock(32, 4, num_parallel=3, init_values=0.1), AttentionPoolLatent(32)):  # fmt: skip
        assert all(torch.isfinite(p).all() and p.abs().max() < 10 for p in part.parameters())
        assert torch.isfinite(part(torch.randn(2, 9, 32))).all()


# -- layers ------------------------------------------------------------------------------------------------------------


def test_patch_dropout_keeps_prefix_and_count():
    x = torch.arange(20.0).repeat(4, 1)[..., None].expand(-1, -1, 2).contiguous()
    torch.manual_seed(0)
    out = PatchDropout(0.5, num_prefix_tokens=2)(x)
    assert out.shape == (4, 11, 2)
    assert torch.equal(out[:, :2], x[:, :2])
    assert all(len(set(row[2:, 0].tolist()) & set(range(2, 20))) == 9 for row in out)
    assert not torch.equal(out[0], out[1])
    ordered = PatchDropout(0.5, num_prefix_tokens=2, ordered=True)(x)[..., 0]
    assert (ordered.diff(dim=1) > 0).all()
    assert PatchDropout(0.5).eval()(x) is x
    with pytest.raises(ValueError, match="below 1"):
        PatchDropout(1.0)


def test_patch_embed_formats():
    x = images()
    embed = lambda **kw: randomize(PatchEmbed(32, 8, 3, 16, **kw))(x)  # noqa: E731
    tokens = embed()
    assert torch.equal(embed(flatten=False).flatten(2).transpose(1, 2), tokens)
    assert torch.equal(embed(output_fmt="NHWC").flatten(1, 2), tokens)
    assert torch.equal(embed(output_fmt="NCL").transpose(1, 2), tokens)
    assert not torch.equal(embed(norm_layer="layernorm"), tokens)
    assert PatchEmbed(None, 8, 3, 16)(images(16, 24)).shape == (2, 6, 16)
    with pytest.raises(UnknownArgumentError, match="NHWC"):
        PatchEmbed(32, 8, output_fmt="HWC")


def test_gated_mlps():
    x = torch.randn(2, 3, 8)
    glu, swi = GluMlp(8, 16, act_layer="silu", gate_last=False), SwiGLU(8, 8)
    swi.load_state_dict(
        {"fc1_g.weight": glu.fc1.weight[:8], "fc1_x.weight": glu.fc1.weight[8:], "fc1_g.bias": glu.fc1.bias[:8],
         "fc1_x.bias": glu.fc1.bias[8:], "fc2.weight": glu.fc2.weight, "fc2.bias": glu.fc2.bias}
    )  # fmt: skip
    assert torch.allclose(glu(x), swi(x), atol=1e-6)
    glu.gate_last = True
    assert not torch.allclose(glu(x), swi(x), atol=1e-3)
    with pytest.raises(ValueError, match="17 is odd"):
        GluMlp(8, 17)


def test_attention_pool_over_more_queries():
    x = torch.randn(2, 9, 32)
    pool = AttentionPoolLatent(32, num_heads=4, latent_len=3, pool_type="", qk_norm=True)
    every = pool(x)
    assert every.shape == (2, 3, 32)
    pool.pool_type = "avg"
    assert torch.allclose(pool(x), every.mean(1), atol=1e-6)
    pool.pool_type = "token"
    assert torch.allclose(pool(x), every[:, 0], atol=1e-6)
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[:, 0] = True
    assert torch.allclose(pool(x, mask), pool(x[:, :1]), atol=1e-5)
