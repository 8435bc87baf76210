"""PVT v2: checkpoints of the paper's own code, and that every figure of its Config acts."""

import pytest
import torch

from opsin.errors import UnknownArgumentError
from opsin.models import pvt_v2
from opsin.models.pvt_v2 import PyramidVisionTransformerV2

SMALL = {"depths": (1, 2), "embed_dims": (8, 16), "num_heads": (1, 2), "sr_ratios": (2, 1), "mlp_ratios": (2, 2)}


def original(state):
    """Today's keys as the paper's code names them."""
    out = {}
    for key, value in state.items():
        if key.startswith("patch_embed."):
            key = key.replace("patch_embed.", "patch_embed1.")
        if key.startswith("stages."):
            _, stage, rest = key.split(".", 2)
            number = int(stage) + 1
            rest = rest.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
            part, tail = rest.split(".", 1)
            key = {"downsample": f"patch_embed{number}.", "blocks": f"block{number}.", "norm": f"norm{number}."}[part]
            key += tail
        out[key] = value
    return out


def test_original_layout():
    judge = pytest.importorskip("timm.models.pvt_v2")
    model = PyramidVisionTransformerV2(**SMALL)
    state = model.state_dict()
    assert pvt_v2.adapt(state, model) is state
    old = original(state)
    assert set(old) != set(state)
    read = pvt_v2.adapt(old, model)
    assert list(read) == list(state)
    assert all(read[key] is value for key, value in judge.checkpoint_filter_fn(old, model).items())


@pytest.mark.parametrize(
    "change",
    [{"qkv_bias": False}, {"linear": True}, {"sr_ratios": (1, 1)}, {"mlp_ratios": (3, 2)}, {"norm_layer": "rmsnorm"}],
)
def test_fields_change_the_model(change):
    base = PyramidVisionTransformerV2(**SMALL).state_dict()
    other = PyramidVisionTransformerV2(**SMALL | change).state_dict()
    assert {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in other.items()}


@pytest.mark.parametrize("rate", ["proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_rates_act_in_training_only(rate):
    model = PyramidVisionTransformerV2(**SMALL, **{rate: 0.5})
    x = torch.randn(8, 3, 64, 64)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_uneven_stages():
    with pytest.raises(UnknownArgumentError, match="one entry per stage"):
        PyramidVisionTransformerV2(**SMALL | {"num_heads": (1,)})
