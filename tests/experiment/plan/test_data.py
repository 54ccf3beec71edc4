"""Findings about images and labels, on real files and readers."""

from pathlib import Path
from shutil import copy

import numpy as np
import pytest
from PIL import Image

from anykd.data import AugmentConfig, DataConfig, DataSplits, open_data
from anykd.data.reader import ArrayReader, SubsetReader, UnlabelledReader
from anykd.experiment.plan.findings.data import (
    class_imbalance,
    cropped_borders,
    enlarged_images,
    labels_out_of_range,
    missing_classes,
    overlap,
    unreadable_images,
)
from anykd.experiment.plan.sample import likely_copies, look_at


def noise(count: int, seed: int = 0, *, height: int = 8, width: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, size=(count, height, width, 3), dtype=np.uint8)


def splits(train: list[int], val: list[int], num_classes: int = 3) -> DataSplits:
    """A data set of noise with these labels."""
    names = tuple(f"class {number}" for number in range(num_classes))
    readers = (ArrayReader(noise(len(labels), i), labels) for i, labels in enumerate((train, val)))
    return DataSplits("noise", names, *readers)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve images of two classes, half of them held out."""
    for number, image in enumerate(noise(12)):
        part = ("train", "val")[number % 2]
        path = tmp_path / "data" / part / ("cat", "dog")[number // 6] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "data"


def look(folder: Path, part: str):
    return look_at(getattr(open_data(DataConfig(source=str(folder))), part), 100)


def unreadable(folder: Path, **config):
    options = DataConfig.model_validate({"source": str(folder)} | config)
    return list(unreadable_images(look(folder, "train"), look(folder, "val"), options))


class TestUnreadableFiles:
    def test_are_told_with_the_first_of_them(self, folder):
        assert not unreadable(folder)
        broken = folder / "train" / "cat" / "0.png"
        broken.write_bytes(broken.read_bytes()[:60])
        (finding,) = unreadable(folder)
        assert (finding.severity, finding.code) == ("error", "unreadable-images")
        assert finding.message.startswith("1 of 12 images that were tried")
        assert "0.png" in finding.message

    @pytest.mark.parametrize("part", ["train", "val"])
    def test_are_an_error_where_training_stops_at_them(self, folder, part):
        """One of the six images of a part."""
        next((folder / part / "cat").iterdir()).write_text("no image")
        told = [
            *(unreadable(folder, max_bad_fraction=fraction) for fraction in (0.16, 0.17)),
            unreadable(folder, max_bad_fraction=0.5, bad_images="drop"),
            unreadable(folder, max_bad_fraction=0.5, bad_images="stop"),
        ]
        assert [finding.severity for (finding,) in told] == ["error", "warning", "warning", "error"]
        remedies = [finding.remedy for (finding,) in told]
        assert "raise data.max_bad_fraction, which is 0.16" in remedies[0]
        assert "go on without them" in remedies[1]
        assert "set data.bad_images = 'replace'" in remedies[3]

    def test_are_left_out_of_the_sample(self, folder):
        (folder / "train" / "cat" / "0.png").write_text("no image")
        found = look(folder, "train")
        assert (len(found), len(found.positions), found.total) == (6, 5, 6)


class TestLabels:
    @pytest.mark.parametrize(("train", "val"), [([0, 1, 3], [0]), ([0, 1, 2], [-1])])
    def test_out_of_range_are_told(self, train, val):
        (finding,) = labels_out_of_range(splits(train, val))
        assert (finding.severity, finding.code) == ("error", "labels-out-of-range")
        assert "the classes are 0 to 2" in finding.message

    def test_in_range_or_absent_are_not_told(self):
        data = splits([0, 1, 2], [0])
        assert not list(labels_out_of_range(data))
        unlabelled = DataSplits("noise", (), UnlabelledReader(data.train), data.val)
        assert not list(labels_out_of_range(unlabelled))

    def test_of_a_class_without_images_are_told(self):
        (finding,) = missing_classes(splits([0, 0, 2], [0, 1, 2]))
        assert finding.code == "classes-without-images"
        assert "class 1" in finding.message
        assert not list(missing_classes(splits([0, 1, 2], [0])))


class TestImbalance:
    def test_of_ten_to_one_is_told_with_both_classes(self):
        (finding,) = class_imbalance(splits([0] * 20 + [1] * 2 + [2] * 9, [0]))
        assert (finding.severity, finding.code) == ("warning", "class-imbalance")
        assert "class 0 has 20" in finding.message
        assert "class 1 has 2" in finding.message

    def test_of_less_is_not_told(self):
        assert not list(class_imbalance(splits([0] * 19 + [1] * 2, [0])))


class TestOverlap:
    def test_of_pixels_is_told_whatever_the_file_is(self, folder):
        assert not list(overlap(look(folder, "train"), look(folder, "val")))
        image = Image.open(folder / "train" / "cat" / "0.png")
        image.save(folder / "val" / "dog" / "copy.bmp")
        (finding,) = overlap(look(folder, "train"), look(folder, "val"))
        assert (finding.severity, finding.code) == ("warning", "train-val-overlap")
        assert finding.message.startswith("1 of 7 held-out images")

    def test_of_one_in_a_hundred_is_a_note(self):
        images = noise(300)
        train = ArrayReader(images[:200], [0] * 200)
        val = SubsetReader(ArrayReader(images[199:], [0] * 101), range(101))
        (finding,) = overlap(look_at(train, 1000), look_at(val, 1000))
        assert finding.severity == "note"

    def test_of_a_copied_file_is_found_among_many(self, tmp_path):
        for number, image in enumerate(noise(60, height=12)):
            path = tmp_path / "train" / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Of many lengths, as photographs have.
            Image.fromarray(image[: 4 + number % 9, : 1 + number % 7]).save(path)
        for name, number in (("cat", 58), ("dog", 59)):
            (tmp_path / "val" / name).mkdir(parents=True)
            copy(tmp_path / "train" / name / f"{number}.png", tmp_path / "val" / name)
        data = open_data(DataConfig(source=str(tmp_path), limit=60))
        held_out = look_at(data.val, 10)
        assert not list(overlap(look_at(data.train, 1), held_out))
        copies = likely_copies(data.train, data.val, held_out.positions, most=20)
        assert 2 <= len(copies) <= 20
        (finding,) = overlap(look_at(data.train, 1, also=copies), held_out)
        assert finding.message.startswith("2 of 2 held-out images")

    def test_of_images_that_are_no_files_has_no_likely_copies(self):
        reader = ArrayReader(noise(10), [0] * 10)
        assert likely_copies(reader, reader, (0, 1), most=5) == []

    def test_of_a_sample_is_told_as_such(self):
        images = noise(100)
        reader = ArrayReader(images, [0] * 100)
        (finding,) = overlap(look_at(reader, 50), look_at(reader, 10))
        assert "10 of 10" in finding.message
        assert "among 50 of the 100 training images" in finding.message


class TestSizes:
    @pytest.mark.parametrize(("size", "told"), [(15, False), (16, True), (32, True)])
    def test_twice_the_images_are_told(self, size, told):
        found = list(
            enlarged_images(look_at(splits([0, 1, 2], [0]).train, 3), {"student": (size, size)})
        )
        assert [finding.code for finding in found] == ["images-enlarged"] * told

    def test_say_how_many_pixels_that_is(self):
        models = {"student": (8, 8), "teacher": (32, 32)}
        (finding,) = enlarged_images(look_at(splits([0, 1], [0]).train, 3), models)
        assert finding.severity == "note"
        assert "images of 8x8 px are enlarged 4 times for the teacher" in finding.message
        assert "16 times the pixels" in finding.message


class TestCrop:
    def test_of_tiny_images_is_told(self):
        tiny = look_at(ArrayReader(noise(3, height=32, width=32), [0] * 3), 3)
        (finding,) = cropped_borders(tiny, AugmentConfig(crop_pct=0.875))
        assert (finding.severity, finding.code) == ("warning", "crop-cuts-borders")
        assert "cuts 23% off" in finding.message
        assert not list(cropped_borders(tiny, AugmentConfig(crop_pct=1)))

    def test_of_photographs_is_usual(self):
        photos = look_at(ArrayReader(noise(3, height=100, width=130), [0] * 3), 3)
        assert not list(cropped_borders(photos, AugmentConfig(crop_pct=0.875)))

    def test_of_long_images_is_a_note(self):
        wide = look_at(ArrayReader(noise(3, height=70, width=210), [0] * 3), 3)
        (finding,) = cropped_borders(wide, AugmentConfig())
        assert finding.severity == "note"
        assert "keeps 33%" in finding.message


class TestSample:
    def test_is_the_same_every_time_and_of_all_classes(self):
        reader = ArrayReader(noise(400), [number // 100 for number in range(400)])
        first, second = look_at(reader, 40), look_at(reader, 40)
        assert first == second
        assert {reader.labels[position] for position in first.positions} == {0, 1, 2, 3}
