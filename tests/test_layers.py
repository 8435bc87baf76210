"""Each shared layer does what its arguments say."""

import threading

import pytest
import torch
from torch import nn

from opsin.errors import UnknownArgumentError
from opsin.layers import (
    BlurPool2d,
    DropPath,
    EcaModule,
    GroupNorm,
    LayerNorm2d,
    RmsNorm,
    RmsNorm2d,
    SelectAdaptivePool2d,
    SEModule,
    SimpleNorm2d,
    create_aa,
    create_act,
    create_attn,
    drop_path,
    drop_path_rates,
    get_act_layer,
    get_norm_layer,
    lecun_normal_,
    make_divisible,
    skip_init,
    trunc_normal_,
    variance_scaling_,
)
from opsin.layers.norm import NORMS


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_trunc_normal_stays_inside_its_bounds(std):
    torch.manual_seed(0)
    values = trunc_normal_(torch.empty(1_000_000), std=std)
    assert values.abs().max() <= 2 * std
    assert abs(values.std().item() / std - 0.8796) < 0.01
    shifted = trunc_normal_(torch.empty(10_000), mean=5.0, std=std, a=-1, b=0.5)
    assert shifted.min() >= 5 - std - 1e-6
    assert shifted.max() <= 5 + 0.5 * std + 1e-6
    with pytest.raises(ValueError, match="a < b"):
        trunc_normal_(torch.empty(3), a=1, b=1)


def test_trunc_normal_in_half_precision_and_on_meta():
    half = trunc_normal_(torch.empty(10_000, dtype=torch.bfloat16), std=0.02)
    assert half.float().abs().max() <= 0.0401
    assert trunc_normal_(torch.empty(3, device="meta")).is_meta


def test_variance_scaling():
    torch.manual_seed(0)
    weight = torch.empty(400, 900)
    for distribution in ("normal", "truncated_normal", "uniform"):
        assert abs(variance_scaling_(weight, 2.0, "fan_in", distribution).std().item() - (2 / 900) ** 0.5) < 1e-3
    assert abs(variance_scaling_(weight, 1.0, "fan_out").std().item() - (1 / 400) ** 0.5) < 1e-3
    assert lecun_normal_(weight).abs().max() < 3 / 30
    with pytest.raises(ValueError, match="distribution"):
        variance_scaling_(weight, distribution="gamma")


def test_skip_init_is_for_one_thread_and_ends():
    ready, go = threading.Event(), threading.Event()
    made = {}

    def other() -> None:
        ready.wait()
        made["linear"] = nn.LayerNorm(8)
        go.set()

    thread = threading.Thread(target=other)
    thread.start()
    original = nn.Linear.reset_parameters
    with skip_init(), skip_init():
        bn = nn.BatchNorm2d(4)
        ready.set()
        go.wait()
        assert torch.equal(bn.running_var, torch.ones(4))
    thread.join()
    assert torch.equal(made["linear"].weight, torch.ones(8))
    assert nn.Linear.reset_parameters is original


def test_skip_init_does_skip(monkeypatch):
    calls = []
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda *a, **k: calls.append(a))
    with skip_init():
        nn.Linear(4, 4)
    assert not calls
    nn.Linear(4, 4)
    assert calls


def test_drop_path():
    x = torch.ones(1000, 3, 2)
    torch.manual_seed(0)
    out = drop_path(x, 0.25, True)
    kept = out[:, 0, 0] > 0
    assert 700 < kept.sum() < 800
    assert torch.allclose(out[kept], torch.tensor(1 / 0.75))
    assert (out == out[:, :1, :1]).all(), "samples are dropped whole"
    assert torch.equal(drop_path(x, 0.25, False), x)
    assert set(DropPath(0.5, scale_by_keep=False).train()(x).unique().tolist()) == {0.0, 1.0}
    assert drop_path_rates(0.3, (2, 2)) == [[0.0, pytest.approx(0.1)], [pytest.approx(0.2), pytest.approx(0.3)]]
    assert drop_path_rates(0.3, (1,)) == [[0.0]]


def test_norms():
    x = torch.randn(2, 32, 5, 6) * 3 + 1
    assert torch.allclose(LayerNorm2d(32)(x).mean(1), torch.zeros(2, 5, 6), atol=1e-5)
    assert torch.allclose(RmsNorm2d(32)(x).square().mean(1), torch.ones(2, 5, 6), atol=1e-4)
    assert torch.allclose(SimpleNorm2d(32)(x).var(1), torch.ones(2, 5, 6), atol=1e-4)
    assert GroupNorm(32, group_size=4).num_groups == 8
    norm = RmsNorm(32)
    with torch.no_grad():
        norm.weight.fill_(3)
    norm.reset_parameters()
    assert torch.equal(norm.weight, torch.ones(32))
    assert get_norm_layer("layernorm", eps=1e-3)(8).eps == 1e-3
    for name in NORMS:
        assert isinstance(get_norm_layer(name)(32), nn.Module)
    with pytest.raises(UnknownArgumentError, match="Did you mean layernorm"):
        get_norm_layer("layer_nrom")


def test_activations():
    x = torch.linspace(-3, 3, 7)
    assert torch.equal(create_act("relu")(x), x.relu())
    assert torch.allclose(create_act("quick_gelu")(x), x * torch.sigmoid(1.702 * x))
    y = x.clone()
    create_act("silu", inplace=True)(y)
    assert not torch.equal(x, y)
    z = x.clone()
    create_act(nn.ReLU, inplace=True)(z)
    assert torch.equal(z, x.relu())
    assert get_act_layer(nn.GELU) is nn.GELU
    for layer in (nn.SiLU, nn.LeakyReLU, nn.Hardswish, nn.GELU, nn.ReLU6):  # as a saved config names a class
        assert isinstance(create_act(layer.__name__), layer)
    with pytest.raises(UnknownArgumentError, match="Did you mean gelu"):
        create_act("gellu")


def test_global_pool():
    x = torch.randn(2, 4, 5, 6)
    nhwc = x.permute(0, 2, 3, 1)
    for pool in ("avg", "max", "avgmax", "catavgmax"):
        layer = SelectAdaptivePool2d(pool_type=pool, flatten=True)
        out = layer(x)
        assert out.shape == (2, 4 * layer.feat_mult())
        assert torch.allclose(SelectAdaptivePool2d(1, pool, True, "NHWC")(nhwc), out)
        assert SelectAdaptivePool2d(pool_type=pool)(x).shape == (2, 4 * layer.feat_mult(), 1, 1)
    assert torch.allclose(SelectAdaptivePool2d(1, "avgmax", True)(x), (x.mean((2, 3)) + x.amax((2, 3))) / 2)
    assert SelectAdaptivePool2d(1, "")(x) is x
    with pytest.raises(UnknownArgumentError, match="Did you mean avg"):
        SelectAdaptivePool2d(1, "avgg")


def test_blur_pool():
    x = torch.randn(1, 3, 9, 9)
    out = BlurPool2d(3)(x)
    assert out.shape == (1, 3, 5, 5)
    assert torch.allclose(BlurPool2d(3)(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 4, 4))
    zero_padded = BlurPool2d(3, pad_mode="constant")(torch.ones(1, 3, 8, 8))
    assert zero_padded[0, 0, 0, 0] < 1
    assert torch.allclose(BlurPool2d(3, filt_size=5).filt[0, 0].sum(), torch.tensor(1.0))
    assert not BlurPool2d(3).state_dict()
    assert isinstance(create_aa("avg", 3), nn.AvgPool2d)
    assert isinstance(create_aa("blur", 3, stride=1), nn.Identity)
    assert isinstance(create_aa(None, 3), nn.Identity)
    with pytest.raises(UnknownArgumentError, match="blurpc"):
        create_aa("smooth", 3)


def test_channel_attention():
    x = torch.randn(2, 64, 4, 4)
    assert SEModule(64, rd_ratio=0.25).fc1.out_channels == 16
    assert SEModule(64, rd_channels=5).fc1.out_channels == 5
    gated = SEModule(64)(x) / x
    assert torch.allclose(gated, gated[:, :, :1, :1].expand_as(gated), atol=1e-4)
    assert ((gated > 0) & (gated < 1)).all()
    assert EcaModule(256).conv.kernel_size == (5,)
    assert EcaModule(64, kernel_size=7).conv.kernel_size == (7,)
    assert EcaModule(64)(x).shape == x.shape
    assert create_attn(None, 8) is None
    assert isinstance(create_attn("eca", 8), EcaModule)
    with pytest.raises(UnknownArgumentError, match="Known: se"):
        create_attn("zzz", 8)


def test_make_divisible():
    assert [make_divisible(v) for v in (8, 11, 12, 20, 100)] == [8, 16, 16, 24, 104]
    assert make_divisible(33, 8, min_value=64) == 64
    assert make_divisible(10.1, 8, round_limit=0.0) == 8
