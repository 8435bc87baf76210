"""open_clip: an image tower created by timm, its partial freezing by layer groups, and its attention pools."""

import open_clip
import timm
import torch
from common import RESULTS, fill, finish, images, note
from open_clip.timm_model import TimmModel

torch.set_num_threads(1)
torch.set_grad_enabled(False)
in_place = hasattr(timm, "__opsin__")
# of real timm only the keys are wanted here, so 150 million values are spared
device = torch.device("cpu" if in_place else "meta")
with device:
    model = open_clip.create_model("convnext_base", pretrained=None, device=device)
assert isinstance(model.visual, TimmModel)
RESULTS["keys"]["convnext_base"] = {key: tuple(value.shape) for key, value in model.state_dict().items()}
if in_place:
    out = model.eval().encode_image(images(1, 3, 64, 64))
    assert out.shape == (1, model.text_projection.shape[1])
    assert out.isfinite().all()
    assert out.std() > 0
model.lock_image_tower(unlocked_groups=1)
assert all(p.requires_grad == name.startswith("head.") for name, p in model.visual.trunk.named_parameters())

for arch, pool, size in (("convnext_atto", "avg", 64), ("resnet18", "abs_attn", 224), ("resnet18", "rot_attn", 96)):
    tower = fill(f"{arch} {pool}", TimmModel(arch, 16, image_size=size, pool=pool, proj="mlp" if pool == "avg" else ""))
    note(f"{arch} {pool}", tower(images(1, 3, size, size)))
finish()
