"""NaFlex ViT: images and batches of patches, every option, checkpoints of plain models; beside the judge."""

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.errors import OpsinError, UnknownArgumentError, WeightsError
from opsin.layers.rope import patch_coords
from opsin.models.naflexvit import NaFlexVit, NaFlexVitCfg, adapt
from opsin.models.vision_transformer import VisionTransformer

timm = pytest.importorskip("timm")
from timm.models import naflexvit as judge  # noqa: E402

SMALL = {
    "num_classes": 5, "img_size": (64, 48), "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2,
    "pos_embed_grid_size": (4, 5), "global_pool": "avg",
}  # fmt: skip
GRIDS = ((3, 4), (5, 2), (4, 3), (3, 4))
SAMPLED = {"pos_embed_use_grid_sample": True}
TOKEN = {"class_token": True, "global_pool": "token"}


def pair(**kwargs):
    theirs = randomize(judge.NaFlexVit(**(SMALL | kwargs))).eval()
    ours = NaFlexVit(**(SMALL | kwargs)).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def batch(patch=8, flat=True, grids=GRIDS, length=14):
    """Patches of images of several grids, padded to one length."""
    patches = torch.randn(len(grids), length, patch, patch, 3, generator=torch.Generator().manual_seed(1))
    coord, valid = (
        torch.zeros(len(grids), length, 2, dtype=torch.long),
        torch.zeros(len(grids), length, dtype=torch.bool),
    )
    for i, grid in enumerate(grids):
        count = grid[0] * grid[1]
        coord[i, :count], valid[i, :count] = patch_coords(grid), True
    return {"patches": patches.flatten(2) if flat else patches, "patch_coord": coord, "patch_valid": valid}


def images(size=(40, 56)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def valid_tokens(tokens, valid):
    prefix = tokens.shape[1] - valid.shape[1]
    return tokens[torch.nn.functional.pad(valid, (prefix, 0), value=True)]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"reg_tokens": 2},
        TOKEN,
        {"global_pool": "map", "reg_tokens": 1, "attn_pool_num_heads": 4, "attn_pool_mlp_ratio": 1.5},
        {"global_pool": "map", "reg_tokens": 1, "pool_include_prefix": True},
        {"global_pool": "max", "reg_tokens": 1},
        {"global_pool": "avgmax"},
        {"reg_tokens": 1, "pool_include_prefix": True, "fc_norm": False},
        {"pos_embed_ar_preserving": True, "final_norm": False},
        {"pos_embed_interp_mode": "bilinear", "pos_embed_antialias": False},
        {"pos_embed_align_corners": True, "use_key_only_attn_mask": True},
        {"pos_embed": "factorized"},
        {"pos_embed": "factorized", "pos_embed_ar_preserving": True},
        {"pos_embed": "none", "pos_embed_grid_size": None},
        {"pos_embed_grid_size": None},
        SAMPLED,
        SAMPLED | {"pos_embed_ar_preserving": True, "pos_embed_align_corners": True},
        SAMPLED | {"pos_embed": "factorized", "pos_embed_align_corners": True},
        {"rope_type": "axial", "reg_tokens": 2},
        {"rope_type": "axial", "rope_ref_feat_shape": (6, 6), "rope_grid_offset": 0.5, "rope_rotate_half": True},
        {"rope_type": "mixed", "rope_temperature": 10.0, "attn_type": "eva", "rope_grid_indexing": "xy"},
        {"rope_type": "dinov3", "rope_temperature": 100.0, "pos_embed": "none"},
        {"rope_type": "mrope", "rope_mrope_section": (1, 3, 3)},
        {"embed_norm_layer": "rmsnorm", "pre_norm": True},
        {"norm_layer": "rmsnorm", "act_layer": "relu", "init_values": 0.5},
        {"attn_gated": True, "act_layer": "relu"},
        {"attn_type": "rope", "attn_gated": True, "num_kv_heads": 1, "qkv_fused": False},
        {"swiglu_mlp": True, "swiglu_align_to": 8},
        {"swiglu_mlp": True, "scale_mlp_norm": True, "scale_attn_inner_norm": True, "qk_norm": True},
        {"init_values": 0.5, "attn_only_layer_scale": True},
        {"proj_bias": False, "qk_norm": True, "scale_attn_inner_norm": True, "scale_mlp_norm": True},
        {"attn_layer": "diff", "qkv_bias": False},
    ],
)
def test_options_as_timm(kwargs):
    ours, theirs = pair(**kwargs)
    patches = batch()
    valid = patches["patch_valid"]
    assert relative_error(ours(images()), theirs(images())) < 1e-5
    assert relative_error(ours(patches), theirs(patches)) < 1e-5
    got, wanted = (
        model.forward_intermediates(patches, norm=kwargs.get("fc_norm") is False, output_fmt="NLC", output_dict=True)
        for model in (ours, theirs)
    )
    assert got.keys() == wanted.keys()
    a, b = (valid_tokens(out["image_features"], valid) for out in (got, wanted))
    assert relative_error(a, b) < 1e-5
    for a, b in zip(got["image_intermediates"], wanted["image_intermediates"], strict=True):
        assert relative_error(a[valid], b[valid]) < 1e-5


@pytest.mark.parametrize("kwargs", [{"reg_tokens": 1}, {"global_pool": "map"}, TOKEN, {"rope_type": "dinov3"}, SAMPLED])
def test_one_image_in_any_form(kwargs):
    """An image, its patches, and its patches among others with padding."""
    model = randomize(
        NaFlexVit(**(SMALL | kwargs | {"pos_embed_antialias": False, "pos_embed_interp_mode": "bilinear"}))
    )
    model.eval()
    patches = batch(flat=False)
    wanted = model(patches)
    for i, (rows, columns) in enumerate(GRIDS):
        count = rows * columns
        alone = {name: value[i : i + 1, :count] for name, value in patches.items()}
        assert torch.allclose(model(alone)[0], wanted[i], atol=1e-5)
        apart = model(alone["patches"].flatten(2), alone["patch_coord"], alone["patch_valid"])
        assert torch.allclose(apart[0], wanted[i], atol=1e-5)
        if not model.config.pos_embed_use_grid_sample:
            image = alone["patches"].unflatten(1, (rows, columns)).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
            assert torch.allclose(model(image)[0], wanted[i], atol=1e-5)
    other = patches | {"patches": patches["patches"].masked_fill(~patches["patch_valid"][..., None, None, None], 9.0)}
    assert torch.allclose(model(other), wanted, atol=1e-5)
    out = model.forward_outputs(patches, 1)
    assert torch.equal(out.logits, wanted)
    assert out.features[0].shape == (4, 14, 32)
    assert torch.equal(out.embedding, model.forward_head(model.forward_features(patches), pre_logits=True))


@pytest.mark.parametrize("patch", [6, 12])
def test_patches_of_another_size_as_timm(patch):
    ours, theirs = pair(enable_patch_interpolator=True)
    patches = batch(patch, flat=False)
    assert relative_error(ours(patches), theirs(patches)) < 1e-4
    plain = NaFlexVit(**SMALL)
    with pytest.raises(ValueError, match="enable_patch_interpolator=True"):
        plain(patches)


@pytest.mark.parametrize("kwargs", [{"patchify_channels_last": False}, {"embed_proj_type": "conv"}])
def test_other_projections(kwargs):
    """Today's weights in another order give the same; `input_norm_layer` acts."""
    model = randomize(NaFlexVit(**SMALL)).eval()
    other = NaFlexVit(**(SMALL | kwargs)).eval()
    plain = VisionTransformer(**{k: v for k, v in SMALL.items() if "pos_embed" not in k}, class_token=False)
    state = randomize(plain).state_dict()
    state["pos_embed"] = torch.randn(1, 16, 32)
    model.load_state_dict(adapt(state, model))
    other.load_state_dict(adapt(state, other))
    assert torch.allclose(model(images()), other(images()), atol=1e-5)
    theirs = judge.NaFlexVit(**(SMALL | kwargs)).eval()
    theirs.load_state_dict(other.state_dict())
    assert torch.allclose(theirs(images()), other(images()), atol=1e-5)


def test_a_norm_of_flat_patches():
    model = randomize(NaFlexVit(**SMALL, input_norm_layer="layernorm")).eval()
    with torch.no_grad():
        model.embeds.norm_input.bias.zero_()
    assert torch.allclose(model(images()), model(5 * images()), atol=1e-4)
    with pytest.raises(UnknownArgumentError, match="linear"):
        NaFlexVit(**SMALL, input_norm_layer="layernorm", embed_proj_type="conv")


DROPS = [{f"{part}drop_rate": 0.5} for part in ("", "pos_", "patch_", "proj_", "attn_")] + [{"drop_path_rate": 0.5}]
MOVES = [{"rope_type": "axial", "reg_tokens": 1, f"rope_{name}_coords": 1.5} for name in ("shift", "jitter", "rescale")]


@pytest.mark.parametrize("kwargs", DROPS + MOVES)
def test_what_acts_while_training(kwargs):
    model = randomize(NaFlexVit(**(SMALL | kwargs)))
    for x in (images(), batch()):
        torch.manual_seed(0)
        assert (model.train()(x) - model(x)).abs().mean() > 1e-4
        assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_a_dropped_patch_takes_its_rope_and_validity_along(kind):
    """What is left out of the sequence is as good as not valid, with one block."""
    model = randomize(NaFlexVit(**(SMALL | {"depth": 1, "rope_type": kind, "patch_drop_rate": 0.5}))).train()
    patches = batch(grids=GRIDS[:1])
    torch.manual_seed(0)
    dropped = model(patches)
    torch.manual_seed(0)
    keep = torch.rand(1, 14).argsort(1)[:, :7]
    seen = torch.zeros(1, 14, dtype=torch.bool).scatter(1, keep, True)
    whole = model.eval()(patches | {"patch_valid": patches["patch_valid"] & seen})
    assert torch.allclose(dropped, whole, atol=1e-5)


def test_images_of_any_size():
    ours, theirs = pair(dynamic_img_pad=True, reg_tokens=1)
    x = images((29, 50))
    assert relative_error(ours(x), theirs(x)) < 1e-5
    assert ours.forward_intermediates(x)[1][0].shape == (2, 32, 4, 7)
    (level, prefix), *_ = ours.forward_intermediates(x, return_prefix_tokens=True, intermediates_only=True)
    assert prefix.shape == (2, 1, 32)
    assert torch.equal(level, ours.forward_intermediates(x, intermediates_only=True)[0])
    with pytest.raises(ValueError, match="dynamic_img_pad=True"):
        NaFlexVit(**SMALL)(x)


def test_config_and_keywords():
    figures = {name: value for name, value in SMALL.items() if name != "num_classes"}
    model = NaFlexVit(NaFlexVitCfg(**figures), in_chans=1, num_classes=7, depth=1)
    assert len(model.blocks) == 1
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 7)
    assert model.get_patch_size() == (8, 8)
    assert NaFlexVit(NaFlexVitCfg(**figures), 1, 7).in_chans == 1
    with pytest.raises(TypeError, match="at most 3"):
        NaFlexVit(NaFlexVitCfg(), 3, 7, 64, 16)
    torch.manual_seed(0)
    fixed, free = (NaFlexVit(**SMALL, fix_init=fix).blocks[1].mlp.fc2.weight.std() for fix in (True, False))
    assert 0.45 < fixed / free < 0.55  # 1 / sqrt(4)
    assert NaFlexVit(**SMALL, weight_init="jax").head.weight.abs().max() == 0


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ({"patches": torch.zeros(1, 4, 192)}, "no patch_coord, no patch_valid"),
        ({"patch": torch.zeros(1, 4, 192)}, "Did you mean patches"),
        ({"patch_coord": torch.zeros(1, 4, 2)}, "is a dict of patches"),
        ({"patches": torch.zeros(1, 3, 16, 16), "patch_coord": torch.zeros(1, 4, 2)}, "have all their patches"),
        (torch.zeros(4, 192), "patches are"),
    ],
)
def test_batches_that_are_not_whole(x, words):
    with pytest.raises((OpsinError, TypeError), match=words):
        NaFlexVit(**SMALL)(x)


def test_layers_by_name_and_masks():
    model = NaFlexVit(**SMALL, block_fn="ResPostBlock", mlp_layer="SwiGLU")
    assert [type(part).__name__ for part in (model.blocks[0], model.blocks[0].mlp)] == ["ResPostBlock", "SwiGLU"]
    both = randomize(NaFlexVit(**SMALL)).eval()
    keys = NaFlexVit(**SMALL, use_key_only_attn_mask=True).eval()
    keys.load_state_dict(both.state_dict())
    patches = batch()
    a, b = (m.forward_features(patches)["patches"] for m in (both, keys))
    assert torch.allclose(a[patches["patch_valid"]], b[patches["patch_valid"]], atol=1e-5)
    assert not torch.allclose(a, b, atol=1e-3)  # what padding sees
    mask = torch.ones(14, 14, dtype=torch.bool).tril()
    assert not torch.allclose(both(patches, attn_mask=mask), both(patches), atol=1e-3)


def test_figures_that_do_not_fit():
    for kwargs, words in (
        ({"pos_embed": "learn"}, "'learned', 'factorized' or 'none'"),
        ({"embed_proj_type": "line"}, "'linear' or 'conv'"),
        ({"global_pool": "token"}, "class_token=True"),
        ({"rope_type": "axial", "attn_layer": "diff"}, "plain blocks"),
        ({"rope_type": "dino"}, "Did you mean dinov3"),
    ):
        with pytest.raises(UnknownArgumentError, match=words):
            NaFlexVit(**(SMALL | kwargs))
    model = NaFlexVit(**SMALL).eval()
    with pytest.raises(UnknownArgumentError, match="any size"):
        model.set_input_size((32, 32))
    with pytest.raises(UnknownArgumentError, match="NLC"):
        model.forward_intermediates(batch())


# -- checkpoints -------------------------------------------------------------------------------------------------------

PLAIN = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
MAP = PLAIN | {"pos_embed_grid_size": (4, 4), "num_classes": 0, "global_pool": "map"}
TEACHERS = MAP | TOKEN | {"reg_tokens": 7, "final_norm": False, "init_values": 1.0}


def siglip_layout():
    state = randomize(judge.NaFlexVit(**MAP)).state_dict()
    rules = (
        ("embeds.proj", "embeddings.patch_embedding"), ("embeds.pos_embed", "embeddings.position_embedding.weight"),
        ("blocks.", "encoder.layers."), ("attn.proj", "self_attn.out_proj"), (".norm1", ".layer_norm1"),
        (".norm2", ".layer_norm2"), ("attn_pool.latent", "head.probe"), ("attn_pool.proj", "head.attention.out_proj"),
        ("attn_pool.norm", "head.layernorm"), ("attn_pool.mlp", "head.mlp"), ("norm.", "post_layernorm."),
    )  # fmt: skip
    out = {}
    for key, value in state.items():
        for old, new in rules:
            key = key.replace(old, new) if old != "norm." or key.startswith(old) else key
        out[f"vision_model.{key}"] = value.flatten(0, 2) if "position" in key else value
    for name in ("weight", "bias"):
        both = [out.pop(f"vision_model.attn_pool.{part}.{name}") for part in ("q", "kv")]
        out[f"vision_model.head.attention.in_proj_{name}"] = torch.cat(both)
        for i in (0, 1):
            packed = out.pop(f"vision_model.encoder.layers.{i}.attn.qkv.{name}")
            for part, value in zip("qkv", packed.chunk(3), strict=True):
                out[f"vision_model.encoder.layers.{i}.self_attn.{part}_proj.{name}"] = value
    return out, state


def radio_layout():
    state = randomize(judge.NaFlexVit(**TEACHERS)).state_dict()
    prefix, tokens = "radio_model.model.", torch.cat((state["embeds.cls_token"], state["embeds.reg_token"]), 1)
    weight = state["embeds.proj.weight"].unflatten(1, (8, 8, 3)).permute(0, 3, 1, 2).flatten(1)
    out = {
        f"{prefix}patch_generator.embedder.weight": weight,
        f"{prefix}patch_generator.pos_embed": state["embeds.pos_embed"].flatten(1, 2),
        f"{prefix}patch_generator.cls_token.token": tokens[0],
        "radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
    }  # fmt: skip
    state["embeds.proj.bias"] = torch.zeros(32)
    blocks = {k.replace(".gamma", ".grandma"): v for k, v in state.items() if k.startswith("blocks.")}
    return out | {f"{prefix}{key}": value for key, value in blocks.items()}, state


@pytest.mark.parametrize(("make", "kwargs"), [(siglip_layout, MAP), (radio_layout, TEACHERS)])
def test_published_layouts(make, kwargs):
    source, wanted = make()
    got = adapt(source, NaFlexVit(**kwargs))
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], value) for key, value in wanted.items())


def test_radio_as_timm():
    source, _ = radio_layout()
    wanted = judge.checkpoint_filter_fn(dict(source), judge.NaFlexVit(**TEACHERS))
    got = adapt(source, NaFlexVit(**TEACHERS))
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("kwargs", [{}, {"reg_tokens": 2}, {"reg_tokens": 2, "no_embed_class": True}])
def test_a_plain_model_gives_the_same(kwargs):
    plain = randomize(VisionTransformer(**PLAIN, **kwargs)).eval()
    flags = {name: value for name, value in kwargs.items() if name != "no_embed_class"}
    model = NaFlexVit(**(PLAIN | TOKEN | flags | {"pos_embed_grid_size": (4, 4)})).eval()
    model.load_state_dict(adapt(plain.state_dict(), model))
    x = images((32, 32))
    assert torch.allclose(model(x), plain(x), atol=1e-5)


def test_other_sizes_and_channels():
    source = randomize(NaFlexVit(**SMALL)).state_dict()
    wide = NaFlexVit(**(SMALL | {"pos_embed_grid_size": (6, 5), "patch_size": 12}))
    wide.load_state_dict(adapt(source, wide))
    assert wide.embeds.proj.weight.shape == (32, 12 * 12 * 3)
    lines = randomize(NaFlexVit(**SMALL, pos_embed="factorized")).state_dict()
    longer = NaFlexVit(**(SMALL | {"pos_embed_grid_size": (6, 5)}), pos_embed="factorized")
    longer.load_state_dict(adapt(lines, longer))
    assert torch.equal(longer.embeds.pos_embed_x, lines["embeds.pos_embed_x"])
    with pytest.raises(WeightsError, match="no square"):
        adapt({"pos_embed": torch.zeros(1, 15, 32)}, wide)


@pytest.mark.parametrize("last", [True, False])
def test_input_channels_of_flat_patches(last):
    arch, args = "naflexvit_base_patch16_gap", SMALL | {"patchify_channels_last": last}
    source = randomize(opsin.create_model(arch, **args)).state_dict()
    grey, full = (opsin.create_model(arch, pretrained=source, in_chans=n, **args).eval() for n in (1, 3))
    x = torch.randn(1, 1, 32, 32)
    assert torch.allclose(grey(x), full(x.expand(-1, 3, -1, -1)), atol=1e-5)
