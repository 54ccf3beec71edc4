"""What holds for every kind of data set."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import config

from anykd.data import AugmentConfig, DataConfig, Reader, open_data, open_split
from anykd.data.reader import ArrayReader, JoinedReader, SubsetReader, UnlabelledReader
from tests.data.loading import same, train_loader
from tests.data.readers import labels_of
from tests.data.sources import SOURCES, encoded, write_folder

KINDS = pytest.mark.parametrize("kind", SOURCES)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> None:
    """Leave the user's caches alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache" / "hf"))


def everything(spec: str, **options) -> Reader:
    return open_split(DataConfig(source=spec, **options), "all").val


@KINDS
class TestEveryKind:
    def test_samples_are_rgb_with_labels_that_are_known_beforehand(self, kind, tmp_path):
        splits = open_data(DataConfig(source=SOURCES[kind](tmp_path), val_fraction=0.3))
        for reader in (splits.train, splits.val):
            samples = [reader[position] for position in range(min(len(reader), 15))]
            assert len(reader) > 0
            assert {sample.image.mode for sample in samples} == {"RGB"}
            assert [sample.index for sample in samples] == list(range(len(samples)))
            assert [sample.label for sample in samples] == labels_of(reader)[:15]
        assert set(labels_of(splits.train)) <= set(range(len(splits.class_names)))

    def test_two_workers_give_what_none_gives(self, kind, tmp_path):
        reader = everything(SOURCES[kind](tmp_path), limit=None)
        reader = SubsetReader(reader, range(min(len(reader), 14)))
        options = {"num_classes": 10, "augment": AugmentConfig(preset="vit")}
        none, two = (
            [
                batch
                for e in (0, 1)
                for batch in train_loader(reader, workers=n, **options).batches(e)
            ]
            for n in (0, 2)
        )
        assert len(none) == 2 * (len(reader) // 4)
        assert same(none, two)

    def test_a_pickled_reader_is_the_same_reader(self, kind, tmp_path):
        reader = everything(SOURCES[kind](tmp_path))
        again = pickle.loads(pickle.dumps(reader))
        assert again.fingerprint == reader.fingerprint
        for position in (0, len(reader) - 1):
            assert again.key(position) == reader.key(position)
            assert again[position].image.tobytes() == reader[position].image.tobytes()

    def test_each_image_has_a_key_of_its_own(self, kind, tmp_path):
        spec = SOURCES[kind](tmp_path)
        reader = everything(spec)
        keys = [reader.key(position) for position in range(len(reader))]
        assert len(set(keys)) == len(keys)
        assert not any(str(tmp_path) in key for key in keys)
        splits = open_data(DataConfig(source=spec, val_fraction=0.3))
        for part in (splits.train, splits.val):  # parts call them what the whole does
            for position in (0, len(part) - 1):
                whole = reader[keys.index(part.key(position))]
                assert whole.image.tobytes() == part[position].image.tobytes()

    def test_labels_are_of_the_fingerprint(self, kind, tmp_path):
        spec = SOURCES[kind](tmp_path)
        labelled, without = (
            open_data(DataConfig(source=spec, val_fraction=0.3, labels=labels)).train
            for labels in (True, False)
        )
        assert labelled.fingerprint != without.fingerprint
        assert without.labels is None


def test_fingerprints_are_the_same_elsewhere_and_in_another_process(tmp_path):
    here = [everything(SOURCES[kind](tmp_path / kind)).fingerprint for kind in SOURCES]
    code = (
        "import sys; from anykd.data import DataConfig, open_split\n"
        "for spec in sys.argv[1:]:\n"
        "    print('is', open_split(DataConfig(source=spec), 'all').val.fingerprint)"
    )
    specs = [SOURCES[kind](tmp_path / "there" / "deeper" / kind) for kind in SOURCES]
    env = os.environ | {
        "PYTHONHASHSEED": "5",
        "XDG_CACHE_HOME": str(tmp_path / "other"),
        "HF_DATASETS_CACHE": str(tmp_path / "other" / "hf"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *specs], env=env, capture_output=True, text=True, check=True
    )
    there = re.findall(r"^is (\w{64})$", done.stdout, re.MULTILINE)
    assert dict(zip(SOURCES, there, strict=True)) == dict(zip(SOURCES, here, strict=True))
    assert len(set(here)) == len(here)


class TestFingerprint:
    IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 3), dtype=np.uint8)

    def test_of_arrays_changes_with_a_pixel_a_label_and_the_order(self):
        one = ArrayReader(self.IMAGES, [0, 1, 0, 1])
        pixel = self.IMAGES.copy()
        pixel[2, 1, 1, 0] ^= 1
        others = [
            ArrayReader(pixel, [0, 1, 0, 1]),
            ArrayReader(self.IMAGES, [0, 1, 1, 1]),
            ArrayReader(self.IMAGES[[1, 0, 2, 3]], [0, 1, 0, 1]),
            ArrayReader(self.IMAGES.reshape(4, 2, 3, 3), [0, 1, 0, 1]),
            ArrayReader(self.IMAGES[:3], [0, 1, 0]),
        ]
        assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 6
        assert ArrayReader(self.IMAGES.copy(), (0, 1, 0, 1)).fingerprint == one.fingerprint

    def test_of_parts_changes_with_what_is_in_them(self):
        one = ArrayReader(self.IMAGES, [0, 1, 0, 1])
        prints = [
            SubsetReader(one, [0, 1, 2, 3]),
            SubsetReader(one, [1, 0, 2, 3]),
            SubsetReader(one, [0, 1, 2]),
            UnlabelledReader(one),
            JoinedReader(one, SubsetReader(one, [0])),
            JoinedReader(SubsetReader(one, [0]), one),
            one,
        ]
        assert len({reader.fingerprint for reader in prints}) == 7

    @pytest.mark.parametrize("change", ["rename", "grow", "add", "remove", "another class"])
    def test_of_a_folder_changes_with_its_files(self, change, tmp_path):
        root = Path(write_folder(tmp_path))
        before = everything(str(root)).fingerprint
        file = root / "cat" / "0.png"
        if change == "rename":
            file.rename(root / "cat" / "00.png")
        elif change == "grow":
            file.write_bytes(file.read_bytes() + b"\0")
        elif change == "add":
            (root / "cat" / "new.png").write_bytes(encoded(99))
        elif change == "remove":
            file.unlink()
        else:
            file.rename(root / "dog" / "0.png")
        assert everything(str(root)).fingerprint != before

    def test_of_a_folder_does_not_change_with_times_or_what_is_no_image(self, tmp_path):
        root = Path(write_folder(tmp_path))
        before = everything(str(root)).fingerprint
        os.utime(root / "cat" / "0.png", (1, 1))
        (root / "cat" / "notes.txt").write_text("no image")
        assert everything(str(root)).fingerprint == before

    def test_of_synthetic_images_changes_with_what_they_are_made_from(self):
        specs = ("synthetic:3x4", "synthetic:4x3", "synthetic:3x8")
        parts = [open_data(DataConfig(source=spec)) for spec in specs]
        assert len({p.fingerprint for splits in parts for p in (splits.train, splits.val)}) == 6

    def test_is_what_it_was_when_this_was_written(self):
        # A store of teacher outputs is bound by it: another value makes every one of them unfit.
        assert everything("synthetic:2x3").fingerprint == (
            "dc115cb9bf06743fcab3e916e87868fba13da4faa9b125622e577e5fb6fd9ffd"
        )
