"""The best model of a run as one artefact: weights, architecture, preprocessing, labels and recipe."""

from typing import Any

from opsin.train.config import to_dict
from opsin.weights.artefact import save

__all__ = ["save_artefact"]


def save_artefact(run: Any, model: Any) -> None:
    """Write `best/`, which `opsin.load` opens. The preprocessing is that of the run's validation.

    Every process calls it, since each may hold a part of the weights; the first one writes.
    """
    state = model.state_dict()
    if run.config.run.fsdp:
        from opsin.train.sharded import full_state

        state = full_state(model)
    run.world.share(lambda: _write(run, model, state))


def _write(run: Any, model: Any, state: Any) -> None:
    if run.config.model.split_bn:
        from opsin.train.split_bn import main_state

        state = main_state(model, state)
    fit = run.eval_loader.preprocess
    record = model.pretrained_cfg
    old = dict(record)
    record.update(
        input_size=fit.input_size, interpolation=fit.interpolation, crop_pct=fit.crop_pct, crop_mode=fit.crop_mode,
        mean=fit.mean, std=fit.std,
    )  # fmt: skip
    for name in ("test_input_size", "test_crop_pct"):
        record.pop(name, None)
    try:
        recipe = {"config": to_dict(run.config), "scores": run.history[-1]}
        if run.task.scale is not None:
            recipe["target_scale"] = {"mean": list(run.task.scale.mean), "std": list(run.task.scale.std)}
        heads = run.task.heads
        save(
            model, run.directory.best, recipe=recipe, task=run.task.kind, state=state,
            label_names=[label for head in heads for label in head.labels] or run.task.classes,
            heads=[head.to_dict() for head in heads],
        )  # fmt: skip
    finally:
        record.clear()
        record.update(old)
