"""Maps at every stride, tokens of every block, and a pyramid on top that learns from half a photo.

    python examples/03_feature_extraction.py [FOLDER]

Needs `pip install 'opsin[demo]' matplotlib`. Each `# %%` begins a cell, so the file opens as a notebook as well. The
picture goes into FOLDER (`examples/out` by default).
"""

# %% Imports, and where the picture goes
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor, nn

import opsin
from opsin.data import Preprocess
from opsin.models.vision_transformer import VisionTransformer

in_notebook = hasattr(sys, "ps1")
FOLDER = Path("examples/out" if in_notebook or len(sys.argv) < 2 else sys.argv[1])
FOLDER.mkdir(parents=True, exist_ok=True)
PHOTOS = Path(skimage.__file__).parent / "data"
torch.manual_seed(0)

# %% A body: any model without its head
# It returns one map a level, always (batch, channels, height, width), and says what they are.
body = opsin.create_model("tf_efficientnet_lite0", pretrained=True, features_only=True).eval()
image = torch.randn(1, 3, 224, 320)
print("level  stride  channels  shape                 leaves")
for level, (features, row) in enumerate(zip(body(image), body.feature_info.get_dicts(), strict=True)):
    print(f"{level:5}  {row['reduction']:6}  {row['num_chs']:8}  {tuple(features.shape)!s:20}  {row['module']}")

# %% Which levels
# An int: the last so many. Negatives count from the end. The maps come in the order asked for, and what lies behind the
# last of them is not built.
last = opsin.create_model("resnet18", features_only=True, out_indices=2)
some = opsin.create_model("resnet18", features_only=True, out_indices=(-2, 1))
print(last.feature_info.reduction(), some.feature_info.reduction())  # [16, 32] [16, 4]
assert "layer4" not in some

# %% By the name of any module, or as a dict
named = opsin.create_model("resnet18", features_only=True, out_indices=("layer1.0.conv1", "layer3.1"))
print(named.feature_info.get_dicts(("module", "num_chs", "reduction")))
keyed = opsin.create_model(
    "resnet18", features_only=True, out_indices=(1, 3), feature_cls="dict", out_map=("low", "hi")
)
print({name: tuple(features.shape) for name, features in keyed(image).items()})

# %% The same form for every family
# Tokens become maps, channels come first, whatever the inner layout is.
for name in ("convnext_atto", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "mobilevit_xxs"):
    net = opsin.create_model(name, features_only=True, out_indices=2)
    side = opsin.model_info(name).cfg.input_size[1]
    print(f"{name}: {[tuple(m.shape[1:]) for m in net(torch.randn(1, 3, side, side))]}")

# %% Intermediates: maps, and the rest of the model too
# A small vision transformer learns, from pictures of 25x25 pixels, which of them are faces.
faces = torch.from_numpy(np.load(PHOTOS / "lfw_subset.npy")).float()[:, None] - 0.5
is_face = torch.arange(200) < 100
train, test = torch.randperm(200).split((120, 80))
vit = VisionTransformer(img_size=25, patch_size=5, in_chans=1, num_classes=2, embed_dim=48, depth=4, num_heads=3)
optimizer = torch.optim.AdamW(vit.parameters(), lr=1e-3)
for _ in range(120):
    batch = train[torch.randint(len(train), (32,))]
    loss = F.cross_entropy(vit(faces[batch]), is_face[batch].long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
vit.eval()


# %% How much does each block know?
# One pass gives what leaves every block: a map of the patches and, where asked for, the class token. A face is what
# lies nearer to the mean of faces than to the mean of the others.
def nearest_mean(x: Tensor) -> float:
    """Per cent of the test pictures that the nearer of two means of training pictures names rightly; x is (200, C)."""
    others, of_faces = (x[train][is_face[train] == kind].mean(dim=0) for kind in (False, True))
    said_face = (x[test] - of_faces).norm(dim=1) < (x[test] - others).norm(dim=1)
    return 100 * (said_face == is_face[test]).float().mean().item()


with torch.no_grad():
    final, blocks = vit.forward_intermediates(faces, return_prefix_tokens=True)
    assert torch.equal(vit.forward_head(final), vit(faces))
    logits = vit.forward_head(final)
patches, class_token = blocks[0]
print(f"{len(blocks)} blocks: patches {tuple(patches.shape)}, class token {tuple(class_token.shape)}")
known = {"pixels": nearest_mean(faces.flatten(1))}
known |= {f"block {i}": nearest_mean(token[:, 0]) for i, (_, token) in enumerate(blocks)}
known["the head"] = 100 * (logits.argmax(dim=1) == is_face.long())[test].float().mean().item()
print(", ".join(f"{what} {right:.0f}%" for what, right in known.items()))


# %% A pyramid on top
# All it must know of the body is in `feature_info`, so any other model would do as well.
class Pyramid(nn.Module):
    """Each level as `width` channels, with all deeper levels added to it (Lin et al. 2017, https://arxiv.org/abs/1612.03144)."""

    def __init__(self, channels: Sequence[int], width: int = 32) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        levels = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], levels[i - 1].shape[-2:])
        return [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]


# %% It learns which parts of a photo are near
# From the left half of one photo, of which a stereo camera knows the depths; the right half it has never seen. The body
# stays as it is, so its maps are computed once.
photo = Image.open(PHOTOS / "motorcycle_left.png").convert("RGB").resize((576, 384))
disparity = torch.from_numpy(np.load(PHOTOS / "motorcycle_disp.npz")["arr_0"])[None, None]
disparity = F.interpolate(disparity, (192, 288))[0, 0]  # at half the size of the photo, as the finest level is
near, measured = disparity > 35, disparity.isfinite()
cfg = Preprocess.from_model(opsin.create_model("tf_efficientnet_lite0"))
with torch.no_grad():
    levels = body(cfg.normalize(torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]))
pyramid = nn.ModuleDict({"levels": Pyramid(body.feature_info.channels()), "answer": nn.Conv2d(32, 1, 1)})


def answer() -> Tensor:
    return pyramid["answer"](pyramid["levels"](levels)[0].relu())[0, 0]


learnt = measured.clone()
learnt[:, 144:] = False
optimizer = torch.optim.AdamW(pyramid.parameters(), lr=3e-3)
for _ in range(40):
    loss = F.binary_cross_entropy_with_logits(answer()[learnt], near[learnt].float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    probability = answer().sigmoid()
unseen = measured & ~learnt
right = ((probability > 0.5) == near)[unseen].float().mean().item()
always = max(near[unseen].float().mean().item(), 1 - near[unseen].float().mean().item())
print(f"{100 * right:.0f}% of the unseen half right; always the same answer: {100 * always:.0f}%")

# %% The picture
# Above: the photo, and the liveliest channel of each level. Below: what each block of the transformer knows, and what
# the pyramid makes of the photo, right of the line without having seen it.
figure = plt.figure(figsize=(13, 9), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1))
axes = above.subplots(2, 3).flat
axes[0].imshow(photo)
axes[0].set_title("photo")
for ax, features, row in zip(axes[1:], levels, body.feature_info.get_dicts(), strict=True):
    ax.imshow(features[0, features[0].std(dim=(1, 2)).argmax()], cmap="magma")
    ax.set_title(f"{row['module']}: {row['num_chs']} channels, stride {row['reduction']}")
for ax in axes:
    ax.set_axis_off()
bars, truth, learned = below.subplots(1, 3)
bars.barh(list(known)[::-1], list(known.values())[::-1], color="tab:blue")
bars.set(xlim=(50, 100), xlabel="right, %", title="face or not, from the class token")
bars.spines[["top", "right"]].set_visible(False)
truth.imshow(torch.where(measured, near.float(), float("nan")), cmap="magma", vmin=0, vmax=1)
truth.set_title("near, as the stereo camera measured")
learned.imshow(probability, cmap="magma", vmin=0, vmax=1)
learned.axvline(144, color="white", linestyle="--")
learned.set_title(f"pyramid: beyond the line {100 * right:.0f}% right")
for ax in (truth, learned):
    ax.set_axis_off()
figure.savefig(FOLDER / "feature_extraction.png", dpi=100)
print(f"feature maps, blocks and pyramid: {FOLDER / 'feature_extraction.png'}")
