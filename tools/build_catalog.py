"""Rebuild the packed facts in `src/opsin/catalog/data/` and the contracts in `tests/facts/` from raw measurements.

    python tools/build_catalog.py --facts DIR [--families resnet efficientnet ...]

`DIR` holds `architectures.jsonl.gz`, `pretrained.jsonl.gz`, `default_tags.json`, `old_names.json`, `accuracy.csv` and
`labels/`. The same input gives the same bytes. How the columns read back is in `opsin/catalog/tables.py`.
"""

import argparse
import csv
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "src/opsin/catalog/data"
FACTS = ROOT / "tests/facts"
# corrections and additions to the raw table of old names, checked against the published packages 0.1.8 to 1.0.22
OLD_NAMES = ROOT / "tools/old_names.json"

NORMS = {
    "": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
# what a contract test needs to know of an architecture
CONTRACT = ["name", "cls", "args", "params", "num_classes", "num_features", "head_hidden_size", "input_size"]
CONTRACT += ["first_conv", "classifier", "no_weight_decay", "nonpersistent_buffers"]
CONTRACT += ["feature_info", "features_only", "state"]
# letter in the flags column of synsets.tsv.gz -> raw file; all but "s" list their synsets in ascending order
LABEL_SETS = {
    "k": "imagenet_synsets.txt",
    "t": "imagenet12k_synsets.txt",
    "g": "imagenet21k_goog_synsets.txt",
    "i": "imagenet21k_miil_synsets.txt",
    "w": "imagenet21k_miil_w21_synsets.txt",
    "f": "imagenet22k_synsets.txt",
    "s": "imagenet22k_ms_synsets.txt",
    "a": "imagenet_a_synsets.txt",
    "r": "imagenet_r_synsets.txt",
    "m": "mini_imagenet_synsets.txt",
}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])


def write_gz(path: Path, text: str) -> None:
    with path.open("wb") as out, gzip.GzipFile("", "wb", 9, out, mtime=0) as packed:
        packed.write(text.encode())


def dump_table(value: dict[str, Any]) -> str:
    """JSON with one entry per line at the second level, so that a diff shows the entry that changed."""
    parts = []
    for section, entries in value.items():
        lines = ",\n".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in sorted(entries.items()))
        parts.append(f"{json.dumps(section)}:{{\n{lines}\n}}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def size_text(size: list[int] | None) -> str:
    """(3, 224, 224) -> "224", (3, 256, 192) -> "256x192", (1, 64, 64) -> "1x64x64"."""
    if not size:
        return ""
    channels, height, width = size
    if channels != 3:
        return f"{channels}x{height}x{width}"
    return str(height) if height == width else f"{height}x{width}"


def names_text(value: str | list[str] | None) -> str:
    """One name as it is, several with a trailing comma each, so that a list of one stays a list; `-` for none."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else "".join(f"{v}," for v in value) or ","


def norm_text(mean: list[float], std: list[float]) -> str:
    for name, norm in NORMS.items():
        if norm == (tuple(mean), tuple(std)):
            return name
    return "/".join(" ".join(map(repr, values)) for values in (mean, std))


def features_text(info: list[dict[str, Any]]) -> str:
    """Channels and stride per feature, runs of equal ones counted: "64/2 64/4 128/8" or "768/16*12"."""
    pairs = [f"{f['num_chs']}/{f['reduction']}" for f in info]
    runs = [(pair, len(list(same))) for pair, same in itertools.groupby(pairs)]
    return " ".join(pair if n == 1 else f"{pair}*{n}" for pair, n in runs)


def build_models(architectures: list[dict[str, Any]], compute: dict[str, list[dict[str, str]]]) -> None:
    rows = []
    for a in architectures:
        indices = a["features_only"]["out_indices"]
        every = indices == list(range(len(a["feature_info"])))
        measured = compute.get(a["name"], [])
        # compute at the default size where it was measured there, else at the nearest size, which is then named
        nearest = min(measured, key=lambda r: abs(int(r["img_size"]) - a["input_size"][1]), default=None)
        at_default = nearest is not None and [int(nearest["img_size"])] * 2 == a["input_size"][1:]
        rows.append(
            [
                a["name"],
                a["module"],
                a["cls"],
                a["params"],
                a["num_classes"],
                a["num_features"],
                "" if a["head_hidden_size"] == a["num_features"] else a["head_hidden_size"],
                size_text(a["input_size"]),
                names_text(a["first_conv"]),
                names_text(a["classifier"]),
                features_text(a["feature_info"]),
                "" if every else " ".join(map(str, indices)),
                nearest and float(nearest["gmacs"]),
                nearest and float(nearest["macts"]),
                "" if nearest is None or at_default else nearest["img_size"],
            ]
        )
    header = (
        "name,family,cls,params,num_classes,num_features,head_hidden_size,input_size,first_conv,classifier,features"
    )
    write_csv(DATA / "models.csv", [*header.split(","), "out_indices", "gmacs", "macts", "compute_size"], rows)


def build_weights(
    architectures: list[dict[str, Any]], weights: list[dict[str, Any]], default_tags: dict[str, str]
) -> None:
    by_architecture: dict[str, list[dict[str, Any]]] = {}
    for w in weights:
        by_architecture.setdefault(w["architecture"], []).append(w)
    rows = []
    for a in architectures:
        default = default_tags[a["name"]] or ""
        tags = sorted(by_architecture[a["name"]], key=lambda w: w.get("tag", "") != default)
        assert tags[0].get("tag", "") == default, a["name"]
        for w in tags:
            assert "label_offset" not in w, w["name"]
            own_first, own_head = w["first_conv"] != a["first_conv"], w["classifier"] != a["classifier"]
            rows.append(
                [
                    w["name"],
                    # "=" is the hub repository of the same name
                    "=" if w.get("hf_hub_id") == f"timm/{w['name']}" else w.get("hf_hub_id"),
                    w.get("url"),
                    "1" if w.get("custom_load") else "",
                    size_text(w["input_size"]) if w["input_size"] != a["input_size"] else "",
                    size_text(w.get("test_input_size")),
                    size_text(w.get("min_input_size")),
                    "1" if w.get("fixed_input_size") else "",
                    "x".join(map(str, w.get("pool_size", []))),
                    "" if w["interpolation"] == "bicubic" else w["interpolation"],
                    "" if w["crop_pct"] == 0.875 else w["crop_pct"],
                    w.get("test_crop_pct"),
                    "" if w["crop_mode"] == "center" else w["crop_mode"],
                    norm_text(w["mean"], w["std"]),
                    # the raw table leaves 0 out (a model without a head); 1000 is the default here
                    "" if w.get("num_classes", 0) == 1000 else w.get("num_classes", 0),
                    names_text(w["first_conv"]) if own_first else "",
                    names_text(w["classifier"]) if own_head else "",
                    w.get("license"),
                    w.get("origin_url"),
                    w.get("paper_name"),
                    w.get("paper_ids"),
                    "\n".join(w.get("notes", [])),
                ]
            )
    header = (
        "name,hf_hub_id,url,custom_load,input_size,test_input_size,min_input_size,fixed_input_size,pool_size,interpolation,"
        "crop_pct,test_crop_pct,crop_mode,norm,num_classes,first_conv,classifier,license,origin_url,paper_name,paper_ids,notes"
    )
    assert len(rows) == len(weights)
    write_csv(DATA / "weights.csv", header.split(","), rows)


def build_accuracy(accuracy: list[dict[str, str]]) -> None:
    drop = {"param_millions", "interpolation"}
    columns = [c for c in accuracy[0] if c not in drop]
    words = {"name", "img_size"}
    rows = [[r[c] if c in words or not r[c] else f"{float(r[c]):g}" for c in columns] for r in accuracy]
    write_csv(DATA / "accuracy.csv", columns, rows)


def build_aliases(raw: dict[str, str | None], known: set[str]) -> None:
    ours = json.loads(OLD_NAMES.read_text(encoding="utf-8"))
    renamed = {**{k: v for k, v in raw.items() if v}, **ours["corrected"], **ours["renamed"]}
    replaced, variants = ours["replaced"], ours["variants"]
    targets = {**renamed, **{k: v[0] for k, v in replaced.items()}}
    for old, new in targets.items():
        assert new in known | set(variants), f"{old} -> {new}: no such name"
        assert old not in known, f"{old} is a name of today"
    for old, entry in variants.items():
        assert entry["like"] in known, entry
        assert old not in known | set(targets), f"{old} has two meanings"
    tables = {"renamed": renamed, "replaced": replaced, "variants": variants}
    (DATA / "aliases.json").write_text(dump_table(tables))


def build_labels(raw: Path) -> None:
    def column(name: str) -> list[str]:
        return (raw / name).read_text(encoding="utf-8").split()

    def table(name: str) -> dict[str, str]:
        lines = (raw / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split("\t") for line in lines)  # type: ignore[arg-type,misc]

    sets = {flag: column(name) for flag, name in LABEL_SETS.items()}
    for flag, ids in sets.items():
        head = 1000 if flag == "s" else 0  # the Microsoft set puts the ImageNet-1k classes first
        assert ids[:head] == sets["k"][:head], flag
        assert ids[head:] == sorted(ids[head:]), flag
    members = {flag: set(ids) for flag, ids in sets.items()}
    lemmas, definitions = table("imagenet_synset_to_lemma.txt"), table("imagenet_synset_to_definition.txt")
    assert sorted(lemmas) == sorted(definitions) == sorted(set().union(*members.values()))
    lines = []
    # ImageNet-1k first: reading its words must not unpack the other 21,000
    for synset in [*sets["k"], *sorted(set(lemmas) - members["k"])]:
        flags = "".join(flag for flag, ids in members.items() if synset in ids)
        lines.append(f"{synset}\t{flags}\t{lemmas[synset]}\t{definitions[synset]}\n")
    write_gz(DATA / "synsets.tsv.gz", "".join(lines))
    real = json.loads((raw / "imagenet_real_labels.json").read_text())
    write_gz(DATA / "real.txt.gz", "".join(" ".join(map(str, labels)) + "\n" for labels in real))


def build_contracts(architectures: list[dict[str, Any]], families: list[str]) -> None:
    for family in families:
        members = [{k: a[k] for k in CONTRACT} for a in architectures if a["module"] == family]
        if not members:
            raise SystemExit(f"no architecture belongs to a family {family!r}")
        lines = ",\n".join(f"{json.dumps(a['name'])}:{json.dumps(a, separators=(',', ':'))}" for a in members)
        write_gz(FACTS / f"{family}.json.gz", "{\n" + lines + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=Path, required=True, help="folder with the raw tables")
    parser.add_argument("--families", nargs="*", help="families whose contracts go to tests/facts (default: all)")
    args = parser.parse_args()
    DATA.mkdir(exist_ok=True)
    FACTS.mkdir(exist_ok=True)
    architectures = read_jsonl(args.facts / "architectures.jsonl.gz")
    weights = read_jsonl(args.facts / "pretrained.jsonl.gz")
    accuracy = list(csv.DictReader((args.facts / "accuracy.csv").open(encoding="utf-8")))
    compute: dict[str, list[dict[str, str]]] = {}
    for row in accuracy:
        compute.setdefault(row["name"].partition(".")[0], []).append(row)
    build_models(architectures, compute)
    build_weights(architectures, weights, json.loads((args.facts / "default_tags.json").read_text()))
    build_accuracy(accuracy)
    known = {a["name"] for a in architectures} | {w["name"] for w in weights}
    build_aliases(json.loads((args.facts / "old_names.json").read_text()), known)
    build_labels(args.facts / "labels")
    build_contracts(architectures, args.families or sorted({a["module"] for a in architectures}))
    for path in sorted([*DATA.iterdir(), *FACTS.iterdir()]):
        print(f"{path.stat().st_size:>9,} {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
