"""SelecSLS: the long skips, and figures that do not fit."""

import pytest
import torch

import opsin


def test_the_first_block_of_a_selecsls_stage_reaches_all_others():
    model = opsin.create_model("selecsls60").eval()
    seen = []
    for i in model.spans[2]:
        model.features[i].register_forward_hook(lambda m, args, out: seen.append((args, out)))
    model.stage3(torch.randn(1, 288, 8, 8))
    first = seen[0][1]
    assert len(seen[0][0]) == 1
    assert all(args[1] is first for args, _ in seen[1:])


@pytest.mark.parametrize("args", [{"num_blocks": (2, 2)}, {"head_chs": (960, 1024)}])
def test_impossible_figures_are_refused(args):
    with pytest.raises(ValueError, match="SelecSls has"):
        opsin.create_model("selecsls42", **args)
