"""The record of one weight tag: where the weights live and how their images were prepared. No torch here."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from opsin.errors import check_known

__all__ = ["IMAGENET_DEFAULT_MEAN", "IMAGENET_DEFAULT_STD", "PretrainedCfg"]

IMAGENET_DEFAULT_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEFAULT_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class PretrainedCfg:
    """Source, licence and preprocessing of one set of weights. Sizes are (channels, height, width).

    An empty record (no source) describes a model without published weights; its preprocessing still applies.
    """

    architecture: str = ""
    tag: str = ""
    # where the weights live; the first that is set wins in the order file, hf_hub_id, url
    file: str | None = None
    hf_hub_id: str | None = None
    hf_hub_filename: str | None = None
    url: str | None = None
    custom_load: bool = False  # the url holds an original layout (.npz) that the hub copy has already converted
    # what the images looked like
    input_size: tuple[int, int, int] = (3, 224, 224)
    test_input_size: tuple[int, int, int] | None = None
    min_input_size: tuple[int, int, int] | None = None
    fixed_input_size: bool = False
    pool_size: tuple[int, int] | None = None
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    test_crop_pct: float | None = None
    crop_mode: str = "center"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    # what the weights say
    num_classes: int = 1000
    label_offset: int = 0
    label_names: tuple[str, ...] | None = None
    label_descriptions: dict[str, str] | None = None
    first_conv: str | tuple[str, ...] | None = None
    classifier: str | tuple[str, ...] | None = None
    # where they come from
    license: str | None = None
    description: str | None = None
    origin_url: str | None = None
    paper_name: str | None = None
    paper_ids: str | tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """`architecture.tag`, or the bare architecture when there is no tag."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture

    @property
    def has_weights(self) -> bool:
        return any((self.file, self.hf_hub_id, self.url))

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "PretrainedCfg":
        """Build from a plain mapping (a hub `config.json`, an overlay): lists become tuples, unknown keys raise."""
        check_known(record, [f.name for f in fields(cls)], owner="pretrained_cfg")
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**fixed)

    def overlay(self, **changes: Any) -> "PretrainedCfg":
        """A copy with some fields replaced; unknown names raise with the nearest right one.

        A source among them (`file`, `hf_hub_id`, `url`) goes before what the record has.
        """
        check_known(changes, [f.name for f in fields(self)], owner="pretrained_cfg")
        if changes.get("hf_hub_id"):
            changes = {"file": None, "hf_hub_filename": None} | changes
        elif changes.get("url"):
            changes = {"file": None, "hf_hub_id": None, "hf_hub_filename": None, "custom_load": False} | changes
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
        return replace(self, **fixed)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, as the plain dict the field calls `pretrained_cfg`."""
        return {k: v for k, v in asdict(self).items() if v is not None}
