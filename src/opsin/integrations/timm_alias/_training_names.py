"""Where opsin keeps what `timm.optim`, `timm.scheduler`, `timm.loss` and `timm.utils` show. Each file of such a
package, as old code imports from it, shows all of the package."""

__all__ = ["TRAINING"]

HERE = "opsin.integrations.timm_alias"

Names = dict[str, str]  # name in timm -> "module:attribute"

_OPTIMIZERS = (
    "AdaBelief", "Adadelta", "Adafactor", "AdafactorBigVision", "Adagrad", "Adahessian", "Adam", "AdamP", "AdamW",
    "AdamWLegacy", "Adamax", "Adan", "Adopt", "Kron", "LaProp", "Lamb", "Lars", "Lion", "Lookahead", "MADGRAD", "Mars",
    "Muon", "NAdam", "NAdamLegacy", "NAdamW", "NvNovoGrad", "RAdam", "RAdamLegacy", "RMSprop", "RMSpropTF", "SGD",
    "SGDP", "SGDW",
)  # fmt: skip
_OPTIM: Names = {name: f"{HERE}._optim:{name}" for name in _OPTIMIZERS}
_OTHERS: Names = {
    "freeze_batch_norm_2d": "opsin.layers.frozen_norm:freeze_batch_norm_2d",
    "unfreeze_batch_norm_2d": "opsin.layers.frozen_norm:unfreeze_batch_norm_2d",
    "natural_key": "opsin.catalog:natural_key",
}

# package -> the opsin modules whose names it shows, further names, and its files
_PACKAGES: dict[str, tuple[tuple[str, ...], Names, str]] = {
    "timm.optim": (
        (f"{HERE}._optim_factory",),
        _OPTIM,
        "_optim_factory _param_groups adabelief adafactor adafactor_bv adahessian adamp adamw adan adopt kron lamb "
        "laprop lars lion lookahead madgrad mars muon nadam nadamw nvnovograd optim_factory radam rmsprop_tf sgdp sgdw",
    ),
    "timm.scheduler": (
        (f"{HERE}._scheduler", f"{HERE}._scheduler_factory"),
        {},
        "cosine_lr multistep_lr plateau_lr poly_lr scheduler scheduler_factory step_lr tanh_lr wsd_lr",
    ),
    "timm.loss": (
        (f"{HERE}._loss",),
        {},
        "asymmetric_loss binary_cross_entropy cross_entropy jsd poly_loss two_way_loss zlpr_loss",
    ),
    "timm.utils": (
        (f"{HERE}._utils", f"{HERE}._ema", f"{HERE}._saver"),
        _OTHERS,
        "agc checkpoint_saver clip_grad cuda decay_batch distributed jit log metrics misc model model_ema random "
        "summary",
    ),
}

# module -> (homes, names), as a View takes them
TRAINING: dict[str, tuple[tuple[str, ...], Names]] = {
    module: (homes, names)
    for package, (homes, names, files) in _PACKAGES.items()
    for module in (package, *(f"{package}.{file}" for file in files.split()))
}
