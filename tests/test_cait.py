"""CaiT: every option acts, other sizes, checkpoints; beside the judge."""

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.errors import UnknownArgumentError
from opsin.models.cait import PARTS, Cait, adapt

timm = pytest.importorskip("timm")
from timm.models import cait as judge  # noqa: E402

SMALL = {"num_classes": 5, "img_size": (32, 48), "patch_size": 16, "depth": 2, "embed_dim": 16, "num_heads": 2}


@pytest.mark.parametrize(
    "kwargs",
    [
        {"depth_token_only": 1, "mlp_ratio_token_only": 2.0},
        {"mlp_ratio": 2.0, "qkv_bias": False},
        {"global_pool": "avg"},
        {"global_pool": "", "num_classes": 0},
    ],
)
def test_options_as_timm(kwargs):
    theirs = randomize(judge.Cait(**(SMALL | kwargs))).eval()
    ours = Cait(**(SMALL | kwargs)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 48)
    assert relative_error(ours(x), theirs(x)) < 1e-5


def test_parts_by_class_or_name():
    names = {
        "block_layers": "LayerScaleBlock", "block_layers_token": "LayerScaleBlockClassAttn",
        "patch_layer": "PatchEmbed", "attn_block": "TalkingHeadAttn", "attn_block_token_only": "ClassAttn",
    }  # fmt: skip
    kinds = {field: type(PARTS[name].__name__, (PARTS[name],), {}) for field, name in names.items()}
    model = Cait(
        **SMALL, **kinds, mlp_block="GluMlp", mlp_block_token_only="SwiGLU", norm_layer="rmsnorm", act_layer="relu"
    )
    for part, field in (
        (model.blocks[0], "block_layers"),
        (model.blocks_token_only[0], "block_layers_token"),
        (model.patch_embed, "patch_layer"),
        (model.blocks[0].attn, "attn_block"),
        (model.blocks_token_only[0].attn, "attn_block_token_only"),
    ):
        assert type(part) is kinds[field]
    parts = (model.blocks[0].mlp, model.blocks_token_only[0].mlp, model.norm, model.blocks[0].mlp.act)
    assert [type(part).__name__ for part in parts] == ["GluMlp", "SwiGLU", "RmsNorm", "ReLU"]
    with pytest.raises(UnknownArgumentError, match="LayerScaleBlock"):
        Cait(**SMALL, block_layers="LayerScaleBlok")


def test_drop_rates_and_layer_scale_act():
    x = torch.randn(4, 3, 32, 48)
    for name in ("pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "drop_rate"):
        model = randomize(Cait(**SMALL, **{name: 0.5})).train()
        assert not torch.equal(model(x), model(x)), name
    assert Cait(**SMALL, init_values=0.5).blocks_token_only[1].gamma_2.eq(0.5).all()


def test_another_size_and_checkpoints():
    model = randomize(Cait(**SMALL)).eval()
    today = model.state_dict()
    assert adapt(today, model) == today
    assert adapt({f"module.{k}": v for k, v in today.items()}, model).keys() == today.keys()
    square, larger = Cait(**(SMALL | {"img_size": 32})), Cait(**(SMALL | {"img_size": 64})).eval()
    square.load_state_dict(today | {"pos_embed": today["pos_embed"][:, :4]})
    larger.load_state_dict(adapt(square.state_dict(), larger))
    square.eval().set_input_size(64)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(square(x), larger(x))
    assert square.config.img_size == (64, 64)


def test_pruned_models_have_no_class_token():
    x = torch.randn(1, 3, 32, 48)
    make = {"features_only": True, "out_indices": (0, 1)} | {k: v for k, v in SMALL.items() if k != "patch_size"}
    ours, theirs = opsin.create_model("cait_xxs24_224", **make), timm.create_model("cait_xxs24_224", **make)
    assert ours(x)[-1].shape == theirs(x)[-1].shape
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    model = Cait(**SMALL)
    model.prune_intermediate_layers(1, prune_norm=True)
    model.reset_classifier(5, "avg")
    assert torch.allclose(
        model.forward_head(model.forward_features(x), pre_logits=True), model.forward_features(x).mean(1)
    )
    with pytest.raises(UnknownArgumentError, match="pruned"):
        model.reset_classifier(5, "token")
