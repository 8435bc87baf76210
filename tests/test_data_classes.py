"""Classes from folders to a saved model and back, ImageNet's relatives, several labels, numbers: through the loader."""

import json

import pytest
import torch
from test_data_faults import EVALUATION, loaded, noise

import opsin
from opsin.catalog.labels import label_names, label_set, real_labels
from opsin.cli import main
from opsin.data import create_dataset, create_loader, open_reader
from opsin.data.labels import TargetScale, check_classes, real_targets
from opsin.data.readers.base import Relabelled, Tuples
from opsin.errors import OpsinError


def folders(root, *names, count=1):
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(count):
            noise(10 * i + k).save(root / name / f"{k}.png")
    return root


def test_classes_travel_with_the_model(tmp_path, capsys):
    """Numbered by folders in training; the saved model numbers them for whoever has some of them, in any order."""
    train = create_dataset(folders(tmp_path / "train", "cat", "dog", "fox"), transform=EVALUATION)
    assert train.class_to_idx == {"cat": 0, "dog": 1, "fox": 2}
    model = opsin.create_model("test_vit", num_classes=3)
    best = opsin.save(model, tmp_path / "run" / "best", label_names=train.classes)
    other = create_dataset(folders(tmp_path / "other", "fox", "dog"), transform=EVALUATION, class_map=best)
    assert other.class_to_idx == train.class_to_idx
    (batch,) = create_loader(other, num_workers=0)
    assert batch.targets.tolist() == [1, 2]
    check_classes(other.classes, [label.name for label in opsin.load(best).labels])
    strange = folders(tmp_path / "strange", "cat", "cow")
    with pytest.raises(OpsinError) as caught:
        create_dataset(strange, transform=EVALUATION, class_map=best)
    assert str(caught.value).splitlines() == [
        f"{strange}: the class map has no label for 1 of the 2 classes of the dataset: cow.",
        "  index  the dataset  the class map",
        "  1      'cow'        'dog'",
        "  2      —            'fox'",
    ]
    assert main(["data", str(strange), "--model", str(best), "--output", "None"]) == 1
    assert "1      'cow'     'dog'" in capsys.readouterr().out


def test_classes_travel_with_a_run(tmp_path):
    train = folders(tmp_path / "train", "cat", "dog", "fox", count=4)
    run = tmp_path / "run"
    args = ["--model", "test_resnet", "--img-size", "32", "--batch-size", "4", "--epochs", "1", "--warmup-epochs", "0"]
    assert main(["train", str(train), *args, "--workers", "0", "--output", str(run)]) == 0
    reader = open_reader(folders(tmp_path / "other", "fox", "cat"), class_map=run / "best")
    assert reader.class_to_idx == {"cat": 0, "dog": 1, "fox": 2}
    assert reader.targets.tolist() == [0, 2]


@pytest.mark.parametrize("named", ["synsets", "words"])
def test_imagenet_a_and_v2_by_the_class_map_of_a_model(tmp_path, named):
    labels = getattr(label_set("imagenet-1k"), named)
    chosen = label_names("imagenet-a")[:3]
    reader = open_reader(folders(tmp_path / "a", *chosen), class_map=labels)
    assert [label_names("imagenet-1k")[i] for i in reader.targets] == chosen
    numbered = folders(tmp_path / "v2", *map(str, range(12)))
    small = open_reader(numbered, class_map=[f"name {i}" for i in range(12)])
    assert small.targets.tolist() == list(range(12))
    with pytest.raises(OpsinError, match="no label for 12 of the 12 classes"):
        open_reader(numbered, class_map=labels)


def test_real_labels_as_several_labels(tmp_path):
    (tmp_path / "x").mkdir()
    for number in (1, 2, 4):
        noise(number).save(tmp_path / "x" / f"ILSVRC2012_val_{number:08d}.JPEG")
    reader = open_reader(tmp_path)
    rows = real_targets(reader.name(i) for i in range(len(reader)))
    judged = Relabelled(reader, Tuples(rows), tuple(label_names("imagenet-1k")), "multi")
    (batch,) = create_loader(create_dataset(judged, transform=EVALUATION), num_workers=0)
    assert batch.targets.shape == (3, 1000)
    assert [tuple(row.nonzero().flatten().tolist()) for row in batch.targets] == [
        tuple(sorted(real_labels()[i])) for i in (0, 1, 3)
    ]


def test_several_labels_and_numbers(tmp_path):
    for i in range(4):
        noise(i).save(tmp_path / f"{i}.png")
    (tmp_path / "several.csv").write_text("path,labels\n0.png,a|c\n1.png,b\n2.png,\n3.png,c|b|a\n")
    (batch,) = loaded(f"csv:{tmp_path / 'several.csv'}")
    assert batch.targets.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]]
    (tmp_path / "numbers.jsonl").write_text(
        "\n".join(json.dumps({"path": f"{i}.png", "target": [10.5 + i, -0.25 * i]}) for i in range(4))
    )
    loader = loaded(f"jsonl:{tmp_path / 'numbers.jsonl'}")
    scale = TargetScale.fit(loader.dataset.reader.targets)
    (batch,) = loader
    scaled = scale(batch.targets)
    assert torch.allclose(scaled.mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(scaled.std(0, correction=0), torch.ones(2), atol=1e-6)
    assert torch.allclose(scale.inverse(scaled), batch.targets, atol=1e-6)
