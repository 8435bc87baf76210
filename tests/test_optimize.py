"""`prepare_for_inference`: the same outputs, and nothing folded that something else reads."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.errors import OpsinError
from opsin.inference import optimize
from opsin.inference._packed import NAMES, PackedConv2d, PackedLinear, can_pack, fusable
from opsin.inference.optimize import prepare_for_inference, report
from opsin.layers.conv import Conv2dSame
from opsin.layers.norm_act import BatchNormAct2d

needs_packing = pytest.mark.skipif(not can_pack(), reason="this build of torch has no oneDNN")


def net(name, **kwargs):
    return randomize(opsin.create_model(name, **kwargs)).eval()


def picture(size=64, batch=2, chans=3):
    return torch.randn(batch, chans, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("resnet18", 0),
        ("resnet26t", 0),
        ("resnetblur18", 0),
        ("seresnet18", 0),
        ("test_efficientnet", 0),
        ("test_efficientnet_evos", None),
        ("tf_efficientnet_lite0", 0),
        ("test_convnext", None),
        ("test_vit", None),
    ],
)
@torch.inference_mode()
def test_same_outputs(name, kept):
    model = net(name)
    before = copy.deepcopy(model.state_dict())
    size = model.pretrained_cfg["input_size"][-1] if "vit" in name else 96
    x = picture(size)
    ready = prepare_for_inference(model, example_input=x)
    assert relative_error(ready(x), model(x)) < 1e-5
    other = picture(size, batch=3) if "vit" in name else picture(77, batch=1)
    assert relative_error(ready(other), model(other)) < 1e-5
    done = report(ready)
    assert done.error < 1e-5
    assert not done.undone
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    if kept is not None:
        assert norms > 0
        assert done.folded == norms
        assert len(done.kept_norms) == kept
        assert not any(isinstance(m, nn.BatchNorm2d) for m in ready.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "the original was changed"
    for a, b in zip(ready.forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
        assert relative_error(a, b) < 1e-5


def test_the_model_itself_only_when_asked():
    model = net("resnet18").train()
    ready = prepare_for_inference(model, example_input=picture())
    assert model.training
    assert model.conv1.weight.requires_grad
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert ready is not model
    assert not ready.training
    assert not any(p.requires_grad for p in ready.parameters())
    assert prepare_for_inference(model, example_input=picture(), inplace=True) is model
    assert isinstance(model.bn1, nn.Identity)


def test_default_example_fits_the_model():
    assert report(prepare_for_inference(net("resnet18", in_chans=5, num_classes=0))).folded == 20


@torch.inference_mode()
def test_feature_nets():
    model = net("resnet18", features_only=True, out_indices=(0, 2))
    ready = prepare_for_inference(model, example_input=picture())
    assert report(ready).folded == 10
    for a, b in zip(ready(picture()), model(picture()), strict=True):
        assert relative_error(a, b) < 1e-5


# -- what may be folded ------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """Convolutions and norms wired up by the function given."""

    def __init__(self, wire, norm=nn.BatchNorm2d):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.m, self.n = norm(4), norm(4)
        self.same, self.act = nn.Identity(), nn.ReLU(inplace=True)
        self.wire = wire

    def forward(self, x):
        return self.wire(self, x)


def twice_read(t, x):
    y = t.a(x)
    return t.m(y) + y


def returned(t, x):
    y = t.a(x)
    return y, t.m(y)


def returned_after(t, x):
    y = t.m(t.a(x))
    return y, F.relu(y)


def two_norms(t, x):
    y = t.a(x)
    return t.m(y) + t.n(y)


def one_norm_for_two(t, x):
    return t.m(t.b(t.m(t.a(x))))


def one_conv_for_two_norms(t, x):
    return t.n(t.b(t.m(t.b(t.a(x)))))


def same_pair_twice(t, x):
    return t.m(t.b(t.m(t.b(t.a(x)))))


def changed_between(t, x):
    return t.m(F.relu_(t.a(x)))


def view_between(t, x):
    return t.m(t.a(x).flip(2))


def read_through_a_view(t, x):
    y = t.a(x)
    return t.m(y), y[:, :2]


def through_identity(t, x):
    return t.act(t.m(t.same(t.a(x))))


def norm_before(t, x):
    return t.b(t.m(F.relu(t.a(x))))


def one_act_for_two(t, x):
    return t.act(t.n(t.b(t.act(t.m(t.a(x))))))


@pytest.mark.parametrize(
    ("wire", "folded"),
    [
        (twice_read, 0),
        (returned, 0),
        (returned_after, 1),
        (two_norms, 0),
        (one_norm_for_two, 0),
        (one_conv_for_two_norms, 0),
        (same_pair_twice, 1),
        (changed_between, 0),
        (view_between, 0),
        (read_through_a_view, 0),
        (through_identity, 1),
        (norm_before, 0),
        (one_act_for_two, 2),
    ],
)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
@torch.inference_mode()
def test_folds_only_what_nothing_else_reads(wire, folded, norm):
    model = randomize(Toy(wire, norm)).eval()
    x = picture(8)
    ready = prepare_for_inference(model, example_input=x)
    assert report(ready).folded == folded
    assert not report(ready).undone
    assert len(report(ready).kept_norms) == 2 - folded
    got, wanted = ready(x), model(x)
    for a, b in zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]:
        assert relative_error(a, b) < 1e-5


def test_a_level_between_convolution_and_norm_stays():
    """`forward_intermediates` shows a map that `forward` alone would never give away."""
    model = net("densenet121")
    x = picture(64)
    ready = prepare_for_inference(model, example_input=x)
    assert report(ready).folded
    with torch.inference_mode():
        for a, b in zip(ready.forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
            assert relative_error(a, b) < 1e-5


@torch.inference_mode()
def test_a_step_that_moves_the_outputs_is_taken_back(monkeypatch):
    model = net("resnet18")
    fold = optimize.fold_batch_norm

    def wrong(conv, norm):
        out = fold(conv, norm)
        out.bias += 1
        return out

    monkeypatch.setattr(optimize, "fold_batch_norm", wrong)
    ready = prepare_for_inference(model, example_input=picture(), pack=False, channels_last=False)
    assert report(ready).folded == 0
    assert "folding batch norms" in report(ready).undone[0]
    assert "undone" in str(report(ready))
    assert torch.equal(ready(picture()), model(picture()))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def reparameterize(self):
        merged = nn.Conv2d(3, 4, 3, padding=1)
        merged.weight.data = self.one.weight.data + self.two.weight.data
        merged.bias.data = self.one.bias.data + self.two.bias.data
        self.one, self.two = merged, None

    def forward(self, x):
        return self.one(x) if self.two is None else self.one(x) + self.two(x)


@torch.inference_mode()
def test_branches_are_merged():
    model = nn.Sequential(Branches(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)).eval()
    x = picture(8)
    ready = prepare_for_inference(model, example_input=x)
    assert report(ready).reparameterized == 1
    assert report(ready).removed == 1
    assert ready[0].two is None
    assert model[0].two is not None
    assert relative_error(ready(x), model(x)) < 1e-5


# -- packed layers -----------------------------------------------------------------------------------------------------


@needs_packing
@pytest.mark.parametrize("act", [None, *NAMES], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@torch.inference_mode()
def test_activations_in_the_same_pass(act, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    act = act() if act else None
    conv, linear = nn.Conv2d(8, 16, 3, 2, 1, groups=2).to(memory_format=layout), nn.Linear(12, 16)
    x, tokens = picture(17, chans=8).to(memory_format=layout) * 4, torch.randn(2, 5, 12) * 4
    plain = act or nn.Identity()
    packed = PackedConv2d(conv, act)
    assert relative_error(packed(x), plain(conv(x))) < 1e-5
    assert packed(x).is_contiguous(memory_format=torch.channels_last) or not channels_last
    assert packed._packed is not None
    assert relative_error(packed(x[:1, :, :9, :11]), plain(conv(x[:1, :, :9, :11]))) < 1e-5
    packed = PackedLinear(linear, act)
    assert relative_error(packed(tokens), plain(linear(tokens))) < 1e-5
    assert relative_error(packed(tokens[0].T.contiguous().T), plain(linear(tokens[0]))) < 1e-5
    assert packed._packed is not None


@needs_packing
@torch.inference_mode()
def test_padding_that_depends_on_the_size():
    conv = Conv2dSame(4, 6, 3, 2)
    packed = PackedConv2d(conv)
    for size in (7, 8, 9, 16):
        x = picture(size, chans=4)
        assert packed(x).shape[-1] == -(-size // 2)
        assert relative_error(packed(x), conv(x)) < 1e-5


def test_only_known_activations_are_fused():
    class Own(nn.ReLU):
        def forward(self, x):
            return x + 1

    assert fusable(nn.ReLU())
    assert not fusable(Own())
    assert not fusable(nn.Softplus())
    assert not PackedConv2d.takes(nn.Conv2d(1, 1, 3, padding="same"))
    assert not PackedConv2d.takes(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))


@needs_packing
def test_packed_models_remain_models():
    x = picture()
    model = net("resnet18")
    ready = prepare_for_inference(model, example_input=x)
    assert report(ready).packed == 21
    with torch.inference_mode():
        wanted = model(x)
        ready(x)
        for twin in (copy.deepcopy(ready), pickle.loads(pickle.dumps(ready))):
            assert twin.conv1._packed is None, "the packed copy must not be saved"
            assert relative_error(twin(x), wanted) < 1e-5
        state = {k: torch.zeros_like(v) for k, v in ready.state_dict().items()}
        twin.load_state_dict(state)
        assert not twin(x).any(), "new weights must be packed again"
        assert relative_error(copy.deepcopy(ready).double()(x.double()).float(), wanted) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(ready(x).float(), wanted) < 5e-2
    seen = x.clone().requires_grad_()
    ready(seen).sum().backward()
    ours, seen.grad = seen.grad.clone(), None
    model(seen).sum().backward()
    assert relative_error(ours, seen.grad) < 1e-4


def test_export():
    x = picture()
    model = net("resnet18")
    program = torch.export.export(prepare_for_inference(model, example_input=x), (x,))
    with torch.inference_mode():
        assert relative_error(program.module()(x), model(x)) < 1e-5


def test_half_precision():
    x = picture().bfloat16()
    model = net("resnet18").bfloat16()
    ready = prepare_for_inference(model, example_input=x)
    assert report(ready).folded == 20
    assert report(ready).packed == 0
    assert report(ready).channels_last
    with torch.inference_mode():
        assert relative_error(ready(x).float(), model(x).float()) < 5e-2


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_a_wrong_example_is_told():
    with pytest.raises(
        OpsinError, match=r"ResNet does not run on an example of shape \(2, 4, 64, 64\).*example_input="
    ):
        prepare_for_inference(net("resnet18"), example_input=picture(chans=4))
    with pytest.raises(OpsinError, match="has not been through prepare_for_inference"):
        report(nn.Linear(1, 1))


FAULTS = """
import resource, torch
from opsin.inference.optimize import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(10_000_000).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
fresh = faults()
assert keep_freed_memory()
faults()
print(fresh, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_kept():
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    before, after = map(int, out.split())
    assert before > 100
    assert after < before / 10
