"""Convolutions and norms of mobile networks: each argument has the effect its name says."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opsin.errors import UnknownArgumentError
from opsin.layers.channel_attn import GlobalContext
from opsin.layers.conv import CondConv2d, Conv2dSame, MixedConv2d, create_conv2d, pad_same
from opsin.layers.norm_act import BatchNormAct2d, EvoNorm2dS0, GroupNormAct, LayerNormAct2d, get_norm_act_layer


@pytest.mark.parametrize("size", [7, 8, 9, 31])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (2, 2, 1), (3, 1, 2), (1, 2, 1), (3, 3, 2)]
)
def test_same_padding_gives_ceil_and_puts_the_odd_pixel_last(size, kernel, stride, dilation):
    conv = Conv2dSame(1, 1, kernel, stride, dilation=dilation, bias=False)
    assert conv(torch.zeros(1, 1, size, size + 3)).shape[-2:] == (-(-size // stride), -(-(size + 3) // stride))
    padded = pad_same(torch.ones(1, 1, size, size), (kernel,) * 2, (stride,) * 2, (dilation,) * 2)[0, 0]
    before = int((padded[:, padded.shape[1] // 2] == 0).int().cummin(0).values.sum())
    after = padded.shape[0] - size - before
    assert 0 <= after - before <= 1


@pytest.mark.parametrize("size", [64, 75])
def test_same_padding_takes_sizes_it_was_not_exported_with(size):
    conv = Conv2dSame(3, 4, 3, 2)
    height, width = torch.export.Dim("height", min=8, max=512), torch.export.Dim("width", min=8, max=512)
    program = torch.export.export(conv, (torch.randn(1, 3, 32, 40),), dynamic_shapes=({2: height, 3: width},))
    x = torch.randn(1, 3, size, size + 10)
    assert torch.equal(program.module()(x), conv(x))


def test_padding_is_static_where_it_can_be():
    assert type(create_conv2d(4, 4, 3, pad_type="same")) is nn.Conv2d  # symmetric at every size
    assert type(create_conv2d(4, 4, 3, stride=2, pad_type="same")) is Conv2dSame
    assert type(create_conv2d(4, 4, 2, pad_type="same")) is Conv2dSame
    assert create_conv2d(4, 4, 5, stride=2, dilation=1).padding == (2, 2)
    assert create_conv2d(4, 4, 3, dilation=4).padding == (4, 4)
    with pytest.raises(UnknownArgumentError, match="pad_type"):
        create_conv2d(4, 4, 3, pad_type="valid")


def test_mixed_convolution_splits_the_channels():
    conv = create_conv2d(10, 10, (3, 5, 7), stride=2, groups=10, pad_type="same")
    assert isinstance(conv, MixedConv2d)
    assert [tuple(part.weight.shape) for part in conv] == [(4, 1, 3, 3), (3, 1, 5, 5), (3, 1, 7, 7)]
    x = torch.randn(2, 10, 9, 11)
    apart = torch.cat([part(piece) for part, piece in zip(conv, x.split([4, 3, 3], 1), strict=True)], 1)
    assert torch.equal(conv(x), apart)
    dense = create_conv2d(9, 7, (1, 1))
    assert [tuple(part.weight.shape) for part in dense] == [(4, 5, 1, 1), (3, 4, 1, 1)]


@pytest.mark.parametrize("pad_type", ["", "same"])
@pytest.mark.parametrize("groups", [1, 6])
def test_conditional_convolution_blends_kernels_per_image(groups, pad_type):
    torch.manual_seed(0)
    conv = create_conv2d(6, 12, 3, stride=2, groups=groups, pad_type=pad_type, num_experts=3)
    assert isinstance(conv, CondConv2d)
    conv.reset_parameters()
    x, routing = torch.randn(4, 6, 9, 10), torch.rand(4, 3)
    out = conv(x, routing)
    for i in range(4):
        kernel = (routing[i, :, None] * conv.weight).sum(0).view(12, 6 // groups, 3, 3)
        image = x[i : i + 1] if pad_type == "" else pad_same(x[i : i + 1], (3, 3), (2, 2), (1, 1))
        want = F.conv2d(image, kernel, stride=2, padding=1 if pad_type == "" else 0, groups=groups)
        torch.testing.assert_close(out[i : i + 1], want, rtol=1e-4, atol=1e-5)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 12 / groups)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("norm", [BatchNormAct2d, partial(GroupNormAct, group_size=4), LayerNormAct2d])
def test_norm_and_activation_are_one_module(norm):
    x = torch.randn(2, 8, 5, 5)
    plain, act = norm(8, apply_act=False), norm(8, act_layer="relu6")
    assert torch.equal(act(x), F.relu6(plain(x)))
    assert set(act.state_dict()) == set(plain.state_dict())  # nothing of the activation is stored


def test_group_norm_act_groups():
    assert GroupNormAct(64).num_groups == 32
    assert GroupNormAct(64, group_size=16).num_groups == 4


def test_evonorm_is_the_formula_of_the_paper():
    torch.manual_seed(0)
    norm = EvoNorm2dS0(6, group_size=3, eps=1e-3)
    assert all(torch.equal(p, torch.full_like(p, v)) for p, v in ((norm.weight, 1.0), (norm.bias, 0.0), (norm.v, 1.0)))
    for p in norm.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 6, 4, 5)
    out = norm(x)
    for image in range(2):
        for c in range(6):
            group = x[image, :3] if c < 3 else x[image, 3:]
            std = (group.var(correction=0) + 1e-3).sqrt()
            want = x[image, c] * torch.sigmoid(norm.v[c] * x[image, c]) / std * norm.weight[c] + norm.bias[c]
            torch.testing.assert_close(out[image, c], want)
    plain = EvoNorm2dS0(6, group_size=3, apply_act=False)
    assert "v" not in plain.state_dict()
    assert torch.equal(plain(x), x)


def test_norm_act_by_name_class_and_partial():
    assert get_norm_act_layer("batchnorm2d") is BatchNormAct2d
    assert get_norm_act_layer(nn.BatchNorm2d, {"eps": 0.1})(4).eps == 0.1
    assert get_norm_act_layer(partial(nn.BatchNorm2d, momentum=0.3), {"eps": 0.1})(4).momentum == 0.3
    assert get_norm_act_layer("group_norm", {"group_size": 2})(8).num_groups == 4

    class Own(BatchNormAct2d):
        pass

    assert get_norm_act_layer(Own) is Own
    with pytest.raises(UnknownArgumentError, match="Did you mean batchnorm2d"):
        get_norm_act_layer("batchnorm3d")
    with pytest.raises(UnknownArgumentError, match="InstanceNorm2d"):
        get_norm_act_layer(nn.InstanceNorm2d)
    with pytest.raises(UnknownArgumentError, match="by name"):
        get_norm_act_layer(partial(GroupNormAct, 8))


def test_global_context_weighs_positions():
    torch.manual_seed(0)
    layer = GlobalContext(8, rd_channels=4)
    x = torch.randn(2, 8, 3, 4)
    weights = layer.conv_attn(x).view(2, 1, 12).softmax(-1)
    context = (x.view(2, 8, 12) * weights).sum(-1)[:, :, None, None]
    torch.testing.assert_close(layer(x), x * torch.sigmoid(layer.mlp_scale(context)))
    nn.init.zeros_(layer.conv_attn.weight)
    torch.testing.assert_close(layer(x), x * torch.sigmoid(layer.mlp_scale(x.mean((2, 3), keepdim=True))))
    assert GlobalContext(64, rd_ratio=0.25).mlp_scale.fc1.out_channels == 16
