"""transformers: TimmWrapper from a config and from a folder in the hub's layout, TimmBackbone, AutoBackbone."""

import sys

import numpy as np
import pytest
import timm
import torch
from common import fill, finish, images, note
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmBackbone,
    TimmBackboneConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)

torch.set_num_threads(1)
torch.set_grad_enabled(False)
folder, x = sys.argv[2], images(2, 3, 64, 96)

model = fill("classifier", TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet18", num_labels=7)))
note("classifier", model(x).logits, *model(x, output_hidden_states=True).hidden_states)
model = fill("model", TimmWrapperModel(TimmWrapperConfig(architecture="resnet18")))
note("model", model(x).last_hidden_state, model(x).pooler_output)
config = TimmWrapperConfig(architecture="test_vit", model_args={"img_size": 64, "dynamic_img_size": True})
model = fill("vit", TimmWrapperForImageClassification(config))
note("vit", model(x).logits)
config = TimmWrapperConfig(architecture="resnet18", model_args={"features_only": True})
model = fill("features", TimmWrapperModel(config))
note("features", *model(x).last_hidden_state)

config = TimmBackboneConfig(backbone="resnet18", out_indices=[1, 3], freeze_batch_norm_2d=True)
model = fill("backbone", TimmBackbone(config))
assert model.out_features == ["layer1", "layer3"], model.out_features
assert model.channels == [64, 256], model.channels
every = model(x, output_hidden_states=True)
note("backbone", *model(x).feature_maps, *every.feature_maps, *every.hidden_states)
model = fill("auto", AutoBackbone.from_config(TimmBackboneConfig(backbone="convnext_atto", out_indices=[-2, -1])))
note("auto", *model(x).feature_maps)

model = AutoModelForImageClassification.from_pretrained(folder).eval()
assert type(model) is TimmWrapperForImageClassification
assert type(model.timm_model) is timm.models.resnet.ResNet
assert model.config.id2label[3] == "tiger shark, Galeocerdo cuvieri", model.config.id2label[3]
pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
inputs = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(pixels))["pixel_values"]
note("folder", inputs, model(inputs).logits)
with pytest.raises(ImportError, match="resnet18_of_nobody"):  # what transformers makes of timm's "Unknown model"
    TimmWrapperModel(TimmWrapperConfig(architecture="resnet18_of_nobody"))
finish()
