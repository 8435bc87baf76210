"""`timm.optim`: opsin's classes, which take their arguments in timm's order and under its names.

Where opsin has one way of what an argument chooses, any other choice raises.
"""

from collections.abc import Callable, Mapping
from inspect import Signature
from inspect import signature as signature_of
from typing import Any, ClassVar

import torch
from torch import optim

from opsin.errors import OpsinError, check_choice
from opsin.integrations.timm_alias._signature import REQUIRED, bind, signature
from opsin.optim import (
    adabelief,
    adafactor,
    adafactor_bv,
    adahessian,
    adamw,
    adan,
    adopt,
    kron,
    lamb,
    laprop,
    lars,
    lion,
    lookahead,
    madgrad,
    mars,
    muon,
    novograd,
    projected,
    rmsprop_tf,
    sgd,
    sgdw,
)
from opsin.optim._common import check_saved

__all__ = ["CLASSES", "Lookahead"]

Arguments = dict[str, Any]


class _InOrder(optim.Optimizer):
    """An optimizer of opsin behind timm's constructor."""

    __signature__: ClassVar[Signature]
    only: ClassVar[Mapping[str, Any]] = {}  # arguments that opsin does not have -> the one value it stands for
    adapt: ClassVar[Callable[[Arguments], Arguments]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        given = bind(name, self.__signature__, args, kwargs)
        for key, value in self.only.items():
            if (got := given.pop(key)) != value:
                raise OpsinError(f"opsin's {name} has no {key}={got!r}: leave it at {value!r}")
        super().__init__(**type(self).adapt(given))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_saved(self, state_dict)  # torch's own would fill in what is missing
        super().load_state_dict(state_dict)


def _like(
    base: Any,
    order: str,
    *,
    name: str = "",
    only: Mapping[str, Any] | None = None,
    other: Mapping[str, Any] | None = None,
    adapt: Callable[[Arguments], Arguments] = lambda given: given,
) -> Any:
    """A subclass of `base` that takes the arguments of `order` after the parameters. Defaults are those of `base`, but
    for those of `only` (see `_InOrder`) and of `other`, which `adapt` makes into what `base` takes."""
    known = {key: p.default for key, p in signature_of(base).parameters.items()} | {**(only or {}), **(other or {})}
    space = {
        "__module__": __name__, "__doc__": base.__doc__, "only": only or {}, "adapt": staticmethod(adapt),
        "__signature__": signature("params", {key: known[key] for key in order.split()}),
    }  # fmt: skip
    return type(name or base.__name__, (_InOrder, base), space)


def _adafactor(given: Arguments) -> Arguments:
    """The weights scale the paper's own rate only, unless that is not wanted either."""
    return given | {"scale_parameter": None if given["scale_parameter"] else False}


def _big_vision(given: Arguments) -> Arguments:
    dtype = given["momentum_dtype"]
    given["momentum_dtype"] = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return given | {"momentum": given["momentum"] or 0.0, "eps": given["eps"] or 1e-30}


COEFFICIENTS = {"quintic": muon.QUINTIC, "original": (3.4445, -4.7750, 2.0315)}


def _muon(given: Arguments) -> Arguments:
    triples, rate = given["ns_coefficients"], given.pop("adamw_lr")
    if isinstance(triples, str):
        check_choice(triples, COEFFICIENTS, what="ns_coefficients")
        given["ns_coefficients"] = COEFFICIENTS[triples]
    return given | ({} if rate is None else {"fallback_lr_scale": rate / given["lr"]})


def _kron(given: Arguments) -> Arguments:
    """A decay is decoupled from what is whitened either way, and probes repeat themselves."""
    del given["decoupled_decay"], given["deterministic"]
    return given


_SAME = {"maximize": False, "capturable": False, "differentiable": False}
_ADAMW = {"amsgrad": False, "maximize": False, "capturable": False, "clipping_threshold": None}
_KRON = {
    "memory_save_mode": None, "mu_dtype": None, "precond_dtype": None, "flatten": False, "flatten_start_dim": 2,
    "flatten_end_dim": -1, "stochastic_weight_decay": False,
}  # fmt: skip
_MUON = {
    "safety_factor": 1.0, "conv_mode": "flatten", "normalize_spatial": True, "algo": "muon", "scale_eps": False,
    "capturable": False, "verbose": False,
}  # fmt: skip
_CAUTION = "caution corrected_weight_decay maximize foreach capturable clipping_threshold"

CLASSES: dict[str, Any] = {
    made.__name__: made
    for made in (
        _like(
            adabelief.AdaBelief,
            "lr betas eps weight_decay amsgrad decoupled_decay fixed_decay rectify degenerated_to_sgd foreach",
            only={"amsgrad": False},
        ),
        _like(
            adafactor.Adafactor,
            "lr eps eps_scale clip_threshold decay_rate betas weight_decay scale_parameter warmup_init "
            "min_dim_size_to_factor caution",
            other={"scale_parameter": True},
            adapt=_adafactor,
        ),
        _like(
            adafactor_bv.AdafactorBigVision,
            "lr min_dim_size_to_factor decay_rate decay_offset beta2_cap momentum momentum_dtype eps weight_decay "
            "clipping_threshold unscaled_wd caution corrected_weight_decay",
            other={"eps": None},
            adapt=_big_vision,
        ),
        _like(adahessian.Adahessian, "lr betas eps weight_decay hessian_power update_each n_samples avg_conv_kernel"),
        _like(projected.AdamP, "lr betas eps weight_decay delta wd_ratio nesterov caution"),
        _like(adamw.AdamW, f"lr betas eps weight_decay amsgrad {_CAUTION}", name="AdamWLegacy", only=_ADAMW),
        _like(
            adamw.AdamW,
            f"lr betas eps weight_decay {_CAUTION}",
            name="NAdamW",
            only={key: value for key, value in _ADAMW.items() if key != "amsgrad"},
            adapt=lambda given: given | {"nesterov": True},
        ),
        _like(adan.Adan, "lr betas eps weight_decay no_prox caution foreach"),
        _like(
            adopt.Adopt,
            "lr betas eps clip_exp weight_decay decoupled corrected_weight_decay caution foreach maximize capturable "
            "differentiable",
            only=_SAME,
        ),
        _like(
            kron.Kron,
            "lr momentum weight_decay preconditioner_update_probability max_size_triangular min_ndim_triangular "
            "memory_save_mode momentum_into_precond_update precond_lr precond_init_scale mu_dtype precond_dtype "
            "decoupled_decay corrected_weight_decay flatten flatten_start_dim flatten_end_dim stochastic_weight_decay "
            "deterministic",
            only=_KRON,
            other={"decoupled_decay": False, "deterministic": False},
            adapt=_kron,
        ),
        _like(
            lamb.Lamb,
            "lr bias_correction betas eps weight_decay grad_averaging max_grad_norm trust_clip always_adapt caution "
            "decoupled_decay corrected_weight_decay foreach",
        ),
        _like(laprop.LaProp, "lr betas eps weight_decay caution corrected_weight_decay foreach"),
        _like(lars.Lars, "lr momentum dampening weight_decay nesterov trust_coeff eps trust_clip always_adapt foreach"),
        _like(
            lion.Lion,
            "lr betas weight_decay caution corrected_weight_decay maximize foreach",
            only={"maximize": False},
        ),
        _like(madgrad.MADGRAD, "lr momentum weight_decay eps decoupled_decay"),
        _like(
            mars.Mars,
            "lr betas eps weight_decay gamma mars_type optimize_1d lr_1d_factor betas_1d caution",
        ),
        _like(
            muon.Muon,
            "lr weight_decay momentum nesterov ns_steps ns_coefficients eps safety_factor adjust_lr_fn conv_mode "
            "normalize_spatial adamw_lr fallback_lr_scale betas algo scale_eps capturable verbose",
            only=_MUON,
            other={"ns_coefficients": "quintic", "adamw_lr": None},
            adapt=_muon,
        ),
        _like(
            optim.NAdam,
            "lr betas eps weight_decay schedule_decay",
            name="NAdamLegacy",
            other={"schedule_decay": 4e-3},
            adapt=lambda given: given | {"momentum_decay": given.pop("schedule_decay")},
        ),
        _like(
            novograd.NovoGrad,
            "lr betas eps weight_decay grad_averaging amsgrad decoupled_decay corrected_weight_decay",
            name="NvNovoGrad",
            only={"amsgrad": False},
        ),
        _like(
            optim.RAdam,
            "lr betas eps weight_decay",
            name="RAdamLegacy",
            adapt=lambda given: given | {"decoupled_weight_decay": True},
        ),
        _like(
            rmsprop_tf.RMSpropTF,
            "lr alpha eps weight_decay momentum centered decoupled_decay corrected_weight_decay lr_in_momentum "
            "caution foreach",
        ),
        _like(
            projected.SGDP,
            "lr momentum dampening weight_decay nesterov eps delta wd_ratio caution",
            other={"lr": REQUIRED},
        ),
        _like(
            sgdw.SGDW,
            "lr momentum dampening weight_decay nesterov caution corrected_weight_decay maximize foreach "
            "differentiable",
            only={"maximize": False, "differentiable": False},
        ),
    )
}
CLASSES |= {
    made.__name__: made
    for made in (optim.Adadelta, optim.Adagrad, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam)
}
CLASSES |= {"RMSprop": optim.RMSprop, "SGD": sgd.SGD}


class Lookahead(lookahead.Lookahead):
    """opsin's, with the arguments' names in timm."""

    def __init__(self, base_optimizer: optim.Optimizer, alpha: float = 0.5, k: int = 6) -> None:
        super().__init__(base_optimizer, k=k, alpha=alpha)

    @torch.no_grad()
    def sync_lookahead(self) -> None:
        """Let the slow weights follow now."""
        for group in self.param_groups:
            self._sync([p for p in group["params"] if p.grad is not None], group["lookahead_alpha"])


def __getattr__(name: str) -> Any:
    if name in CLASSES:
        return CLASSES[name]
    raise AttributeError(name)
