"""segmentation-models-pytorch: encoders created by timm, and encoders that subclass its models."""

import segmentation_models_pytorch as smp
import torch
from common import fill, finish, images, note
from segmentation_models_pytorch.encoders import get_preprocessing_params

torch.set_num_threads(1)
for encoder in ("tu-resnet18", "tu-convnext_atto", "timm-skresnet18", "timm-tf_efficientnet_lite0"):
    model = fill(encoder, smp.Unet(encoder, encoder_weights=None, classes=2))
    out = model(images(1, 3, 64, 96))
    out.square().mean().backward()
    grads = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    note(encoder, out, torch.stack(grads))
params = get_preprocessing_params("tu-resnet18")
note("preprocessing", torch.tensor([params["mean"], params["std"]]))
finish()
