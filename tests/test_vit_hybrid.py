"""Vision transformers on convolutional nets: every option acts, other sizes, checkpoints; beside the judge."""

import numpy as np
import pytest
import torch
from support import randomize, relative_error
from test_vit_adapt import DIM, flax

import opsin
from opsin.errors import OpsinError
from opsin.models.vision_transformer_hybrid import HybridVisionTransformer, adapt

timm = pytest.importorskip("timm")
from timm.models.vision_transformer_hybrid import checkpoint_filter_fn as judge_filter  # noqa: E402

TINY = {"img_size": 128, "embed_dim": DIM, "depth": 2, "num_heads": 4, "num_classes": 5}
STEM = {"backbone": "stem", "patch_size": 8}
STEM_NAME, NET_NAME = "vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224"


def pair(name, **kwargs):
    theirs = randomize(timm.create_model(name, **(TINY | kwargs))).eval()
    ours = opsin.create_model(name, **(TINY | kwargs)).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("change", [{"img_size": (64, 192)}, {"patch_size": 4}, {"patch_size": 4, "img_size": 64}])
def test_another_size_as_timm(change):
    ours, theirs = pair(STEM_NAME)
    ours.set_input_size(**change)
    theirs.set_input_size(**change)
    x = torch.randn(2, 3, *ours.patch_embed.img_size)
    assert relative_error(ours(x), theirs(x)) < 1e-4
    assert ours.feature_info[0]["reduction"] == (16 if "patch_size" in change else 32)
    again = HybridVisionTransformer(**{name: getattr(ours.config, name) for name in ours.config.names()}).eval()
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(x), ours(x))


def test_sizes_that_vary():
    model = HybridVisionTransformer(**TINY, **STEM, dynamic_img_size=True, dynamic_img_pad=True).eval()
    whole = torch.zeros(1, 3, 96, 64)
    part = whole[:, :, :70, :64]
    part.normal_()
    assert torch.equal(model(part), model(whole))
    with pytest.raises(ValueError, match="built for 128x128"):
        HybridVisionTransformer(**TINY, **STEM)(whole)


def test_backbones():
    with pytest.raises(OpsinError, match="Did you mean resnet"):
        HybridVisionTransformer(**TINY, backbone="resnt")
    with pytest.raises(ValueError, match="channels of the map are tokens"):
        HybridVisionTransformer(**TINY, backbone="conv", patch_size=2)
    model = HybridVisionTransformer(**TINY, backbone="conv")
    with pytest.raises(ValueError, match="no patch_size to change"):
        model.set_input_size(patch_size=2)
    for name in ("resnet", "resnetv2"):
        short = HybridVisionTransformer(**TINY, backbone=name, backbone_layers=(1, 1))
        assert short.feature_info[0]["reduction"] == 8
        assert short(torch.randn(1, 3, 128, 128)).shape == (1, 5)
        short.set_grad_checkpointing()
        assert short.patch_embed.backbone.grad_checkpointing
        assert short.default_cfg == {}


def test_initial_values_are_those_of_the_parts():
    torch.manual_seed(0)
    model = HybridVisionTransformer(**TINY, backbone="resnet", weight_init="jax")
    conv = model.patch_embed.backbone.layer1[0].conv1.weight
    assert 0.9 < conv.std() / (2 / conv.shape[0]) ** 0.5 < 1.1
    assert model.patch_embed.backbone.layer1[0].bn3.weight.eq(0).all()
    assert not model.head.weight.any()


def flax_of(stem):
    """A Flax checkpoint with the backbone's arrays."""
    rng, arrays = np.random.default_rng(0), flax()
    shapes = {"conv_root/kernel": (7, 7, 3, 64), "gn_root/scale": (64,), "gn_root/bias": (64,)}
    width = 64
    for block, out in enumerate(() if stem else (256, 512, 1024, 2048), 1):
        for unit in (1, 2):
            mid, at = out // 4, f"block{block}/unit{unit}"
            convs = {"1": (1, 1, width, mid), "2": (3, 3, mid, mid), "3": (1, 1, mid, out)}
            convs |= {"_proj": (1, 1, width, out)} if unit == 1 else {}
            for which, shape in convs.items():
                shapes |= {f"{at}/conv{which}/kernel": shape}
                shapes |= {f"{at}/gn{which}/{leaf}": (1, 1, 1, shape[-1]) for leaf in ("scale", "bias")}
            width = out
    arrays |= {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    kernel = (8, 8, 64, DIM) if stem else (1, 1, 2048, DIM)
    return arrays | {"embedding/kernel": rng.standard_normal(kernel).astype(np.float32)}


@pytest.mark.parametrize(("name", "stem"), [(STEM_NAME, True), (NET_NAME, False)])
def test_flax_as_timm(name, stem, tmp_path):
    arrays = flax_of(stem)
    ours, theirs = opsin.create_model(name, **TINY), timm.create_model(name, **TINY)
    np.savez(tmp_path / "w.npz", **arrays)
    theirs.load_pretrained(str(tmp_path / "w.npz"))
    got, wanted = adapt({k: torch.from_numpy(v) for k, v in arrays.items()}, ours), theirs.state_dict()
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert relative_error(got[key], value) < 1e-5, key
    ours.load_state_dict(got)
    again = adapt(got, ours)
    assert all(torch.equal(again[key], got[key]) for key in got)


def mobileclip_state():
    state = {"logit_scale": torch.ones(()), "text_encoder.projection": torch.randn(4, 4)}
    at, dim = "image_encoder.model.", 32
    sizes = {"0": (8, 3, 4, 4), "1": (8, 8, 2, 2), "2": (dim, 8, 2, 2)}
    for i, size in sizes.items():
        state[f"{at}patch_emb.{i}.block.conv.weight"] = torch.randn(size)
        leaves = ("weight", "bias", "running_mean", "running_var") if i != "2" else ()
        state |= {f"{at}patch_emb.{i}.block.norm.{leaf}": torch.randn(8) for leaf in leaves}
    state[f"{at}patch_emb.2.block.conv.bias"] = torch.randn(dim)
    state[f"{at}pos_embed.pos_embed.pos_embed"] = torch.randn(1, 1, 64, dim)
    state[f"{at}cls_token"] = torch.randn(1, 1, dim)
    shapes = {
        "pre_norm_mha.0": (dim,), "pre_norm_mha.1.qkv_proj": (3 * dim, dim), "pre_norm_mha.1.out_proj": (dim, dim),
        "pre_norm_ffn.0": (dim,), "pre_norm_ffn.1": (4 * dim, dim), "pre_norm_ffn.4": (dim, 4 * dim),
    }  # fmt: skip
    for i in range(2):
        for name, shape in shapes.items():
            state[f"{at}transformer.{i}.{name}.weight"] = torch.randn(shape)
            state[f"{at}transformer.{i}.{name}.bias"] = torch.randn(shape[:1])
    state |= {f"{at}post_transformer_norm.{leaf}": torch.randn(dim) for leaf in ("weight", "bias")}
    return state | {f"{at}classifier.proj": torch.randn(dim, 5)}


@pytest.mark.parametrize("img_size", [128, 160])
def test_mobileclip_as_timm(img_size):
    state = mobileclip_state()
    ours = HybridVisionTransformer(**(TINY | {"img_size": img_size}), backbone="conv", no_embed_class=True)
    theirs = timm.create_model(
        "vit_base_mci_224",
        **{k: v for k, v in TINY.items() if k != "embed_dim"} | {"img_size": img_size, "embed_dim": 768},
    )
    got, wanted = adapt(dict(state), ours), judge_filter(dict(state), theirs)
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert relative_error(got[key], value) < 1e-5, key
    ours.load_state_dict(got, strict=False)
    missing = ours.state_dict().keys() - got.keys()
    assert all(name.endswith("num_batches_tracked") for name in missing)
