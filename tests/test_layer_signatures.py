"""Layers that people build themselves: the arguments, by place and by name, and what they do, beside the judge."""

import pytest
import timm.layers as judge
import torch
from timm.models import convnext as judge_convnext
from timm.models import resnet as judge_resnet
from timm.models import vision_transformer as judge_vit
from torch import nn

from opsin import layers
from opsin.errors import UnknownArgumentError
from opsin.layers.norm_act import BatchNormAct2d, GroupNormAct, LayerNormAct2d
from opsin.models import resnet
from opsin.models.convnext import ConvNeXt
from opsin.models.vision_transformer import VisionTransformer

MAP, TOKENS = torch.randn(2, 8, 6, 5), torch.randn(2, 5, 8)


def beside(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output of both with the same weights, which have the same names."""
    theirs.load_state_dict(ours.state_dict())
    ours.eval(), theirs.eval()
    out = ours(x.clone())
    assert torch.allclose(out, theirs(x.clone()), atol=1e-6)
    return out


@pytest.mark.parametrize("pool", ["", "fast", "avg", "max", "avgmax", "catavgmax", "fastmax"])
@pytest.mark.parametrize("flatten", [False, True])
def test_pooling(pool, flatten):
    for size in (1, 2, (3, 2)) if not pool.startswith("fast") else (1,):
        args = (size, pool, flatten)
        out = beside(layers.SelectAdaptivePool2d(*args), judge.SelectAdaptivePool2d(*args), MAP)
        assert layers.SelectAdaptivePool2d(*args).feat_mult() == judge.SelectAdaptivePool2d(*args).feat_mult()
        assert layers.SelectAdaptivePool2d(*args).is_identity() == (not pool)
        assert out.ndim == (2 if flatten else 4)
    beside(
        layers.SelectAdaptivePool2d(1, pool, flatten, "NHWC"), judge.SelectAdaptivePool2d(1, pool, flatten, "NHWC"), MAP
    )
    assert layers.SelectAdaptivePool2d()(MAP).shape == (2, 8, 1, 1)
    for args in ((2, "fast"), (2, "avg", False, "NHWC")):
        with pytest.raises(UnknownArgumentError, match="output_size=2"):
            layers.SelectAdaptivePool2d(*args)


@pytest.mark.parametrize(
    ("name", "args", "x"),
    [
        ("Mlp", (8, 16, 4, nn.ReLU, None, (True, False)), TOKENS),
        ("ClassifierHead", (8, 2, "max", 0.1, True), MAP),
        ("ClassifierHead", (5, 2, "avg", 0.1, False, "NHWC"), MAP),
        ("NormMlpClassifierHead", (8, 2, 6, "avg", 0.1), MAP),
        ("GroupNorm", (8, 4, 1e-5, False), MAP),
        ("Attention", (8, 2, 6, 10, True), TOKENS),
    ],
)
def test_by_place(name, args, x):
    beside(getattr(layers, name)(*args), getattr(judge, name)(*args), x)


@pytest.mark.parametrize(
    ("ours", "args"),
    [
        (BatchNormAct2d, (8, 1e-4, 0.2, False, False, True, nn.SiLU)),
        (GroupNormAct, (8, 4, 1e-5, False, None, True, nn.GELU)),
        (LayerNormAct2d, (8, 1e-5, False, True, nn.SiLU)),
    ],
)
def test_norms_with_activations(ours, args):
    for inplace in (False, True):
        beside(ours(*args, inplace=inplace), getattr(judge, ours.__name__)(*args, inplace=inplace), MAP)
    assert not ours(32, act_layer=nn.ReLU, inplace=False).act.inplace
    assert ours(32, act_layer=nn.ReLU).act.inplace


def test_attention_whose_weights_are_seen():
    """As a rollout does it: with the fused kernel off, the weights pass through `attn_drop`."""
    attn, seen = layers.Attention(8, 2).eval(), []
    expected = attn(TOKENS)
    attn.attn_drop.register_forward_hook(lambda module, args, out: seen.append(out))
    attn.fused_attn = False
    assert torch.allclose(attn(TOKENS), expected, atol=1e-6)
    assert seen[0].shape == (2, 2, 5, 5)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    causal = attn(TOKENS, is_causal=True)
    assert torch.allclose(attn(TOKENS, attn_mask=mask), causal, atol=1e-6)
    attn.fused_attn = True
    assert torch.allclose(attn(TOKENS, is_causal=True), causal, atol=1e-6)


def test_head_dropout_of_a_vit_is_a_module():
    small = {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 1}
    model = VisionTransformer(**small, drop_rate=1.0, num_classes=3)
    assert list(dict(model.named_children())) == list(dict(judge_vit.VisionTransformer(**small).named_children()))
    assert model.train()(torch.randn(1, 3, 32, 32)).equal(model.head.bias[None])
    model.head_drop.p = 0.0
    assert not model(torch.randn(1, 3, 32, 32)).equal(model.head.bias[None])


def test_no_norm_named_is_the_usual_one():
    small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_classes": 3, "norm_layer": None}
    beside(ConvNeXt(**small), judge_convnext.ConvNeXt(**small), torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["BasicBlock", "Bottleneck"])
def test_residual_blocks_alone(name):
    ours, theirs = getattr(resnet, name), getattr(judge_resnet, name)
    width = 8 * ours.expansion
    x = torch.randn(2, width, 8, 8)
    beside(ours(width, 8), theirs(width, 8), x)
    down = nn.Conv2d(width, width, 1, 2, bias=False)
    figures = {"act_layer": nn.SiLU, "attn_layer": None, "aa_layer": judge.BlurPool2d}
    beside(ours(width, 8, 2, down, 1, 64, 2, **figures), theirs(width, 8, 2, down, 1, 64, 2, **figures), x)
    assert ours(width, 8).downsample is None is ours(width, 8).se


def test_a_forward_pass_written_for_the_judge():
    class Own(resnet.BasicBlock):
        def __init__(self, inplanes, planes, stride=1, downsample=None, **kwargs):
            super().__init__(inplanes, planes, stride, downsample, **kwargs)
            self.extra = nn.Identity()

        def forward(self, x):
            y = self.extra(self.bn2(self.conv2(self.aa(self.act1(self.bn1(self.conv1(x)))))))
            if self.se is not None:
                y = self.se(y)
            if self.drop_path is not None:
                y = self.drop_path(y)
            return self.act2(y + (x if self.downsample is None else self.downsample(x)))

    args = {"layers": [1, 1, 1, 1], "num_classes": 3, "channels": (8, 8, 8, 8), "block_args": {"attn_layer": "se"}}
    own, plain = resnet.ResNet(Own, **args).eval(), resnet.ResNet(resnet.BasicBlock, **args).eval()
    own.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(own(x), plain(x), atol=1e-6)
