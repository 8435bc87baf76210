"""Networks whose channels were pruned after training are rebuilt from tables of the widths that were left."""

import json
from functools import cache
from importlib.resources import files

import torch
from torch import nn

from opsin.layers.weight_init import skip_init
from opsin.models._chain import locate

__all__ = ["apply_pruning"]


@cache
def _tables() -> dict[str, dict[str, list[int]]]:
    return json.loads((files("opsin.models") / "pruned.json").read_text())


def apply_pruning(model: nn.Module, table: str) -> None:
    """Narrow each convolution, norm and linear layer named in the table to the `[out, in]` channels it gives."""
    with skip_init():
        for path, (out_chs, in_chs) in _tables()[table].items():
            _narrow(locate(model, path), out_chs, in_chs)
    _refresh_levels(model)


def _narrow(module: nn.Module, out_chs: int, in_chs: int) -> None:
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups == module.in_channels and module.groups > 1
        module.out_channels, module.in_channels = out_chs, out_chs if depthwise else in_chs
        module.groups = out_chs if depthwise else 1
        shape = (out_chs, 1 if depthwise else in_chs, *module.kernel_size)
        module.weight = nn.Parameter(module.weight.new_empty(shape))
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.new_empty(out_chs))
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = out_chs
        module.weight = nn.Parameter(module.weight.new_empty(out_chs))
        module.bias = nn.Parameter(module.bias.new_empty(out_chs))
        module.running_mean = torch.zeros_like(module.bias.data)
        module.running_var = torch.ones_like(module.bias.data)
    elif isinstance(module, nn.Linear):
        module.in_features = in_chs
        module.weight = nn.Parameter(module.weight.new_empty(module.out_features, in_chs))
    else:
        raise TypeError(f"a pruning table cannot narrow {type(module).__name__}")


def _refresh_levels(model: nn.Module) -> None:
    """The channels of each feature level after narrowing: those of the last norm or convolution before it."""
    chain, width = [], None
    for stage in model.chain:  # type: ignore[union-attr]
        for path in stage.run:
            for name, module in locate(model, path).named_modules():
                if isinstance(module, nn.BatchNorm2d) and "downsample" not in name:
                    width = module.num_features
        chain.append(stage._replace(num_chs=width) if stage.is_level else stage)
    model.chain = tuple(chain)  # type: ignore[assignment]
    model.num_features = model.head_hidden_size = width  # type: ignore[assignment]
