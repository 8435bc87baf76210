"""ByobNets with self-attention in their late stages.

BoTNet (https://arxiv.org/abs/2101.11605), HaloNet (https://arxiv.org/abs/2103.12731), LambdaResNet
(https://arxiv.org/abs/2102.08602), and mixtures of them from training in timm.
"""

from typing import Any

from opsin.models._byob import ByoBlockCfg, ByobNet, Config, resample
from opsin.models._family import Family

__all__ = ["ByoBlockCfg", "ByobNet", "Config"]

KINDS = {"B": "bottle", "A": "self_attn"}


def row(kinds: str, c: int, *, br: float = 0.25, s: int = 2, **own: Any) -> tuple[ByoBlockCfg, ...]:
    """A stage, a letter for each block: B bottleneck, A self-attention (with `own` arguments)."""
    return tuple(
        ByoBlockCfg(KINDS[kind], d=1, c=c, s=s, br=br, **{k: v for k, v in own.items() if kind == "A" or k == "gs"})
        for kind in kinds
    )


def rows(*kinds: str, **own: Any) -> tuple[Any, ...]:
    """The four stages of a ResNet."""
    return tuple(row(k, c, s=1 + (c > 256), **own) for k, c in zip(kinds, (256, 512, 1024, 2048), strict=True))


STEM: dict[str, Any] = {"stem_type": "tiered", "stem_chs": 64}
TS: dict[str, Any] = {**STEM, "stem_pool": "maxpool"}
SILU: dict[str, Any] = {"act_layer": "silu"}
R26, X26 = rows("BB", "BB", "BA", "AA"), rows("BB", "BB", "BA", "AA", gs=16)
R50 = rows("BBB", "BBBA", "BABABA", "BAB")
R33 = (*rows("BB", "BBA", "BBA", "AA")[:3], row("AA", 1536, br=0.333))
SE33: dict[str, Any] = {**STEM, **SILU, "blocks": R33, "attn_layer": "se", "num_features": 1280}
HALO2, HALO3 = {"block_size": 8, "halo_size": 2}, {"block_size": 8, "halo_size": 3}
BOTTLENECK: dict[str, Any] = {"self_attn_layer": "bottleneck", "img_size": 256}


def mixed(second: str, **args: Any) -> dict[str, Any]:
    """Three kinds of attention: the named one, halo, bottleneck."""
    halo: dict[str, Any] = {"self_attn_layer": "halo", "self_attn_kwargs": {"halo_size": 3}}
    first, *_ = R50
    blocks = (
        first,
        row("BABA", 512, self_attn_layer=second, self_attn_kwargs=args),
        row("BABABA", 1024, **halo),
        row("BAB", 2048, self_attn_layer="bottleneck"),
    )
    return {**STEM, **SILU, "blocks": blocks, "img_size": 256}


VARIANTS = {
    "botnet26t_256": Config(**TS, **BOTTLENECK, blocks=R26),
    "botnet50ts_256": Config(**TS, **SILU, **BOTTLENECK, blocks=R50),
    "eca_botnext26ts_256": Config(
        **TS, **SILU, **BOTTLENECK, blocks=X26, attn_layer="eca", self_attn_kwargs={"dim_head": 16}
    ),
    "eca_halonext26ts": Config(
        **TS, **SILU, blocks=X26, attn_layer="eca", self_attn_layer="halo", self_attn_kwargs=HALO2 | {"dim_head": 16}
    ),
    "halo2botnet50ts_256": Config(**mixed("halo", halo_size=3)),
    "halonet26t": Config(**TS, blocks=R26, self_attn_layer="halo", self_attn_kwargs=HALO2),
    "halonet50ts": Config(
        **TS,
        **SILU,
        blocks=(R50[0], row("BBBA", 512, self_attn_kwargs=HALO3 | {"num_heads": 4}), *R50[2:]),
        self_attn_layer="halo",
        self_attn_kwargs=HALO3,
    ),
    "halonet_h1": Config(
        blocks=tuple(
            ByoBlockCfg("self_attn", d=d, c=c, s=s) for d, c, s in ((3, 64, 1), (3, 128, 2), (10, 256, 2), (3, 512, 2))
        ),
        stem_type="7x7",
        stem_pool="maxpool",
        stem_chs=64,
        self_attn_layer="halo",
        self_attn_kwargs=HALO3,
    ),
    "haloregnetz_b": Config(
        blocks=(
            row("BB", 48, br=3, gs=16),
            row("BBBBBB", 96, br=3, gs=16),
            row("BBBABBBABBBA", 192, br=3, gs=16),
            row("AA", 288, br=3, gs=16),
        ),
        **SILU,
        downsample="",
        num_features=1536,
        attn_layer="se",
        attn_kwargs={"rd_ratio": 0.25},
        block_kwargs={"bottle_in": True, "linear_out": True},
        self_attn_layer="halo",
        self_attn_kwargs={"block_size": 7, "halo_size": 2, "qk_ratio": 0.33},
    ),
    "lambda_resnet26rpt_256": Config(
        **TS, blocks=R26, self_attn_layer="lambda", self_attn_kwargs={"r": None}, img_size=256
    ),
    "lambda_resnet26t": Config(**TS, blocks=R26, self_attn_layer="lambda", self_attn_kwargs={"r": 9}),
    "lambda_resnet50ts": Config(**TS, **SILU, blocks=R50, self_attn_layer="lambda", self_attn_kwargs={"r": 9}),
    "lamhalobotnet50ts_256": Config(**mixed("lambda", r=13)),
    "sebotnet33ts_256": Config(**SE33, **BOTTLENECK),
    "sehalonet33ts": Config(**SE33, self_attn_layer="halo", self_attn_kwargs=HALO3),
}

family = Family(ByobNet, VARIANTS, resample, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
