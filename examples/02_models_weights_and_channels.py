"""Find a model, get its weights without a network, give it any number of channels and classes.

    python examples/02_models_weights_and_channels.py [FOLDER]

Needs `pip install 'opsin[demo]' matplotlib`. Each `# %%` begins a cell, so the file opens as a notebook as well. The
picture goes into FOLDER (`examples/out` by default).
"""

# %% Imports, and where the picture goes
import sys
import warnings
from pathlib import Path

import numpy as np
import skimage
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn

import opsin
from opsin import cli
from opsin.inference.predictor import Predictor

in_notebook = hasattr(sys, "ps1")
FOLDER = Path("examples/out" if in_notebook or len(sys.argv) < 2 else sys.argv[1])
FOLDER.mkdir(parents=True, exist_ok=True)

# %% Names: wildcards
# Listing reads tables; it builds nothing and needs no torch.
print(f"{len(opsin.list_models()):,} architectures in {len(opsin.list_families())} families")
print("*lite*:", ", ".join(opsin.list_models("*efficientnet_lite*")))
print("ResNets of 26 layers:", ", ".join(opsin.list_models("*resnet26*", exclude=["*269*", "vit_*"])))

# %% Facts: what fits, what is good, what may be used
# `architecture.tag` names one set of weights; accuracy, licence and image size belong to the tag.
small_and_good = opsin.list_pretrained(max_params=8e6, min_top1=80, license="apache-2.0")
print("at most 8 M parameters, at least 80% top-1, Apache-2.0:", ", ".join(small_and_good))

NAME = "tf_efficientnet_lite0"
info = opsin.model_info(NAME)
print(f"{info.name}: {info.facts.params / 1e6:.1f} M parameters, {info.facts.gmacs:.2f} GMACs, {info.cfg.license}")
print(f"  trained on {info.cfg.input_size}, mean {info.cfg.mean}, {info.cfg.interpolation}")

# %% Weights without a network
# These weights lie in an installed package, so `pretrained=True` finds them offline. For any others, run
# `opsin download NAME --to DIR` where there is a network and carry the folder over: weights, config, preprocessing and
# labels are in it.
cli.main(["download", NAME, "--to", str(FOLDER / "weights")])
model = opsin.create_model(f"local-dir:{FOLDER / 'weights' / info.name}", pretrained=True)
assert torch.equal(model.conv_stem.weight, opsin.create_model(NAME, pretrained=True).conv_stem.weight)

# %% One channel, and twenty-five
# Only the first kernel depends on the channels. One channel takes the sum of the three colour kernels; other counts
# take them in turn, scaled by 3 / channels. The answer to a grey picture stays what it was (nearly, where the count is
# no multiple of three).
grey = opsin.create_model(NAME, pretrained=True, in_chans=1)
bands = opsin.create_model(NAME, pretrained=True, in_chans=25)
kernel = model.conv_stem.weight
assert torch.allclose(grey.conv_stem.weight, kernel.sum(dim=1, keepdim=True))
assert torch.allclose(bands.conv_stem.weight, kernel[:, torch.arange(25) % 3] * 3 / 25)

# %% The same photo as three channels, one, and twenty-five
# A camera with a 5x5 mosaic of filters gives 25 pictures of a fifth of its size. Here is what it would see of a grey
# world; arrays of any number of channels go into a predictor as (height, width, channels).
photo = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").convert("RGB").crop((75, 0, 375, 300))
sensor = torch.from_numpy(np.array(photo.convert("L").resize((1280, 1280), Image.Resampling.BICUBIC)))
mosaic = nn.functional.pixel_unshuffle(sensor[None], 5).permute(1, 2, 0).numpy()  # (256, 256, 25)
seen = {
    "3 channels": Predictor(model).predict(photo),
    "1 channel": Predictor(grey).predict(photo),  # made grey on the way
    "25 channels": Predictor(bands).predict(mosaic),
}
for what, prediction in seen.items():
    print(f"{what}: " + ", ".join(f"{s.label} {100 * s.probability:.0f}%" for s in prediction.labels[:3]))

# %% Other classes, in one argument
# Everything but the new head is pretrained; a warning says that the head is not.
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ten = opsin.create_model(NAME, pretrained=True, num_classes=10, drop_rate=0.2)
print(caught[0].message)
ten.reset_classifier(5)  # later on: a fresh head again
embed = opsin.create_model(NAME, pretrained=True, num_classes=0)  # none: the pooled features

# %% Other classes, by hand
# The head is an ordinary module with the name it has in the checkpoint. `num_classes` does not know what was put there.
ten.classifier = nn.Linear(ten.classifier.in_features, 1)
resnet = opsin.create_model("resnet18")
resnet.fc = nn.Sequential(nn.Dropout(0.3), nn.Linear(resnet.fc.in_features, 1))
image = torch.randn(2, 3, 64, 64)
assert ten(image).shape == resnet(image).shape == (2, 1)
assert embed(image).shape == (2, embed.num_features)


# %% The picture
# Above: what goes in and what is answered. Below: the first kernels as colours; what one channel makes of them; and one
# kernel, spread over 25 channels.
def tile(kernels: torch.Tensor, columns: int) -> np.ndarray:
    """Kernels (n, c, 3, 3) in rows with gaps between, as an array (height, width, c): 0.5 stands for zero."""
    shades = nn.functional.interpolate(kernels.detach() / kernels.detach().abs().max() / 2 + 0.5, scale_factor=6)
    padded = nn.functional.pad(shades, (0, 2, 0, 2), value=float("nan") if kernels.shape[1] == 1 else 1.0)
    n, c, h, w = padded.shape
    grid = padded.reshape(n // columns, columns, c, h, w).permute(0, 3, 1, 4, 2)
    return grid.reshape(n // columns * h, columns * w, c)[:-2, :-2].numpy()


planes = np.moveaxis(mosaic, -1, 0).reshape(5, 5, 256, 256)
strip = planes.transpose(0, 2, 1, 3).reshape(1280, 1280)
strongest = kernel.flatten(1).norm(dim=1).argsort(descending=True)[:25]
kernels = {
    f"25 of {len(kernel)} first kernels, as colours": tile(kernel[strongest], 5),
    "… their sums over the colours": tile(grey.conv_stem.weight[strongest], 5),
    "… the first, over 25 channels": tile(bands.conv_stem.weight[strongest[0]][:, None], 5),
}
figure, axes = plt.subplots(3, 3, figsize=(12, 10.5), height_ratios=(1, 0.45, 1), layout="constrained")
for ax, what, picture in zip(axes[0], seen, (photo, photo.convert("L"), strip), strict=True):
    ax.imshow(picture, cmap="gray")
    ax.set_title(what)
for ax, prediction in zip(axes[1], seen.values(), strict=True):
    best = prediction.labels[3::-1]
    ax.barh([s.label for s in best], [100 * s.probability for s in best], color="tab:blue")
    ax.set(xlim=(0, 70), xlabel="probability, %")
    ax.spines[["top", "right"]].set_visible(False)
for ax, (what, picture) in zip(axes[2], kernels.items(), strict=True):
    ax.imshow(picture, cmap=plt.get_cmap("RdBu_r").with_extremes(bad="0.8"), vmin=0, vmax=1)
    ax.set_title(what)
for ax in (*axes[0], *axes[2]):
    ax.set_axis_off()
figure.savefig(FOLDER / "models_weights_and_channels.png", dpi=100)
print(f"first kernels and answers: {FOLDER / 'models_weights_and_channels.png'}")
