"""NesT: every figure of its Config, beside the judge; blocks, positions at other image sizes, the two paddings."""

import inspect

import pytest
import torch
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.errors import OpsinError, UnknownArgumentError, WeightsError
from opsin.models import nest
from opsin.models.nest import Config, Nest

timm = pytest.importorskip("timm")
from timm.models import nest as judge  # noqa: E402

SMALL = {
    "img_size": 32, "embed_dims": (8, 16, 32), "num_heads": (1, 2, 4), "depths": (1, 1, 2), "num_classes": 5,
    "drop_path_rate": 0.0,
}  # fmt: skip
X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small(**kwargs):
    torch.manual_seed(0)
    return Nest(**SMALL | kwargs)


def pair(**kwargs):
    theirs = randomize(judge.Nest(**SMALL | kwargs)).eval()
    ours = small(**kwargs).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    "kwargs",
    [
        {"pad_type": "same"},
        {"patch_size": 2, "mlp_ratio": 2.5, "qkv_bias": False},
        {"num_levels": 2, "embed_dims": 12, "num_heads": 3, "depths": 1},
        {"num_levels": 1, "embed_dims": (8,), "num_heads": (2,), "depths": (2,), "pad_type": "same"},
        {"norm_layer": nn.LayerNorm, "act_layer": nn.ReLU, "global_pool": "catavgmax"},
        {"num_classes": 0, "global_pool": ""},
    ],
)
def test_options_as_the_judge(kwargs):
    ours, theirs = (model.double() for model in pair(**kwargs))
    x = X.double()
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) < 1e-9
        for a, b in zip(ours.forward_intermediates(x)[1], theirs.forward_intermediates(x)[1], strict=True):
            assert relative_error(a, b) < 1e-9


# field -> a change that shows in the shapes of the state dict
SHAPES = {
    "num_classes": 7, "in_chans": 4, "img_size": (32, 48), "patch_size": 2, "embed_dims": (8, 16, 16),
    "depths": (2, 1, 2), "mlp_ratio": 2.0, "qkv_bias": False,
}  # fmt: skip
# field -> a change that shows in the numbers
NUMBERS = {
    "num_heads": 2, "global_pool": "max", "norm_layer": "rmsnorm", "act_layer": "relu", "pad_type": "same",
}  # fmt: skip
RATES = ("drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")


def test_all_fields_are_covered():
    elsewhere = {"num_levels", "weight_init"}
    assert {*SHAPES, *NUMBERS, *RATES, *elsewhere} == set(Config.names())


@pytest.mark.parametrize(("field", "value"), SHAPES.items())
def test_fields_change_the_model(field, value):
    shapes = [{k: v.shape for k, v in small(**change).state_dict().items()} for change in ({}, {field: value})]
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize(("field", "value"), NUMBERS.items())
def test_fields_change_the_numbers(field, value):
    base, other = randomize(small()).eval(), small(**{field: value}).eval()
    other.load_state_dict(base.state_dict(), strict=field != "norm_layer")
    assert not torch.allclose(other(X), base(X), atol=1e-4)


@pytest.mark.parametrize("rate", RATES)
def test_rates_act_in_training_only(rate):
    ours, theirs = pair(**{rate: 0.5})
    assert not torch.equal(ours.train()(X), ours(X))
    drawn = []
    for model in (ours, theirs.train()):
        torch.manual_seed(2)
        drawn.append(model(X))
    if rate != "attn_drop_rate":  # whose mask the judge draws in another order
        assert relative_error(*drawn) < 1e-5
    assert torch.equal(ours.eval()(X), ours(X))


def test_drop_path_rises_over_all_layers():
    model = small(drop_path_rate=0.3)
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0) for level in model.levels for block in level.transformer_encoder
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_attention_stays_inside_a_block():
    model = randomize(small(img_size=(32, 64))).eval()
    x = torch.randn(1, 3, 32, 64)
    changed = x.clone()
    changed[:, :, 8:12, 20:24] += 1.0  # in the block of rows 8 to 15 and columns 16 to 31
    maps, others = (model.forward_intermediates(image, intermediates_only=True) for image in (x, changed))
    moved = (maps[0] != others[0]).any(1)[0]  # 8x16 patches in 4x4 blocks of 2x4
    expected = torch.zeros_like(moved)
    expected[2:4, 4:8] = True
    assert torch.equal(moved, expected)
    moved = (maps[1] != others[1]).any(1)[0]  # 4x8 patches in 2x2 blocks: the convolution reaches the neighbours
    assert moved.all()
    assert maps[2].shape == (1, 32, 2, 4)


def test_paddings_differ_at_the_pool_alone():
    base, jax = randomize(small()).eval(), small(pad_type="same").eval()
    jax.load_state_dict(base.state_dict())
    pools = [model.levels[1].pool.pool for model in (base, jax)]
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert pools[0](x).flatten().tolist() == [5, 7, 13, 15]  # windows begin one row and column before the map
    assert pools[1](x).flatten().tolist() == [10, 11, 14, 15]  # windows begin with the map, and reach over its far end
    maps, others = (model.forward_intermediates(X, intermediates_only=True) for model in (base, jax))
    assert torch.equal(maps[0], others[0])
    assert not torch.allclose(maps[1], others[1], atol=1e-3)
    assert opsin.create_model("nest_tiny", depths=1).config.pad_type == ""
    with pytest.warns(FutureWarning, match="nest_tiny_jx"):
        former = opsin.create_model("jx_nest_tiny", depths=1)
    assert former.config.pad_type == "same"
    assert former.pretrained_cfg["tag"] == "goog_in1k"


@pytest.mark.parametrize("size", [64, 96, (64, 96), (32, 64)])
def test_positions_of_another_image_size(size):
    source = randomize(small()).eval()
    state = source.state_dict()
    model = opsin.create_model("nest_tiny", pretrained=state, **SMALL | {"img_size": size}).eval()
    height, width = size if isinstance(size, tuple) else (size, size)
    assert model(torch.randn(2, 3, height, width)).shape == (2, 5)
    for i in range(3):
        old, new = state[f"levels.{i}.pos_embed"], model.state_dict()[f"levels.{i}.pos_embed"]
        side = 2 ** (2 - i)
        assert new.shape == (1, side**2, height * width // 256, old.shape[3])
        if height == width:
            assert relative_error(new, judge.resize_pos_embed(old, new)) < 1e-6
    # positions that rise over the columns of the image do so after it, in each row
    ramp = torch.arange(8.0).repeat(8, 1)[None, :, :, None]
    blocks = nest.partition(ramp, (2, 2))[None]
    other = nest.departition(nest.resample_blocks(blocks, (4, 4), (3, 5)), (3, 5), 12, 20)[0, :, :, 0]
    assert torch.allclose(other, other[:1].expand(12, 20), atol=1e-4)
    assert (other.diff(dim=1) > 0).all()


def test_what_fits_is_left_alone():
    model = randomize(small(img_size=(32, 48))).eval()
    state = model.state_dict()
    adapted = nest.adapt(state, model)
    assert all(adapted[key] is value for key, value in state.items())
    with pytest.raises(WeightsError, match="2 positions in a block, which is no square"):
        opsin.create_model("nest_tiny", pretrained=small(img_size=(16, 32)).state_dict(), **SMALL)
    two = {"num_levels": 2, "embed_dims": (8, 16), "num_heads": 1, "depths": 1}
    with pytest.raises(WeightsError, match="of another shape"):  # other levels: no other image size
        opsin.create_model("nest_tiny", pretrained=state, **SMALL | two)


def test_fine_steps():
    """A level is a row of parts, though it has a parameter of its own: blocks are groups, and are recomputed alone."""
    model = randomize(small())
    assert model.layer_groups() == [
        ["patch_embed"],
        ["levels.0.pos_embed", "levels.0.transformer_encoder.0"],
        ["levels.1.pos_embed", "levels.1.pool"],
        ["levels.1.transformer_encoder.0"],
        ["levels.2.pos_embed", "levels.2.pool"],
        ["levels.2.transformer_encoder.0"],
        ["levels.2.transformer_encoder.1"],
        ["norm", "head"],
    ]
    seen = []
    for name, part in model.named_modules():
        if name.startswith("levels.2"):
            part.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    plain = model(X)
    assert "levels.2" in seen
    seen.clear()
    model.set_grad_checkpointing()
    out = model(X)
    assert torch.equal(out, plain)
    out.sum().backward()
    blocks = [name.rpartition(".")[2] for name in seen if name.rpartition(".")[0] == "levels.2.transformer_encoder"]
    assert blocks == ["0", "1", "1", "0"]


def test_feature_nets_keep_the_published_names():
    args = {"features_only": True, "out_indices": (0, 2)}
    ours, theirs = opsin.create_model("nest_tiny", **args), timm.create_model("nest_tiny", **args)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    hooked = opsin.create_model("nest_tiny", features_only=True, feature_cls="hook", depths=1, img_size=64)
    assert [tuple(m.shape[1:]) for m in hooked(X.repeat(1, 1, 2, 2))] == [(96, 16, 16), (192, 8, 8), (384, 4, 4)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"img_size": 40}, r"img_size=\(40, 40\) does not make 4x4 whole blocks .* multiples of 16 and 16"),
        ({"img_size": (32, 36), "patch_size": (4, 2)}, r"multiples of 16 and 8"),
        ({"num_levels": 2}, "one entry for each of num_levels=2 levels"),
        ({"num_levels": 0}, "num_levels=0"),
        ({"num_heads": (1, 2)}, "num_levels=3"),
        ({"weight_init": "jax"}, "weight_init='jax': '' or 'nlhb'"),
        ({"pad_type": "valid"}, "pad_type='valid'"),
    ],
)
def test_what_does_not_fit_raises(kwargs, message):
    with pytest.raises(OpsinError, match=message):
        small(**kwargs)


def test_a_wrong_image_size_names_the_fix():
    with pytest.raises(ValueError, match=r"built for 32x32 images and got 32x48.*img_size=\(32, 48\)"):
        small()(torch.randn(1, 3, 32, 48))
    with pytest.raises(UnknownArgumentError, match="no global pooling 'token'"):
        small(global_pool="token")


def test_initial_values_as_the_judge():
    args = SMALL | {"embed_dims": (32, 64, 64)}
    theirs = dict(judge.Nest(**args).named_parameters())
    for name, value in small(**args).named_parameters():
        if value.numel() > 1000:
            assert 0.8 < value.std() / theirs[name].std() < 1.1, name  # cut at two sigma here
        elif value.ndim == 1:
            assert torch.equal(value, theirs[name]), name
    flat = small(weight_init="nlhb")
    assert torch.allclose(flat.head.bias, torch.tensor(-1.6094379))  # -log(5)
    assert torch.equal(flat.patch_embed.proj.bias, torch.zeros(8))
    flat.reset_classifier(10)
    assert torch.allclose(flat.head.bias, torch.tensor(-2.3025851))


def test_arguments_by_place():
    assert tuple(inspect.signature(judge.Nest).parameters)[:8] == Nest.positional
    assert Nest(32, 1, 2, 2, (8, 16), 2, 1, 3)(torch.randn(1, 1, 32, 32)).shape == (1, 3)
