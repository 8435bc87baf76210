"""What `timm.data.auto_augment`, `.mixup` and `.random_erasing` show: opsin's augmentation under timm's arguments.

Chance comes from torch's global generator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsin.data.augment import erase, mix, policies
from opsin.data.augment.magnitudes import OPERATIONS, Operation, Setting
from opsin.data.transforms import RANDOM
from opsin.errors import OpsinError, check_choice, check_known
from opsin.integrations.timm_alias._pictures import Picture, fresh_rng, interp_mode_to_str, to_picture, to_pixels

__all__ = ["FastCollateMixup", "Mixup", "RandAugment", "RandomErasing", "rand_augment_transform"]

# --- policies --------------------------------------------------------------------------------------------------------

GREY = (128, 128, 128)  # of what comes in from outside, unless `img_mean` says otherwise
HPARAMS = ("img_mean", "interpolation", "magnitude_max", "magnitude_std", "translate_const", "translate_pct")


def setting_of(hparams: Mapping[str, Any] | None, share: float = 0.45) -> Setting:
    """What geometric operations share, from timm's `hparams`."""
    given = dict(hparams or {})
    check_known(given, HPARAMS, owner="hparams of a policy")
    modes = given.get("interpolation", RANDOM)
    return Setting(
        fill=tuple(given.get("img_mean", GREY)),
        interpolation=tuple(map(interp_mode_to_str, modes if isinstance(modes, list | tuple) else (modes,))),
        translate_pixels=given.get("translate_const", 250),
        translate_share=given.get("translate_pct", share),
    )


class Augment:
    """One of opsin's policies, or operations, on Pillow images."""

    def __init__(self, policy: policies.Policy) -> None:
        self.policy = policy

    def __call__(self, image: Picture) -> Picture:
        return to_picture(self.policy(np.ascontiguousarray(to_pixels(image)), fresh_rng()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.policy})"


class AugmentOp(Augment):
    """One operation by name; see `opsin.data.augment.magnitudes`."""

    def __init__(
        self, name: str, prob: float = 0.5, magnitude: float = 10, hparams: Mapping[str, Any] | None = None
    ) -> None:
        check_choice(name, OPERATIONS, what="operation")
        more = hparams or {}
        self.name = name
        self.operation = Operation(
            name=name,
            setting=setting_of(hparams),
            magnitude=magnitude,
            probability=prob,
            deviation=more.get("magnitude_std", 0.0),
            maximum=more.get("magnitude_max", Operation.maximum),
        )
        super().__init__(self.operation)


class RandAugment(Augment):
    """`num_layers` of these operations, drawn evenly, or by weights and then none of them twice."""

    def __init__(
        self, ops: Sequence[AugmentOp], num_layers: int = 2, choice_weights: Sequence[float] | None = None
    ) -> None:
        weights = None if choice_weights is None else np.asarray(choice_weights) / np.sum(choice_weights)
        operations = [op.operation for op in ops]
        super().__init__(policies.RandAugment(operations=operations, count=num_layers, weights=weights))


class AutoAugment(Augment):
    """One of these sub-policies, its operations in their order."""

    def __init__(self, policy: Sequence[Sequence[AugmentOp]]) -> None:
        super().__init__(policies.AutoAugment([[op.operation for op in row] for row in policy]))


class AugMixAugment(Augment):
    """Chains of these operations, mixed; `depth` below 1 is 1 to 3 at random."""

    def __init__(
        self, ops: Sequence[AugmentOp], alpha: float = 1.0, width: int = 3, depth: int = -1, blended: bool = False
    ) -> None:
        operations = [op.operation for op in ops]
        super().__init__(
            policies.AugMix(operations=operations, alpha=alpha, width=width, depth=max(depth, 0), blended=blended)
        )


def rand_augment_ops(
    magnitude: float = 10,
    prob: float = 0.5,
    hparams: Mapping[str, Any] | None = None,
    transforms: Sequence[str] | Mapping[str, float] | None = None,
) -> list[AugmentOp]:
    """The operations of RandAugment, or those named."""
    return [AugmentOp(name, prob, magnitude, hparams) for name in transforms or policies.RAND]


def augmix_ops(
    magnitude: float = 10,
    hparams: Mapping[str, Any] | None = None,
    transforms: Sequence[str] | None = None,
) -> list[AugmentOp]:
    """The operations of AugMix, or those named."""
    return [AugmentOp(name, 1.0, magnitude, hparams) for name in transforms or policies.AUGMIX]


def auto_augment_policy(name: str = "v0", hparams: Mapping[str, Any] | None = None) -> list[list[AugmentOp]]:
    """The sub-policies of one of AutoAugment's policies."""
    check_choice(name, policies.AUTO, what="policy of AutoAugment")
    return [[AugmentOp(op, p, m, hparams) for op, p, m in row] for row in policies.subpolicies(name)]


def _from_string(config: str, kinds: Sequence[str], hparams: Mapping[str, Any] | None) -> policies.Policy:
    kind = config.partition("-")[0]
    check_choice(kind, kinds, what="policy of this sort", where=config)
    for key, short in (("magnitude_std", "mstd"), ("magnitude_max", "mmax")):
        if hparams and key in hparams:  # it comes before what the string says
            config = "-".join(word for word in config.split("-") if not word.startswith(short))
            config += f"-{short}{hparams[key]}"
    return policies.make_policy(config, setting_of(hparams, policies.translate_share(config)))


def rand_augment_transform(
    config_str: str,
    hparams: Mapping[str, Any] | None = None,
    transforms: str | Sequence[str] | Mapping[str, float] | None = None,
) -> Augment:
    """RandAugment by its string, on Pillow images; `transforms` names the operations, with their weights if a dict."""
    if transforms:
        config_str += f"-t{transforms if isinstance(transforms, str) else '+'.join(transforms)}"
    policy = _from_string(config_str, ("rand",), hparams)
    if isinstance(transforms, Mapping):
        weights = np.array(list(transforms.values()))
        policy = replace(policy, weights=weights / weights.sum())  # type: ignore[type-var]
    return Augment(policy)


def augment_and_mix_transform(config_str: str, hparams: Mapping[str, Any] | None = None) -> Augment:
    """AugMix by its string, on Pillow images."""
    return Augment(_from_string(config_str, ("augmix",), hparams))


def auto_augment_transform(config_str: str, hparams: Mapping[str, Any] | None = None) -> Augment:
    """AutoAugment or 3-Augment by its string, on Pillow images."""
    return Augment(_from_string(config_str, tuple(policies.AUTO), hparams))


# --- erasing ---------------------------------------------------------------------------------------------------------


class RandomErasing(erase.RandomErasing):
    """Erase in place, in one picture (C, H, W) or in some of a batch. Noise is drawn where the pictures are, whatever
    `device` says."""

    def __init__(
        self,
        probability: float = 0.5,
        min_area: float = 0.02,
        max_area: float = 1 / 3,
        min_aspect: float = 0.3,
        max_aspect: float | None = None,
        mode: str = "const",
        min_count: int = 1,
        max_count: int | None = None,
        num_splits: int = 0,
        device: Any = None,
    ) -> None:
        super().__init__(
            probability,
            min_area,
            max_area=max_area,
            min_aspect=min_aspect,
            max_aspect=max_aspect,
            mode=(mode or "const").lower(),
            min_count=min_count,
            max_count=max_count or None,
            num_splits=num_splits,
        )

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Floats (C, H, W) or (B, C, H, W), erased; `generator` in place of torch's global one."""
        whole = images if images.ndim == 4 else images[None]
        if images.ndim == 3 and self.num_splits > 1:
            raise OpsinError(f"one picture is no batch of {self.num_splits} parts")
        super().__call__(whole, generator or torch.default_generator)
        return images

    def __repr__(self) -> str:
        return f"RandomErasing(p={self.probability}, mode={self.mode}, count={self.count})"


# --- mixing ----------------------------------------------------------------------------------------------------------


class Mixup(mix.Mix):
    """`images, targets = mixup(images, targets)`, see `opsin.data.Mix`. A batch may have an odd number of pictures.

    `mixup_enabled` turned off leaves the pictures as they are, and the targets smoothed.
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
    ) -> None:
        super().__init__(
            mixup_alpha,
            cutmix_alpha,
            cutmix_minmax=cutmix_minmax,
            prob=prob,
            switch_prob=switch_prob,
            mode=mode,
            correct_lam=correct_lam,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
            multi_label=multi_label,
        )
        # workers that outlive an epoch hold a copy of this object, and share its memory
        self._enabled = torch.ones((), dtype=torch.bool).share_memory_()

    @property
    def mixup_enabled(self) -> bool:
        return bool(self._enabled)

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        self._enabled.fill_(bool(value))

    def _draw(self, batch: int, height: int, width: int, rng: np.random.Generator) -> list[mix.Draw]:
        draws = super()._draw(batch, height, width, rng)
        return draws if self.mixup_enabled else [mix.Draw()] * len(draws)

    def __call__(
        self, images: Tensor, targets: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return super().__call__(images, targets, generator or torch.default_generator)


class FastCollateMixup(Mixup):
    """A `collate_fn` that mixes uint8 pictures: a list of (picture (C, H, W), class) to a batch of both."""

    def __call__(self, batch: Sequence[tuple[Any, int]], _: Any = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        images = torch.stack([torch.as_tensor(image) for image, _ in batch])
        mixed, rows = super().__call__(images.float(), torch.tensor([target for _, target in batch]))
        return (mixed.round_().to(images.dtype) if images.dtype == torch.uint8 else mixed), rows


def one_hot(x: Tensor, num_classes: int, on_value: float = 1.0, off_value: float = 0.0) -> Tensor:
    """Classes as rows with one value at the class and another elsewhere."""
    rows = mix.soft_targets(x.reshape(-1), num_classes)
    return torch.where(rows > 0, on_value, off_value)


def mixup_target(
    target: Tensor, num_classes: int, lam: float = 1.0, smoothing: float = 0.0, multi_label: bool = False
) -> Tensor:
    """Smoothed rows of targets, each averaged with the one at the same place from the end."""
    rows = mix.soft_targets(target, num_classes, smoothing=smoothing, multi_label=multi_label)
    return torch.lerp(rows.flip(0), rows, lam)
