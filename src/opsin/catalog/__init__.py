"""Facts about models, weights, accuracy and labels, as tables that are read on demand. Nothing here imports torch.

Source: measured from the published packages and packed by `tools/build_catalog.py`.
"""

from opsin.catalog.labels import (
    LABEL_SETS,
    LabelSet,
    index_map,
    label_definitions,
    label_descriptions,
    label_names,
    label_set,
    label_set_for,
    labels_for,
    real_labels,
)
from opsin.catalog.pretrained import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PretrainedCfg
from opsin.catalog.tables import (
    Accuracy,
    ModelFacts,
    accuracy,
    alias_note,
    aliases_of,
    architectures,
    default_tag,
    is_embedding,
    model_facts,
    natural_key,
    pretrained_cfg,
    pretrained_cfgs,
    resolve_alias,
    tags,
    variants_of_old,
    weight_names,
)

__all__ = [
    "IMAGENET_DEFAULT_MEAN",
    "IMAGENET_DEFAULT_STD",
    "LABEL_SETS",
    "Accuracy",
    "LabelSet",
    "ModelFacts",
    "PretrainedCfg",
    "accuracy",
    "alias_note",
    "aliases_of",
    "architectures",
    "default_tag",
    "index_map",
    "is_embedding",
    "label_definitions",
    "label_descriptions",
    "label_names",
    "label_set",
    "label_set_for",
    "labels_for",
    "model_facts",
    "natural_key",
    "pretrained_cfg",
    "pretrained_cfgs",
    "real_labels",
    "resolve_alias",
    "tags",
    "variants_of_old",
    "weight_names",
]
