"""fastai learners on opsin's models, on pictures on disk."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from fastai.vision.all import (
    ClassificationInterpretation,
    DataBlock,
    ImageBlock,
    ImageDataLoaders,
    Interpretation,
    Normalize,
    PILImageBW,
    RegressionBlock,
    Resize,
    SegmentationDataLoaders,
    accuracy,
    get_image_files,
    load_learner,
    mse,
)
from PIL import Image
from torch import nn

import opsin
from opsin.errors import OpsinError, UnknownArgumentError, WeightsError
from opsin.integrations import fastai as ours
from opsin.integrations.fastai import (
    Body,
    create_body,
    create_unet_model,
    create_vision_model,
    layer_groups,
    learner,
    unet_learner,
)

LITE = "tf_efficientnet_lite0"
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
DATA = Path(skimage.__file__).parent / "data"


def crops(folder, *, count, side=64, seed=0):
    """Crops of scikit-image's photos as files `<photo>_<n>.jpg`."""
    rng = np.random.default_rng(seed)
    for name in PHOTOS:
        photo = Image.open(DATA / name).convert("RGB")
        for n in range(count):
            x, y = (int(rng.integers(0, size - 3 * side)) for size in photo.size)
            photo.crop((x, y, x + 3 * side, y + 3 * side)).resize((side, side)).save(
                folder / f"{name.partition('.')[0]}_{n}.jpg"
            )
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """scikit-learn's digits 0, 1 and 2 as grey pictures of 32x32, a folder each."""
    from sklearn.datasets import load_digits

    folder, data = tmp_path_factory.mktemp("digits"), load_digits(n_class=3)
    for i in range(90):
        (folder / str(data.target[i])).mkdir(exist_ok=True)
        picture = Image.fromarray(np.uint8(data.images[i] * 15)).resize((32, 32))
        picture.save(folder / str(data.target[i]) / f"{i}.png")
    return folder


def digit_dls(digits, **kwargs):
    return ImageDataLoaders.from_folder(digits, valid_pct=0.3, seed=0, bs=8, num_workers=0, device="cpu", **kwargs)


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# --- bodies and heads -------------------------------------------------------------------------------------------------


def test_the_published_figures_of_efficientnet_b3(digits):
    with pytest.warns(FutureWarning, match="efficientnet_b3"):
        learn = learner(
            digit_dls(digits), "efficientnet_b3a", n_out=37, pretrained=False, loss_func=nn.CrossEntropyLoss()
        )
    learn.freeze()
    frozen = sum(p.numel() for p in learn.model.parameters()) - trainable(learn.model)
    assert (trainable(learn.model), frozen) == (1_686_272, 10_608_936)


@pytest.mark.parametrize(("cut", "channels", "stride"), [(None, 512, 32), (-2, 512, 32), (-3, 256, 16), (6, 128, 8)])
def test_int_cuts_count_children(cut, channels, stride):
    body = create_body("resnet18", pretrained=False, cut=cut)
    assert body.num_features == channels
    x = torch.randn(2, 3, 64, 96)
    assert body(x).shape == (2, channels, 64 // stride, 96 // stride)
    assert "layer4" not in dict(body.model.named_children()) or channels == 512


def test_cut_equals_the_model_up_to_there():
    full = opsin.create_model("test_efficientnet").eval()
    x = torch.randn(2, 3, 64, 64)
    body = create_body("test_efficientnet", pretrained=full.state_dict()).eval()
    assert torch.equal(body(x), full.forward_features(x))
    body = create_body("test_efficientnet", pretrained=full.state_dict(), cut=3).eval()
    assert torch.equal(body(x), full.forward_intermediates(x, [-1], intermediates_only=True)[0])


def test_functions_cut():
    first = lambda model: nn.Sequential(*list(model.children())[:6])  # noqa: E731
    body = create_body("resnet18", False, first)
    assert (body.num_features, len(body)) == (128, 6)
    model = create_vision_model("resnet18", 5, first, False)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert [len(group) for group in layer_groups(model)] == [30, 6]
    assert isinstance(create_body("resnet18", False, lambda model: model), Body)
    with pytest.raises(OpsinError, match="a body must give a map"):
        create_body("resnet18", False, lambda model: nn.Flatten())
    with pytest.raises(OpsinError, match="cut must return a module"):
        create_body("resnet18", False, lambda model: 3)


@pytest.mark.parametrize("cut", [0, 1, 4, 9, 50, -1, -50, True, "layer3"])
def test_wrong_cuts_name_the_cut_points(cut):
    with pytest.raises(OpsinError, match=r"3 \(behind act1\), 5 \(behind layer1\).* 8 \(behind layer4\)"):
        create_body("resnet18", False, cut)


def test_head_options():
    x = torch.randn(2, 3, 64, 64)
    make = lambda **kwargs: create_vision_model("test_resnet", 5, pretrained=False, **kwargs)  # noqa: E731
    linear = lambda model: [m for m in model[1].modules() if isinstance(m, nn.Linear)]  # noqa: E731
    assert linear(make())[0].in_features == 2 * 96
    assert linear(make(concat_pool=False))[0].in_features == 96
    assert [m.out_features for m in linear(make(lin_ftrs=[7]))] == [7, 5]
    assert make(n_in=2)(x[:, :2]).shape == (2, 5)
    assert make(y_range=(1, 2))(x).min() >= 1
    assert not linear(make(init=nn.init.zeros_))[0].weight.any()
    assert make(custom_head=nn.Flatten())(x).shape == (2, 96 * 4)
    assert make(stem_width=8)[0].model.conv1[0].out_channels == 8
    with pytest.raises(UnknownArgumentError, match="custom_head"):
        make(custom_head=nn.Flatten(), ps=0.1)
    with pytest.raises(UnknownArgumentError, match="stem_width"):
        make(stem_widht=8)
    with pytest.raises(OpsinError, match="name of a model"):
        create_body(opsin.create_model)


def test_known_names():
    assert ours.create_timm_body is create_body
    assert ours.create_timm_model is create_vision_model
    assert ours.timm_learner is learner


# --- learners ---------------------------------------------------------------------------------------------------------


def test_a_day_with_a_learner(digits, tmp_path, monkeypatch):
    """Freeze, find a rate, fine-tune, look, export, load."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    torch.manual_seed(0)
    weights = opsin.create_model("test_resnet").state_dict()
    learn = learner(digit_dls(digits), "test_resnet", pretrained=weights, metrics=accuracy, path=tmp_path, ps=0.1)
    groups = layer_groups(learn.model)
    assert len(groups) == 6  # stem, four stages, head
    norms = {id(p) for m in learn.model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    free = lambda: [any(p.requires_grad for p in g if id(p) not in norms) for g in groups]  # noqa: E731
    assert free() == [False] * 5 + [True]
    learn.freeze_to(-3)
    assert free() == [False] * 3 + [True] * 3
    learn.unfreeze()
    assert free() == [True] * 6
    with learn.no_bar(), learn.no_logging():
        assert 1e-7 < learn.lr_find(num_it=4, show_plot=False).valley < 10
        learn.fine_tune(6, base_lr=1e-2)
    rates = [hyper["lr"] for hyper in learn.opt.hypers]
    assert rates == sorted(rates)
    assert rates[-1] > 10 * rates[0]
    with learn.no_bar(), learn.no_logging():
        assert learn.validate()[1] > 0.8
        learn.show_results(max_n=2)
        found = ClassificationInterpretation.from_learner(learn)
        assert found.confusion_matrix().sum() == len(learn.dls.valid_ds)
        Interpretation.from_learner(learn).plot_top_losses(2)
        picture = digits / "1" / "1.png"
        expected = learn.predict(picture)
        learn.export("digits.pkl")
        loaded = load_learner(tmp_path / "digits.pkl")
        with loaded.no_bar():
            label, _, probabilities = loaded.predict(picture)
    assert label == expected[0] == "1"
    assert torch.allclose(probabilities, expected[2], atol=1e-6)
    plt.close("all")


@pytest.mark.parametrize("half", ["to_fp16", "to_bf16"])
def test_mixed_precision(digits, half):
    learn = getattr(learner(digit_dls(digits), "test_resnet", pretrained=False), half)()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert np.isfinite(learn.recorder.values[-1]).all()


def test_pretrained_beats_scratch(tmp_path):
    """The same three epochs on photo crops, from ImageNet weights and from random ones."""
    files = get_image_files(crops(tmp_path, count=14))
    found = []
    for pretrained in (True, False):
        torch.manual_seed(0)
        args = {"valid_pct": 0.4, "seed": 0, "bs": 8, "num_workers": 0, "device": "cpu"}
        dls = ImageDataLoaders.from_name_re(tmp_path, files, r"([^/]+)_\d+\.jpg$", **args)
        learn = learner(dls, LITE, pretrained=pretrained, metrics=accuracy, ps=0.2)
        with learn.no_bar(), learn.no_logging():
            learn.fine_tune(2, base_lr=1e-2)
            found.append(learn.validate())
    (loss, right), (scratch_loss, scratch_right) = found
    assert right > scratch_right + 0.3
    assert loss < scratch_loss


def test_normalisation_is_that_of_the_record(digits):
    def stats(arch, **kwargs):
        dls = digit_dls(digits)
        learner(dls, arch, **{"pretrained": False} | kwargs)
        found = [t for t in dls.valid.after_batch.fs if isinstance(t, Normalize)]
        return [(t.mean.flatten().tolist(), t.std.flatten().tolist()) for t in found]

    assert stats(LITE, pretrained=True) == [([0.5] * 3, [0.5] * 3)]
    assert np.allclose(stats("resnet18"), [([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    assert stats("test_resnet", normalize=False) == []
    dls = digit_dls(digits, batch_tfms=Normalize.from_stats([0.5] * 3, [0.5] * 3, cuda=False))
    learner(dls, LITE)
    with pytest.warns(UserWarning, match=r"already normalised by mean \[0.5.*resnet18 wants \[0.485"):
        learner(dls, "resnet18", pretrained=False)
    assert len([t for t in dls.after_batch.fs if isinstance(t, Normalize)]) == 1


def test_channels_and_size_come_from_the_data(digits):
    grey = ImageDataLoaders.from_path_func(
        digits, get_image_files(digits), lambda p: p.parent.name, img_cls=PILImageBW, bs=8, num_workers=0, device="cpu"
    )
    learn = learner(grey, "test_vit", pretrained=False)
    assert learn.model[0].model.in_chans == 1
    assert learn.model[0].model.config.img_size == (32, 32)
    wide = digit_dls(digits, item_tfms=Resize((48, 64)))
    for arch in ("gmixer_12_224", "levit_128s"):
        learn = learner(wide, arch, pretrained=False)
        with learn.no_bar(), learn.no_logging():
            assert np.isfinite(learn.validate()[0])
    with pytest.raises(WeightsError, match="resize the images to it"):
        learner(wide, "levit_128s", pretrained=opsin.create_model("levit_128s").state_dict())
    body = create_body("deit_tiny_patch16_224", pretrained=False)
    with pytest.raises(ValueError, match="img_size"):
        body(torch.randn(1, 3, 64, 64))
    assert create_body("deit_tiny_patch16_224", False, img_size=64)(torch.randn(1, 3, 64, 64)).shape[-1] == 4


def test_regression_config_and_outputs(digits):
    files = get_image_files(digits)
    args = {"y_block": RegressionBlock, "bs": 8, "num_workers": 0, "device": "cpu"}
    dls = ImageDataLoaders.from_lists(digits, files, [float(file.parent.name) for file in files], **args)
    small = {"pretrained": False, "metrics": mse}
    for given in ({"y_range": (0, 2)}, {"config": {"y_range": (0, 2)}}):
        learn = learner(dls, "test_resnet", n_out=1, **given, **small)
        with learn.no_bar():
            predictions = learn.get_preds()[0]
        assert 0 <= predictions.min() <= predictions.max() <= 2
    learn = learner(dls, "test_resnet", n_out=1, config={"y_range": (0, 2), "lin_ftrs": [4]}, y_range=(5, 6), **small)
    with learn.no_bar():
        assert learn.get_preds()[0].min() >= 5
    assert [m.out_features for m in learn.model[1].modules() if isinstance(m, nn.Linear)] == [4, 1]
    dls.c = 0
    with pytest.raises(OpsinError, match="pass n_out"):
        learner(dls, "test_resnet", pretrained=False)


def test_own_splitter_and_unknown_arguments(digits):
    two = lambda model: [list(part.parameters()) for part in model]  # noqa: E731
    learn = learner(digit_dls(digits), "test_resnet", pretrained=False, splitter=two, lr=0.5)
    learn.create_opt()
    assert (len(learn.opt.param_lists), learn.lr) == (2, 0.5)
    with pytest.raises(UnknownArgumentError, match="metric"):
        learner(digit_dls(digits), "test_resnet", pretrained=False, metric=accuracy)


# --- U-Net ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Odd crops of scikit-image's coins, and where they are brighter than the table."""
    folder = tmp_path_factory.mktemp("coins")
    coins = np.asarray(Image.open(DATA / "coins.png"))
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for n in range(18):
        y, x = 40 * (n // 6), 45 * (n % 6)
        crop = coins[y : y + 75, x : x + 93]
        Image.fromarray(crop).save(folder / "images" / f"{n}.png")
        Image.fromarray(np.uint8(crop > 120)).save(folder / "masks" / f"{n}.png")
    return folder


def mask_dls(masks):
    files = get_image_files(masks / "images")
    label = lambda file: masks / "masks" / file.name  # noqa: E731
    args = {"codes": ["table", "coin"], "bs": 4, "num_workers": 0, "seed": 0, "device": "cpu"}
    return SegmentationDataLoaders.from_label_func(masks, files, label, **args)


def test_unet_learns_coins(masks, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    torch.manual_seed(0)
    right = lambda out, target: (out.argmax(1) == target).float().mean()  # noqa: E731
    weights = opsin.create_model("test_resnet").state_dict()
    learn = unet_learner(mask_dls(masks), "test_resnet", pretrained=weights, metrics=right)
    assert not learn.model.encoder.model.conv1[0].weight.requires_grad
    assert len(layer_groups(learn.model)) == 6
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(8, base_lr=1e-2)
        learn.show_results(max_n=2)
        out = learn.get_preds()[0]
        assert out.shape[1:] == (2, 75, 93)
        assert learn.validate()[1] > 0.85
    plt.close("all")


def test_unet_options(masks):
    x = torch.randn(2, 3, 50, 70)
    make = lambda **kwargs: create_unet_model("test_resnet", 3, False, **kwargs).eval()  # noqa: E731
    plain = make()
    assert plain.encoder.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert make(n_in=1)(x[:, :1]).shape == (2, 3, 50, 70)
    assert make(y_range=(0, 1))(x).min() >= 0
    names = lambda model: {type(m).__name__ for m in model.modules()}  # noqa: E731
    assert "SelfAttention" in names(make(self_attention=True)) - names(plain)
    assert "AvgPool2d" in names(make(blur=True).decoder) - names(plain.decoder)
    assert "Mish" in names(make(act_cls=nn.Mish)) - names(plain)
    size = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert size(make(last_cross=False)) < size(plain)
    assert not make(init=nn.init.zeros_).decoder.last[1].weight.any()
    with pytest.raises(UnknownArgumentError, match="bottle"):
        make(bottle=True)


def test_unet_maps_pictures_to_pictures(tmp_path):
    """No classes to count: `n_out` must be given."""
    block = DataBlock((ImageBlock, ImageBlock), get_items=get_image_files, get_y=lambda file: file)
    dls = block.dataloaders(crops(tmp_path, count=3, side=40), bs=4, num_workers=0, device="cpu")
    with pytest.raises(OpsinError, match="pass n_out"):
        unet_learner(dls, "test_vit", pretrained=False, loss_func=nn.MSELoss())
    learn = unet_learner(dls, "test_vit", pretrained=False, n_out=3, loss_func=nn.MSELoss(), y_range=(-3, 3))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    assert np.isfinite(learn.recorder.values[-1]).all()


# --- surroundings -----------------------------------------------------------------------------------------------------


def python(code, *args):
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False)


def test_fastais_own_learner_through_the_alias(digits):
    """`vision_learner(dls, "name")` of fastai asks timm, for which opsin answers."""
    code = """
import sys
from opsin.integrations import timm_alias
timm_alias.install()
from fastai.vision.all import *
args = dict(valid_pct=0.3, seed=0, bs=16, num_workers=0, device="cpu")
dls = ImageDataLoaders.from_folder(sys.argv[1], **args)
learn = vision_learner(dls, "resnet18", pretrained=False)
with learn.no_bar(), learn.no_logging():
    learn.fit(1)
print(type(learn.model[0].model).__module__)
pretrained = vision_learner(dls, "tf_efficientnet_lite0")
print([t.mean.flatten().tolist() for t in dls.after_batch.fs if isinstance(t, Normalize)])
"""
    done = python(code, digits)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["opsin.models.resnet", "[[0.5, 0.5, 0.5]]"]


def test_without_fastai():
    done = python("import sys; sys.modules['fastai'] = None; import opsin.integrations.fastai")
    assert done.returncode == 1
    assert "ModuleNotFoundError: opsin.integrations.fastai needs fastai" in done.stderr
    assert "pip install 'opsin[fastai]'" in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_the_page_runs_as_written(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "fastai.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    crops(tmp_path / "pets", count=6)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(code, "fastai.md", "exec"), names)
    assert isinstance(names["learn"].model[0], Body)
