"""Every family as a fastai body and as the encoder of a U-Net."""

import pytest
import torch
from support import FAMILIES, image_size, images, shrink, smallest

from opsin.integrations.fastai import create_unet_model, create_vision_model, layer_groups

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def check_groups(model):
    """Groups of layers hold every parameter once; the last is the head."""
    groups = layer_groups(model)
    held = [id(p) for group in groups for p in group]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters()}
    *_, head = model.children()
    assert {id(p) for p in groups[-1]} == {id(p) for p in head.parameters()}
    assert len(groups) >= 4


def test_body_and_head(family):
    arch, x = smallest(family), images(family)
    model = create_vision_model(arch, 37, pretrained=False, **shrink(arch))
    body, _head = model
    features = body(x)
    assert features.shape[:2] == (2, body.num_features)
    assert features.ndim == 4
    assert features.shape[2] > 1 or features.shape[3] > 1
    out = model(x)
    assert out.shape == (2, 37)
    out.square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]  # nothing of the old head is left
    check_groups(model)


@torch.no_grad()
def test_unet_takes_odd_sizes(family):
    arch = smallest(family)
    height, width = (side + odd for side, odd in zip(image_size(arch), (1, -3), strict=True))
    args = {name: value for name, value in shrink(arch).items() if name != "img_size"}
    model = create_unet_model(arch, 4, pretrained=False, image_size=(height, width), **args)
    assert model(torch.randn(2, 3, height, width)).shape == (2, 4, height, width)
    strides = model.encoder.feature_info.reduction()
    assert strides == sorted(set(strides))
    joined = [strides[skip] for skip in model.decoder.skips if skip is not None]
    assert joined == strides[:-1][::-1]  # every stride above the deepest has its skip
    check_groups(model)
