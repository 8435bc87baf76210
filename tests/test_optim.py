"""Groups of parameters, optimizers by name, and what torch's own are told."""

import pytest
import torch
from rich.console import Console
from torch import nn

import opsin
from opsin.errors import OpsinError, UnknownArgumentError
from opsin.optim import create_optimizer, describe_groups, list_optimizers, optimizer_info, param_groups
from opsin.scheduler import create_scheduler


def vit():
    return opsin.create_model("vit_tiny_patch16_224", depth=3, embed_dim=12, img_size=32, num_classes=4)


def settings(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["weight_decay"], g.get("lr_scale", 1.0)) for g in groups for p in g["params"]}


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet10t", {}), ("vit_tiny_patch16_224", {"depth": 3})],
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


def test_frozen_parts_stay_until_they_are_set_free():
    model = opsin.create_model("resnet18", num_classes=3)
    model.freeze_stages(2)
    optimizer = create_optimizer(model, "adamw", lr=0.1, weight_decay=0.1)
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
    p.square().sum().backward(create_graph=True)
    optimizer.step()
    optimizer.step()
    held = [t for t in optimizer.state[p].values() if isinstance(t, torch.Tensor) and t.ndim]
    size = sum(t.numel() * t.element_size() for t in held) / (p.numel() * p.element_size())
    assert size == pytest.approx(optimizer_info(name).memory, abs=0.06)
