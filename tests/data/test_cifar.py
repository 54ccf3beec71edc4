import hashlib
import pickle
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from anykd.data import DataConfig, DataSplits, open_data
from anykd.errors import DataError
from tests.data.readers import labels_of


@pytest.fixture(scope="module")
def real(dev_data) -> DataSplits:
    return open_data(DataConfig(source=f"cifar100:{dev_data / 'cifar100'}"))


class TestTiles:
    def test_hold_the_official_split(self, real):
        assert np.bincount(labels_of(real.train)).tolist() == [500] * 100
        assert np.bincount(labels_of(real.val)).tolist() == [100] * 100
        assert (len(real.train), len(real.val)) == (50_000, 10_000)

    def test_training_pixels_add_up_to_the_published_statistics(self, real):
        # The well-known mean and std of the training set are these sums (the data's README).
        levels = np.zeros((3, 256), dtype=np.int64)
        for start in range(0, 50_000, 1_000):
            images = [np.asarray(real.train[i].image) for i in range(start, start + 1_000)]
            for level, channel in zip(levels, np.stack(images, -1).swapaxes(0, 2), strict=True):
                level += np.bincount(channel.ravel(), minlength=256)
        values = np.arange(256)
        assert (levels @ values).tolist() == [6620373279, 6352382090, 5756623363]
        assert (levels @ values**2).tolist() == [1093977562105, 1007075543166, 901128318593]

    def test_tiles_are_cut_in_row_major_order(self, real, dev_data):
        with Image.open(dev_data / "cifar100" / "train-1.webp") as file:
            grid = file.convert("RGB")
        row, column = 3, 14
        box = (32 * column, 32 * row, 32 * column + 32, 32 * row + 32)
        sample = real.train[10_000 + 100 * row + column]
        assert np.array_equal(np.asarray(sample.image), np.asarray(grid.crop(box)))

    def test_labels_are_the_fine_ones(self, real):
        assert real.class_names[labels_of(real.train)[-1]] == "shark"  # the data's README
        assert real.train[49_999].label == 73
        assert real.name == "cifar100"

    def test_a_missing_file_is_named(self, dev_data, tmp_path):
        for name in ("labels.npz", "class_names.json"):
            shutil.copy(dev_data / "cifar100" / name, tmp_path)
        with pytest.raises(DataError, match=r"not whole: .*train-0\.webp") as caught:
            open_data(DataConfig(source=f"cifar100:{tmp_path}"))
        assert "train-0..4.webp" in caught.value.hint
        (tmp_path / "labels.npz").write_bytes(b"PK\3\4no archive")
        for number in range(5):
            shutil.copy(dev_data / "cifar100" / f"train-{number}.webp", tmp_path)
        with pytest.raises(DataError, match="not whole: File is not a zip file"):
            open_data(DataConfig(source=f"cifar100:{tmp_path}"))


def dump(path: Path, content: dict) -> str:
    """Write a pickle and give its MD5."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


IMAGES = np.random.default_rng(0).integers(0, 256, size=(6, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def cifar100_files(tmp_path, monkeypatch) -> Path:
    """Four training and two test images in torchvision's layout, with their MD5 made official."""
    folder = tmp_path / CIFAR100.base_folder
    flat = IMAGES.reshape(6, -1)
    train = dump(folder / "train", {"data": flat[:4], "fine_labels": [2, 0, 1, 1]})
    test = dump(folder / "test", {"data": flat[4:], "fine_labels": [0, 2]})
    meta = dump(folder / "meta", {"fine_label_names": ["apple", "bee", "can"]})
    monkeypatch.setattr(CIFAR100, "train_list", [["train", train]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", test]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": meta})
    return tmp_path


class TestTorchvisionLayout:
    def test_cifar100_is_read_with_fine_labels(self, cifar100_files):
        splits = open_data(DataConfig(source=f"cifar100:{cifar100_files}"))

        assert splits.class_names == ("apple", "bee", "can")
        assert labels_of(splits.train) == [2, 0, 1, 1]
        assert labels_of(splits.val) == [0, 2]
        assert np.array_equal(np.asarray(splits.train[3].image), IMAGES[3].transpose(1, 2, 0))
        assert np.array_equal(np.asarray(splits.val[0].image), IMAGES[4].transpose(1, 2, 0))

    def test_cifar10_is_read_from_its_batches(self, tmp_path, monkeypatch):
        folder = tmp_path / CIFAR10.base_folder
        flat = IMAGES.reshape(6, -1)
        names = ["data_batch_1", "data_batch_2", "test_batch"]
        sums = [
            dump(folder / name, {"data": flat[2 * i : 2 * i + 2], "labels": [i, 1]})
            for i, name in enumerate(names)
        ]
        meta = dump(folder / "batches.meta", {"label_names": ["plane", "car", "bird"]})
        batches = [list(pair) for pair in zip(names, sums, strict=True)]
        monkeypatch.setattr(CIFAR10, "train_list", batches[:2])
        monkeypatch.setattr(CIFAR10, "test_list", batches[2:])
        monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})

        splits = open_data(DataConfig(source=f"cifar10:{tmp_path}"))

        assert splits.name == "cifar10"
        assert labels_of(splits.train) == [0, 1, 1, 1]
        assert labels_of(splits.val) == [2, 1]

    def test_files_that_are_not_the_official_ones_are_not_unpickled(self, cifar100_files):
        with (cifar100_files / CIFAR100.base_folder / "train").open("ab") as file:
            file.write(b"!")
        with pytest.raises(DataError, match="not whole or not the official ones") as caught:
            open_data(DataConfig(source=f"cifar100:{cifar100_files}"))
        assert CIFAR100.url in caught.value.hint

    def test_without_a_folder_the_users_cache_is_used(self, cifar100_files, monkeypatch):
        cache = cifar100_files / "anykd"
        cache.mkdir()
        (cifar100_files / CIFAR100.base_folder).rename(cache / CIFAR100.base_folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cifar100_files))
        assert len(open_data(DataConfig(source="cifar100")).train) == 4

    def test_a_download_that_fails_is_told_in_words(self, tmp_path, monkeypatch):
        def fail(dataset: CIFAR10) -> None:
            raise urllib.error.URLError("no network")

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(CIFAR10, "download", fail)
        with pytest.raises(DataError, match=r"cifar10 cannot be downloaded .*no network") as caught:
            open_data(DataConfig(source="cifar10"))
        assert caught.value.hint.endswith("write cifar10:FOLDER")


class TestRoot:
    def test_a_folder_without_the_files_says_how_to_get_them(self, tmp_path):
        with pytest.raises(DataError, match=r"no cifar-100-python/ in it, and no labels\.npz") as e:
            open_data(DataConfig(source=f"cifar100:{tmp_path}"))
        assert "'cifar100' without a folder downloads it" in e.value.hint

    def test_tiles_are_of_cifar100_only(self, tmp_path):
        (tmp_path / "labels.npz").touch()
        with pytest.raises(
            DataError, match=r"does not hold cifar10: no cifar-10-batches-py/ in it$"
        ):
            open_data(DataConfig(source=f"cifar10:{tmp_path}"))

    def test_a_misspelt_folder_is_told_its_neighbour(self, tmp_path):
        (tmp_path / "cifar100").mkdir()
        with pytest.raises(DataError, match="cifar10O does not exist") as caught:
            open_data(DataConfig(source=f"cifar100:{tmp_path}/cifar10O"))
        assert caught.value.hint == f"did you mean cifar100? (in {tmp_path})"
