"""`timm.optim` under the alias: every optimizer, group and option beside timm's own."""

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from opsin.errors import OpsinError
from opsin.integrations.timm_alias import _optim
from opsin.integrations.timm_alias import _optim_factory as ours
from opsin.integrations.timm_alias._optim import CLASSES

theirs = pytest.importorskip("timm.optim")

NAMES = ours.list_optimizers()
RANDOM = ("kron", "kronc", "kronw")  # numbers: tests/test_optim_steps.py
CURVED = "adahessian"
WHOLE = {"momentum_dtype": "float32"}  # timm adds in half precision, here it is only stored in it


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.pos = nn.Parameter(torch.randn(1, 4, 12) / 4)
        self.stem, self.norm = nn.Conv2d(3, 12, 4, 4, bias=False), nn.BatchNorm2d(12)
        self.blocks = nn.ModuleList([nn.Linear(12, 12) for _ in range(3)])
        self.head = nn.Linear(12, 5)
        self.blocks[1].bias.requires_grad_(False)

    def forward(self, x):
        x = self.norm(self.stem(x)).flatten(2).transpose(1, 2) + self.pos
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x.mean(1))

    def no_weight_decay(self):
        return {"pos"}


class Layered(Net):
    def group_matcher(self, coarse=False):
        return {"stem": r"^stem|norm|pos", "blocks": [(r"^blocks\.(\d+)", None), (r"^head", (99999,))]}


def train(model, optimizer, steps=7):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(6, 3, 8, 8, generator=generator), torch.randint(5, (6,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward(create_graph=getattr(optimizer, "is_second_order", False))
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def both(name, model=Net, steps=7, **options):
    pair = []
    for module in (ours, theirs):
        net = model()
        pair.append(train(net, module.create_optimizer_v2(net, name, **options), steps))
    return pair


def close(pair, atol):
    assert max((a - b).abs().max().item() for a, b in zip(*pair, strict=True)) < atol
    assert max((a - b).abs().max().item() for a, b in zip(pair[0], Net().parameters(), strict=True)) > 10 * atol


# sums that begin at zero, divided by roots of theirs, blow up roundings; so does what multiplies in bfloat16
LOOSE = {"muon": 2e-4, "nmuon": 2e-4}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*RANDOM, CURVED)])
def test_every_optimizer_by_name(name):
    whole = WHOLE if "adafactorbv" in name else {}
    close(both(name, lr=0.01, weight_decay=0.05, **whole), LOOSE.get(name, 5e-6))


def test_every_name_of_timm_is_here_or_says_why():
    missing = set(theirs.list_optimizers()) - set(NAMES)
    assert {name for name in missing if not name.startswith(("bnb", "fused"))} == {"adamuon", "nadamuon"}
    assert set(NAMES) <= set(theirs.list_optimizers())
    for name, said in (("fusedlamb", "apex"), ("bnbadamw8bit", "bitsandbytes"), ("adamuon", "Did you mean")):
        with pytest.raises(ValueError, match=f"no optimizer '{name}'.*{said}"):
            ours.create_optimizer_v2(Net(), name, lr=0.1)
    for name in RANDOM:
        net = Net()
        assert isinstance(ours.create_optimizer_v2(net, name, lr=0.01, eps=1e-3), CLASSES["Kron"])


def test_curvature():
    pair = []
    for module in (ours, theirs):
        net = Net()
        optimizer = module.create_optimizer_v2(net, CURVED, lr=0.05, weight_decay=0.05)
        assert optimizer.is_second_order
        generator = torch.Generator().manual_seed(2)
        for _ in range(4):  # of such a sum the Hessian is diagonal, so that any random signs give the same
            optimizer.zero_grad()
            loss = sum((p**2 * torch.rand(p.shape, generator=generator)).sum() for p in net.parameters())
            loss.backward(create_graph=True)
            optimizer.step()
        pair.append([p.detach() for p in net.parameters()])
    close(pair, 5e-6)


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_in_order(name):
    judge = getattr(theirs, name, None) or __import__("timm.optim.kron", fromlist=["Kron"]).Kron
    mine, judge = (list(inspect.signature(c).parameters.values()) for c in (CLASSES[name], judge))
    assert [p.name for p in mine] == [p.name for p in judge]
    required = {"params"} | ({"lr"} if name == "SGDP" else set())
    assert all(a.default == b.default for a, b in zip(mine, judge, strict=True) if a.name not in required)


def test_every_class_of_timm_is_here():
    made = {n for n, c in vars(theirs).items() if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer)}
    assert made == (CLASSES.keys() | {"Lookahead"}) - {"Kron"}


BY_PLACE = [
    ("Lamb", (0.01, False, (0.8, 0.9), 1e-3, 0.1, True, 0.5, True), {}), ("Lion", (0.01, (0.8, 0.9), 0.1, True), {}),
    ("AdamP", (0.01, (0.8, 0.9), 1e-3, 0.1, 5.0, 0.5, True), {}), ("MADGRAD", (0.01, 0.8, 0.1, 1e-3, True), {}),
    ("Adan", (0.01, (0.9, 0.8, 0.7), 1e-3, 0.1, True), {}), ("NvNovoGrad", (0.01, (0.8, 0.9), 1e-3, 0.1, True), {}),
    ("AdaBelief", (0.01, (0.8, 0.9), 1e-3, 0.1, False, False), {}), ("SGDP", (0.01, 0.8, 0.1, 0.1), {}),
    ("NAdamLegacy", (0.01, (0.8, 0.9), 1e-3, 0.1, 0.1), {}), ("RAdamLegacy", (0.01, (0.8, 0.9), 1e-3, 0.1), {}),
    ("NAdamW", (0.01, (0.8, 0.9), 1e-3, 0.1, True), {}), ("AdamWLegacy", (0.01, (0.8, 0.9), 1e-3, 0.1), {}),
    ("Adopt", (0.01, (0.8, 0.9), 1e-3, None, 0.1, True), {}), ("Mars", (0.01, (0.8, 0.9), 1e-3, 0.1, 0.1), {}),
    ("Adafactor", (), {"weight_decay": 0.1}), ("Adafactor", (0.01,), {"betas": (0.8, 0.9), "caution": True}),
    ("Adafactor", (), {"scale_parameter": False, "warmup_init": True, "lr": None}),
    ("AdafactorBigVision", (0.01,), {"momentum": None}), ("AdafactorBigVision", (0.01,), {"eps": 0.1, **WHOLE}),
    ("Muon", (0.01, 0.1, 0.8, True), {"ns_coefficients": "original"}), ("Muon", (0.01,), {"adamw_lr": 0.002}),
    ("Muon", (0.01,), {"ns_coefficients": (3.4, -4.7, 2.0), "ns_steps": 3}),
    ("Lars", (0.5, 0.8, 0.1, 0.1), {"trust_coeff": 0.1}), ("SGDW", (0.01, 0.8, 0.1, 0.1), {}),
    ("RMSpropTF", (0.01, 0.8, 1e-3, 0.1, 0.5, True), {}), ("LaProp", (0.01, (0.8, 0.9), 1e-3, 0.1, True), {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "options"), BY_PLACE, ids=lambda value: str(value))
def test_arguments_by_place_and_name(name, args, options):
    pair = []
    for make in (CLASSES[name], getattr(theirs, name)):
        net = Net()
        pair.append(train(net, make([p for p in net.parameters() if p.requires_grad], *args, **options)))
    slow = name == "Adafactor" and options.get("warmup_init")
    if slow:
        assert all(torch.allclose(a, b, rtol=0, atol=1e-8) for a, b in zip(*pair, strict=True))
    else:
        close(pair, 2e-4 if name == "Muon" else 5e-6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("AdaBelief", {"amsgrad": True}, "opsin's AdaBelief has no amsgrad=True: leave it at False"),
        ("Lion", {"maximize": True}, "opsin's Lion has no maximize"),
        ("Muon", {"algo": "adamuon"}, "has no algo='adamuon'"),
        ("Muon", {"ns_coefficients": "polar_express"}, "no ns_coefficients 'polar_express'"),
        ("Kron", {"flatten": True}, "has no flatten"),
        ("NAdamW", {"clipping_threshold": 1.0}, "has no clipping_threshold"),
        ("Lamb", {"trust_clipp": True}, "Lamb takes no argument 'trust_clipp'. Did you mean trust_clip"),
        ("SGDP", {}, "SGDP: missing a required argument: 'lr'"),
    ],
)
def test_what_a_class_does_not_have(name, options, said):
    with pytest.raises((OpsinError, TypeError), match=said):
        CLASSES[name](Net().parameters(), **options)


def test_lookahead():
    close(both("lookahead_adamw", lr=0.01, steps=14), 5e-6)
    pair = []
    for module, ahead in ((ours, _optim.Lookahead), (theirs, theirs.Lookahead)):
        net = Net()
        optimizer = ahead(module.create_optimizer_v2(net, "sgd", lr=0.1), 0.3, 4)
        train(net, optimizer)
        optimizer.sync_lookahead()
        pair.append([p.detach() for p in net.parameters()])
    close(pair, 5e-6)


GOES_ON = {"adabelief", "radabelief", "adopt", "adoptw", "cadopt", "cadoptw", "rmsproptf", "rmsproptfw", "crmsproptf"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RANDOM])
def test_states_that_timm_saved(name):
    """They are gone on from, or it is said that they are not."""
    old, new = Net(), Net()
    optimizer = theirs.create_optimizer_v2(old, name, lr=0.01, weight_decay=0.05)
    train(old, optimizer, 3)
    new.load_state_dict(old.state_dict())
    mine = ours.create_optimizer_v2(new, name, lr=0.01, weight_decay=0.05)
    state = copy.deepcopy(optimizer.state_dict())
    if type(mine).__module__.startswith("torch") or isinstance(mine, torch.optim.SGD) or name in GOES_ON:
        mine.load_state_dict(state)
        close([train(old, optimizer, 3), train(new, mine, 3)], 1e-5)
    else:
        with pytest.raises(OpsinError, match="no state of opsin's"):
            mine.load_state_dict(state)
    twin = ours.create_optimizer_v2(Net(), name, lr=0.01, weight_decay=0.05)
    twin.load_state_dict(mine.state_dict())  # of its own it takes all


# --- groups ----------------------------------------------------------------------------------------------------------


def listed(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    kept = ("weight_decay", "lr_scale", "use_fallback")
    return [([names[id(p)] for p in g["params"]], {k: g[k] for k in kept if g.get(k)}) for g in groups]


GROUPS = [
    {}, {"weight_decay": 0.1}, {"weight_decay_exclude_1d": False, "no_weight_decay_list": ("pos",)},
    {"no_weight_decay_list": ("blocks.*", "head.weight")}, {"fallback_list": ("head.*",)},
    {"fallback_no_weight_decay": True, "no_weight_decay_list": {"pos"}},
    {"fallback_list": ("head.*",), "weight_decay": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("options", GROUPS, ids=str)
def test_groups(options):
    net = Layered()
    assert listed(net, ours.param_groups_weight_decay(net, **options)) == listed(
        net, theirs.param_groups_weight_decay(net, **options)
    )
    for more in ({}, {"layer_decay": 0.5, "min_scale": 0.2}):
        assert listed(net, ours.param_groups_layer_decay(net, **options, **more)) == listed(
            net, theirs.param_groups_layer_decay(net, **options, **more)
        )


def test_layers_that_learn_too_slowly_are_frozen(capsys):
    frozen = []
    for module in (ours, theirs):
        net = Layered()
        groups = module.param_groups_layer_decay(net, layer_decay=0.5, no_opt_scale=0.3, verbose=True)
        frozen.append((listed(net, groups), [name for name, p in net.named_parameters() if not p.requires_grad]))
        assert "lr_scale" in capsys.readouterr().out or module is theirs
    assert frozen[0] == frozen[1]


RECIPES = [
    {}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "filter_bias_and_bn": False}, {"layer_decay": 0.5},
    {"layer_decay": 0.5, "weight_decay": 0.1, "layer_decay_min_scale": 0.3}, {"fallback_list": ["head.*"]},
    {"layer_decay": 0.5, "weight_decay": 0.1, "filter_bias_and_bn": False, "layer_decay_no_opt_scale": 0.3},
    {"fallback_no_weight_decay": True, "weight_decay": 0.1}, {"foreach": False}, {"eps": 1e-3, "betas": [0.8, 0.9]},
    {"param_group_fn": lambda model: [{"params": [model.head.weight]}], "weight_decay": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("opt", ["sgd", "AdamW", "muon", "lamb"])
def test_recipes(opt):
    for recipe in RECIPES:
        seen = []
        for module in (ours, theirs):
            net = Layered()
            made = module.create_optimizer_v2(net, opt, lr=0.1, **recipe) if not (
                opt == "muon" and "foreach" in recipe
            ) else module.create_optimizer_v2(net, opt, lr=0.1)  # fmt: skip
            shown = [{k: g.get(k) for k in ("lr", "momentum", "eps")} for g in made.param_groups]
            shown += [tuple(g.get("betas", ())) for g in made.param_groups]
            seen.append((listed(net, made.param_groups), shown))
        assert seen[0] == seen[1], recipe


def test_options_of_a_script():
    few = {"opt": "adamw", "lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
    more = {"opt_eps": 1e-3, "opt_betas": (0.8, 0.9), "layer_decay": 0.5, "layer_decay_min_scale": 0.1}
    more |= {"layer_decay_no_opt_scale": 0.1, "opt_args": {"amsgrad": True}, "opt_foreach": True}
    for options in (few, few | more, few | {"opt_eps": None, "opt_betas": None, "layer_decay": None}):
        args = SimpleNamespace(**options)
        assert ours.optimizer_kwargs(args) == theirs.optimizer_kwargs(args)
        net, peer = Layered(), Layered()
        made, judge = ours.create_optimizer(args, net), theirs.create_optimizer(args, peer)
        assert listed(net, made.param_groups) == listed(peer, judge.param_groups)
        keys = ("lr", "betas", "eps", "amsgrad", "foreach")
        assert [made.param_groups[0][k] for k in keys] == [judge.param_groups[0][k] for k in keys]
    assert ours.create_optimizer_v2(Net(), "sgd", lr=0.1).param_groups[0]["fused"]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known(name):
    mine, judge = ours.get_optimizer_info(name), theirs.get_optimizer_info(name)
    for key in ("has_eps", "has_momentum", "has_betas", "num_betas", "second_order"):
        assert getattr(mine, key) == getattr(judge, key), key
    assert mine.opt_class.__name__ == judge.opt_class.__name__
    if name not in (*RANDOM, "momentum"):  # opsin's Kron has one kind of decay; SGD is without nesterov as it is
        assert mine.defaults == judge.defaults


def test_lists():
    here = lambda names: [name for name in names if (name if isinstance(name, str) else name[0]) in NAMES]  # noqa: E731
    for query in ("adam*", ["adamw", "lamb*"], "", "none"):
        assert ours.list_optimizers(query) == here(theirs.list_optimizers(query))
    assert ours.list_optimizers("*adam*", ["*w"]) == here(theirs.list_optimizers("*adam*", exclude_filters=["*w"]))
    (name, text), *_ = ours.list_optimizers("lamb*", with_description=True)
    assert name == "lamb"
    assert "Adam" in text
    assert ours.get_optimizer_class("adamp").keywords == theirs.get_optimizer_class("adamp").keywords
    assert ours.get_optimizer_class("adamp", bind_defaults=False) is CLASSES["AdamP"]
    assert ours.get_optimizer_class("adamw") is torch.optim.AdamW


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ours.create_optimizer_v2(Net(), "adamww", lr=0.1), "no optimizer 'adamww'. Did you mean"),
        (lambda: ours.create_optimizer_v2(Net(), "lamb", trust_clipp=True), "Did you mean trust_clip"),
        (lambda: ours.create_optimizer_v2(Net(), "adan", betas=(0.9, 0.99)), "takes 3 betas"),
        (lambda: ours.create_optimizer_v2(Net(), "adamw", layer_decay=0.5), "Net has no group_matcher"),
        (lambda: ours.get_optimizer_class("lookahead_adam"), "no optimizer"),
    ],
)
def test_says_what_is_wrong(call, said):
    with pytest.raises((OpsinError, TypeError), match=said):
        call()
