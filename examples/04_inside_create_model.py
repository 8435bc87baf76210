"""What happens in `create_model`, step by step, and how a model of your own joins in.

    python examples/04_inside_create_model.py [FOLDER]

Needs `pip install 'opsin[demo]' matplotlib`. Each `# %%` begins a cell, so the file opens as a notebook as well. The
picture goes into FOLDER (`examples/out` by default).

name in timm                                  here
timm.models.model_entrypoint, is_model        opsin.model_entrypoint, opsin.is_model
timm.models.register_model                    opsin.register_model
timm.models.generate_default_cfgs             opsin.models.generate_default_cfgs
default_cfgs of a family file                 tables in opsin/catalog; resnet.default_cfgs shows them
model_args in each entry point                VARIANTS: name -> Config, at the end of a family file
timm.models.build_model_with_cfg              opsin.factory.build_model; opsin.foreign.build_model_with_cfg for yours
checkpoint_filter_fn of a family file         adapt of a family file
timm.models.load_pretrained                   opsin.weights.pretrained.load_pretrained
timm.models.adapt_input_conv                  opsin.weights.adapt.adapt_input_conv
timm.models.FeatureListNet and its kin        opsin.models.features
"""

# %% Imports, and where the picture goes
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import skimage
import torch
from matplotlib import pyplot as plt
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import opsin
from opsin.data import Preprocess
from opsin.errors import OpsinError
from opsin.foreign import build_model_with_cfg
from opsin.layers import get_act_layer
from opsin.models import Model, ModelConfig, Stage, generate_default_cfgs, register_model
from opsin.models._registry import find_family, get_pretrained_cfg, resolve_name
from opsin.models.features import FeatureListNet
from opsin.weights.adapt import adapt_input_conv
from opsin.weights.load import load_into
from opsin.weights.sources import locate

in_notebook = hasattr(sys, "ps1")
FOLDER = Path("examples/out" if in_notebook or len(sys.argv) < 2 else sys.argv[1])
FOLDER.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

# %% 1. The registry: a name becomes an architecture, a weight tag and a family
# An index made from the family files says which file builds what; only that file is imported.
NAME = "tf_efficientnet_lite0.in1k"
architecture, tag = resolve_name(NAME)
family = find_family(architecture)
print(f"{NAME}: architecture {architecture}, weights {tag}, built by {family.model.__module__}.{family.model.__name__}")

# An entry point is a callable `(pretrained=False, **kwargs)`. Opsin's own are `create_model` with the name filled in.
print(opsin.model_entrypoint("resnet18"))

# %% 2. The config: a variant's figures, with yours over them
# Each variant is a frozen dataclass. What it has no field for is refused, with the nearest name.
variant = family.variants[architecture]
config = variant.override(architecture, in_chans=1, num_classes=10)
print({key: value for key, value in asdict(config).items() if value != asdict(variant)[key]})
try:
    variant.override(architecture, num_clases=10)
except OpsinError as error:
    print(error)

# %% 3. The record: where the weights are, and what they were trained on
# One row of a table for each tag; a dict on the model, `model.pretrained_cfg`.
record = get_pretrained_cfg(NAME)
print(f"{record.hf_hub_id}: {record.input_size}, first kernel {record.first_conv!r}, classifier {record.classifier!r}")

# %% 4. The builder: config -> module
# The class takes the fields of its Config as keywords, so it can be called without any name as well.
model = family.model_of(architecture)(**vars(config))

# %% 5. The weights: found, read, adapted, taken over
# `locate` answers with a file or, from a package, with tensors. Where weights of a family are published in another
# layout, its `adapt` renames them; this one has none.
state = dict(locate(True, record))
if family.adapt:
    state = dict(family.adapt(state, model))
first = f"{record.first_conv}.weight"
state[first] = adapt_input_conv(state[first], config.in_chans)
head = [f"{record.classifier}.weight", f"{record.classifier}.bias"]
for key in head:
    del state[key]  # of a thousand classes; that of the model stays as it was initialised
report = load_into(model, state, allow_missing=head)  # every other key must be there, and fit
print(f"{len(report.loaded)} tensors loaded, {len(report.missing)} fresh: {', '.join(report.missing)}")

# The same in one call, which does not initialise what a file overwrites, and warns that the head is new.
same = opsin.create_model(NAME, pretrained=True, in_chans=1, num_classes=10)
assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items() if key not in head)

# %% 6. The chain: a model says once what it runs, and where maps can be taken
# `forward` runs the stages in order. Features, intermediates, freezing, layer groups and checkpointing are read off it.
for stage in model.chain:
    level = f"{stage.num_chs} channels at 1/{stage.reduction}" if stage.is_level else ""
    print(f"  {', '.join(stage.run):24} {level}")
model.freeze_stages(2)
print(f"frozen: {', '.join(model.frozen)}")

# %% 7. Features: the same parts in another wrapper
# `features_only=True` takes the parts over from the model, which is cut behind the last level asked for and loses its
# head. Token models stay whole and are asked for their intermediates (FeatureGetterNet); any module by name is caught
# with hooks (FeatureHookNet).
for name, how in (
    ("tf_efficientnet_lite0", {}),
    ("vit_tiny_patch16_224", {}),
    ("resnet18", {"out_indices": ("layer1.0.conv1",)}),
):
    net = opsin.create_model(name, features_only=True, **how)
    print(f"  {name}: {type(net).__name__}, {net.feature_info.get_dicts(('module', 'reduction'))}")
body = FeatureListNet(model, out_indices=(1, 3))
assert body.blocks is model.blocks


# %% 8. A model of your own
# A Config, the modules, the chain: the rest is inherited.
@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    width: int = 16
    act_layer: str = "relu"


class Pixels(Model, config=Config):
    """Three convolutions with stride."""

    first_conv = "stem.0"

    def build(self, c: Config) -> None:
        act = get_act_layer(c.act_layer)
        self.stem = nn.Sequential(nn.Conv2d(c.in_chans, c.width, 3, 2, 1), act())
        self.body = nn.Sequential(nn.Conv2d(c.width, 2 * c.width, 3, 2, 1), act())
        self.top = nn.Sequential(nn.Conv2d(2 * c.width, 4 * c.width, 3, 2, 1), act())
        self.chain = (
            Stage(("stem",), c.width, 2, checkpoint=False),
            Stage(("body",), 2 * c.width, 4),
            Stage(("top",), 4 * c.width, 8),
        )
        self.num_features = self.head_hidden_size = 4 * c.width
        self.build_head(c)


# %% … with weights, under a name
# The decorator registers the function by its name. `default_cfgs` of the same module are its weight tags. A plain
# `nn.Module` class works with `build_model_with_cfg` too, without what the chain gives.
save_file(Pixels(width=24).state_dict(), FOLDER / "pixels.safetensors")
default_cfgs = generate_default_cfgs({
    "pixels_24.mine": {"file": str(FOLDER / "pixels.safetensors"), "first_conv": "stem.0", "classifier": "fc"},
})  # fmt: skip


@register_model
def pixels_24(pretrained=False, **kwargs):
    return build_model_with_cfg(Pixels, "pixels_24", pretrained, **{"width": 24, **kwargs})


mine = opsin.create_model("pixels_24.mine", pretrained=True, in_chans=1, features_only=True, out_indices=(0, 2))
print(f"{opsin.list_models('pixels*', pretrained=True)}: {[tuple(m.shape) for m in mine(torch.randn(1, 1, 64, 64))]}")
try:
    opsin.create_model("pixels_24", widht=8)
except OpsinError as error:
    print(error)

# %% The picture
# Above: the chains of six models, one box a stage; a coloured one is a feature level. Below: what became of the
# published weights in step 5, and two maps of the body of step 7.
chains = {
    name: opsin.create_model(name).chain
    for name in ("resnet18", "tf_efficientnet_lite0", "convnext_atto", "swin_tiny_patch4_window7_224", "mobilevit_xxs")
}
chains["pixels_24, of step 8"] = opsin.create_model("pixels_24").chain
strides = (1, 2, 4, 8, 16, 32)
colours = dict(zip(strides, plt.get_cmap("Blues")([0.1, 0.2, 0.32, 0.44, 0.56, 0.68]), strict=True))

figure = plt.figure(figsize=(14, 9.5), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(1.6, 1))
ax = above.subplots()
for row, (name, chain) in enumerate(chains.items()):
    ax.text(-0.1, row, name, ha="right", va="center", weight="bold")
    for place, stage in enumerate(chain):
        ax.barh(row, 0.94, left=place, height=0.72, color=colours[stage.reduction] if stage.is_level else "0.93")
        parts = stage.run if len(stage.run) < 4 else (stage.run[0], "…", stage.run[-1])
        size = f"\n{stage.num_chs} at 1/{stage.reduction}" if stage.is_level else ""
        ax.text(place + 0.47, row, "\n".join(parts) + size, ha="center", va="center", fontsize=8)
ax.set(ylim=(len(chains) - 0.5, -0.5), xlim=(0, max(map(len, chains.values()))))
ax.set_title("chains: what runs, and channels and stride of each feature level")
ax.set_axis_off()

preprocess = Preprocess.from_model(same)  # one channel, as the model has
pixels = preprocess.to_uint8(Image.open(Path(skimage.__file__).parent / "data" / "coffee.png"))
with torch.no_grad():
    maps = body.eval()(preprocess.normalize(pixels)[None])
fate, *pictures = below.subplots(1, 4, width_ratios=(1.4, 1, 1, 1))
total = {key: value.numel() for key, value in same.state_dict().items()}
counts = {
    "as published": sum(n for key, n in total.items() if key not in (first, *head)),
    "adapted to one channel": total[first],
    "fresh: ten classes": sum(total[key] for key in head),
}
bars = fate.barh(list(counts), list(counts.values()), color=("tab:blue", "tab:cyan", "tab:orange"))
fate.bar_label(bars, [f"{n:,}" for n in counts.values()], padding=4)
fate.set(xscale="log", xlim=(1e2, 1e8), title="values, by what became of them")
fate.invert_yaxis()
fate.spines[["top", "right"]].set_visible(False)
rows = body.feature_info.get_dicts()
drawn = [pixels[0], *(m[0, m[0].std(dim=(1, 2)).argmax()] for m in maps)]
titles = ["what goes in", *(f"{r['module']}: a channel of {r['num_chs']}, 1/{r['reduction']}" for r in rows)]
for ax, picture, title, cmap in zip(pictures, drawn, titles, ("gray", "magma", "magma"), strict=True):
    ax.imshow(picture, cmap=cmap)
    ax.set_title(title)
    ax.set_axis_off()
figure.savefig(FOLDER / "inside_create_model.png", dpi=100)
print(f"chains and weights: {FOLDER / 'inside_create_model.png'}")
