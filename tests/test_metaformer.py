"""MetaFormer: checkpoints of the papers' own code, and that every figure of its Config acts."""

import pytest
import torch

from opsin.errors import UnknownArgumentError
from opsin.models import metaformer
from opsin.models.metaformer import MetaFormer

SMALL = {"depths": (1, 2, 1, 1), "dims": (32, 32, 64, 64), "num_classes": 7}


def of_v1(key):
    """Today's key as PoolFormer's code has it."""
    if key.startswith("stages."):
        _, stage, part, rest = key.split(".", 3)
        place = 2 * int(stage) - (part == "downsample")
        key = f"network.{place}." + (rest if part == "blocks" else rest.replace("conv.", "proj."))
    key = key.replace("stem.conv.", "patch_embed.proj.").replace("head.fc.", "head.").replace("head.norm.", "norm.")
    return key.replace("layer_scale1.scale", "layer_scale_1").replace("layer_scale2.scale", "layer_scale_2")


def of_v2(key):
    """Today's key as the code of the later models has it."""
    if key.startswith("stages."):
        _, stage, part, rest = key.split(".", 3)
        if part == "blocks":
            key = f"stages.{stage}.{rest}"
        else:
            key = f"downsample_layers.{stage}.{rest.replace('norm.', 'pre_norm.')}"
    key = key.replace("stem.norm.", "downsample_layers.0.post_norm.").replace("stem.", "downsample_layers.0.")
    return key.replace("head.norm.", "norm.").replace("head.fc.", "head.")


V1 = {"downsample_norm": None, "mlp_act": "gelu", "mlp_bias": True, "norm_layers": "groupnorm1"}
V1 |= {"layer_scale_init_values": 1e-5, "res_scale_init_values": None, "use_mlp_head": False}


@pytest.mark.parametrize(("name", "args"), [(of_v1, V1), (of_v2, {}), (of_v2, {"token_mixers": "SepConv"})])
def test_original_layout(name, args):
    judge = pytest.importorskip("timm.models.metaformer")
    model = MetaFormer(**SMALL, **args)
    state = model.state_dict()
    assert metaformer.adapt(state, model) is state
    old = {name(k): v.flatten(1) if ".mlp." in k and v.ndim == 4 else v for k, v in state.items()}
    assert set(old) != set(state)
    read, wanted = metaformer.adapt(old, model), judge.checkpoint_filter_fn(dict(old), model)
    assert list(read) == list(wanted) == list(state)
    assert all(torch.equal(read[key], value) and value.shape == state[key].shape for key, value in wanted.items())


@pytest.mark.parametrize(
    "change",
    [
        {"token_mixers": "SepConv"},
        {"mlp_act": "relu"},
        {"mlp_bias": True},
        {"layer_scale_init_values": 1e-5},
        {"res_scale_init_values": None},
        {"downsample_norm": None},
        {"norm_layers": "groupnorm1"},
        {"output_norm": "rmsnorm2d"},
        {"use_mlp_head": False},
    ],
)
def test_fields_change_the_model(change):
    base = MetaFormer(**SMALL).state_dict()
    other = MetaFormer(**SMALL, **change).state_dict()
    assert {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in other.items()}


@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate", "proj_drop_rate"])
@pytest.mark.parametrize("hidden", [True, False])
def test_rates_act_in_training_only(rate, hidden):
    model = MetaFormer(**SMALL, use_mlp_head=hidden, **{rate: 0.5})
    x = torch.randn(8, 3, 64, 64)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_mixers": "Poling"}, "Pooling"),
        ({"token_mixers": ("Pooling",)}, "1 entries for 4 stages"),
        ({"global_pool": "catavgmax"}, "changes the width"),
    ],
)
def test_says_what_it_cannot_build(change, said):
    with pytest.raises(UnknownArgumentError, match=said):
        MetaFormer(**SMALL | change)
