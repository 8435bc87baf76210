"""Groups of parameters, optimizers by name, and what torch's own are told."""

import pytest
import torch
from rich.console import Console
from torch import nn

import opsin
from opsin.errors import OpsinError, UnknownArgumentError
from opsin.optim import _common, create_optimizer, describe_groups, list_optimizers, optimizer_info, param_groups
from opsin.optim.lion import Lion
from opsin.scheduler import create_scheduler


def vit():
    return opsin.create_model("vit_tiny_patch16_224", depth=3, embed_dim=12, img_size=32, num_classes=4)


def settings(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["weight_decay"], g.get("lr_scale", 1.0)) for g in groups for p in g["params"]}


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", {"depth": 3}),
        ("convnext_atto", {"depths": (1, 2, 1, 1)}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 2, 1, 1), "embed_dim": 24}),
        ("tiny_vit_5m_224", {}),
    ],
)
def test_groups_beside_timm(name, size):
    timm_optim = pytest.importorskip("timm.optim")
    import timm

    ours, theirs = opsin.create_model(name, **size), timm.create_model(name, **size)
    spared = theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()
    peer = timm_optim.param_groups_layer_decay(theirs, 0.05, no_weight_decay_list=spared, layer_decay=0.8)
    assert settings(ours, param_groups(ours, weight_decay=0.05, layer_decay=0.8)) == settings(theirs, peer)


def test_all_parameters_are_in_one_group_each():
    model = vit()
    for layer_decay in (None, 0.7):
        groups = param_groups(model, weight_decay=0.1, layer_decay=layer_decay)
        held = [id(p) for g in groups for p in g["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        assert len({g["name"] for g in groups}) == len(groups)


def test_what_is_not_decayed():
    model = vit()
    found = settings(model, param_groups(model, weight_decay=0.1, no_weight_decay=["blocks.0.attn.*", "head.weight"]))
    spared = {name for name, (decay, _) in found.items() if decay == 0}
    assert {"pos_embed", "cls_token", "norm.weight", "blocks.0.attn.qkv.weight", "head.weight"} <= spared
    assert "blocks.1.attn.qkv.weight" not in spared
    with pytest.raises(OpsinError, match="Did you mean head.weight"):
        param_groups(model, weight_decay=0.1, no_weight_decay=["hed.weight"])


def test_patterns_of_the_model():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.body = nn.Linear(2, 2), nn.Linear(2, 2)

        def no_weight_decay(self):
            return {"table.*"}

    found = settings(net := Net(), param_groups(net, weight_decay=0.1))
    assert {n for n, (decay, _) in found.items() if decay} == {"body.weight"}


def test_wrapped_models_are_unwrapped():
    model = vit()
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert settings(model, param_groups(wrapped, weight_decay=0.1, layer_decay=0.5)) == settings(
            model, param_groups(model, weight_decay=0.1, layer_decay=0.5)
        )


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_frozen_parts_stay_until_they_are_set_free(name):
    model = opsin.create_model("resnet18", num_classes=3)
    model.freeze_stages(2)
    optimizer = create_optimizer(model, name, lr=0.1, weight_decay=0.1)
    x = torch.randn(2, 3, 32, 32)
    for free in (False, True):
        if free:
            model.freeze_stages(0)
        before = {name: p.clone() for name, p in model.named_parameters()}
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
        assert ("conv1.weight" in moved) == free
        assert "fc.weight" in moved


def test_layers_are_needed_for_layer_decay():
    with pytest.raises(OpsinError, match="group_matcher"):
        param_groups(nn.Linear(2, 2), weight_decay=0.1, layer_decay=0.5)
    with pytest.raises(OpsinError, match="model itself"):
        create_optimizer(nn.Linear(2, 2).parameters(), lr=0.1, layer_decay=0.5)


def test_groups_as_a_table():
    model = vit()
    model.head.requires_grad_(False)
    console = Console(width=120)
    with console.capture() as shown:
        console.print(describe_groups(param_groups(model, weight_decay=0.05, layer_decay=0.5)))
        console.print(describe_groups(torch.optim.SGD(model.parameters(), lr=0.1).param_groups))
    text = shown.get()
    for word in ("layer_04.decay", "0.05", "0.0625", "group 0", " 48 "):
        assert word in text
    head = next(line for line in text.splitlines() if "layer_04.decay" in line)
    assert [cell.strip() for cell in head.split("│")[1:-1]] == ["layer_04.decay", "1", "48", "0", "0.05", "1"]


# --- by name ----------------------------------------------------------------------------------------------------------


def test_wrong_names_and_arguments():
    model = nn.Linear(2, 2)
    with pytest.raises(UnknownArgumentError, match="Did you mean adamw"):
        create_optimizer(model, "admw", lr=0.1)
    with pytest.raises(UnknownArgumentError, match="Did you mean betas"):
        create_optimizer(model, "adamw", lr=0.1, beta=(0.9, 0.99))
    with pytest.raises(UnknownArgumentError, match="momentum"):
        create_optimizer(model, "adamw", lr=0.1, momentum=0.9)
    with pytest.raises(UnknownArgumentError, match="optimizer"):
        optimizer_info("sdg")


def test_list():
    assert list_optimizers("*adam*", exclude_filters="r*") == [
        name for name in list_optimizers() if "adam" in name and name[0] != "r"
    ]
    assert set(list_optimizers(exclude_filters=["a*", "s*"])) == {n for n in list_optimizers() if n[0] not in "as"}
    assert list_optimizers("nothing") == []


def test_names_are_those_of_timm():
    timm_optim = pytest.importorskip("timm.optim")
    theirs = set(timm_optim.list_optimizers())
    assert {name for name in list_optimizers() if name not in theirs} <= set()


def test_values_reach_the_optimizer():
    model = vit()
    optimizer = create_optimizer(
        model, "adamw", lr=0.3, weight_decay=0.2, layer_decay=0.5, betas=(0.8, 0.9), eps=1e-3, amsgrad=True
    )
    assert {g["lr"] for g in optimizer.param_groups} == {0.3}
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.2}
    assert {g["lr_scale"] for g in optimizer.param_groups} == {0.5**i for i in range(5)}
    assert {(g["betas"], g["eps"], g["amsgrad"]) for g in optimizer.param_groups} == {((0.8, 0.9), 1e-3, True)}
    scheduler = create_scheduler(optimizer, "constant", total_steps=4)
    scheduler.step(1)
    assert {g["lr"] for g in optimizer.param_groups} == {0.3 * 0.5**i for i in range(5)}
    sgd = create_optimizer(model, "sgd", lr=0.1)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.9, True)
    assert create_optimizer(model, "sgd", lr=0.1, momentum=0.5).defaults["momentum"] == 0.5


def test_parameters_instead_of_a_model():
    model = nn.Linear(2, 2)
    for given in (
        list(model.parameters()), model.named_parameters(), [{"params": [model.weight]}, {"params": [model.bias]}],
    ):  # fmt: skip
        optimizer = create_optimizer(given, "sgd", lr=0.1, weight_decay=0.3)
        assert sum(len(g["params"]) for g in optimizer.param_groups) == 2
        assert {g["weight_decay"] for g in optimizer.param_groups} == {0.3}
        assert optimizer.defaults["fused"]


def test_fused_where_torch_has_it():
    model = nn.Linear(2, 2)
    assert create_optimizer(model, "adamw", lr=0.1).defaults["fused"]
    assert not create_optimizer(model, "adamw", lr=0.1, foreach=True).defaults["fused"]
    assert not create_optimizer(model, "adamw", lr=0.1, fused=False).defaults["fused"]
    assert not create_optimizer(model, "sgd", lr=0.1, dampening=0.1, nesterov=False).defaults["fused"]
    assert not create_optimizer([torch.zeros(2, dtype=torch.cfloat)], "adamw", lr=0.1).defaults["fused"]
    assert "fused" not in create_optimizer(model, "radam", lr=0.1).defaults


def test_info():
    info = optimizer_info("sgd")
    assert info.defaults["momentum"] == 0.9
    assert info.defaults["weight_decay"] == 0
    assert info.defaults["lr"] is None
    assert info.paper.startswith("https://")


@pytest.mark.parametrize("name", list_optimizers())
def test_memory_is_what_is_said(name):
    p = nn.Parameter(torch.randn(96, 80))
    optimizer = create_optimizer([p], name, lr=0.01)
    advance(optimizer, [p], range(2))
    held = [t for t in optimizer.state[p].values() if isinstance(t, torch.Tensor) and t.ndim]
    size = sum(t.numel() * t.element_size() for t in held) / (p.numel() * p.element_size())
    assert size == pytest.approx(optimizer_info(name).memory, abs=0.06)


# --- what all of them do ----------------------------------------------------------------------------------------------

OWN = [name for name in list_optimizers() if "foreach" in optimizer_info(name).defaults and name != "adahessian"]
TORCHS = ("momentum", "nesterov", "sgd")
OURS = [
    name
    for name in list_optimizers()
    if name not in TORCHS and type(create_optimizer([torch.zeros(1)], name, lr=0.1)).__module__.startswith("opsin")
]


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in [(18, 20), (20,), (4, 3, 3, 3)]]


def advance(optimizer, params, steps):
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        optimizer.zero_grad()
        noise = [torch.randn(p.shape, generator=generator) for p in params]
        loss = sum((p.float().square() / 2 + p.float() * n).sum() for p, n in zip(params, noise, strict=True))
        loss.backward(create_graph=getattr(optimizer, "is_second_order", False))
        optimizer.step()
    return params


@pytest.mark.parametrize("name", [*list_optimizers(), "lookahead_sgd", "lookahead_adamw", "lookahead_adafactorbv"])
def test_continuing_gives_the_same_bits(name, tmp_path):
    straight, stopped = tensors(), tensors()
    advance(create_optimizer(straight, name, lr=0.01, weight_decay=0.1), straight, range(16))
    optimizer = create_optimizer(stopped, name, lr=0.01, weight_decay=0.1)
    advance(optimizer, stopped, range(7))
    torch.save({"optimizer": optimizer.state_dict(), "params": stopped}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    optimizer = create_optimizer(state["params"], name, lr=0.5)
    optimizer.load_state_dict(state["optimizer"])
    for a, b in zip(straight, advance(optimizer, state["params"], range(7, 16)), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("name", [*list_optimizers(), "lookahead_adamw"])
def test_what_has_no_gradient_stays(name):
    params = tensors()
    left = params[1].clone()
    optimizer = create_optimizer(params, name, lr=0.01, weight_decay=0.1)
    advance(optimizer, params[::2], range(7))
    assert params[1].equal(left)
    advance(optimizer, params, range(7, 9))
    assert not params[1].equal(left)


@pytest.mark.parametrize("name", OWN)
def test_lists_and_single_tensors_are_the_same(name):
    runs = [tensors() for _ in range(2)]
    for params, foreach in zip(runs, (False, True), strict=True):
        split = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.3}]
        optimizer = create_optimizer(split, name, lr=0.01, weight_decay=0.1, foreach=foreach)
        advance(optimizer, params[1:], range(1))
        advance(optimizer, params, range(1, 5))  # tensors of one group at different steps
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in OWN if name[0] != "c"])
def test_slices_and_whole_tensors_are_the_same(name, monkeypatch):
    runs = []
    for size in (1 << 20, 7):
        monkeypatch.setattr(_common, "SLICE", size)
        params = tensors()
        params.append(nn.Parameter(torch.linspace(-1, 1, 240).view(5, 8, 3, 2).to(memory_format=torch.channels_last)))
        params.append(nn.Parameter(torch.linspace(-1, 1, 60).view(6, 10).t()))
        runs.append(advance(create_optimizer(params, name, lr=0.01, weight_decay=0.1), params, range(4)))
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_long_tensors_are_taken_in_slices(monkeypatch):
    seen = []
    update = Lion.update
    monkeypatch.setattr(_common, "SLICE", 64)
    monkeypatch.setattr(
        Lion,
        "update",
        lambda self, group, step, p, *rest: (seen.append(p[0].numel()), update(self, group, step, p, *rest)),
    )
    advance(create_optimizer(params := tensors(), "lion", lr=0.01), params, range(1))
    assert seen == [64] * 5 + [40, 20, 108]  # 360 values in slices, 20 and 108 whole
    seen.clear()
    advance(create_optimizer(params := tensors(), "clion", lr=0.01), params, range(1))
    assert seen == [360, 20, 108]  # caution looks at the whole tensor


@pytest.mark.parametrize("name", OURS)
def test_closures_half_precision_and_what_is_refused(name):
    params = tensors()
    optimizer = create_optimizer(params, name, lr=0.01)

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward(create_graph=name == "adahessian")
        return loss

    losses = [float(optimizer.step(closure)) for _ in range(20)]
    assert losses[-1] < losses[0]
    half = advance(create_optimizer(short := tensors(torch.bfloat16), name, lr=0.05), short, range(4))
    assert all(p.isfinite().all() and p.dtype == torch.bfloat16 for p in half)
    for strange, word in (
        (torch.zeros(2, 2, dtype=torch.cfloat), "complex"), (torch.zeros(2, 2).to_sparse(), "sparse"),
    ):  # fmt: skip
        p = nn.Parameter(torch.zeros(2, 2, dtype=strange.dtype))
        p.grad = strange
        with pytest.raises(OpsinError, match=word):
            create_optimizer([p], name, lr=0.1).step()


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}])
def test_settings_out_of_range(bad):
    with pytest.raises(OpsinError, match="Lion"):
        create_optimizer(tensors(), "lion", **{"lr": 0.1} | bad)


def test_other_settings_out_of_range():
    for name, bad in (
        ("lamb", {"eps": -1.0}), ("sgdw", {"momentum": 1.0}), ("rmsproptf", {"alpha": 1.5}),
        ("sgdw", {"momentum": 0.0}), ("nlars", {"dampening": 0.1}), ("mars", {"mars_type": "lyon"}),
        ("muon", {"adjust_lr_fn": "orginal"}), ("lookahead_sgd", {"lookahead_k": 0}),
        ("lookahead_sgd", {"lookahead_alpha": 2.0}),
    ):  # fmt: skip
        with pytest.raises(OpsinError):
            create_optimizer(tensors(), name, lr=0.1, **bad)


def test_corrected_decay_follows_the_schedule():
    """Decay is weight_decay x lr x lr / full rate of the group, which its layer's scale does not change."""
    for scale in (1.0, 0.25):
        p = nn.Parameter(torch.ones(3))
        optimizer = create_optimizer([{"params": [p], "lr_scale": scale}], "sgdc", lr=0.4, weight_decay=0.5)
        scheduler = create_scheduler(optimizer, "linear", total_steps=5)
        scheduler.step(2)
        p.grad = torch.zeros(3)
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.full((3,), 1 - 0.5 * 0.4 * scale * 0.5 * 0.5))


def test_muon_leaves_to_adamw_what_is_no_matrix():
    shapes = [(8, 6), (6,), (1, 5, 6), (8, 1, 3, 3), (8, 4, 3, 3)]
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    head = nn.Parameter(torch.randn(6, 8))
    optimizer = create_optimizer([{"params": params}, {"params": [head], "use_fallback": True}], "muon", lr=0.01)
    advance(optimizer, [*params, head], range(2))
    assert ["momentum_buffer" in optimizer.state[p] for p in [*params, head]] == [
        True,
        False,
        False,
        False,
        True,
        False,
    ]
    advance(create_optimizer(same := tensors(), "nmuon", lr=0.01, betas=(0.9, 0.95), eps=1e-7), same, range(5))
    advance(create_optimizer(adam := tensors(), "nadamw", lr=0.01, betas=(0.9, 0.95), eps=1e-7), adam, range(5))
    assert same[1].equal(adam[1])


def test_adahessian_asks_for_a_graph():
    params = tensors()
    optimizer = create_optimizer(params, "adahessian", lr=0.1)
    params[0].square().sum().backward()
    with pytest.raises(OpsinError, match="create_graph"):
        optimizer.step()


# --- Lookahead --------------------------------------------------------------------------------------------------------


def test_lookahead_follows():
    """After k steps the slow weights are where the fast ones are; after k more half the way to them."""
    params, fast = tensors(), tensors()
    optimizer = create_optimizer(params, "lookahead_sgd", lr=0.1, lookahead_k=3, lookahead_alpha=0.25)
    inner = create_optimizer(fast, "sgd", lr=0.1)
    slow = None
    for t in range(9):
        advance(optimizer, params, [t])
        advance(inner, fast, [t])
        if t % 3 == 2:
            ends = [p.detach().clone() for p in fast]
            slow = ends if slow is None else [s + 0.25 * (e - s) for s, e in zip(slow, ends, strict=True)]
            for p, s in zip(fast, slow, strict=True):
                p.data.copy_(s)
        for a, b in zip(params, fast, strict=True):
            torch.testing.assert_close(a, b)


def test_lookahead_beside_timm():
    timm_optim = pytest.importorskip("timm.optim")
    ours, theirs = tensors(), tensors()
    advance(create_optimizer(ours, "lookahead_lion", lr=0.01, weight_decay=0.1), ours, range(20))
    advance(timm_optim.create_optimizer_v2(theirs, "lookahead_lion", lr=0.01, weight_decay=0.1), theirs, range(20))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_lookahead_is_scheduled_and_takes_new_groups():
    params = tensors()
    optimizer = create_optimizer(params[:2], "lookahead_sgd", lr=0.1, momentum=0.0, nesterov=False)
    optimizer.add_param_group({"params": params[2:], "lr_scale": 0.5})
    create_scheduler(optimizer, "linear", total_steps=3).step(1)
    assert [g["lr"] for g in optimizer.base.param_groups] == [0.05, 0.025]
    before = params[2].detach().clone()
    params[2].grad = torch.ones_like(params[2])
    optimizer.step()
    torch.testing.assert_close(params[2].detach(), before - 0.025)
    assert optimizer_info("lookahead_sgd").defaults["lookahead_k"] == 6
