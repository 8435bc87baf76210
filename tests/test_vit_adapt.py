"""Checkpoints of vision transformers in the layouts of those who trained them, against the judge's own conversion."""

import numpy as np
import pytest
import torch
from support import randomize, relative_error
from torch import nn

from opsin.errors import WeightsError
from opsin.models.deit import VisionTransformerDistilled
from opsin.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from opsin.models.vit_radio import CENTRES, CORNERS

timm = pytest.importorskip("timm")
from timm.models.vision_transformer import VisionTransformer as JudgeViT  # noqa: E402
from timm.models.vision_transformer import checkpoint_filter_fn as judge_filter  # noqa: E402

DIM = 32
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": DIM, "depth": 2, "num_heads": 4, "num_classes": 5}


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def adapt(state, model):
    from opsin.models.vision_transformer import adapt as hook

    return hook(state, model)


def both(state, *, how=None, layer_scale=True, ours=None, **config):
    """Our hook and the judge's on one dict: the same keys, the same values; and they fill the model."""
    judge = JudgeViT(**(TINY | config))
    model = VisionTransformer(**(TINY | config | (ours or {})))
    wanted = judge_filter(dict(state), judge, adapt_layer_scale=layer_scale, **(how or {}))
    got = adapt(dict(state), model)
    assert sorted(got) == sorted(wanted)
    for key, value in wanted.items():
        assert got[key].shape == value.shape, key
        assert relative_error(got[key], value) < 1e-5, key
    model.load_state_dict(got)
    again = adapt(got, model)
    assert all(torch.equal(again[k], got[k]) for k in got)
    return model


def random_state(**config):
    """A checkpoint in today's layout."""
    return dict(randomize(VisionTransformer(**(TINY | config))).state_dict())


def test_todays_layout_is_left_alone():
    both(random_state())
    both({"model": random_state()})
    both({"state_dict": random_state()})


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 40)])
@pytest.mark.parametrize(
    "tokens", [{}, {"reg_tokens": 2}, {"no_embed_class": True}, {"class_token": False, "global_pool": "avg"}]
)
def test_position_embedding_goes_to_another_image_size(size, tokens):
    both(random_state(**tokens), img_size=size, **tokens)


def test_patch_projection_goes_to_another_patch_size():
    both(random_state(), patch_size=4, img_size=16)
    both(random_state(), patch_size=16, img_size=64)


def test_how_to_resample_is_part_of_the_config():
    how = {"interpolation": "bilinear", "antialias": False}
    both(random_state(), how=how, ours={"resample": how}, img_size=56, patch_size=14)


def test_not_a_square():
    state = random_state(img_size=(16, 48))
    model = VisionTransformer(**(TINY | {"img_size": 64}))
    with pytest.raises(WeightsError, match="12 position embeddings.*no square"):
        adapt(state, model)
    model.pretrained_cfg = {"input_size": (3, 16, 48)}
    assert adapt(state, model)["pos_embed"].shape == (1, 65, DIM)


def test_flat_patch_projection():
    state = random_state()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    both(state)


def test_deit3():
    state = {
        k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v
        for k, v in random_state(init_values=1e-6, no_embed_class=True).items()
    }
    assert "blocks.0.gamma_1" in state
    both({"model": state}, init_values=1e-6, no_embed_class=True)
    left = checkpoint_filter_fn(state, VisionTransformer(**TINY, init_values=1e-6, no_embed_class=True))
    assert "blocks.0.gamma_1" in left  # only when asked for


def test_pre_logits_are_left_out():
    both(random_state() | {"pre_logits.fc.weight": noise(DIM, DIM), "pre_logits.fc.bias": noise(DIM)})


def openai(prefix):
    out = {
        "class_embedding": noise(DIM),
        "positional_embedding": noise(17, DIM),
        "proj": noise(DIM, 5),
        "conv1.weight": noise(DIM, 3, 8, 8),
    }
    for norm in ("ln_pre", "ln_post", *(f"transformer.resblocks.{i}.ln_{j}" for i in range(2) for j in (1, 2))):
        out |= {f"{norm}.weight": noise(DIM), f"{norm}.bias": noise(DIM)}
    for i in range(2):
        block = f"transformer.resblocks.{i}"
        out |= {f"{block}.attn.in_proj_weight": noise(3 * DIM, DIM), f"{block}.attn.in_proj_bias": noise(3 * DIM)}
        for name, (o, n) in {"attn.out_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}.items():
            out |= {f"{block}.{name}.weight": noise(o * DIM, n * DIM), f"{block}.{name}.bias": noise(o * DIM)}
    text = {"token_embedding.weight": noise(10, DIM), "logit_scale": noise(1)} if prefix else {}
    return {prefix + k: v for k, v in out.items()} | text


@pytest.mark.parametrize("prefix", ["visual.", "module.visual."])
@pytest.mark.parametrize("img_size", [32, 48])
def test_openai_clip(prefix, img_size):
    both(openai(prefix), pre_norm=True, img_size=img_size)


def test_bare_clip_tower():
    model = VisionTransformer(**TINY, pre_norm=True)
    assert adapt(openai(""), model).keys() == adapt(openai("visual."), model).keys() == model.state_dict().keys()


@pytest.mark.parametrize("with_head", [False, True])
def test_openclip_around_a_trunk(with_head):
    trunk = {f"visual.trunk.{k}": v for k, v in random_state(num_classes=0).items()}
    if with_head:
        trunk["visual.head.proj.weight"] = noise(5, DIM)
    both(trunk | {"logit_scale": noise(1)}, num_classes=5 if with_head else 0)


@pytest.mark.parametrize("registers", [0, 2])
def test_dinov2(registers):
    state = random_state(num_classes=0, init_values=1e-5)
    state["mask_token"] = noise(1, DIM)
    if registers:
        state["register_tokens"] = noise(1, registers, DIM)
    extra = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    both(dict(state), num_classes=0, init_values=1e-5, img_size=48, **extra)
    inside = {f"vision_encoder.{k}": v for k, v in state.items()} | {"text_encoder.x": noise(3)}
    both(inside, num_classes=0, init_values=1e-5, **extra)


def test_dinov2_giant():
    config = {"num_classes": 0, "mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
    state = random_state(**config)
    state = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in state.items()}
    model = VisionTransformer(**(TINY | config))
    assert adapt(state | {"mask_token": noise(1, DIM)}, model).keys() == model.state_dict().keys()


def test_ijepa():
    config = {"num_classes": 0, "class_token": False, "global_pool": "avg", "fc_norm": False}
    state = {"encoder": {f"module.{k}": v for k, v in random_state(**config).items()}, "predictor": {}, "epoch": 3}
    both(state, **config)


def test_attention_pool_is_left_out_of_a_mean_pooled_model():
    config = {"num_classes": 0, "class_token": False}
    state = random_state(**config, global_pool="map")
    model = VisionTransformer(**(TINY | config), global_pool="avg", fc_norm=False)
    assert adapt(state, model).keys() == model.state_dict().keys()
    both(state, **config, global_pool="map")


def test_aimv2():
    config = {
        "num_classes": 0,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "qkv_bias": False,
        "proj_bias": False,
        "norm_layer": "rmsnorm",
        "embed_norm_layer": "rmsnorm",
    }
    names = (
        ("norm1", "norm_1"),
        ("norm2", "norm_2"),
        ("fc1_g", "fc1"),
        ("fc1_x", "fc3"),
        ("patch_embed", "preprocessor.patchifier"),
        ("pos_embed", "preprocessor.pos_embed"),
        ("blocks", "trunk.blocks"),
    )
    state = {}
    for key, value in random_state(**config, mlp_layer="SwiGLU").items():
        if key.startswith("norm."):
            key = "trunk.post_trunk_norm." + key.removeprefix("norm.")
        for today, then in names:
            key = key.replace(today, then)
        state[key] = value
    model = VisionTransformer(**(TINY | config), mlp_layer="SwiGLU")
    from timm.layers import SwiGLU

    judge = JudgeViT(**(TINY | config), mlp_layer=SwiGLU)
    wanted, got = judge_filter(dict(state), judge), adapt(state, model)
    assert got.keys() == wanted.keys() == model.state_dict().keys()
    assert all(torch.equal(got[k], wanted[k]) for k in got)


def test_beit3():
    config = {"scale_attn_norm": True, "scale_mlp_norm": True, "global_pool": "avg"}
    then = (
        ("patch_embed.", "beit3.vision_embed."),
        ("cls_token", "beit3.vision_embed.cls_token"),
        ("blocks.", "beit3.encoder.layers."),
        ("attn.norm.", "self_attn.inner_attn_ln.A."),
        ("mlp.norm.", "ffn.A.ffn_layernorm."),
        ("mlp.", "ffn.A."),
        ("norm1.", "self_attn_layer_norm.A."),
        ("norm2.", "final_layer_norm.A."),
        ("attn.proj.", "self_attn.out_proj.A."),
    )
    state = {"beit3.text_embed.weight": noise(7, DIM), "beit3.vision_embed.mask_token": noise(1, 1, DIM)}
    for key, value in random_state(**config).items():
        if key == "pos_embed":
            state["beit3.encoder.embed_positions.A.weight"] = torch.cat((noise(2, DIM), value[0]))
            state["beit3.encoder.embed_positions.B.weight"] = noise(9, DIM)
            continue
        if ".qkv." in key:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                state["beit3.encoder.layers." + key[7:].replace("attn.qkv.", f"self_attn.{name}_proj.A.")] = part
            continue
        for today, old in then:
            key = key.replace(today, old) if not ("ffn" in key and today == "norm.") else key
        state[key] = value
        state[key.replace(".A.", ".B.")] = value if ".A." not in key else value + 1
    both(state, **config)


@pytest.mark.parametrize("how", [CORNERS, CENTRES])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_radio(how, size):
    prefix = "radio_model.model."
    state = {
        f"{prefix}{k.replace('.gamma', '.grandma')}": v
        for k, v in random_state(init_values=1e-5).items()
        if k.startswith("blocks.")
    }
    state |= {
        f"{prefix}patch_generator.embedder.weight": noise(DIM, 3 * 64),
        f"{prefix}patch_generator.pos_embed": noise(1, 12 * 12, DIM),
        f"{prefix}patch_generator.cls_token.token": noise(3, DIM),
        "radio_model.input_conditioner.norm_mean": noise(3, 1, 1),
        "radio_model.summary_idxs": torch.tensor([0, 1]),
    }
    both(
        state,
        how=how,
        ours={"resample": how},
        num_classes=0,
        init_values=1e-5,
        reg_tokens=2,
        no_embed_class=True,
        final_norm=False,
        img_size=size,
    )


def flax(*, big_vision=False, stacked=False, prefix="", map_pool=False, classes=5, cls=True):
    """The arrays of a Flax checkpoint, as NumPy keeps them."""
    tree = {"embedding/kernel": (8, 8, 3, DIM), "embedding/bias": (DIM,)}
    if cls:
        tree["cls"] = (1, 1, DIM)
    tree["pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"] = (1, 16 + cls, DIM)
    norm = lambda name: {f"{name}/scale": (DIM,), f"{name}/bias": (DIM,)}  # noqa: E731

    def attention(name):
        parts = {
            f"{name}/{n}/{w}": (DIM, 4, 8) if w == "kernel" else (4, 8)
            for n in ("query", "key", "value")
            for w in ("kernel", "bias")
        }
        return parts | {f"{name}/out/kernel": (4, 8, DIM), f"{name}/out/bias": (DIM,)}

    def mlp(name):
        return {
            f"{name}/Dense_0/kernel": (DIM, 4 * DIM),
            f"{name}/Dense_0/bias": (4 * DIM,),
            f"{name}/Dense_1/kernel": (4 * DIM, DIM),
            f"{name}/Dense_1/bias": (DIM,),
        }

    attn, mlp_no, second = ("0", "0", "1") if big_vision else ("1", "3", "2")
    block = norm("LayerNorm_0") | norm(f"LayerNorm_{second}")
    block |= attention(f"MultiHeadDotProductAttention_{attn}") | mlp(f"MlpBlock_{mlp_no}")
    if stacked:
        tree |= {f"Transformer/encoderblock/{k}": (2, *v) for k, v in block.items()}
    else:
        tree |= {f"Transformer/encoderblock_{i}/{k}": v for i in range(2) for k, v in block.items()}
    tree |= norm("Transformer/encoder_norm")
    if classes:
        tree |= {
            "head/kernel": (DIM, classes),
            "head/bias": (classes,),
            "pre_logits/kernel": (DIM, DIM),
            "pre_logits/bias": (DIM,),
        }
    if map_pool:
        pool = (
            {"probe": (1, 1, DIM)}
            | norm("LayerNorm_0")
            | attention("MultiHeadDotProductAttention_0")
            | mlp("MlpBlock_0")
        )
        tree |= {f"MAPHead_0/{k}": v for k, v in pool.items()}
    rng = np.random.default_rng(0)
    return {prefix + k: rng.standard_normal(v).astype(np.float32) for k, v in tree.items()}


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"prefix": "opt/target/"},
        {"big_vision": True, "prefix": "params/"},
        {"big_vision": True, "stacked": True, "prefix": "params/"},
        {"big_vision": True, "prefix": "params/img/", "map_pool": True, "classes": 0, "cls": False},
    ],
)
@pytest.mark.parametrize("img_size", [32, 48])
def test_flax(layout, img_size, tmp_path):
    arrays = flax(**layout)
    config = TINY | {"img_size": img_size}
    if layout.get("map_pool"):
        config |= {"class_token": False, "global_pool": "map", "num_classes": 0}
    judge, model = JudgeViT(**config), VisionTransformer(**config)
    np.savez(tmp_path / "w.npz", **arrays)
    judge.load_pretrained(str(tmp_path / "w.npz"))
    got = adapt({k: torch.from_numpy(v) for k, v in arrays.items()}, model)
    wanted = judge.state_dict()
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert relative_error(got[key], value) < 1e-5, key


# -- Hugging Face transformers: the judge is the model itself

HF = {
    "hidden_size": DIM,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 4 * DIM,
    "image_size": 32,
    "patch_size": 8,
}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def same(theirs: nn.Module, ours: nn.Module, read, x=X):
    """The state dict of a Hugging Face model through our hook gives its numbers."""
    theirs = randomize(theirs).eval()
    ours.load_state_dict(adapt(theirs.state_dict(), ours))
    assert relative_error(ours.eval()(x), read(theirs(pixel_values=x))) < 1e-5


def test_hf_vit():
    hf = pytest.importorskip("transformers")
    theirs = hf.ViTForImageClassification(hf.ViTConfig(**HF, num_labels=5))
    same(theirs, VisionTransformer(**TINY, norm_eps=1e-12), lambda out: out.logits)


def test_hf_deit():
    hf = pytest.importorskip("transformers")
    theirs = hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**HF, num_labels=5))
    same(theirs, VisionTransformerDistilled(**TINY, norm_eps=1e-12), lambda out: out.logits)


@pytest.mark.parametrize("registers", [0, 2])
def test_hf_dinov2(registers):
    hf = pytest.importorskip("transformers")
    common = {k: v for k, v in HF.items() if k != "intermediate_size"}
    if registers:
        theirs = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**common, num_register_tokens=registers))
    else:
        theirs = hf.Dinov2Model(hf.Dinov2Config(**common))
    extra = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    ours = VisionTransformer(**(TINY | {"num_classes": 0}), init_values=1.0, **extra)
    same(theirs, ours, lambda out: out.last_hidden_state[:, 0])


def test_hf_clip():
    hf = pytest.importorskip("transformers")
    theirs = hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**HF, projection_dim=5))
    same(
        theirs,
        VisionTransformer(**TINY, pre_norm=True, norm_eps=1e-5, act_layer="quick_gelu"),
        lambda out: out.image_embeds,
    )


def test_hf_siglip():
    hf = pytest.importorskip("transformers")
    theirs = hf.SiglipVisionModel(hf.SiglipVisionConfig(**HF))
    ours = VisionTransformer(**(TINY | {"num_classes": 0}), class_token=False, global_pool="map", act_layer="gelu_tanh")
    same(theirs, ours, lambda out: out.pooler_output)
