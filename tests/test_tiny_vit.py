"""TinyViT: other windows, padding to whole windows, and that every figure of its Config acts."""

import pytest
import torch
from support import randomize

import opsin
from opsin.models import tiny_vit
from opsin.models.tiny_vit import MBConv, TinyVit

SMALL = {"embed_dims": (16, 24, 32), "depths": (1, 1, 2), "num_heads": (1, 2, 4), "window_sizes": (4, 4, 5)}
SMALL["num_classes"] = 7


def small(**kwargs):
    torch.manual_seed(0)
    return TinyVit(**SMALL | kwargs)


X = torch.randn(8, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_biases_are_resampled_for_other_windows():
    judge = pytest.importorskip("timm.models.tiny_vit")
    source, model = randomize(small()), small(window_sizes=(4, 6, 8))
    state = source.state_dict()
    old = state | {"stages.1.blocks.0.attn.attention_bias_idxs": torch.zeros(16, 16, dtype=torch.long)}
    read, wanted = tiny_vit.adapt(old, model), judge.checkpoint_filter_fn(dict(old), model)
    assert list(read) == list(wanted) == list(state)
    assert all(torch.equal(read[key], value) for key, value in wanted.items())
    same = tiny_vit.adapt(state, source)
    assert all(same[key] is value for key, value in state.items())
    loaded = opsin.create_model("tiny_vit_5m_224", pretrained=state, **SMALL | {"window_sizes": (4, 6, 8)})
    assert loaded.eval()(X).isfinite().all()


def test_windows_are_padded_at_the_far_sides():
    model = randomize(small()).eval()
    block = model.stages[2].blocks[0]
    x = torch.randn(1, 3, 3, 32)
    whole = torch.zeros(1, 5, 5, 32)
    whole[:, :3, :3] = x
    with torch.no_grad():
        assert torch.allclose(block.attend(x), block.attend(whole)[:, :3, :3], atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dims": (16, 24, 40)},
        {"depths": (1, 2, 1)},
        {"num_heads": (1, 4, 4)},
        {"window_sizes": (4, 5, 5)},
        {"mlp_ratio": 2.0},
        {"mbconv_expand_ratio": 2.0},
        {"local_conv_size": 5},
        {"act_layer": "prelu"},
    ],
)
def test_fields_change_the_model(change):
    base, other = small().state_dict(), small(**change).state_dict()
    assert {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in other.items()}


@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate", "proj_drop_rate"])
def test_rates_act_in_training_only(rate):
    model = randomize(small(**{"drop_path_rate": 0.0, rate: 0.5}))
    assert not torch.equal(model.train()(X), model(X))
    assert torch.equal(model.eval()(X), model(X))


def test_initial_values():
    model = small()
    assert all(m.conv3.bn.weight.abs().max() == 0 for m in model.modules() if isinstance(m, MBConv))
    assert model.stages[1].blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_heads": (1, 2)}, "as many entries"),
        ({"num_heads": (1, 5, 4)}, "24 cannot be split into 5 heads"),
        ({"global_pool": "catavgmax"}, "changes the width"),
    ],
)
def test_says_what_it_cannot_build(change, said):
    with pytest.raises(ValueError, match=said):
        small(**change)
