"""VGG (https://arxiv.org/abs/1409.1556), with and without batch norm."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers import ClassifierHead, create_act, get_norm_layer
from opsin.layers.weight_init import init_conv_net_
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["VGG", "Config", "ConvMlp"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`cfg` are the channels of the 3x3 convolutions in order, with "M" for a max pool."""

    cfg: tuple[int | str, ...] = ()
    mlp_ratio: float = 1.0  # width of the first hidden layer of the head, of the second's
    act_layer: Any = "relu"
    norm_layer: Any = None


class ConvMlp(nn.Module):
    """The two hidden layers in front of the classifier as convolutions: `(B, C, H, W)` to `(B, out, H - 6, W - 6)`.

    Maps smaller than the first kernel are stretched to its size.
    """

    def __init__(self, in_chs: int, out_chs: int, c: Config, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = int(out_chs * c.mlp_ratio)
        self.kernel_size = kernel_size
        self.fc1 = nn.Conv2d(in_chs, hidden, kernel_size)
        self.act1 = create_act(c.act_layer, inplace=True)
        self.drop = nn.Dropout(c.drop_rate)
        self.fc2 = nn.Conv2d(hidden, out_chs, 1)
        self.act2 = create_act(c.act_layer, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < self.kernel_size:
            x = F.adaptive_avg_pool2d(x, (max(height, self.kernel_size), max(width, self.kernel_size)))
        return self.act2(self.fc2(self.drop(self.act1(self.fc1(x)))))


class VGG(Model, config=Config):
    """3x3 convolutions and max pools in one row, two hidden layers, pooled linear head."""

    positional = ("cfg", "num_classes", "in_chans")
    classifier_path = "head.fc"
    first_conv = "features.0"

    def build(self, c: Config) -> None:
        if not c.cfg or c.cfg[-1] != "M":
            raise ValueError(f"cfg={c.cfg}: channels of convolutions and 'M' for a max pool, which comes last")
        self.features = nn.Sequential()
        chain: list[Stage] = []
        run: list[str] = []
        width, stride = c.in_chans, 1
        for entry in c.cfg:
            if isinstance(entry, str):  # a level ends in front of each pool
                chain.append(Stage(tuple(run), width, stride))
                layers: list[nn.Module] = [nn.MaxPool2d(2)]
                run, stride = [], 2 * stride
            else:
                norm = [get_norm_layer(c.norm_layer)(entry)] if c.norm_layer else []
                layers = [nn.Conv2d(width, entry, 3, 1, 1), *norm, create_act(c.act_layer, inplace=True)]
                width = entry
            run += [f"features.{len(self.features) + i}" for i in range(len(layers))]
            self.features.extend(layers)
        self.chain = (*chain, Stage(tuple(run), width, stride))
        self.num_features, self.head_hidden_size = width, 4096
        self.pre_logits: nn.Module = ConvMlp(width, self.head_hidden_size, c)
        self.build_head(c)

    def build_head(self, c: Config) -> None:
        if hasattr(self, "head"):
            self.head.reset(c.num_classes, c.global_pool)
        else:
            width = self.head_hidden_size
            self.head = ClassifierHead(width, c.num_classes, pool_type=c.global_pool, drop_rate=c.drop_rate)

    def remove_head(self) -> None:
        super().remove_head()
        self.pre_logits = nn.Identity()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(self.pre_logits(x), pre_logits=pre_logits)

    def init_module(self, module: nn.Module, name: str) -> bool:
        return init_conv_net_(module)


ORIGINAL = {"classifier.0.": "pre_logits.fc1.", "classifier.3.": "pre_logits.fc2.", "classifier.6.": "head.fc."}


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """torchvision's layout, with linear layers on the flattened 7x7 map."""
    state = {}
    for key, value in state_dict.items():
        layer = next((old for old in ORIGINAL if key.startswith(old)), "")
        if layer:
            key = ORIGINAL[layer] + key.removeprefix(layer)
            if value.ndim == 2 and layer != "classifier.6.":
                value = value.unflatten(1, (-1, 7, 7) if layer == "classifier.0." else (-1, 1, 1))
        state[key] = value
    return state


A = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
B = (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
D = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
E = (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4, "M")
Normed = partial(Config, norm_layer="batchnorm2d")
VARIANTS = {
    "vgg11": Config(cfg=A),
    "vgg11_bn": Normed(cfg=A),
    "vgg13": Config(cfg=B),
    "vgg13_bn": Normed(cfg=B),
    "vgg16": Config(cfg=D),
    "vgg16_bn": Normed(cfg=D),
    "vgg19": Config(cfg=E),
    "vgg19_bn": Normed(cfg=E),
}

family = Family(VGG, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
