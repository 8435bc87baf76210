"""All optimizers: a row a name, and the paper of each class."""

from typing import Any, NamedTuple

__all__ = ["OPTIMIZERS", "PAPERS", "Row"]


class Row(NamedTuple):
    """A name: its class, the size of its state as a multiple of the parameters' own, and the arguments that the name
    stands for."""

    home: str  # "module:Class"
    description: str
    memory: float
    options: dict[str, Any] = {}


PAPERS: dict[str, str] = {
    "Lookahead": "https://arxiv.org/abs/1907.08610",
    "opsin.optim.sgd:SGD": "https://proceedings.mlr.press/v28/sutskever13.html",
    "torch.optim:Adam": "https://arxiv.org/abs/1412.6980",
    "torch.optim:AdamW": "https://arxiv.org/abs/1711.05101",
    "torch.optim:NAdam": "https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
    "torch.optim:RAdam": "https://arxiv.org/abs/1908.03265",
    "torch.optim:Adamax": "https://arxiv.org/abs/1412.6980",
    "torch.optim:Adagrad": "https://jmlr.org/papers/v12/duchi11a.html",
    "torch.optim:Adadelta": "https://arxiv.org/abs/1212.5701",
    "torch.optim:RMSprop": "https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
    "opsin.optim.adabelief:AdaBelief": "https://arxiv.org/abs/2010.07468",
    "opsin.optim.adafactor:Adafactor": "https://arxiv.org/abs/1804.04235",
    "opsin.optim.adafactor_bv:AdafactorBigVision": "https://arxiv.org/abs/2106.04560",
    "opsin.optim.adahessian:Adahessian": "https://arxiv.org/abs/2006.00719",
    "opsin.optim.adamw:AdamW": "https://arxiv.org/abs/1711.05101",
    "opsin.optim.adan:Adan": "https://arxiv.org/abs/2208.06677",
    "opsin.optim.adopt:Adopt": "https://arxiv.org/abs/2411.02853",
    "opsin.optim.kron:Kron": "https://arxiv.org/abs/1512.04202",
    "opsin.optim.lamb:Lamb": "https://arxiv.org/abs/1904.00962",
    "opsin.optim.laprop:LaProp": "https://arxiv.org/abs/2002.04839",
    "opsin.optim.lars:Lars": "https://arxiv.org/abs/1708.03888",
    "opsin.optim.lion:Lion": "https://arxiv.org/abs/2302.06675",
    "opsin.optim.madgrad:MADGRAD": "https://arxiv.org/abs/2101.11075",
    "opsin.optim.mars:Mars": "https://arxiv.org/abs/2411.10438",
    "opsin.optim.muon:Muon": "https://kellerjordan.github.io/posts/muon/",
    "opsin.optim.novograd:NovoGrad": "https://arxiv.org/abs/1905.11286",
    "opsin.optim.projected:AdamP": "https://arxiv.org/abs/2006.08217",
    "opsin.optim.projected:SGDP": "https://arxiv.org/abs/2006.08217",
    "opsin.optim.rmsprop_tf:RMSpropTF": "https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
    "opsin.optim.sgdw:SGDW": "https://arxiv.org/abs/1711.05101",
}

MOMENTUM = {"momentum": 0.9}
NESTEROV = {"momentum": 0.9, "nesterov": True}
CAUTION = {"caution": True}  # https://arxiv.org/abs/2411.16085
CORRECTED = {"corrected_weight_decay": True}  # https://arxiv.org/abs/2506.02285
DECOUPLED = {"decoupled_decay": True}
TF = {"momentum": 0.9, "alpha": 0.9}
PROJECTED = {"wd_ratio": 0.01, "nesterov": True}

SGD, ADAMW, SGDW = "opsin.optim.sgd:SGD", "opsin.optim.adamw:AdamW", "opsin.optim.sgdw:SGDW"
ADAN, ADOPT, LAMB = "opsin.optim.adan:Adan", "opsin.optim.adopt:Adopt", "opsin.optim.lamb:Lamb"
LAPROP, LARS, LION = "opsin.optim.laprop:LaProp", "opsin.optim.lars:Lars", "opsin.optim.lion:Lion"
ADAFACTOR, BIG = "opsin.optim.adafactor:Adafactor", "opsin.optim.adafactor_bv:AdafactorBigVision"
MARS, MUON, NOVOGRAD = "opsin.optim.mars:Mars", "opsin.optim.muon:Muon", "opsin.optim.novograd:NovoGrad"
ADAMP, SGDP = "opsin.optim.projected:AdamP", "opsin.optim.projected:SGDP"
ADABELIEF, MADGRAD = "opsin.optim.adabelief:AdaBelief", "opsin.optim.madgrad:MADGRAD"
KRON = "opsin.optim.kron:Kron"
RMSPROP_TF = "opsin.optim.rmsprop_tf:RMSpropTF"

OPTIMIZERS: dict[str, Row] = {
    # of torch
    "sgd": Row(SGD, "SGD with Nesterov's momentum", 1, NESTEROV),
    "nesterov": Row(SGD, "SGD with Nesterov's momentum", 1, NESTEROV),
    "momentum": Row(SGD, "SGD with momentum", 1, MOMENTUM),
    "adam": Row("torch.optim:Adam", "Adam: steps by two moments of the gradient", 2),
    "adamw": Row("torch.optim:AdamW", "Adam with decoupled weight decay", 2),
    "nadam": Row("torch.optim:NAdam", "Adam with Nesterov's momentum, which grows with time", 2),
    "radam": Row("torch.optim:RAdam", "Adam that trusts its variance only once it is known", 2),
    "radamw": Row("torch.optim:RAdam", "RAdam with decoupled weight decay", 2, {"decoupled_weight_decay": True}),
    "adamax": Row("torch.optim:Adamax", "Adam by the largest gradient instead of the mean square", 2),
    "adagrad": Row("torch.optim:Adagrad", "Steps by the sum of all squared gradients", 1, {"eps": 1e-8}),
    "adadelta": Row("torch.optim:Adadelta", "Steps by running means of squared gradients and squared steps", 2),
    "rmsprop": Row("torch.optim:RMSprop", "Steps by a running mean of squared gradients", 2, TF),
    # SGD and rates by layer
    "sgdw": Row(SGDW, "SGD with Nesterov's momentum and decoupled weight decay", 1, NESTEROV),
    "nesterovw": Row(SGDW, "SGD with Nesterov's momentum and decoupled weight decay", 1, NESTEROV),
    "sgdc": Row(SGDW, "sgdw with decay corrected for the schedule", 1, NESTEROV | CORRECTED),
    "csgdw": Row(SGDW, "Cautious sgdw", 1, NESTEROV | CAUTION),
    "csgdc": Row(SGDW, "Cautious sgdc", 1, NESTEROV | CAUTION | CORRECTED),
    "sgdp": Row(SGDP, "SGD that only turns scale-invariant weights", 1, NESTEROV),
    "csgdp": Row(SGDP, "Cautious sgdp", 1, NESTEROV | CAUTION),
    "lars": Row(LARS, "SGD with a rate for each layer, by the length of its weights", 1, MOMENTUM),
    "larc": Row(LARS, "lars that never raises the rate", 1, MOMENTUM | {"trust_clip": True}),
    "nlars": Row(LARS, "lars with Nesterov's momentum", 1, NESTEROV),
    "nlarc": Row(LARS, "larc with Nesterov's momentum", 1, NESTEROV | {"trust_clip": True}),
    # Adam and those that refine it
    "adamc": Row(ADAMW, "AdamW with decay corrected for the schedule", 2, CORRECTED),
    "cadamw": Row(ADAMW, "Cautious AdamW", 2, CAUTION),
    "cadamc": Row(ADAMW, "Cautious adamc", 2, CAUTION | CORRECTED),
    "nadamw": Row(ADAMW, "AdamW with Nesterov's momentum", 2, {"nesterov": True}),
    "nadamc": Row(ADAMW, "nadamw with decay corrected for the schedule", 2, {"nesterov": True} | CORRECTED),
    "cnadamw": Row(ADAMW, "Cautious nadamw", 2, {"nesterov": True} | CAUTION),
    "cnadamc": Row(ADAMW, "Cautious nadamc", 2, {"nesterov": True} | CAUTION | CORRECTED),
    "adamp": Row(ADAMP, "Adam that only turns scale-invariant weights", 2, PROJECTED),
    "cadamp": Row(ADAMP, "Cautious adamp", 2, PROJECTED | CAUTION),
    "adabelief": Row(ADABELIEF, "Adam by how much a gradient differs from what was expected", 2, {"rectify": False}),
    "radabelief": Row(ADABELIEF, "adabelief, rectified as radam", 2, {"rectify": True}),
    "adan": Row(ADAN, "Nesterov's momentum from the change of the gradient", 4, {"no_prox": False}),
    "adanw": Row(ADAN, "adan with decay as in AdamW", 4, {"no_prox": True}),
    "cadan": Row(ADAN, "Cautious adan", 4, {"no_prox": False} | CAUTION),
    "cadanw": Row(ADAN, "Cautious adanw", 4, {"no_prox": True} | CAUTION),
    "adopt": Row(ADOPT, "Adam that converges with any beta2", 2),
    "adoptw": Row(ADOPT, "adopt with decoupled weight decay", 2, {"decoupled": True}),
    "adoptc": Row(ADOPT, "adoptw with decay corrected for the schedule", 2, {"decoupled": True} | CORRECTED),
    "cadopt": Row(ADOPT, "Cautious adopt", 2, CAUTION),
    "cadoptw": Row(ADOPT, "Cautious adoptw", 2, {"decoupled": True} | CAUTION),
    "cadoptc": Row(ADOPT, "Cautious adoptc", 2, {"decoupled": True} | CAUTION | CORRECTED),
    "laprop": Row(LAPROP, "Momentum of adapted gradients", 2),
    "lapropc": Row(LAPROP, "laprop with decay corrected for the schedule", 2, CORRECTED),
    "claprop": Row(LAPROP, "Cautious laprop", 2, CAUTION),
    "mars": Row(MARS, "AdamW on gradients with less variance", 3),
    "cmars": Row(MARS, "Cautious mars", 3, CAUTION),
    "lamb": Row(LAMB, "Adam with a rate for each layer, by the length of its weights", 2),
    "lambc": Row(LAMB, "lamb that never raises the rate", 2, {"trust_clip": True}),
    "lambw": Row(LAMB, "lamb with decoupled weight decay", 2, DECOUPLED),
    "lambcw": Row(LAMB, "lambc with decoupled weight decay", 2, DECOUPLED | {"trust_clip": True}),
    "lambcd": Row(LAMB, "lambw with decay corrected for the schedule", 2, DECOUPLED | CORRECTED),
    "clamb": Row(LAMB, "Cautious lamb", 2, CAUTION),
    "clambw": Row(LAMB, "Cautious lambw", 2, DECOUPLED | CAUTION),
    "novograd": Row(NOVOGRAD, "Adam with one second moment a layer", 1),
    "novogradw": Row(NOVOGRAD, "novograd with decoupled weight decay", 1, DECOUPLED),
    "novogradc": Row(NOVOGRAD, "novogradw with decay corrected for the schedule", 1, DECOUPLED | CORRECTED),
    # others
    "lion": Row(LION, "The sign of the momentum", 1),
    "lionc": Row(LION, "lion with decay corrected for the schedule", 1, CORRECTED),
    "clion": Row(LION, "Cautious lion", 1, CAUTION),
    "clionc": Row(LION, "Cautious lionc", 1, CAUTION | CORRECTED),
    "madgrad": Row(MADGRAD, "Dual averaging by the cube root of squared gradients", 3, MOMENTUM),
    "madgradw": Row(MADGRAD, "madgrad with decoupled weight decay", 3, MOMENTUM | DECOUPLED),
    "rmsproptf": Row(RMSPROP_TF, "RMSprop as TensorFlow has it", 2, TF),
    "rmsproptfw": Row(RMSPROP_TF, "rmsproptf with decoupled weight decay", 2, TF | DECOUPLED),
    "rmsproptfc": Row(RMSPROP_TF, "rmsproptfw with decay corrected for the schedule", 2, TF | DECOUPLED | CORRECTED),
    "crmsproptf": Row(RMSPROP_TF, "Cautious rmsproptf", 2, TF | CAUTION),
    "adafactor": Row(ADAFACTOR, "Adam that keeps means of rows and columns only", 0),
    "cadafactor": Row(ADAFACTOR, "Cautious adafactor, with a first moment", 1, {"betas": (0.9, 0.999)} | CAUTION),
    "adafactorbv": Row(BIG, "adafactor with a first moment in half precision and rates as AdamW's", 0.5),
    "adafactorbvc": Row(BIG, "adafactorbv with decay corrected for the schedule", 0.5, CORRECTED),
    "cadafactorbv": Row(BIG, "Cautious adafactorbv", 0.5, CAUTION),
    "cadafactorbvc": Row(BIG, "Cautious adafactorbvc", 0.5, CAUTION | CORRECTED),
    "muon": Row(MUON, "Momentum, orthogonalised; AdamW for what is no matrix", 1),
    "nmuon": Row(MUON, "muon with Nesterov's momentum", 1, {"nesterov": True}),
    "kron": Row(KRON, "PSGD: whitened by a factor for each dimension; memory for squares", 3),
    "kronw": Row(KRON, "kron, whose weight decay is decoupled", 3),
    "kronc": Row(KRON, "kronw with decay corrected for the schedule", 3, CORRECTED),
    "adahessian": Row("opsin.optim.adahessian:Adahessian", "Adam by the curvature; needs gradients with a graph", 3),
}
