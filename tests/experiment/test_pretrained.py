"""Two MobileNets with pretrained weights, scored and teaching from a file."""

import csv
from pathlib import Path

import numpy as np
import pytest

from anykd.data import DataConfig, open_data
from tests.experiment.results import summary
from tests.experiment.runs import CNN, anykd, short

# Their files' own description: the padding of TensorFlow, images in [-1, 1].
OPTIONS = {"options.pad_type": "same", "mean": "0.5", "std": "0.5"}


def settings(table: str) -> list[str]:
    return [part for key, value in OPTIONS.items() for part in ("--set", f"{table}.{key}={value}")]


def file_of(dev_data: Path, name: str) -> Path:
    path = dev_data / "weights" / f"{name}_224.safetensors"
    if not path.is_file():
        pytest.skip(f"no pretrained weights at {path}")
    return path


@pytest.fixture(scope="module")
def photographs(dev_data, tmp_path_factory) -> Path:
    """A thousand photographs, one of each class, in folders named by WordNet id."""
    source = dev_data / "imagenet_samples"
    if not source.is_dir():
        pytest.skip(f"no photographs at {source}")
    with (source / "classes.csv").open() as file:
        folders = {int(row["label"]): row["wnid"] for row in csv.DictReader(file)}
    root = tmp_path_factory.mktemp("photographs")
    with np.load(source / "images.npz") as files:
        jpeg, offsets, labels = files["jpeg"], files["offsets"], files["label"]
    for start, end, label in zip(offsets[:-1], offsets[1:], labels, strict=True):
        folder = root / folders[int(label)]
        folder.mkdir()
        (folder / "0.jpg").write_bytes(jpeg[start:end].tobytes())
    return root


@pytest.mark.parametrize(
    ("name", "published"), [("mobilenetv1_100", 88.8), ("mobilenetv2_100", 88.0)]
)
def test_reaches_the_accuracy_that_comes_with_it(name, published, dev_data, photographs):
    done = anykd(
        *("evaluate", name, "--weights", file_of(dev_data, name), "--data", photographs),
        *("--split", "all", *settings("student")),
    )
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].endswith("1000 images")
    top1 = float(done.out.split()[1])
    # A crop that is one pixel to the side alone moves these by more than half a point.
    assert top1 == pytest.approx(published, abs=1.5)


def test_some_of_the_classes_are_scored_among_themselves(dev_data, photographs, tmp_path):
    for folder in sorted(photographs.iterdir())[:60:5]:
        (tmp_path / folder.name).symlink_to(folder)
    done = anykd(
        *("evaluate", "mobilenetv2_100", "--weights", file_of(dev_data, "mobilenetv2_100")),
        *("--data", tmp_path, "--split", "all", *settings("student")),
    )
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].endswith("12 images")
    assert float(done.out.split()[1]) > 90


def distil(dev_data: Path, data: object, out: Path, *flags: str):
    return anykd(
        *("distill", "--teacher", "mobilenetv2_100", "--student", "resnet18", "--method", "kd"),
        *("--set", f"teacher.weights={file_of(dev_data, 'mobilenetv2_100')}"),
        *(*settings("teacher"), "--data", data, "-o", out, *flags, *short(CNN)),
        *("--image-size", "64", "--batch-size", "50"),
    )


def test_other_classes_are_refused_without_a_new_head(dev_data, tmp_path):
    done = distil(dev_data, f"cifar100:{dev_data / 'cifar100'}", tmp_path / "run")
    assert done.code == 2
    assert "mobilenetv2_100 knows 1000 classes, cifar100 has 100" in done.err
    assert "--teacher-head probe" in done.err
    assert not (tmp_path / "run").exists()


def test_a_probe_teaches_a_hundred_classes(dev_data, tmp_path):
    whole = open_data(DataConfig(source=f"cifar100:{dev_data / 'cifar100'}"))
    # A few of its images: five of each class to learn from, one to score by.
    for split, reader, count in (("train", whole.train, 5), ("val", whole.val, 1)):
        left = dict.fromkeys(range(100), count)
        assert reader.labels is not None
        for position, label in enumerate(reader.labels):
            if left[label]:
                left[label] -= 1
                folder = tmp_path / "few" / split / whole.class_names[label]
                folder.mkdir(parents=True, exist_ok=True)
                reader[position].image.save(folder / f"{left[label]}.png")
    done = distil(dev_data, tmp_path / "few", tmp_path / "run", "--teacher-head", "probe")
    assert done.code == 0, done.err
    found = summary(tmp_path / "run")
    (teacher,) = found["teachers"]
    assert teacher["classes"] == "probe"
    assert teacher["head"]["top1"] > 80
    # Five images a class, of 32 px, on features of another data set: chance is 1.
    assert teacher["top1"] > 10
    assert found["num_samples"] == 100
