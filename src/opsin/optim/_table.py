"""All optimizers: a row a name, and what is known of each class."""

from typing import Any, NamedTuple

__all__ = ["KINDS", "OPTIMIZERS", "Kind", "Row"]


class Kind(NamedTuple):
    """A class: its paper, and the size of its state as a multiple of the parameters' own."""

    paper: str
    memory: float


class Row(NamedTuple):
    """A name: its class, and the arguments that the name stands for."""

    home: str  # "module:Class"
    description: str
    options: dict[str, Any] = {}


KINDS: dict[str, Kind] = {
    "torch.optim:SGD": Kind("https://proceedings.mlr.press/v28/sutskever13.html", 1),
    "torch.optim:ASGD": Kind("https://doi.org/10.1137/0330046", 1),
    "torch.optim:Rprop": Kind("https://doi.org/10.1109/ICNN.1993.298623", 2),
    "torch.optim:Adam": Kind("https://arxiv.org/abs/1412.6980", 2),
    "torch.optim:AdamW": Kind("https://arxiv.org/abs/1711.05101", 2),
    "torch.optim:NAdam": Kind("https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ", 2),
    "torch.optim:RAdam": Kind("https://arxiv.org/abs/1908.03265", 2),
    "torch.optim:Adamax": Kind("https://arxiv.org/abs/1412.6980", 2),
    "torch.optim:Adagrad": Kind("https://jmlr.org/papers/v12/duchi11a.html", 1),
    "torch.optim:Adadelta": Kind("https://arxiv.org/abs/1212.5701", 2),
    "torch.optim:RMSprop": Kind("https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf", 2),
}

MOMENTUM = {"momentum": 0.9}

OPTIMIZERS: dict[str, Row] = {
    "sgd": Row("torch.optim:SGD", "SGD with Nesterov's momentum", MOMENTUM | {"nesterov": True}),
    "nesterov": Row("torch.optim:SGD", "SGD with Nesterov's momentum", MOMENTUM | {"nesterov": True}),
    "momentum": Row("torch.optim:SGD", "SGD with momentum", MOMENTUM),
    "adam": Row("torch.optim:Adam", "Adam: steps by the moments of the gradient"),
    "adamw": Row("torch.optim:AdamW", "Adam with decoupled weight decay"),
    "nadam": Row("torch.optim:NAdam", "Adam with Nesterov's momentum, its weight growing with time"),
    "radam": Row("torch.optim:RAdam", "Adam that trusts its variance only once it is known"),
    "radamw": Row("torch.optim:RAdam", "RAdam with decoupled weight decay", {"decoupled_weight_decay": True}),
    "adamax": Row("torch.optim:Adamax", "Adam by the largest gradient instead of the mean square"),
    "adagrad": Row("torch.optim:Adagrad", "Steps by the sum of all squared gradients", {"eps": 1e-8}),
    "adadelta": Row("torch.optim:Adadelta", "Steps by running means of squared gradients and squared steps"),
    "rmsprop": Row("torch.optim:RMSprop", "Steps by a running mean of squared gradients", MOMENTUM | {"alpha": 0.9}),
}
