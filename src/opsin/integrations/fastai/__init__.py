"""fastai learners on any of opsin's models.

    from fastai.vision.all import *
    from opsin.integrations.fastai import learner

    learn = learner(dls, "convnext_tiny", metrics=accuracy)
    learn.fine_tune(3)

The names under which such learners went around before (`timm_learner`, `create_timm_model`, `create_timm_body`) are
here as well.
"""

try:
    import fastai
except ModuleNotFoundError as error:
    if error.name != "fastai":
        raise
    raise ModuleNotFoundError(
        "opsin.integrations.fastai needs fastai, which comes with an extra: pip install 'opsin[fastai]'", name="fastai"
    ) from None

import fastai.vision.all  # noqa: F401  # all of it: learners get their methods from modules they do not import

from opsin.integrations.fastai._body import Body, create_body, create_vision_model
from opsin.integrations.fastai._learner import layer_groups, learner, unet_learner
from opsin.integrations.fastai._unet import Unet, create_unet_model

__all__ = [
    "Body",
    "Unet",
    "create_body",
    "create_timm_body",
    "create_timm_model",
    "create_unet_model",
    "create_vision_model",
    "layer_groups",
    "learner",
    "timm_learner",
    "unet_learner",
]

# the names that scripts know
create_timm_body = create_body
create_timm_model = create_vision_model
timm_learner = learner
