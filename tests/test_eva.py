"""EVA and its lineages: every option acts, ropes, other sizes, checkpoints; beside the judge."""

import pytest
import torch
from support import randomize, relative_error

from opsin.errors import UnknownArgumentError
from opsin.layers import rope
from opsin.models.eva import Eva, checkpoint_filter_fn

timm = pytest.importorskip("timm")
from timm import layers as judge_layers  # noqa: E402
from timm.models import eva as judge  # noqa: E402

SIZE = (32, 48)
SMALL = {"num_classes": 5, "img_size": SIZE, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
ROPE = {"use_rot_pos_emb": True}
MIXED = ROPE | {"rope_type": "mixed", "rope_temperature": 10.0, "rope_grid_indexing": "xy"}
DINO = ROPE | {"rope_type": "dinov3", "rope_temperature": 100.0, "use_abs_pos_emb": False, "num_reg_tokens": 2}
APART = {"qkv_fused": False, "attn_type": "rope"}


def pair(**kwargs):
    theirs = randomize(judge.Eva(**(SMALL | kwargs))).eval()
    ours = Eva(**(SMALL | kwargs)).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def image(size=SIZE, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"qkv_bias": False, "qk_norm": True},
        {"qkv_fused": False, "scale_attn_inner": True, "scale_mlp": True},
        APART | {"num_kv_heads": 1, "init_values": 0.5},
        APART | {"num_kv_heads": (1, 2), "qk_norm": True, "init_values": 0.5, "attn_only_layer_scale": True},
        {"swiglu_mlp": True, "mlp_ratio": 2.6},
        {"swiglu_mlp": True, "mlp_ratio": 2.6, "scale_mlp": True},
        {"swiglu_mlp": True, "mlp_ratio": 2.6, "swiglu_align_to": 8},
        {"use_post_norm": True, "scale_mlp": True, "qkv_bias": False} | ROPE,
        {"use_pre_transformer_norm": True, "num_reg_tokens": 3, "no_embed_class": True},
        {"use_fc_norm": False, "class_token": False},
        {"use_post_transformer_norm": True, "use_fc_norm": True},
        {"use_post_transformer_norm": False, "global_pool": "token"},
        {"global_pool": "map", "attn_pool_num_heads": 4, "attn_pool_mlp_ratio": 1.5, "num_reg_tokens": 1},
        {"global_pool": "max", "norm_layer": torch.nn.LayerNorm},
        {"global_pool": "", "num_classes": 0, "use_abs_pos_emb": False},
        ROPE,
        ROPE | {"ref_feat_shape": 8, "rope_grid_offset": 1.0, "rope_grid_indexing": "xy", "rope_rotate_half": True},
        ROPE | {"rope_temperature": 50.0, "dynamic_img_size": True},
        MIXED,
        MIXED | {"attn_type": "rope", "rope_grid_indexing": "ij", "dynamic_img_size": True},
        DINO,
        DINO | {"rope_rotate_half": True, "rope_grid_offset": 0.5, "rope_rescale_coords": 2.0},
        ROPE | {"rope_type": "mrope", "num_heads": 1},
        ROPE | {"rope_type": "mrope", "rope_mrope_section": (1, 1, 2)},
    ],
)
def test_options_as_timm(kwargs):
    ours, theirs = pair(**kwargs)
    x = image()
    assert relative_error(ours(x), theirs(x)) < 1e-5
    (final, maps), (their_final, their_maps) = (model.forward_intermediates(x) for model in (ours, theirs))
    assert relative_error(final, their_final) < 1e-5
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(maps, their_maps, strict=True))


@pytest.mark.parametrize("kwargs", [{}, ROPE | {"ref_feat_shape": 4}, MIXED, DINO])
@pytest.mark.parametrize(("change", "size"), [({"img_size": (64, 56)}, (64, 56)), ({"patch_size": 16}, (32, 48))])
def test_another_size_as_timm(kwargs, change, size):
    ours, theirs = pair(**kwargs)
    ours.set_input_size(**change)
    theirs.set_input_size(**change)
    assert relative_error(ours(image(size)), theirs(image(size))) < 1e-4
    again = Eva(**{name: getattr(ours.config, name) for name in ours.config.names()}).eval()
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(image(size)), ours(image(size)))


@pytest.mark.parametrize("kwargs", [ROPE | {"num_reg_tokens": 1}, MIXED, DINO])
@pytest.mark.parametrize("size", [(56, 40), (29, 50)])
def test_any_size_as_timm(kwargs, size):
    ours, theirs = pair(dynamic_img_size=True, dynamic_img_pad=True, **kwargs)
    assert relative_error(ours(image(size)), theirs(image(size))) < 1e-5
    assert ours.forward_intermediates(image(size))[1][0].shape[2:] == (-(-size[0] // 8), -(-size[1] // 8))


def mean_change(model, x):
    torch.manual_seed(0)
    return (model.train()(x) - model(x)).abs().mean()


DROPS = [{f"{part}drop_rate": 0.5} for part in ("", "pos_", "patch_", "proj_", "attn_")] + [{"drop_path_rate": 0.5}]
MOVES = [{f"rope_{name}_coords": 1.5} for name in ("shift", "jitter", "rescale")]


@pytest.mark.parametrize("kwargs", DROPS + [kind | move for kind in (ROPE, MIXED, DINO) for move in MOVES])
def test_what_acts_while_training(kwargs):
    model = randomize(Eva(**(SMALL | kwargs)))
    x = image()
    assert mean_change(model, x) > 1e-4
    assert torch.equal(model.eval()(x), model(x))
    assert mean_change(randomize(Eva(**(SMALL | ROPE))), x) == 0


@pytest.mark.parametrize("kwargs", [ROPE, MIXED, ROPE | {"dynamic_img_size": True}])
def test_a_dropped_patch_takes_its_rope_along(kwargs):
    """With one block, what is left out of the sequence is as good as masked."""
    model = randomize(Eva(**(SMALL | kwargs | {"depth": 1, "patch_drop_rate": 0.5}))).train()
    whole = Eva(**(SMALL | kwargs | {"depth": 1})).eval()
    whole.load_state_dict(model.state_dict())
    x = image(batch=1)
    torch.manual_seed(0)
    dropped = model.forward_features(x)
    torch.manual_seed(0)
    keep = torch.rand(1, 24).argsort(1)[0, :12]
    mask = torch.zeros(25, dtype=torch.bool)
    mask[0], mask[keep + 1] = True, True
    masked = whole.forward_features(x, attn_mask=mask.expand(25, 25))
    assert torch.allclose(dropped, masked[:, torch.cat((torch.tensor([0]), keep + 1))], atol=1e-5)


def test_start():
    torch.manual_seed(0)
    model = Eva(**(SMALL | MIXED | {"head_init_scale": 0.0, "init_values": 0.25, "num_reg_tokens": 1}))
    assert model.head.weight.abs().max() == 0
    assert 0.015 < model.pos_embed.std() < 0.025
    assert torch.equal(model.blocks[0].gamma_1, torch.full((32,), 0.25))
    ratio = model.blocks[1].mlp.fc2.weight.std() / model.blocks[0].mlp.fc2.weight.std()
    assert 0.6 < ratio < 0.8  # 1 / sqrt(2)
    size = model.rope.freqs.square().sum(0).sqrt()  # of the directions, 1 and 10^-1/4, twice
    assert torch.allclose(size[0, 0], 10 ** -torch.tensor([0, 0.25, 0.5, 0.75] * 2), atol=1e-5)
    assert "rope.freqs" in model.no_weight_decay()
    norms = [part for part in Eva(**SMALL, norm_eps=0.5).modules() if isinstance(part, torch.nn.LayerNorm)]
    assert len(norms) == 5
    assert all(norm.eps == 0.5 for norm in norms)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"attn_type": "rop"}, UnknownArgumentError, "Did you mean rope"),
        (ROPE | {"rope_type": "dino"}, UnknownArgumentError, "Did you mean dinov3"),
        (ROPE | {"rope_grid_indexing": "yx"}, UnknownArgumentError, "'ij' or 'xy'"),
        (ROPE | {"rope_type": "mrope", "rope_grid_indexing": "xy"}, UnknownArgumentError, "rows first"),
        (ROPE | {"rope_jitter_coords": 0.5}, ValueError, "1 or more"),
        (ROPE | {"rope_shift_coords": -1.0}, ValueError, "0 or more"),
        (ROPE | {"embed_dim": 12}, ValueError, "multiple of 4"),
        ({"num_kv_heads": 1}, UnknownArgumentError, "qkv_fused=False"),
        (APART | {"num_kv_heads": (1, 2, 2)}, UnknownArgumentError, "3 entries for 2 blocks"),
        (APART | {"num_kv_heads": 3}, ValueError, "num_kv_heads=3"),
        ({"use_post_norm": True, "init_values": 1.0}, UnknownArgumentError, "layer scale"),
        ({"class_token": False, "global_pool": "token"}, UnknownArgumentError, "class_token=True"),
    ],
)
def test_figures_that_do_not_fit(kwargs, error, words):
    with pytest.raises(error, match=words):
        Eva(**(SMALL | kwargs))


# -- ropes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cat", "dinov3", "mixed", "mrope"])
def test_tables_of_many_grids(kind):
    """Patches of several grids in one batch have the entries of their grids' tables."""
    extra = {"depth": 2} if kind == "mixed" else {"ref_feat_shape": (8, 8)} if kind == "cat" else {}
    table = rope.create_rope_embed(kind, 32, 2, **extra)
    grids = [(2, 3), (3, 2), (1, 6)]
    coords = torch.stack([rope.patch_coords(grid) for grid in grids])
    many = table.embed(coords, torch.tensor(grids))
    for i, grid in enumerate(grids):
        one = many[:, i] if kind == "mixed" else many[i, 0]
        assert torch.allclose(one, table.get_embed(grid), atol=1e-6)


def test_tables_are_float32_in_half_precision():
    table = rope.create_rope_embed("cat", 64, 2, feat_shape=(4, 6))
    exact, other = table.get_embed().clone(), table.get_embed((20, 30))
    table.to(torch.bfloat16)
    assert torch.equal(table.get_embed(), exact)
    assert torch.equal(table.get_embed((20, 30)), other)
    with pytest.raises(ValueError, match="name the grid"):
        rope.create_rope_embed("cat", 64, 2).get_embed()


@pytest.mark.parametrize("half", [True, False])
def test_scores_depend_on_offsets_alone(half):
    table = rope.create_rope_embed("cat", 16, 1, rotate_half=half).get_embed((3, 3))
    q, k = torch.randn(2, 1, 16)
    turned = [rope.apply_rot_embed_cat(x.expand(9, 16), table, half) for x in (q, k)]
    scores = turned[0] @ turned[1].T
    assert torch.allclose(scores[0, 4], scores[4, 8], atol=1e-5)  # a row and a column on
    assert not torch.allclose(scores[0, 4], scores[4, 0], atol=1e-3)


@pytest.mark.parametrize("kwargs", [{"scale_norm": True, "proj_bias": False}, {"gated": True, "qk_norm": True}])
def test_attention_as_timm(kwargs):
    theirs = randomize(judge_layers.AttentionRope(32, 4, norm_layer=torch.nn.LayerNorm, **kwargs))
    ours = rope.AttentionRope(32, 4, norm_layer=torch.nn.LayerNorm, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    x, table = torch.randn(2, 7, 32), torch.randn(6, 16)
    assert torch.allclose(ours(x, table), theirs(x, table), atol=1e-6)


# -- checkpoints -------------------------------------------------------------------------------------------------------

EVA02 = ROPE | {"swiglu_mlp": True, "mlp_ratio": 8 / 3, "ref_feat_shape": 16}
APART02 = EVA02 | {"qkv_fused": False, "scale_mlp": True, "scale_attn_inner": True}
PE = ROPE | {
    "attn_type": "rope", "use_pre_transformer_norm": True, "global_pool": "map", "attn_pool_num_heads": 4,
    "attn_pool_mlp_ratio": 4.0, "init_values": 0.1,
}  # fmt: skip
DENSE = PE | {"global_pool": "avg", "use_fc_norm": False, "use_post_transformer_norm": False, "num_classes": 0}
DINOV3 = DINO | {"init_values": 1e-5, "use_fc_norm": False, "num_classes": 0}
GATED = {"swiglu_mlp": True, "swiglu_align_to": 8}
TO_EVA02 = (("mlp.fc1.", "mlp.w12."), ("mlp.fc2", "mlp.w3"))
TO_APART = (
    ("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3"), ("mlp.norm", "mlp.ffn_ln"), ("attn.norm", "attn.inner_attn_ln"),
)  # fmt: skip
TO_DINO = (("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"))
TO_PE = (
    ("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("attn_pool.latent", "attn_pool.probe"),
    ("attn_pool.norm", "attn_pool.layernorm"), ("attn_pool.proj", "attn_pool.attn.out_proj"),
    ("blocks.", "transformer.resblocks."), ("norm1", "ln_1"), ("norm2", "ln_2"), ("gamma_1", "ls_1.gamma"),
    ("gamma_2", "ls_2.gamma"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("fc1", "c_fc"),
    ("fc2", "c_proj"),
)  # fmt: skip


def renamed(state, rules):
    out = {}
    for key, value in state.items():
        for old, new in rules:
            key = key.replace(old, new)
        out[key] = value
    return out


def below(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def dino_layout(state):
    own = {key: value for key, value in state.items() if not key.endswith(("q_bias", "v_bias"))}
    biases = {f"blocks.{i}.attn.qkv.{name}": torch.randn(96) for i in (0, 1) for name in ("bias", "bias_mask")}
    rules = TO_DINO + (TO_APART if any("fc1_g" in key for key in own) else ())
    return renamed(own, rules) | biases | {"mask_token": torch.randn(1, 32), "rope_embed.periods": torch.ones(4)}


def pe_layout(state):
    state, out = dict(state), {"positional_embedding": state["pos_embed"][0]}
    if "cls_token" in state:
        out["class_embedding"] = state["cls_token"].flatten()
    if "attn_pool.latent" in state:
        for name in ("weight", "bias"):
            both = state.pop(f"attn_pool.q.{name}"), state.pop(f"attn_pool.kv.{name}")
            out[f"attn_pool.attn.in_proj_{name}"] = torch.cat(both)
        out["proj"] = state["head.weight"].T
    gone = ("pos_embed", "cls_token", "head.weight", "head.bias")
    rest = renamed({key: value for key, value in state.items() if key not in gone}, TO_PE)
    return out | {key.replace("norm.", "ln_post.") if key.startswith("norm.") else key: v for key, v in rest.items()}


def mim_layout(state):
    body = {key: value for key, value in state.items() if not key.startswith(("head", "fc_norm"))}
    extra = ("norm.weight", "norm.bias", "lm_head.weight", "lm_head.bias", "mask_token")
    return body | {key: torch.randn(32) for key in extra}


ONES = torch.ones(3)
LAYOUTS = {
    "eva02": (EVA02, lambda s: {"model": renamed(s, TO_EVA02) | {"rope.freqs_cos": ONES}}),
    "eva02 apart": (APART02, lambda s: {"module": renamed(s, TO_APART) | {"blocks.0.attn.rope.freqs_sin": ONES}}),
    "eva02 clip": (APART02, lambda s: below("visual.", renamed(s, TO_APART)) | {"text.x": ONES}),
    "eva02 trunk": (APART02, lambda s: below("visual.trunk.", s) | {"logit_scale": ONES}),
    "eva pre-trained": ({"num_classes": 0}, mim_layout),
    "dinov3": (DINOV3, dino_layout),
    "dinov3 without biases": (DINOV3 | {"qkv_bias": False}, dino_layout),
    "dinov3 gated": (DINOV3 | {"qkv_bias": False} | GATED, dino_layout),
    "pe": (PE, lambda s: below("visual.", pe_layout(s)) | {"text_projection": ONES}),
    "pe dense": (DENSE, pe_layout),
    "pe without class token": (DENSE | {"class_token": False}, pe_layout),
    "another size": ({"img_size": 64, "num_reg_tokens": 2, "no_embed_class": True}, dict),
    "another patch": ({"img_size": 64, "patch_size": 16}, dict),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_as_timm(layout):
    kwargs, make = LAYOUTS[layout]
    source = make(randomize(judge.Eva(**(SMALL | {"img_size": (48, 48)} | kwargs))).state_dict())
    sized = {name: value for name, value in kwargs.items() if name not in ("img_size", "patch_size")}
    ours, theirs = pair(**({"img_size": (48, 48)} | sized))
    wanted, got = judge.checkpoint_filter_fn(dict(source), theirs), checkpoint_filter_fn(source, ours)
    assert got.keys() == wanted.keys() == ours.state_dict().keys()
    assert all(torch.allclose(got[key], wanted[key], atol=1e-5) for key in wanted)
    assert all(value.shape == got[key].shape for key, value in ours.state_dict().items())


def test_checkpoint_of_rope_vit():
    """The paper's code keeps the heads of learned directions side by side, and the places of patches."""
    model = randomize(Eva(**(SMALL | MIXED)))
    today = model.state_dict()
    source = {("freqs" if key == "rope.freqs" else key): value for key, value in today.items()}
    source |= {"freqs": source["freqs"].flatten(2), "freqs_t_x": torch.ones(24), "freqs_t_y": torch.ones(24)}
    for state in (source, today):
        got = checkpoint_filter_fn(state, model)
        assert got.keys() == today.keys()
        assert all(torch.equal(value, today[key]) for key, value in got.items())


@pytest.mark.parametrize("gated", [False, True])
def test_checkpoint_of_hugging_face(gated):
    """Its own model gives the same tokens: class, registers, patches."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=48, patch_size=8,
        num_register_tokens=2, use_gated_mlp=gated, hidden_act="silu" if gated else "gelu",
    )  # fmt: skip
    theirs = randomize(transformers.DINOv3ViTModel(config)).eval()
    kwargs = DINOV3 | {"rope_rotate_half": True, "mlp_ratio": 2.0, "norm_eps": 1e-5, "dynamic_img_size": True}
    ours = Eva(**(SMALL | kwargs | (GATED if gated else {}))).eval()
    ours.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), ours))
    with torch.no_grad():
        assert relative_error(ours.forward_features(image()), theirs(image()).last_hidden_state) < 1e-5


def test_variants_are_found_where_timm_has_them():
    from opsin.models import eva

    assert eva.vit_tiny_patch16_dinov3_qkvb(depth=1).num_reg_tokens == 4
    assert eva.eva02_tiny_patch14_224(depth=1, num_classes=3).num_classes == 3
    with pytest.raises(AttributeError, match="eva02_tiny_patch14_224"):
        _ = eva.eva02_tiny_patch14_22
