"""What `timm.data` shows: label sets, constants, and the evaluation transform."""

from collections.abc import Mapping
from typing import Any

from opsin import catalog
from opsin.data import preprocess
from opsin.data.preprocess import Preprocess
from opsin.errors import OpsinError

__all__ = ["ImageNetInfo", "create_transform", "infer_imagenet_subset"]

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


class ToTensor(Preprocess):
    """The evaluation transform with the face of a composed one. transformers looks for this class name in `transforms`
    to know that pictures go in, not tensors."""

    @property
    def transforms(self) -> list["ToTensor"]:
        return [self]


class NoTrainingTransform:
    """Stands where a training transform was asked for, and says on use that there is none."""

    def __call__(self, image: Any) -> Any:
        raise OpsinError(
            "opsin, which stands in for timm here, has no training transform: use your own, such as torchvision's, "
            "or create_transform(..., is_training=False) for evaluation"
        )

    @property
    def transforms(self) -> list[Any]:
        return [self]


# what timm's create_transform takes for training, and passes over when it makes the evaluation transform
_TRAINING = frozenset({
    "no_aug", "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter", "color_jitter_prob",
    "grayscale_prob", "gaussian_blur_prob", "auto_augment", "re_prob", "re_mode", "re_count", "re_num_splits",
    "separate",
})  # fmt: skip
_OTHER = {"use_prefetcher": False, "normalize": True, "tf_preprocessing": False, "naflex": False}


def create_transform(input_size: Any = 224, is_training: bool = False, **kwargs: Any) -> Any:
    """The evaluation transform from the figures of `resolve_data_config`.

    With `is_training` it is an object that raises when it is called: transformers makes both and uses one. Figures of
    training are passed over for evaluation, as in timm; what would change the result and is not to be had raises.
    """
    if is_training:
        return NoTrainingTransform()
    kwargs = {name: value for name, value in kwargs.items() if name not in _TRAINING and value is not None}
    for name, only in _OTHER.items():
        if (value := kwargs.pop(name, only)) != only:
            raise OpsinError(f"create_transform({name}={value}): opsin has {name}={only} only")
    made = preprocess.create_transform(input_size, **kwargs)
    return ToTensor(**{name: getattr(made, name) for name in Preprocess.__dataclass_fields__})
