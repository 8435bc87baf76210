"""RepViT: options, the two heads, merging of branches."""

import pytest
import torch
from support import randomize, relative_error
from torch import nn

from opsin.inference.optimize import prepare_for_inference, report
from opsin.models.repvit import RepVit


def small(**kwargs):
    torch.manual_seed(0)
    return RepVit(**({"embed_dim": (8, 16), "depth": (2, 3), "num_classes": 5} | kwargs))


X = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"legacy": True}, {"distillation": False}, {"num_classes": 0}])
def test_merging_keeps_the_numbers(options):
    model = randomize(small(**options)).eval().double()
    ready = prepare_for_inference(model, example_input=X)
    with torch.inference_mode():
        assert relative_error(ready(X), model(X)) < 1e-12
    assert not report(ready).undone
    assert report(ready).reparameterized == 6 + (options.get("num_classes") is None)  # 5 blocks, one ahead of a stage
    left = [name for name, m in ready.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert not left


def test_the_answer_is_the_mean_of_both_heads():
    model = randomize(small()).double().train()
    x = torch.randn(4, 16, dtype=torch.float64)
    assert torch.is_tensor(model.head(x))
    model.set_distilled_training()
    first, second = model.head(x)
    assert not torch.equal(first, second)
    model.eval()
    heads = model.head.head(x), model.head.head_dist(x)
    assert torch.allclose(model.head(x), (heads[0] + heads[1]) / 2)
    for without in (small(distillation=False), small(num_classes=0)):
        with pytest.raises(ValueError, match="distillation=True"):
            without.set_distilled_training()


def test_options():
    assert small(mlp_ratio=3).stages[0].blocks[0].channel_mixer.conv1.c.out_channels == 24
    assert small(kernel_size=5).stages[1].downsample.spatial_downsample.c.kernel_size == (5, 5)
    assert isinstance(small(act_layer="relu").stem.act1, nn.ReLU)
    assert "stages.0.blocks.0.token_mixer.conv1.bn.weight" in small(legacy=True).state_dict()
    assert "head.head_dist.l.weight" not in small(distillation=False).state_dict()
    assert small(global_pool="catavgmax").head.head.l.in_features == 32
    assert small(drop_rate=0.3).head.head_drop.p == 0.3
    squeezed = [isinstance(block.se, nn.Identity) for block in small().stages[1].blocks]
    assert squeezed == [False, True, False]
    with pytest.raises(ValueError, match="num_classes=0"):
        small(global_pool="")


def test_residual_branches_start_at_zero():
    model = small()
    mlps = [stage.blocks[0].channel_mixer for stage in model.stages] + [model.stages[1].downsample.ffn]
    assert all(mlp.conv2.bn.weight.abs().max() == 0 for mlp in mlps)
    assert model.head.head.l.weight.std().item() == pytest.approx(0.02, rel=0.3)
