"""LeViT (https://arxiv.org/abs/2104.01136) with its linear layers stored as 1x1 convolutions; see `levit`."""

from dataclasses import replace

from opsin.models._family import Family
from opsin.models.levit import FIGURES, PLAIN, Levit, LevitDistilled, adapt

__all__: list[str] = []

VARIANTS = {f"levit_conv_{name}": replace(config, use_conv=True) for name, config in FIGURES.items()}

family = Family(
    LevitDistilled,
    VARIANTS,
    adapt=adapt,
    models={f"levit_conv_{name}": Levit for name in PLAIN},
    flatten_features=True,
)
__getattr__ = family.module_getattr(__name__)
