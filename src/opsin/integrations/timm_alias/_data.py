"""What `timm.data` shows of label sets, and its constants."""

from collections.abc import Mapping
from typing import Any

from opsin import catalog

__all__ = ["ImageNetInfo", "infer_imagenet_subset"]

DEFAULT_CROP_MODE = "center"

IMAGENET_INCEPTION_MEAN = IMAGENET_INCEPTION_STD = (0.5, 0.5, 0.5)
IMAGENET_DPN_MEAN = (124 / 255, 117 / 255, 104 / 255)
IMAGENET_DPN_STD = (1 / (255 * 0.0167),) * 3
OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# timm's name of a label set -> the catalog's
_SUBSETS = {"imagenet1k": "imagenet-1k", "imagenet21k": "imagenet-21k-goog", "imagenet-21k": "imagenet-21k-goog"}


def infer_imagenet_subset(model_or_cfg: Any) -> str | None:
    """The label set that a model or record with this many classes is published with; None where it is no known one."""
    if isinstance(model_or_cfg, Mapping):
        count = model_or_cfg.get("num_classes")
    else:
        count = getattr(model_or_cfg, "num_classes", None)
    return catalog.label_set_for(count) if count else None


class ImageNetInfo:
    """A label set of the ImageNet family: synset ids and words by class index."""

    def __init__(self, subset: str = "imagenet-1k") -> None:
        self.labels = catalog.label_set(_SUBSETS.get(subset, subset))

    def num_classes(self) -> int:
        return len(self.labels.synsets)

    def label_names(self) -> list[str]:
        """Synset ids in class order."""
        return list(self.labels.synsets)

    def label_descriptions(self, detailed: bool = False, as_dict: bool = False) -> list[str] | dict[str, str]:
        """The words of every class (with the definition when `detailed`), in order, or by synset id."""
        words = catalog.label_descriptions(self.labels.name, detailed=detailed)
        return words if as_dict else list(words.values())

    def index_to_label_name(self, index: int) -> str:
        return self.labels.synsets[index]

    def index_to_description(self, index: int, detailed: bool = False) -> str:
        return self.label_name_to_description(self.labels.synsets[index], detailed)

    def label_name_to_description(self, label: str, detailed: bool = False) -> str:
        return catalog.label_descriptions(self.labels.name, detailed=detailed)[label]
