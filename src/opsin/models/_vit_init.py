"""How vision transformers start: one function per scheme, `(module, name, num_classes) -> done`."""

import math

from torch import nn

from opsin.layers.weight_init import lecun_normal_, trunc_normal_

__all__ = ["INITIALISERS"]


def init_plain(module: nn.Module, name: str, num_classes: int) -> bool:
    if not isinstance(module, nn.Linear):
        return False
    trunc_normal_(module.weight, std=0.02)
    _zero_bias(module)
    return True


def init_jax(module: nn.Module, name: str, num_classes: int, head_bias: float = 0.0) -> bool:
    """As in the original JAX code."""
    if isinstance(module, nn.Conv2d):
        lecun_normal_(module.weight)
        _zero_bias(module)
    elif isinstance(module, nn.Linear) and name.startswith("head"):
        nn.init.zeros_(module.weight)
        nn.init.constant_(module.bias, head_bias)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None and "mlp" in name:
            nn.init.normal_(module.bias, std=1e-6)
        else:
            _zero_bias(module)
    else:
        return False
    return True


def init_jax_nlhb(module: nn.Module, name: str, num_classes: int) -> bool:
    """Negative log head bias: every class begins as equally unlikely."""
    return init_jax(module, name, num_classes, head_bias=-math.log(max(num_classes, 1)))


def init_moco(module: nn.Module, name: str, num_classes: int) -> bool:
    """As in MoCo v3 (https://arxiv.org/abs/2104.02057): queries, keys and values count as three matrices."""
    if not isinstance(module, nn.Linear):
        return False
    if "qkv" in name:
        bound = math.sqrt(6.0 / (module.out_features // 3 + module.in_features))
        nn.init.uniform_(module.weight, -bound, bound)
    else:
        nn.init.xavier_uniform_(module.weight)
    _zero_bias(module)
    return True


def init_reset(module: nn.Module, name: str, num_classes: int) -> bool:
    return False


def _zero_bias(module: nn.Linear | nn.Conv2d) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)


INITIALISERS = {
    "": init_plain,
    "jax": init_jax,
    "jax_nlhb": init_jax_nlhb,
    "moco": init_moco,
    "reset": init_reset,
    "skip": init_reset,
}
