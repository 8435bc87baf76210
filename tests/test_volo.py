"""VOLO: every option acts, training with token labels, other sizes; beside the judge."""

import pytest
import torch
from support import randomize, relative_error

from opsin.errors import OpsinError
from opsin.models import volo
from opsin.models.volo import VOLO, adapt

timm = pytest.importorskip("timm")
from timm.models import volo as judge  # noqa: E402

SMALL = {
    "num_classes": 5, "img_size": (32, 48), "patch_size": 4, "stem_hidden_dim": 8, "layers": (2, 1),
    "embed_dims": (16, 24), "num_heads": (2, 3), "downsamples": (True, False), "outlook_attention": (True, False),
}  # fmt: skip


THREE = {
    "layers": (1, 1, 1), "embed_dims": (24, 24, 24), "num_heads": (3, 3, 3), "outlook_attention": (True, True, False),
}  # fmt: skip


def pair(**kwargs):
    theirs = randomize(judge.VOLO(**(SMALL | kwargs))).eval()
    ours = VOLO(**(SMALL | kwargs)).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"use_aux_head": False, "qkv_bias": True, "mlp_ratio": 2.0},
        {"outlook_attention": (True, True), "norm_layer": torch.nn.LayerNorm},
        {"outlook_attention": (False, True), "global_pool": "avg"},
        THREE | {"downsamples": (False, True, False), "pooling_scale": 1},
        THREE | {"downsamples": (True, True, False), "outlook_attention": (True, False, False)},
        {"post_layers": ("ca",), "img_size": (40, 56)},
        {"post_layers": None, "global_pool": "avg", "use_aux_head": False},
        {"num_classes": 0},
    ],
)
def test_options_as_timm(kwargs):
    ours, theirs = pair(**kwargs)
    x = torch.randn(2, 3, *ours.config.img_size)
    assert relative_error(ours(x), theirs(x)) < 1e-5
    (final, maps), (their_final, their_maps) = (model.forward_intermediates(x) for model in (ours, theirs))
    assert final.shape == their_final.shape
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(maps, their_maps, strict=True))


def test_heads_come_and_go():
    model = randomize(VOLO(**SMALL)).eval()
    x = torch.randn(2, 3, 32, 48)
    tokens = model.forward_features(x)
    wanted = model.head(tokens[:, 0]) + 0.5 * model.aux_head(tokens[:, 1:]).amax(1)
    assert torch.equal(model(x), wanted)
    model.reset_classifier(0)
    assert torch.equal(model(x), tokens[:, 0])
    model.reset_classifier(7, "max")
    assert model(x).shape == (2, 7)
    assert model.aux_head.weight.std() > 0.01
    with pytest.raises(OpsinError, match="global_pool='map'"):
        model.reset_classifier(7, "map")


def test_training_with_token_labels():
    x = torch.randn(2, 3, 32, 48)
    model = randomize(VOLO(**SMALL))
    assert torch.equal(model.eval().forward_train(x), model(x))
    logits, patches, box = model.train().forward_train(x)
    assert logits.shape == (2, 5)
    assert patches.shape == (2, 24, 5)
    assert box == (0, 0, 0, 0)
    (logits.sum() + patches.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.is_tensor(randomize(VOLO(**SMALL, use_aux_head=False)).train().forward_train(x))


def test_mixed_tokens(monkeypatch):
    """Swapping all patches swaps the images: what comes back for each patch is what it was."""
    x = torch.randn(2, 3, 32, 48)
    model = randomize(VOLO(**SMALL, use_mix_token=True)).train()
    monkeypatch.setattr(volo, "random_box", lambda grid: (0, 0, 0, 0))
    logits, patches, _ = model.forward_train(x)
    monkeypatch.setattr(volo, "random_box", lambda grid: (0, 0, *grid))
    mixed, back, box = model.forward_train(x)
    assert box == (0, 0, 4, 6)
    assert torch.allclose(mixed, logits.flip(0), atol=1e-5)
    assert torch.allclose(back, patches, atol=1e-5)
    monkeypatch.setattr(volo, "random_box", lambda grid: (1, 2, 3, 4))
    half, back, _ = model.forward_train(x)
    assert not torch.allclose(half, logits, atol=1e-3)
    assert not torch.allclose(back, patches, atol=1e-3)


def test_boxes():
    torch.manual_seed(0)
    boxes = [volo.random_box((4, 6)) for _ in range(200)]
    assert all(0 <= top <= bottom <= 4 and 0 <= left <= right <= 6 for top, left, bottom, right in boxes)
    assert len(set(boxes)) > 20
    x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    swapped = volo.swap_box(x, (1, 2, 3, 4))
    assert torch.equal(swapped[0, 1:3, 2:4], x[1, 1:3, 2:4])
    assert (swapped != x).sum() == 8
    assert torch.equal(volo.swap_box(swapped, (1, 2, 3, 4)), x)


def test_another_size():
    source = randomize(VOLO(**SMALL))
    model = VOLO(**(SMALL | {"img_size": 64}))
    state = adapt(source.state_dict(), model)
    wanted = torch.nn.functional.interpolate(
        source.pos_embed.permute(0, 3, 1, 2), (8, 8), mode="bicubic", antialias=True
    )
    assert torch.allclose(state["pos_embed"], wanted.permute(0, 2, 3, 1))
    model.load_state_dict(state)
    today = model.state_dict()
    assert all(torch.equal(value, today[key]) for key, value in adapt(today, model).items())
    with pytest.raises(ValueError, match="maps of 8x8, not 4x6"):
        model(torch.randn(1, 3, 32, 48))


def test_drop_rates_act():
    x = torch.randn(4, 3, 32, 48)
    for name in ("pos_drop_rate", "attn_drop_rate", "drop_path_rate", "drop_rate"):
        model = randomize(VOLO(**SMALL, **{name: 0.5})).train()
        assert not torch.equal(model(x), model(x)), name


def test_figures_that_do_not_fit():
    for args, message in (
        ({"layers": (1, 1, 1)}, "one entry per stage"),
        ({"patch_size": 7}, "an even number"),
        ({"post_layers": ("cb",)}, "class attention"),
        ({"post_layers": None}, "with post_layers"),
    ):
        with pytest.raises(OpsinError, match=message):
            VOLO(**(SMALL | args))
