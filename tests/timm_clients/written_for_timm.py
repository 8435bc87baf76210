"""Tests as users of timm write them. `test_timm_alias.py` runs this file with opsin in timm's place."""

import warnings
from functools import partial
from importlib import import_module

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

torch.set_num_threads(1)
SMALL = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 4}


def test_create() -> None:
    model = timm.create_model("resnet34", pretrained=False, in_chans=25)
    assert model(torch.randn(1, 25, 64, 64)).shape == (1, 1000)
    model = timm.create_model("resnet18", num_classes=3, scriptable=True, exportable=True, no_jit=True, drop_rate=None)
    assert model.fc.out_features == 3
    with pytest.raises(TypeError, match="num_classes"):
        timm.create_model("resnet18", num_class=3)
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model("resnet34x")


def test_features_only() -> None:
    model = timm.create_model("resnet34", features_only=True, out_indices=[2, 3, 4])
    maps = model(torch.randn(1, 3, 64, 64))
    assert model.feature_info.channels() == [m.shape[1] for m in maps] == [128, 256, 512]
    assert model.feature_info.reduction() == [64 // m.shape[2] for m in maps] == [8, 16, 32]


def test_listing() -> None:
    names = timm.list_models("*resne*t*", pretrained=True)
    assert "resnet34.a1_in1k" in names
    assert all("resne" in name and timm.is_model_pretrained(name) for name in names)
    assert "resnet34" in timm.list_models("resnet*") == timm.models.list_models("resnet*")
    assert "resnet" in timm.list_modules()
    assert "resnet34.a1_in1k" in timm.list_pretrained("resnet34")


def test_registry() -> None:
    from timm.models import registry

    for name in ("resnet34", "convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224"):
        assert registry.is_model(name)
    assert not registry.is_model("resnet34x")
    assert registry.is_model_in_modules("resnet34", ["resnet"])
    model = registry.model_entrypoint("resnet34")(num_classes=2)
    assert isinstance(model, timm.models.resnet.ResNet)
    assert registry.get_pretrained_cfg_value("resnet34.a1_in1k", "crop_pct") == 0.95
    assert timm.get_pretrained_cfg("resnet34").tag == "a1_in1k"
    assert registry.split_model_name_tag("resnet34.a1_in1k") == ("resnet34", "a1_in1k")
    assert set(registry.get_arch_pretrained_cfgs("resnet34")) >= {"resnet34.a1_in1k", "resnet34.tv_in1k"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory):
    """A file of weights of a ResNet-34 for three channels, and its values."""
    from timm.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    state = ResNet(BasicBlock, layers=[3, 4, 6, 3]).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet34.safetensors"
    save_file(state, path)
    return path, state


def test_direct_resnet_and_load_pretrained(weights) -> None:
    from timm.models.helpers import load_pretrained
    from timm.models.resnet import BasicBlock, ResNet, default_cfgs

    path, state = weights
    model = ResNet(BasicBlock, layers=[3, 4, 6, 3], in_chans=1)
    assert default_cfgs["resnet34"]["url"].startswith("https://")
    cfg = dict(default_cfgs["resnet34"], file=str(path))
    load_pretrained(model, default_cfg=cfg, in_chans=1, num_classes=1000)
    assert torch.allclose(model.conv1.weight, state["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(model.fc.weight, state["fc.weight"])

    model = ResNet(BasicBlock, layers=[3, 4, 6, 3], num_classes=5)
    model.default_cfg = cfg
    with pytest.warns(UserWarning, match="1000 classes"):
        load_pretrained(model, num_classes=5)
    assert torch.equal(model.layer4[2].conv2.weight, state["layer4.2.conv2.weight"])
    with pytest.raises(Exception, match="num_classes=7"):
        load_pretrained(model, cfg, num_classes=7)


def test_pretrained_from_a_file(weights) -> None:
    path, state = weights
    model = timm.create_model("resnet34", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, in_chans=25)
    expected = state["conv1.weight"].repeat(1, 9, 1, 1)[:, :25] * 3 / 25
    assert torch.allclose(model.conv1.weight, expected)
    from timm.models import load_checkpoint, load_state_dict

    assert load_state_dict(path).keys() == state.keys()
    model = timm.create_model("resnet34", checkpoint_path=str(path))
    assert torch.equal(model.fc.weight, state["fc.weight"])
    half = {k: v for k, v in state.items() if not k.startswith("fc.")}
    save_file(half, path.with_name("half.safetensors"))
    with pytest.raises(RuntimeError, match=r"fc\.weight"):
        load_checkpoint(model, path.with_name("half.safetensors"))
    report = load_checkpoint(model, path.with_name("half.safetensors"), strict=False)
    missing, unexpected = report
    assert set(missing) == set(report.missing_keys) == {"fc.weight", "fc.bias"}
    assert not unexpected


def test_direct_vit_and_its_parts() -> None:
    from timm.models.layers import DropPath, PatchEmbed, to_2tuple, trunc_normal_
    from timm.models.vision_transformer import Attention, Block, Mlp, VisionTransformer

    norm = partial(nn.LayerNorm, eps=1e-6)
    model = VisionTransformer(**SMALL, mlp_ratio=4, qkv_bias=True, norm_layer=norm, num_classes=5, drop_path_rate=0.1)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert VisionTransformer(**SMALL, norm_layer=None, act_layer=None, in_chans=1).patch_embed.proj.in_channels == 1
    tokens = torch.randn(2, 5, 64)
    assert Block(dim=64, num_heads=4, mlp_ratio=4.0, qkv_bias=True, drop_path=0.1, norm_layer=norm)(tokens).shape == (
        2, 5, 64,
    )  # fmt: skip
    assert Block(64, 4, init_values=1e-5, act_layer=nn.GELU, attn_drop=0.1, proj_drop=0.1)(tokens).shape == (2, 5, 64)
    assert Attention(64, num_heads=4, qkv_bias=True, attn_drop=0.1, proj_drop=0.1)(tokens).shape == (2, 5, 64)
    assert Mlp(in_features=64, hidden_features=128, act_layer=nn.GELU, drop=0.1)(tokens).shape == (2, 5, 64)
    patches = PatchEmbed(img_size=64, patch_size=16, in_chans=3, embed_dim=32)
    assert patches(torch.randn(1, 3, 64, 64)).shape == (1, patches.num_patches, 32) == (1, 16, 32)
    assert to_2tuple(3) == (3, 3)
    assert isinstance(DropPath(0.1), nn.Module)
    weight = trunc_normal_(torch.empty(10000), std=1.0, a=-0.5, b=0.5)  # bounds are values, as in torch
    assert weight.abs().max() <= 0.5


def test_subclass_of_vit() -> None:
    """As the DeiT repository and its descendants do it."""
    from timm.models.layers import trunc_normal_
    from timm.models.registry import register_model
    from timm.models.vision_transformer import VisionTransformer, _cfg

    class Distilled(VisionTransformer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.dist_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
            self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 2, self.embed_dim))
            self.head_dist = nn.Linear(self.embed_dim, self.num_classes)
            trunc_normal_(self.dist_token, std=0.02)
            self.head_dist.apply(self._init_weights)

        def forward_features(self, x):
            tokens = (
                self.cls_token.expand(len(x), -1, -1),
                self.dist_token.expand(len(x), -1, -1),
                self.patch_embed(x),
            )
            x = self.pos_drop(torch.cat(tokens, dim=1) + self.pos_embed)
            for block in self.blocks:
                x = block(x)
            return self.norm(x)[:, :2].unbind(1)

        def forward(self, x):
            cls, dist = self.forward_features(x)
            return (self.head(cls) + self.head_dist(dist)) / 2

    @register_model
    def distilled_of_mine(pretrained=False, **kwargs):
        model = Distilled(**SMALL, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), **kwargs)
        model.default_cfg = _cfg(url="https://example.org/weights.pth", num_classes=10)
        return model

    model = timm.create_model(
        "distilled_of_mine", pretrained=False, num_classes=10, drop_rate=0.0, drop_path_rate=0.1, drop_block_rate=None
    )
    out = model(torch.randn(2, 3, 64, 64))
    out.sum().backward()
    assert out.shape == (2, 10)
    assert model.dist_token.grad.abs().sum() > 0
    assert model.default_cfg["classifier"] == "head"
    assert model.default_cfg["num_classes"] == 10
    assert model.head_dist.bias.abs().max() == 0  # given by `_init_weights`
    assert timm.is_model("distilled_of_mine")


def test_direct_convnext_and_efficientnet() -> None:
    from timm.models.convnext import ConvNeXt
    from timm.models.efficientnet import EfficientNet, decode_arch_def, round_channels

    model = ConvNeXt(in_chans=1, num_classes=3, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), ls_init_value=1e-6)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 3)
    model = EfficientNet(
        block_args=decode_arch_def([["ds_r1_k3_s1_e1_c16_se0.25"], ["ir_r2_k3_s2_e6_c24_se0.25"]]),
        num_features=64,
        stem_size=8,
        round_chs_fn=partial(round_channels, multiplier=2.0),
        act_layer=nn.SiLU,
        num_classes=3,
    )
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert model.blocks[1][0].conv_pwl.out_channels == 48


class MyNet(nn.Module):
    """A model class that knows nothing of opsin."""

    def __init__(self, width: int = 8, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_info = [
            {"num_chs": width, "reduction": 2, "module": "stem"},
            {"num_chs": 2 * width, "reduction": 4, "module": "body"},
            {"num_chs": 4 * width, "reduction": 8, "module": "tail"},
        ]
        self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 3, 2, 1), nn.ReLU())
        self.body = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.tail = nn.Conv2d(2 * width, 4 * width, 3, 2, 1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.tail(self.body(self.stem(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def my_net(tmp_path_factory: pytest.TempPathFactory):
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

    path = tmp_path_factory.mktemp("weights") / "my_net.safetensors"
    torch.manual_seed(0)
    reference = MyNet()
    save_file({f"old.{k}": v for k, v in reference.state_dict().items()}, path)
    cfg = {"file": str(path), "first_conv": "stem.0", "classifier": "fc", "input_size": (3, 32, 32), "crop_pct": 1.0}
    globals()["default_cfgs"] = generate_default_cfgs({"my_net.first": cfg, "my_net.empty": {}})

    @register_model
    def my_net(pretrained=False, **kwargs):
        return build_model_with_cfg(
            MyNet,
            "my_net",
            pretrained,
            pretrained_filter_fn=lambda state: {k.removeprefix("old."): v for k, v in state.items()},
            feature_cfg={"flatten_sequential": False},
            **kwargs,
        )

    return reference


def test_class_of_others(my_net: MyNet) -> None:
    x = torch.randn(1, 3, 32, 32)
    model = timm.create_model("my_net", pretrained=True)
    assert type(model) is MyNet
    assert torch.equal(model(x), my_net(x))
    assert model.pretrained_cfg["tag"] == model.default_cfg["tag"] == "first"
    assert "my_net.first" in timm.list_models("my_net*", pretrained=True)
    model = timm.create_model("my_net", pretrained=True, in_chans=1)
    assert torch.allclose(model.stem[0].weight, my_net.stem[0].weight.sum(1, keepdim=True))
    with pytest.warns(UserWarning, match="1000 classes"):
        model = timm.create_model("my_net", pretrained=True, num_classes=4)
    assert model(x).shape == (1, 4)
    assert torch.equal(model.tail.weight, my_net.tail.weight)
    assert timm.create_model("my_net.empty").pretrained_cfg["tag"] == "empty"
    with pytest.raises(RuntimeError, match="no weights"):
        timm.create_model("my_net.empty", pretrained=True)
    assert timm.data.resolve_data_config({}, model=model)["input_size"] == (3, 32, 32)


def test_features_of_a_class_of_others(my_net: MyNet) -> None:
    from timm.models.features import FeatureDictNet, FeatureHookNet, FeatureListNet

    x = torch.randn(1, 3, 32, 32)
    model = timm.create_model("my_net", pretrained=True, features_only=True, out_indices=(0, 2))
    assert isinstance(model, FeatureListNet)
    assert model.feature_info.channels() == [8, 32]
    assert set(model.state_dict()) == {k for k in my_net.state_dict() if not k.startswith("fc.")}
    stem = my_net.stem(x)
    tail = my_net.tail(my_net.body(stem))
    assert all(torch.equal(a, b) for a, b in zip(model(x), (stem, tail), strict=True))
    assert list(FeatureDictNet(MyNet(), out_indices=(1,))(x)) == ["body"]
    with pytest.raises(TypeError, match="feature_cls='hook'"):  # with its parts flattened there is no "stem"
        FeatureListNet(MyNet(), out_indices=(1,), flatten_sequential=True)
    hooked = FeatureHookNet(my_net, out_indices=("stem.0", "tail"))
    first, last = hooked(x)
    assert torch.equal(last, tail)
    assert hooked.feature_info.channels() == [8, 32] == [first.shape[1], last.shape[1]]


def test_feature_nets_of_opsins_own() -> None:
    from timm.models.features import FeatureHookNet, FeatureListNet

    x = torch.randn(1, 3, 64, 64)
    model = FeatureListNet(timm.create_model("resnet10t"), out_indices=(1, 3))
    assert [m.shape[1] for m in model(x)] == [64, 256]
    model.return_layers = {"act1": "0", "layer2": "1", "layer4": "2"}  # layer4 was cut off
    assert [m.shape[1] for m in model(x)] == [64, 128]
    model = FeatureHookNet(timm.create_model("resnet10t"), out_indices=("layer1.0.conv1",))
    assert [m.shape[1] for m in model(x)] == [64]


def test_manipulation() -> None:
    from timm.models.helpers import checkpoint_seq, group_modules, group_parameters, named_apply

    model = timm.create_model("resnet10t")
    seen = []
    named_apply(lambda module, name: seen.append(name), model)
    assert set(seen) == {name for name, _ in model.named_modules() if name}
    assert seen.index("layer1.0.conv1") < seen.index("layer1.0") < seen.index("layer1")
    groups = group_parameters(model, model.group_matcher())
    assert sorted(name for names in groups.values() for name in names) == sorted(n for n, _ in model.named_parameters())
    assert "conv1.0.weight" in groups[0]
    assert "fc.weight" in groups[max(groups)]
    assert group_modules(model, model.group_matcher(), reverse=True)["conv1.0"] == 0
    matcher = {"stem": r"^conv1|bn1", "blocks": [(r"^layer(\d+)\.(\d+)", None), (r"^norm", (99999,))]}
    groups = group_parameters(model, matcher)
    assert len(groups) == 1 + 4 + 1
    assert groups[5] == ["fc.weight", "fc.bias"]
    x = torch.randn(1, 4, requires_grad=True)
    parts = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    assert torch.equal(checkpoint_seq(parts, x, every=2), parts(x))
    checkpoint_seq(parts, x, skip_last=True).sum().backward()
    assert x.grad is not None


def test_layers() -> None:
    import timm.layers.create_act
    from timm.layers import (
        LayerNorm2d,
        SelectAdaptivePool2d,
        SqueezeExcite,
        create_act_layer,
        create_conv2d,
        get_act_layer,
        make_divisible,
        use_fused_attn,
    )
    from timm.layers.activations import Swish
    from timm.models import layers

    assert create_act_layer is timm.layers.create_act_layer is layers.create_act_layer
    assert isinstance(create_act_layer("silu"), Swish)
    assert create_act_layer(None) is None
    assert timm.layers.create_act("relu")  # the function, not the module of that name
    x = torch.randn(2, 16, 8, 8)
    assert SelectAdaptivePool2d(pool_type="catavgmax", flatten=True)(x).shape == (2, 32)
    for layer in (LayerNorm2d(16), SqueezeExcite(16), get_act_layer("gelu")()):
        assert layer(x).shape == x.shape
    assert create_conv2d(16, 4, 3, stride=2, padding="same")(x).shape == (2, 4, 4, 4)
    assert make_divisible(37, 8) == 40
    assert use_fused_attn()


def test_absent_names_say_so() -> None:
    with pytest.raises(ImportError, match="LayerNorm2d"):
        from timm.layers import LayerNorm2D  # noqa: F401
    with pytest.raises(ImportError, match="resnet"):
        import_module("timm.models.resnett")
    with pytest.raises(AttributeError, match="create_model"):
        _ = timm.create_modle
    assert not hasattr(timm.layers, "nothing_of_this_name")
    assert not hasattr(timm, "__nothing__")


def test_star_imports() -> None:
    names: dict = {}
    exec("from timm.models import *\nfrom timm.layers import *\nfrom timm.data import *", names)
    assert {"resnet34", "create_model", "DropPath", "create_transform"} <= names.keys()
    assert isinstance(names["resnet18"](num_classes=2), timm.models.ResNet)


def test_data() -> None:
    from PIL import Image
    from timm.data import (
        IMAGENET_DEFAULT_MEAN,
        ImageNetInfo,
        create_transform,
        infer_imagenet_subset,
        resolve_data_config,
        resolve_model_data_config,
    )

    model = timm.create_model("resnet18")
    config = resolve_data_config({}, model=model)
    assert config == resolve_model_data_config(model)
    assert config["mean"] == IMAGENET_DEFAULT_MEAN
    transform = create_transform(**config, auto_augment="rand-m9-mstd0.5", re_prob=0.25)
    assert transform(Image.new("RGB", (300, 200))).shape == (3, 224, 224)
    training = create_transform(**config, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25)
    assert training(Image.new("RGB", (300, 200))).shape == (3, 224, 224)
    with pytest.raises(Exception, match="tf_preprocessing"):
        create_transform(**config, tf_preprocessing=True)
    info = ImageNetInfo(infer_imagenet_subset(model))
    assert info.num_classes() == 1000
    assert info.index_to_label_name(0) == "n01440764"
    assert info.index_to_description(0) == info.label_descriptions()[0] == "tench, Tinca tinca"


def test_frozen_batch_norm() -> None:
    model = timm.create_model("resnet10t").eval()
    keys = set(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    frozen = timm.utils.model.freeze_batch_norm_2d(model)
    assert set(frozen.state_dict()) | {k for k in keys if k.endswith("tracked")} == keys
    assert torch.allclose(frozen.train()(x), expected, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    thawed = timm.utils.model.unfreeze_batch_norm_2d(frozen)
    assert set(thawed.state_dict()) == keys
    assert torch.allclose(thawed.eval()(x), expected, atol=1e-5)


def test_old_names() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = timm.models.resnet.tv_resnet34(num_classes=2)
    assert isinstance(model, timm.models.ResNet)
    assert any("tv_resnet34" in str(w.message) for w in caught)
