"""What every family promises, checked on its smallest variant. A new family is checked because it exists."""

import copy
import warnings

import pytest
import torch
from support import FAMILIES, build, config_args, image_size, images, randomize, relative_error, shrink, smallest
from torch import nn

import opsin
from opsin.errors import WeightsError
from opsin.layers.drop import DropPath
from opsin.models._chain import Row, locate
from opsin.models._model import Model
from opsin.models._registry import find_family
from opsin.models.features import hook_point

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def loss(out):
    """A number that depends on all outputs; distilled models give two while they train."""
    return sum(o.square().sum() for o in out) if isinstance(out, tuple) else out.square().sum()


def classifiers(model):
    """The classifier, or all of them where there are several."""
    found = model.get_classifier()
    return found if isinstance(found, tuple) else (found,)


def test_forward_in_train_and_eval(family):
    model = build(family)
    x = images(family)
    for mode in (True, False):
        model.train(mode)
        logits = model(x)
        assert logits.shape == (2, model.num_classes or model.head_hidden_size)
        assert torch.isfinite(logits).all()
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    embedding = model.forward_head(features, pre_logits=True)
    assert embedding.shape == (2, model.head_hidden_size)


def test_backward_reaches_every_parameter(family):
    model = randomize(build(family, num_classes=10)).train()
    for part in model.modules():
        if isinstance(part, DropPath):  # a branch that no sample of the batch runs has no gradient
            part.drop_prob = 0.0
    loss(model(images(family))).backward()
    # a key bias shifts all attention scores of a query alike, which softmax ignores: its gradient is rounding noise; a
    # single number that shifts a whole map before a norm has such a gradient too, which may well be 0
    dead = [n for n, p in model.named_parameters() if p.grad is None or (p.numel() > 1 and not p.grad.abs().sum() > 0)]
    assert not dead


@pytest.mark.parametrize("in_chans", [1, 3, 25])
def test_input_channels(family, in_chans):
    model = build(family, in_chans=in_chans).eval()
    assert model(images(family, in_chans=in_chans)).shape[0] == 2


def test_no_classes(family):
    model = build(family, num_classes=0).eval()
    assert model(images(family)).shape == (2, model.head_hidden_size)
    assert all(isinstance(part, nn.Identity) for part in classifiers(model))


def test_head_reset(family):
    model = build(family, num_classes=10).eval()
    x = images(family)
    assert model(x).shape == (2, 10)
    before = model.forward_features(x)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7)
    assert torch.equal(model.forward_features(x), before)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(5, "max")
    assert model(x).shape == (2, 5)
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_classifier(-1)


def test_weights_load_under_another_head(family):
    whole = build(family, num_classes=7).eval()
    x = images(family)
    for classes in (0, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a new head says so
            model = build(family, num_classes=classes, pretrained=whole.state_dict()).eval()
        assert torch.equal(model.forward_features(x), whole.forward_features(x))


def test_features_are_as_declared(family):
    x = images(family)
    full = randomize(build(family)).eval()
    levels = len(full.feature_info)
    whole = build(family, features_only=True, out_indices=tuple(range(levels))).eval()
    assert whole.feature_info.channels() == [row["num_chs"] for row in full.feature_info]
    for i in range(levels):
        net = build(family, features_only=True, out_indices=(i,)).eval()
        (out,) = net(x)
        info = net.feature_info
        assert out.shape[1] == info.channels()[0] == whole.feature_info.channels(i)
        trim = full.feature_levels()[i].trim  # zero unless a family says its windows are not padded
        assert out.shape[2] == -(-(x.shape[2] - trim) // info.reduction()[0])
        assert out.shape[3] == -(-(x.shape[3] - trim) // info.reduction()[0])
        assert isinstance(locate(full, hook_point(full, info.module_name()[0])[0]), nn.Module)


def test_intermediates_equal_features(family):
    x = images(family)
    model = build(family).eval()
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    levels = len(maps)
    net = build(family, features_only=True, out_indices=tuple(range(levels))).eval()
    for a, b in zip(maps, net(x), strict=True):
        assert torch.equal(a, b)
    out = model.forward_outputs(x, indices=1)
    assert torch.equal(out.features[0], maps[-1])
    assert torch.equal(out.logits, model(x))
    assert torch.equal(out.embedding, model.forward_head(final, pre_logits=True))


def test_indices_in_any_order(family):
    x = images(family)
    model = build(family).eval()
    _, maps = model.forward_intermediates(x)
    last = len(maps) - 1
    net = build(family, features_only=True, out_indices=(-1, 0)).eval()
    assert net.feature_info.out_indices == (last, 0)
    assert net.feature_info.channels() == [maps[last].shape[1], maps[0].shape[1]]
    assert [tuple(o.shape) for o in net(x)] == [tuple(maps[last].shape), tuple(maps[0].shape)]
    for bad in ((last + 1,), (-last - 2,)):
        with pytest.raises(IndexError, match="out of range"):
            build(family, features_only=True, out_indices=bad)
    with pytest.raises(IndexError):
        build(family, features_only=True, out_indices=last + 2)
    with pytest.raises(ValueError, match="different"):
        build(family, features_only=True, out_indices=(0, 0))


def test_feature_forms(family):
    x = images(family)
    listed = build(family, features_only=True).eval()(x)
    named = build(family, features_only=True, feature_cls="dict").eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(listed, named.values(), strict=True))
    mapped = build(family, features_only=True, feature_cls="dict", out_indices=1, out_map=["top"]).eval()(x)
    assert list(mapped) == ["top"]
    got = build(family, features_only=True, feature_cls="getter").eval()(x)
    assert torch.equal(got[-1], listed[-1])
    model = build(family)
    if model.layout == "NCHW":
        caught = build(family, features_only=True, feature_cls="hook").eval()(x)
        assert all(torch.equal(a, b) for a, b in zip(listed, caught, strict=True))
    name = model.feature_levels()[0].name
    hooked = build(family, features_only=True, out_indices=[name]).eval()
    (out,) = hooked(x)
    assert hooked.feature_info.module_name() == [name]
    assert hooked.feature_info.channels()[0] in (out.shape[1], out.shape[-1])
    nhwc = build(family, features_only=True, output_fmt="NHWC").eval()(x)
    assert torch.equal(nhwc[-1].permute(0, 3, 1, 2), listed[-1])


def test_checkpointing_gives_equal_gradients(family):
    x = images(family)
    plain = randomize(build(family, num_classes=5)).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing(True)
    grads = []
    calls = []
    for model in (plain, checkpointed):
        torch.manual_seed(3)
        count = [0]
        parts = [locate(model, path) for level in model.feature_levels() for path in level.owners]
        last = [part for part in parts if any(True for _ in part.parameters())][-1]
        leaf = next(m for m in last.modules() if list(m.parameters(recurse=False)) and not isinstance(m, Row))
        leaf.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        loss(model(x)).backward()
        calls.append(count[0])
        grads.append({n: p.grad for n, p in model.named_parameters()})
    assert calls == [1, 2], "nothing was recomputed"
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], rtol=1e-4, atol=1e-5), name


def test_bfloat16_and_channels_last(family):
    x = images(family)
    model = randomize(build(family)).eval()
    reference = model(x)
    assert (
        relative_error(model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), reference)
        < 1e-4
    )
    half = model.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all()


def test_compiles_as_one_graph(family):
    x = images(family)
    model = randomize(build(family)).eval()
    torch._dynamo.reset()
    # one graph is what a family owes; that its operations can be lowered, export proves
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert relative_error(compiled(x), model(x)) < 1e-4


def test_exports(family):
    x = images(family)
    model = randomize(build(family)).eval()
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        assert relative_error(program.module()(x), model(x)) < 1e-4


def test_image_sizes(family, record_property):
    """Weights of one image size serve another; a family that cannot says so with the shapes."""
    arch, side = smallest(family), image_size(smallest(family))[0]
    of_size = (lambda s: {"img_size": (s, s)}) if "img_size" in shrink(arch) else (lambda s: {})
    source = randomize(build(family, **of_size(side))).eval()
    small, large = (torch.nn.functional.interpolate(images(family), size=(s, s)) for s in (side, 2 * side))
    try:
        model = opsin.create_model(arch, pretrained=source.state_dict(), **(shrink(arch) | of_size(2 * side))).eval()
    except WeightsError:
        record_property("capable", False)
        with pytest.raises(WeightsError, match="of another shape"):
            opsin.create_model(arch, pretrained=source.state_dict(), **(shrink(arch) | of_size(2 * side)))
        return
    assert torch.isfinite(model(large)).all()
    maps = [m.forward_intermediates(x, 1, intermediates_only=True)[0] for m, x in ((model, large), (source, small))]
    assert maps[0].shape[2] > maps[1].shape[2]
    assert not torch.equal(model(large), source(small))


def test_prepared_for_inference(family):
    x = images(family)
    model = randomize(build(family)).eval()
    prepared = opsin.prepare_for_inference(model, example_input=images(family, seed=2))
    with torch.inference_mode():
        assert relative_error(prepared(x), model(x)) < 2e-5
        for a, b in zip(prepared.forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
            assert relative_error(a, b) < 2e-5
    assert not any(p.requires_grad for p in prepared.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_state_dict_round_trip(family):
    x = images(family)
    source = randomize(build(family)).eval()
    target = build(family).eval()
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))


def test_meta_build_then_load(family):
    from opsin.weights.load import load_into

    x = images(family)
    source = randomize(build(family)).eval()
    arch = smallest(family)
    with torch.device("meta"):
        empty = find_family(arch).model_of(arch)(**(config_args(arch) | shrink(arch)))
    empty.reset_classifier(source.num_classes)
    assert all(p.is_meta for p in empty.parameters())
    load_into(empty, source.state_dict())
    assert not [n for n, t in [*empty.named_parameters(), *empty.named_buffers()] if t.is_meta]
    assert torch.equal(empty.eval()(x), source(x))


def test_freezing(family):
    model = build(family).train()
    model.freeze_stages(1)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert any(p.requires_grad for p in model.parameters())
    before = {n: b.clone() for n, b in model.named_buffers()}
    model(images(family))
    for name, value in model.named_buffers():
        if name.startswith(tuple(f"{f}." for f in model.frozen)):
            assert torch.equal(value, before[name]), name
    model.freeze_stages(None)
    classifier = {id(p) for part in classifiers(model) for p in part.parameters()}
    left = [n for n, p in model.named_parameters() if p.requires_grad]
    assert {id(p) for p in model.parameters() if p.requires_grad} >= classifier
    assert len(left) < len(list(model.parameters()))
    model.freeze_stages(0)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(IndexError):
        model.freeze_stages(99)


def test_layer_groups_cover_all_parameters_once(family):
    model = build(family)
    for coarse in (False, True):
        groups = model.layer_groups(coarse)
        assert len(groups) >= 3
        for name, _ in model.named_parameters():
            owners = [i for i, group in enumerate(groups) if f"{name}.".startswith(tuple(f"{p}." for p in group))]
            assert len(owners) == 1, (name, owners)
    assert len(model.layer_groups(False)) >= len(model.layer_groups(True))
    assert set(model.group_matcher()) == {"stem", "blocks"}


def test_pruning_late_stages(family):
    x = images(family)
    model = build(family).eval()
    _, maps = model.forward_intermediates(x)
    before = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([0], prune_norm=True) == [0]
    assert sum(p.numel() for p in model.parameters()) < before
    assert torch.equal(model.forward_intermediates(x, [0], intermediates_only=True)[0], maps[0])


def test_same_weights_for_any_thread_count(family):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = build(family).state_dict()
        torch.set_num_threads(2)
        two = build(family).state_dict()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_initial_values_are_sane(family):
    model = build(family)
    assert isinstance(model, Model)
    for name, p in model.named_parameters():
        assert torch.isfinite(p).all(), name
        assert p.abs().max() < 50, name
    torch.manual_seed(0)
    model.train()
    assert model(images(family)).std() < 100
    assert image_size(smallest(family))


def test_misspelt_arguments_raise(family):
    with pytest.raises(TypeError, match="Did you mean num_classes"):
        build(family, num_class=10)
    assert build(family, num_classes=None).num_classes == build(family).num_classes
