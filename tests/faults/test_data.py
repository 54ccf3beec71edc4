"""Data that nothing can be learnt from: words before training, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.experiment.runs import CNN, Outcome, anykd, short

VERBS = {
    "train": ("train", "--model", "resnet18"),
    "distill": (*("distill", "--student", "resnet18"), *("--teacher", "resnet18")),
    "plan": (*("plan", "--student", "resnet18"), *("--method", "control")),
}


@pytest.fixture
def refused(tmp_path):
    """A function that types a command, and gives its error and hint: nothing was written."""

    def type_(data: object, *sets: str, verb: str = "train") -> tuple[str, str]:
        out = tmp_path / "run"
        where = [] if verb == "plan" else ["--out", out]
        options = () if verb == "distill" else (CNN,)
        done = anykd(*VERBS[verb], "--data", data, *where, *short(*options, *sets))
        assert done.code == 2, done
        assert not out.exists()
        return words_of(done)

    return type_


def words_of(done: Outcome) -> tuple[str, str]:
    """The last error that was said, and its hint, without the breaks of lines."""
    said = " ".join((done.err + done.out).split())
    assert "Traceback" not in said
    error, _, hint = said.rpartition("error: ")[2].partition("hint: ")
    return error, hint


class TestFolders:
    def test_without_anything(self, tmp_path, refused):
        (tmp_path / "empty").mkdir()
        error, hint = refused(tmp_path / "empty")
        assert "has 0 class folders, a classifier needs at least 2" in error
        assert "a folder of its own" in hint

    @pytest.mark.parametrize("verb", VERBS)
    def test_of_one_class(self, write_images, refused, verb):
        error, _ = refused(write_images("data", cat=30) / "data", verb=verb)
        assert "has 1 class folders, a classifier needs at least 2" in error

    def test_with_a_class_that_is_empty(self, write_images, refused):
        error, hint = refused(write_images("data", cat=30, dog=0) / "data")
        assert "dog holds no images" in error
        assert ".jpg" in hint

    def test_with_an_empty_class_to_evaluate_on(self, write_images, refused):
        write_images("data/train", cat=30, dog=30)
        error, _ = refused(write_images("data/val", cat=3, dog=0) / "data")
        assert "dog holds no images" in error


class TestFewerImagesThanABatch:
    @pytest.mark.parametrize("verb", ["train", "plan"])
    def test_are_refused_with_what_would_do(self, write_images, refused, verb):
        error, hint = refused(
            write_images("data", cat=8, dog=8) / "data", "data.val_fraction=0.2", verb=verb
        )
        assert "13 training images do not fill one batch of 16" in error
        assert "lower train.batch_size to 13 or less" in hint

    def test_are_one_smaller_batch_where_none_is_dropped(self, write_images, tmp_path):
        done = anykd(
            *VERBS["train"],
            *("--data", write_images("data", cat=8, dog=8) / "data", "--out", tmp_path / "run"),
            *short(CNN, "data.val_fraction=0.2", "data.drop_last=false", epochs=2),
        )
        assert done.code == 0, done.err
        metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in metrics if '"event": "step"' in line]
        assert [(line["epoch"], line["step"]) for line in steps] == [(0, 0), (1, 0)]

    def test_cannot_be_mixed(self, write_images, refused):
        sets = ("data.drop_last=false", "augment.mixup=0.8")
        error, hint = refused(write_images("data", cat=30, dog=30) / "data", *sets)
        assert "data.drop_last is false" in error
        assert "augment.mixup" in hint


class TestPixels:
    @pytest.mark.parametrize("verb", ["train", "plan"])
    def test_that_are_no_numbers(self, tmp_path, refused, verb):
        for number in range(40):
            path = tmp_path / "data" / ("cat", "dog")[number % 2] / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8), np.nan if number < 10 else 7.0, dtype=np.float32)
            Image.fromarray(pixels).save(path)
        error, hint = refused(tmp_path / "data", verb=verb)
        assert "of 40 images that were tried cannot be read" in error
        assert "some of its pixels are no finite numbers" in error
        assert "mend or remove them" in hint


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Path:
    """CIFAR-100 as tiles, all black; two labels are wrong."""
    folder = tmp_path_factory.mktemp("tiles")
    for name in (*(f"train-{i}" for i in range(5)), "test-0"):
        Image.new("RGB", (3200, 3200)).save(folder / f"{name}.webp", lossless=True, quality=0)
    names = {"fine_label_names": [f"class {number}" for number in range(100)]}
    (folder / "class_names.json").write_text(json.dumps(names))
    train, test = np.arange(50_000) % 100, np.arange(10_000) % 100
    train[[5, 7]] = 100, -1
    np.savez(folder / "labels.npz", train_fine=train, test_fine=test)
    return folder


class TestLabels:
    def test_outside_the_range(self, tiles, refused):
        error, hint = refused(f"cifar100:{tiles}")
        assert "2 of 50000 labels of cifar100 name no class, such as 100" in error
        assert "its classes are 0 to 99" in error
        assert "classes are counted from 0" in hint

    def test_outside_the_range_also_where_they_are_evaluated(self, tiles):
        done = anykd("evaluate", "resnet18", "--data", f"cifar100:{tiles}")
        assert done.code == 2
        assert "name no class" in words_of(done)[0]
