"""Running models on the CPU: the same weights on both sides, fp32."""

from benchmarks._ab import Row, Worker, compare

TITLE = "Forward and backward on the CPU"
NOTE = (
    "fp32, 224 px, the same weights. `prepared` is opsin after `prepare_for_inference`, beside timm as it comes; the "
    "largest relative error of its logits stands in brackets. `and allocator` is `prepare_for_inference(model, "
    "tune_allocator=True)`, which is for a whole process, so there each side has a process of its own."
)
MODELS = ("resnet50", "efficientnet_b0", "mobilenetv3_large_100", "convnext_tiny", "vit_small_patch16_224")


def _pair(arch: str):
    import timm
    import torch

    import opsin

    torch.manual_seed(0)
    peer = timm.create_model(arch).eval()
    ours = opsin.create_model(arch).eval()
    ours.load_state_dict(peer.state_dict())
    return peer, ours


def _rows(arch: str, rounds: int) -> list[Row]:
    import torch

    import opsin

    peer, ours = _pair(arch)
    rows = [_forward(f"{arch}, batch {batch}", peer, ours, batch, rounds) for batch in (1, 32)]
    rows.append(_step(f"{arch}, forward and backward, batch 8", peer, ours, rounds))
    prepared = opsin.prepare_for_inference(ours)
    with torch.inference_mode():
        x = torch.randn(4, 3, 224, 224)
        wanted, got = peer(x), prepared(x)
    error = ((wanted - got).abs().max() / wanted.abs().max()).item()
    names = (f"{arch}, prepared, batch {batch} ({error:.0e})" for batch in (1, 32))
    rows += [_forward(name, peer, prepared, batch, rounds) for name, batch in zip(names, (1, 32), strict=True)]
    return [*rows, _with_allocator(f"{arch}, prepared and allocator, batch 32", arch, 32, rounds)]


def _forward(name: str, peer, ours, batch: int, rounds: int) -> Row:
    import torch

    x = torch.randn(batch, 3, 224, 224)
    with torch.inference_mode():
        return compare(name, lambda: peer(x), lambda: ours(x), rounds=rounds if batch > 1 else rounds * 4)


PROCESS = """
import sys, torch
torch.set_num_threads(1)
side, arch, batch = sys.argv[1:]
if side == "timm":
    import timm
    model = timm.create_model(arch).eval()
else:
    import opsin
    model = opsin.prepare_for_inference(opsin.create_model(arch), tune_allocator=True)
x = torch.randn(int(batch), 3, 224, 224)
call = torch.inference_mode()(lambda: model(x))
"""


def _with_allocator(name: str, arch: str, batch: int, rounds: int) -> Row:
    with Worker(PROCESS, "timm", arch, batch) as peer, Worker(PROCESS, "opsin", arch, batch) as ours:
        return compare(name, peer, ours, rounds=rounds, measure=lambda call: call())  # type: ignore[arg-type, return-value]


def _step(name: str, peer, ours, rounds: int) -> Row:
    import torch

    x = torch.randn(8, 3, 224, 224)

    def step(model):
        model.zero_grad(set_to_none=True)
        model(x).sum().backward()

    return compare(name, lambda: step(peer), lambda: step(ours), rounds=rounds)


def run(rounds: int) -> list[Row]:
    import torch

    import opsin

    torch.set_num_threads(1)
    return [row for arch in MODELS if opsin.is_model(arch) for row in _rows(arch, rounds)]
