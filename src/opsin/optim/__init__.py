"""Optimizers by name, and parameters in groups for them."""

from opsin.optim.groups import describe_groups, param_groups
from opsin.optim.registry import OptimizerInfo, create_optimizer, list_optimizers, optimizer_info

__all__ = [
    "OptimizerInfo",
    "create_optimizer",
    "describe_groups",
    "list_optimizers",
    "optimizer_info",
    "param_groups",
]
