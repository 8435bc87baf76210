"""Learners on these models, and the groups of layers that they train."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from fastai.vision.all import DataLoaders, Learner, Normalize, get_c
from torch import Tensor, nn

from opsin.data.preprocess import Preprocess
from opsin.errors import OpsinError, warn_user
from opsin.factory import Pretrained
from opsin.integrations.fastai._body import Body, Cut, create_vision_model
from opsin.integrations.fastai._unet import create_unet_model
from opsin.models._chain import locate
from opsin.models.features import FeatureGetterNet

__all__ = ["layer_groups", "learner", "unet_learner"]

# arguments of the learner itself; all others go to the model
LEARNER_ARGS = signature(Learner).parameters.keys() - {"dls", "model", "loss_func", "splitter"}


def layer_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of body (or encoder) and head (or decoder), stem to head: one group a stage, the head's the last.

    The splitter of the learners, for learning rates that differ by depth and for `freeze_to`.
    """
    body, head = model.children()
    if not isinstance(body, Body | FeatureGetterNet):
        return [list(body.parameters()), list(head.parameters())]
    *paths, closing = body.model.layer_groups(coarse=True)
    paths[-1] = [*paths[-1], *closing]  # what follows the last stage is no head here
    groups = [[p for path in group for p in _parameters(body.model, path)] for group in paths]
    return [group for group in groups if group] + [list(head.parameters())]


def _parameters(model: nn.Module, path: str) -> list[nn.Parameter]:
    part = locate(model, path)
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def learner(
    dls: DataLoaders,
    arch: str,
    loss_func: Callable | None = None,
    pretrained: Pretrained = True,
    cut: Cut = None,
    splitter: Callable | None = None,
    y_range: tuple[float, float] | None = None,
    config: Mapping[str, Any] | None = None,
    n_out: int | None = None,
    normalize: bool = True,
    **kwargs: Any,
) -> Learner:
    """A fastai Learner that classifies (or regresses) with any of opsin's models; frozen to the head when pretrained.

    Channels and image size follow from a batch of the data.

    Args:
        dls: batches of images (B, C, H, W) and targets.
        arch, pretrained, cut: as for `create_body`.
        loss_func: by default that of the data.
        splitter: groups the parameters; by default `layer_groups`.
        y_range: outputs go through a sigmoid to this range.
        config: options as in `kwargs`, which go before it.
        n_out: outputs; by default as many as the data have classes or targets.
        normalize: normalise batches by the mean and deviation that the model's record names, unless they are already.
        **kwargs: arguments of `fastai.learner.Learner` (`metrics`, `opt_func`, `cbs`, `path`, ...); others go to
            `create_vision_model`.
    """
    named = {"pretrained": pretrained, "cut": cut, "y_range": y_range}
    return _learner(create_vision_model, dls, arch, n_out, loss_func, splitter, normalize, config, named | kwargs)


def unet_learner(
    dls: DataLoaders,
    arch: str,
    loss_func: Callable | None = None,
    pretrained: Pretrained = True,
    splitter: Callable | None = None,
    y_range: tuple[float, float] | None = None,
    config: Mapping[str, Any] | None = None,
    n_out: int | None = None,
    normalize: bool = True,
    **kwargs: Any,
) -> Learner:
    """A fastai Learner that maps images to images, such as segments, with any of opsin's models as encoder of a U-Net.

    Arguments are those of `learner`; other `kwargs` than the Learner's go to `create_unet_model`.
    """
    named = {"pretrained": pretrained, "y_range": y_range}
    return _learner(create_unet_model, dls, arch, n_out, loss_func, splitter, normalize, config, named | kwargs)


def _learner(
    build: Callable[..., nn.Module],
    dls: DataLoaders,
    arch: str,
    n_out: int | None,
    loss_func: Callable | None,
    splitter: Callable | None,
    normalize: bool,
    config: Mapping[str, Any] | None,
    named: dict[str, Any],
) -> Learner:
    images = dls.one_batch()[0]
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise OpsinError("a learner needs batches of images (B, C, H, W) and targets")
    n_out = n_out or get_c(dls)
    if not n_out:
        raise OpsinError("the data do not tell how many outputs the model needs: pass n_out")
    options = {"n_in": images.shape[1], "image_size": tuple(images.shape[-2:])} | dict(config or {})
    options |= {name: value for name, value in named.items() if value is not None}
    learner_args = {name: options.pop(name) for name in LEARNER_ARGS & options.keys()}
    model = build(arch, n_out, **options)
    if normalize:
        _normalize(dls, next(model.children()).pretrained_cfg, options["n_in"])  # type: ignore[arg-type]
    learn = Learner(dls, model, loss_func=loss_func, splitter=splitter or layer_groups, **learner_args)
    if options["pretrained"] is not False:
        learn.freeze()
    return learn


def _normalize(dls: DataLoaders, record: Mapping[str, Any], n_in: int) -> None:
    """Normalise batches as the record says; data that are normalised otherwise stay so, with a warning."""
    figures = Preprocess.from_cfg(record, in_chans=n_in)
    there = [transform for transform in dls.train.after_batch.fs if isinstance(transform, Normalize)]
    if not there:
        on_gpu = dls.device is not None and torch.device(dls.device).type != "cpu"
        dls.add_tfms([Normalize.from_stats(figures.mean, figures.std, cuda=on_gpu)], "after_batch")
        return
    mean, std = ([round(v, 4) for v in t.flatten().tolist()] for t in (there[0].mean, there[0].std))
    wanted = [[round(v, 4) for v in values] for values in (figures.mean, figures.std)]
    if [mean, std] != wanted:
        warn_user(
            f"the data are already normalised by mean {mean} and deviation {std}; {record['architecture']} wants "
            f"{wanted[0]} and {wanted[1]}. Make new DataLoaders without Normalize, or pass normalize=False"
        )
