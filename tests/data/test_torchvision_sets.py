import bz2
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torchvision import datasets

from anykd.data import DataConfig, DataSplits, open_data
from anykd.data.datasets import _KINDS
from anykd.data.torchvision_sets import TORCHVISION_SETS
from anykd.errors import DataError
from tests.data.readers import labels_of
from tests.data.sources import encoded, pixels, write_idx


def open_spec(spec: str) -> DataSplits:
    return open_data(DataConfig(source=spec, val_fraction=0.5))


def write_image(path: Path, number: int) -> None:
    """A file that decodes without loss, whatever its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number))


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def shows(splits: DataSplits, part: str, *numbers: int) -> bool:
    """Whether a part holds just these pictures."""
    reader = getattr(splits, part)
    found = [np.asarray(reader[position].image) for position in range(len(reader))]
    return len(found) == len(numbers) and all(
        np.array_equal(one, pixels(number)) for one, number in zip(found, numbers, strict=True)
    )


class TestArrays:
    @pytest.mark.parametrize(
        ("name", "folder"),
        [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST"), ("kmnist", "KMNIST")],
    )
    def test_the_family_of_mnist(self, name, folder, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
        for part, count in (("train", 5), ("t10k", 3)):
            raw = tmp_path / folder / "raw"
            write_idx(raw / f"{part}-images-idx3-ubyte", images[:count])
            write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) * 2)
        splits = open_spec(f"{name}:{tmp_path}")
        assert labels_of(splits.train) == [0, 2, 4, 6, 8]
        assert labels_of(splits.val) == [0, 2, 4]
        assert splits.class_names == tuple(getattr(datasets, folder).classes)
        for channel in np.asarray(splits.train[3].image).transpose(2, 0, 1):
            assert np.array_equal(channel, images[3])
        assert (splits.train.key(3), splits.val.key(2)) == ("train/3", "test/2")
        assert splits.train.in_memory

    def test_emnist_is_turned_upright(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (4, 28, 28))
        for part in ("train", "test"):
            prefix = tmp_path / "EMNIST" / "raw" / f"emnist-balanced-{part}"
            write_idx(Path(f"{prefix}-images-idx3-ubyte"), images)
            write_idx(Path(f"{prefix}-labels-idx1-ubyte"), np.array([0, 46, 10, 1]))
        splits = open_spec(f"emnist:{tmp_path}")
        assert splits.num_classes == 47
        assert [splits.class_names[label] for label in labels_of(splits.train)] == list("0tA1")
        assert np.array_equal(np.asarray(splits.train[2].image)[..., 1], images[2].T)

    def test_usps(self, tmp_path):
        for name, labels in (("usps.bz2", (1, 10, 3)), ("usps.t.bz2", (2,))):
            lines = [
                f"{label} " + " ".join(f"{i + 1}:{i / 127.5 - 1:.4f}" for i in range(256))
                for label in labels
            ]
            (tmp_path / name).write_bytes(bz2.compress("\n".join(lines).encode()))
        splits = open_spec(f"usps:{tmp_path}")
        assert labels_of(splits.train) == [0, 9, 2]
        assert len(splits.val) == 1
        assert (
            np.abs(np.asarray(splits.train[1].image)[..., 2].ravel() - np.arange(256.0)).max() <= 1
        )

    def test_svhn(self, tmp_path, monkeypatch):
        images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        lists = {}
        for part, count in (("train", 5), ("test", 2)):
            path = tmp_path / f"{part}_32x32.mat"
            content = {
                "X": images[:count].transpose(1, 2, 3, 0),
                "y": [[10], [1], [9], [2], [10]][:count],
            }
            scipy.io.savemat(path, content)
            lists[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
        monkeypatch.setattr(datasets.SVHN, "split_list", lists)
        splits = open_spec(f"svhn:{tmp_path}")
        assert labels_of(splits.train) == [0, 1, 9, 2, 0]
        assert splits.class_names == tuple("0123456789")
        assert np.array_equal(np.asarray(splits.train[4].image), images[4])

    def test_stl10(self, tmp_path, monkeypatch):
        folder = tmp_path / "stl10_binary"
        folder.mkdir()
        images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
        lists = {"train": [], "test": []}
        for part, name in (("train", "train"), ("test", "test"), ("train", "unlabeled")):
            (folder / f"{name}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
            (folder / f"{name}_y.bin").write_bytes(bytes([10, 1, 3]))
            for letter in "Xy" if name != "unlabeled" else "X":
                path = folder / f"{name}_{letter}.bin"
                lists[part].append([path.name, hashlib.md5(path.read_bytes()).hexdigest()])
        monkeypatch.setattr(datasets.STL10, "train_list", lists["train"])
        monkeypatch.setattr(datasets.STL10, "test_list", lists["test"])
        write_lines(
            folder / "class_names.txt",
            *["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"],
        )
        splits = open_spec(f"stl10:{tmp_path}")
        assert [splits.class_names[label] for label in labels_of(splits.val)] == [
            "truck",
            "airplane",
            "car",
        ]
        assert np.array_equal(np.asarray(splits.train[1].image), images[1])


class TestFiles:
    def test_flowers102(self, tmp_path, monkeypatch):
        folder = tmp_path / "flowers-102"
        for number in range(1, 7):
            write_image(folder / "jpg" / f"image_{number:05d}.jpg", number)
        labels = np.arange(102, 0, -1)[None]
        scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels})
        scipy.io.savemat(
            folder / "setid.mat", {"trnid": [[4, 2]], "valid": [[6, 1]], "tstid": [[3, 5]]}
        )
        sums = {
            name: (file, hashlib.md5((folder / file).read_bytes()).hexdigest())
            for name, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
        }
        monkeypatch.setattr(datasets.Flowers102, "_file_dict", sums)
        splits = open_spec(f"flowers102:{tmp_path}")
        assert shows(splits, "train", 4, 2)
        assert shows(splits, "val", 6, 1)
        assert labels_of(splits.train) == [98, 100]
        assert splits.train.key(0) == "flowers-102/jpg/image_00004.jpg"
        assert splits.num_classes == 102

    def test_food101(self, tmp_path):
        for number, name in enumerate(("pie/1", "pie/2", "egg/7", "egg/8")):
            write_image(tmp_path / "food-101" / "images" / f"{name}.jpg", number)
        for part, kept in (
            ("train", {"pie": ["pie/2"], "egg": ["egg/7"]}),
            ("test", {"pie": ["pie/1"], "egg": ["egg/8"]}),
        ):
            write_lines(tmp_path / "food-101" / "meta" / f"{part}.json", json.dumps(kept))
        splits = open_spec(f"food101:{tmp_path}")
        assert splits.class_names == ("egg", "pie")
        assert labels_of(splits.train) == [1, 0]
        assert shows(splits, "train", 1, 2)
        assert shows(splits, "val", 0, 3)

    def test_oxfordiiitpet(self, tmp_path):
        folder = tmp_path / "oxford-iiit-pet"
        names = ["Abyssinian_1", "yorkshire_terrier_3", "Abyssinian_2", "yorkshire_terrier_9"]
        for number, name in enumerate(names):
            write_image(folder / "images" / f"{name}.jpg", number)
        lines = [f"{name} {1 + number % 2} 1 1" for number, name in enumerate(names)]
        write_lines(folder / "annotations" / "trainval.txt", *lines[:2])
        write_lines(folder / "annotations" / "test.txt", *lines[2:])
        splits = open_spec(f"oxfordiiitpet:{tmp_path}")
        assert splits.class_names == ("Abyssinian", "Yorkshire Terrier")
        assert shows(splits, "val", 2, 3)
        assert labels_of(splits.val) == [0, 1]

    def test_dtd(self, tmp_path):
        folder = tmp_path / "dtd" / "dtd"
        for number, name in enumerate(("dotted/a", "woven/b", "dotted/c", "woven/d")):
            write_image(folder / "images" / f"{name}.jpg", number)
        write_lines(folder / "labels" / "train1.txt", "woven/b.jpg", "dotted/a.jpg")
        write_lines(folder / "labels" / "val1.txt", "dotted/c.jpg", "woven/d.jpg")
        splits = open_spec(f"dtd:{tmp_path}")
        assert splits.class_names == ("dotted", "woven")
        assert labels_of(splits.train) == [1, 0]
        assert shows(splits, "train", 1, 0)
        assert shows(splits, "val", 2, 3)

    def test_gtsrb(self, tmp_path):
        folder = tmp_path / "gtsrb"
        for number, name in enumerate(("00000/a", "00001/b", "00001/c")):
            write_image(folder / "GTSRB" / "Training" / f"{name}.ppm", number)
        write_image(folder / "GTSRB" / "Final_Test" / "Images" / "00000.ppm", 9)
        write_lines(folder / "GT-final_test.csv", "Filename;Width;ClassId", "00000.ppm;9;1")
        splits = open_spec(f"gtsrb:{tmp_path}")
        assert splits.class_names == ("0", "1")
        assert labels_of(splits.train) == [0, 1, 1]
        assert shows(splits, "val", 9)

    @pytest.mark.parametrize(
        ("name", "folder", "classes"),
        [
            ("eurosat", "eurosat/2750", ("Forest", "River")),
            ("caltech101", "caltech101/101_ObjectCategories", ("Faces", "ant")),
            ("caltech256", "caltech256/256_ObjectCategories", ("001.ak47", "002.flag")),
        ],
    )
    def test_those_that_are_not_divided_are_divided_by_fraction(
        self, name, folder, classes, tmp_path
    ):
        for label, one in enumerate(classes):
            for number in range(4):
                file = (
                    f"{label + 1:03d}_{number + 1:04d}.jpg"
                    if name == "caltech256"
                    else f"image_{number + 1:04d}.jpg"
                )
                write_image(tmp_path / folder / one / file, 10 * label + number)
        if name == "caltech101":
            write_image(tmp_path / folder / "BACKGROUND_Google" / "image_0001.jpg", 99)
        splits = open_spec(f"{name}:{tmp_path}")
        assert splits.class_names == classes
        assert sorted(labels_of(splits.train)) == sorted(labels_of(splits.val)) == [0, 0, 1, 1]
        for reader in (splits.train, splits.val):
            for position in range(4):
                sample, key = reader[position], reader.key(position)
                assert sample.label is not None
                assert f"/{classes[sample.label]}/" in key
                at = int(key[-8:-4]) - 1
                assert np.array_equal(np.asarray(sample.image), pixels(10 * sample.label + at))

    def test_sun397_is_in_one_order_whatever_the_disk_says(self, tmp_path, monkeypatch):
        folder = tmp_path / "SUN397"
        write_lines(folder / "ClassName.txt", "/a/abbey", "/b/bar/indoor")
        for number in range(4):
            place = ("a/abbey", "b/bar/indoor")[number % 2]
            write_image(folder / place / f"sun_{'dcba'[number]}.jpg", number)
        first = open_spec(f"sun397:{tmp_path}")
        listed = Path.rglob
        monkeypatch.setattr(
            Path, "rglob", lambda path, pattern: reversed(list(listed(path, pattern)))
        )
        second = open_spec(f"sun397:{tmp_path}")
        assert first.class_names == ("abbey", "bar/indoor")
        assert first.train.fingerprint == second.train.fingerprint
        assert labels_of(first.train) == [0, 1]

    def test_fgvcaircraft(self, tmp_path):
        data = tmp_path / "fgvc-aircraft-2013b" / "data"
        for number in range(4):
            write_image(data / "images" / f"{number:07d}.jpg", number)
        write_lines(data / "variants.txt", "707-320", "A300 B4")
        write_lines(data / "images_variant_train.txt", "0000001 A300 B4", "0000000 707-320")
        write_lines(data / "images_variant_val.txt", "0000003 A300 B4", "0000002 707-320")
        splits = open_spec(f"fgvcaircraft:{tmp_path}")
        assert splits.class_names == ("707-320", "A300 B4")
        assert shows(splits, "train", 1, 0)
        assert shows(splits, "val", 3, 2)
        assert labels_of(splits.val) == [1, 0]

    def test_stanfordcars(self, tmp_path):
        folder = tmp_path / "stanford_cars"
        (folder / "devkit").mkdir(parents=True)
        for part, file in (
            ("train", "devkit/cars_train_annos"),
            ("test", "cars_test_annos_withlabels"),
        ):
            kind = np.dtype([("fname", "O"), ("class", "O")])
            rows = np.array([(f"{i}.jpg", 2 - i) for i in range(2)], dtype=kind)
            scipy.io.savemat(folder / f"{file}.mat", {"annotations": rows})
            for number in range(2):
                write_image(folder / f"cars_{part}" / f"{number}.jpg", number)
        names = np.array(["Audi", "BMW"], dtype=object)
        scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
        splits = open_spec(f"stanfordcars:{tmp_path}")
        assert splits.class_names == ("Audi", "BMW")
        assert labels_of(splits.train) == [1, 0]
        assert shows(splits, "val", 0, 1)

    @pytest.mark.parametrize(
        ("name", "folder", "val", "classes", "names"),
        [
            ("country211", "country211", "valid", ("DE", "FR"), ("DE", "FR")),
            (
                "imagenette",
                "imagenette2",
                "val",
                ("n01440764", "n02102040"),
                ("tench", "English springer"),
            ),
        ],
    )
    def test_class_folders(self, name, folder, val, classes, names, tmp_path):
        for number in range(4):
            for part, shift in (("train", 0), (val, 10)):
                path = tmp_path / folder / part / classes[number % 2] / f"{number}.jpeg"
                write_image(path, number + shift)
        splits = open_spec(f"{name}:{tmp_path}")
        assert splits.class_names == names
        assert shows(splits, "train", 0, 2, 1, 3)
        assert shows(splits, "val", 10, 12, 11, 13)

    def test_the_limit_of_pixels_holds(self, tmp_path):
        for number in range(4):
            write_image(tmp_path / "eurosat" / "2750" / "ab"[number % 2] / f"{number}.png", number)
        config = DataConfig(source=f"eurosat:{tmp_path}", val_fraction=0.5, max_pixels=119)
        with pytest.raises(DataError, match=r"max_pixels = 119"):
            open_data(config).train[0]


@pytest.mark.parametrize("name", TORCHVISION_SETS)
class TestEverySet:
    def test_a_folder_without_it_is_told_what_is_missing_and_left_alone(self, name, tmp_path):
        with pytest.raises(
            DataError, match=f"does not hold {name} as torchvision lays it"
        ) as caught:
            open_spec(f"{name}:{tmp_path}")
        for part in TORCHVISION_SETS[name].layout:
            assert part in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_files_that_are_empty_are_refused_in_words(self, name, tmp_path):
        for part in TORCHVISION_SETS[name].layout:
            path = tmp_path / part
            if path.suffix or path.name.endswith("ubyte"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            else:
                path.mkdir(parents=True)
        with pytest.raises(DataError, match="are not whole or not the official ones") as caught:
            open_spec(f"{name}:{tmp_path}")
        assert "\n" not in str(caught.value)

    def test_is_a_spec(self, name):
        assert name in _KINDS


class TestDownload:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return tmp_path / "anykd"

    @pytest.fixture
    def eurosat(self, monkeypatch) -> list[str]:
        """What torchvision would fetch from the network, written by this test."""
        asked = []

        def fetch(url: str, download_root: str, **options) -> None:
            asked.append(url)
            for number in range(4):
                write_image(Path(download_root, "2750", "ab"[number % 2], f"{number}.png"), number)

        monkeypatch.setattr("torchvision.datasets.eurosat.download_and_extract_archive", fetch)
        return asked

    def test_goes_to_the_users_cache_once(self, cache, eurosat, capsys):
        first, second = (open_spec("eurosat") for _ in range(2))
        assert len(eurosat) == 1
        assert (cache / "eurosat" / "eurosat" / "2750").is_dir()
        assert [path.name for path in cache.iterdir()] == ["eurosat"]
        assert [path.name for path in (cache / "eurosat").iterdir()] == ["eurosat"]
        assert first.train.fingerprint == second.train.fingerprint
        assert capsys.readouterr().out == ""

    def test_what_a_killed_process_left_is_not_taken_for_the_whole(self, cache, eurosat):
        left = cache / ".anykd-eurosat" / "eurosat" / "2750" / "a"
        left.mkdir(parents=True)
        (left / "half.png").touch()
        splits = open_spec("eurosat")
        assert len(eurosat) == 1
        assert not any(
            "half" in splits.train.key(position) for position in range(len(splits.train))
        )

    def test_that_fails_is_told_in_words_and_leaves_nothing_that_looks_whole(
        self, cache, monkeypatch
    ):
        def fail(*args: object, **options: object) -> None:
            raise OSError("no network")

        monkeypatch.setattr("torchvision.datasets.eurosat.download_and_extract_archive", fail)
        with pytest.raises(
            DataError, match=r"eurosat cannot be downloaded .*: no network$"
        ) as caught:
            open_spec("eurosat")
        assert "write eurosat:ROOT, where ROOT has eurosat/2750" in caught.value.hint
        assert not (cache / "eurosat").exists()

    def test_of_what_is_gone_is_refused_at_once(self):
        with pytest.raises(DataError, match="stanfordcars can no longer be downloaded") as caught:
            open_spec("stanfordcars")
        assert "stanford_cars/devkit" in caught.value.hint


class Harm:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("harm"),))


def test_old_files_of_mnist_are_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part, count in (("train", 4), ("t10k", 4)):
        write_idx(
            tmp_path / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", np.zeros((count, 28, 28))
        )
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count))
    (tmp_path / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save(Harm(), tmp_path / "MNIST" / "processed" / name)
        (tmp_path / "MNIST" / "processed" / name).write_bytes(pickle.dumps(Harm()))
    with pytest.raises(DataError, match="not whole or not the official ones"):
        open_spec(f"mnist:{tmp_path}")
    assert not (tmp_path / "harm").exists()
