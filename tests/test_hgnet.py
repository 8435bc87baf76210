"""PP-HGNet: every figure of its Config acts, and what it cannot build is said."""

import pytest
import torch

from opsin.errors import UnknownArgumentError
from opsin.models.hgnet import HighPerfGpuNet

STAGES = {
    "stage1": (8, 8, 16, 1, False, False, 3, 2),
    "stage2": (16, 8, 16, 2, True, True, 5, 2),
    "stage3": (16, 8, 24, 1, True, True, 5, 2),
    "stage4": (24, 8, 24, 1, True, False, 3, 2),
}
V1 = {"stem_type": "v1", "stem_chs": (8, 8), **STAGES}
V2 = {"stem_type": "v2", "stem_chs": (8, 8), **STAGES}


def shapes(**changes):
    return {k: v.shape for k, v in HighPerfGpuNet(**{"cfg": V2, "head_hidden_size": 32} | changes).state_dict().items()}


@pytest.mark.parametrize(
    "changes", [{"cfg": V1}, {"use_lab": True}, {"head_hidden_size": 16}, {"head_hidden_size": None}, {"in_chans": 5}]
)
def test_fields_change_the_model(changes):
    assert shapes() != shapes(**changes)


@pytest.mark.parametrize("cfg", [V1, V2])
def test_no_hidden_layer_and_odd_sizes(cfg):
    model = HighPerfGpuNet(cfg, head_hidden_size=None, num_classes=5).eval()
    assert model.head_hidden_size == 24
    assert model.first_conv in dict(model.named_modules())
    maps = model.forward_intermediates(torch.randn(1, 3, 71, 65), intermediates_only=True)
    assert [m.shape[2:] for m in maps] == [(18, 17), (9, 9), (5, 5), (3, 3)]
    assert model(torch.randn(1, 3, 71, 65)).shape == (1, 5)


def test_drop_path_acts_in_training_only():
    model = HighPerfGpuNet(V2, head_hidden_size=32, drop_path_rate=0.9)
    rates = [m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.9)


def test_says_what_it_cannot_build():
    with pytest.raises(UnknownArgumentError, match="v1 or v2"):
        HighPerfGpuNet({**V2, "stem_type": "v3"})
    with pytest.raises(UnknownArgumentError, match="changes the width"):
        HighPerfGpuNet(V2, global_pool="catavgmax")
