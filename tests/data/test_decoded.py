"""Images that are decoded once: the same images, from a file that is whole or made anew."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import config
from PIL import Image

from anykd.data import AugmentConfig, DataConfig, Reader, open_data, open_split
from anykd.data.decoded import DecodedReader, decode_once
from anykd.data.folder import FolderReader
from anykd.data.reader import file_size, pixel_array
from anykd.distributed import first_rank_first
from anykd.errors import DataError
from anykd.lock import held
from tests.data.loading import indices, same, train_loader
from tests.data.sources import SOURCES, pixels
from tests.ranks import run_on_ranks

IN_MEMORY = ("digits", "synthetic", "mnist")
FILES = [kind for kind in SOURCES if kind not in IN_MEMORY]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> None:
    """Leave the user's caches alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache" / "hf"))


@pytest.fixture
def photos(tmp_path) -> FolderReader:
    """Files of several sizes and kinds; all of one kind and size have as many bytes."""
    paths = []
    for number in range(20):
        path = tmp_path / "photos" / f"{number:02}.{('bmp', 'jpg', 'png')[number % 3]}"
        path.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(pixels(number)).resize((10 + number, 12))
        picture.save(path)
        paths.append(path)
    return FolderReader(paths, [number % 2 for number in range(20)])


def said(reader: Reader, position: int) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        reader[position]
    return str(caught.value), caught.value.hint


def equal(one: Reader, other: Reader) -> bool:
    """Whether two readers have the same images, labels, names and fingerprint."""
    assert (one.fingerprint, len(one)) == (other.fingerprint, len(other))
    assert (one.labels, one.in_memory) == (other.labels, other.in_memory)
    for position in range(len(one)):
        a, b = one[position], other[position]
        assert (a.label, a.index) == (b.label, b.index)
        assert one.key(position) == other.key(position)
        assert file_size(one, position) == file_size(other, position)
        assert a.image.tobytes() == b.image.tobytes()
        if not torch.equal(a.pixels, b.pixels):
            return False
    return True


def overwrite(reader: FolderReader, position: int) -> None:
    """Put another picture into a BMP, which is as long as the one before."""
    path = reader._paths[position]
    assert path.suffix == ".bmp"
    size = path.stat().st_size
    with Image.open(path) as image:
        Image.new("RGB", image.size, "red").save(path)
    assert path.stat().st_size == size


class TestSameImages:
    @pytest.mark.parametrize("kind", FILES)
    def test_of_every_kind_of_files(self, kind, tmp_path):
        spec = SOURCES[kind](tmp_path)
        plain, once = (
            open_data(DataConfig(source=spec, val_fraction=0.3, decoded=folder))
            for folder in (None, str(tmp_path / "decoded"))
        )
        assert equal(plain.train, once.train)
        assert equal(plain.val, once.val)
        again = pickle.loads(pickle.dumps(once.train))
        assert equal(again, plain.train)

    def test_whatever_is_held_out_or_left_out_they_are_decoded_once(self, tmp_path):
        spec = SOURCES["folder"](tmp_path)
        folder = tmp_path / "decoded"
        plain = DataConfig(source=spec, decoded=str(folder))
        for options in ({}, {"limit": 4}, {"val_fraction": 0.5}, {"split_seed": 3}):
            open_data(plain.model_copy(update=options))
        whole = open_split(plain, "all").val
        assert isinstance(whole, DecodedReader)
        assert equal(open_split(DataConfig(source=spec), "all").val, whole)
        assert len(list(folder.iterdir())) == 1

    @pytest.mark.parametrize("kind", IN_MEMORY)
    def test_those_in_memory_stay_there(self, kind, tmp_path):
        spec = SOURCES[kind](tmp_path)
        splits = open_data(DataConfig(source=spec, decoded=str(tmp_path / "decoded")))
        assert splits.train.in_memory
        assert not (tmp_path / "decoded").exists()

    def test_of_files_of_many_sizes(self, photos, tmp_path):
        once = decode_once(photos, tmp_path / "decoded")
        assert equal(photos, once)
        assert once[3].pixels.permute(1, 2, 0).is_contiguous()
        (index,) = (tmp_path / "decoded").glob("*/index.json")
        sizes = [shape[0] * shape[1] for shape in json.loads(index.read_bytes())["shapes"]]
        assert index.with_name("pixels.bin").stat().st_size == 3 * sum(sizes)

    def test_a_pickled_reader_takes_no_pixels_along(self, photos, tmp_path):
        once = decode_once(photos, tmp_path / "decoded")
        pixels = once[0].pixels.clone()  # so that the file is mapped
        (file,) = (tmp_path / "decoded").glob("*/pixels.bin")
        pickled = pickle.dumps(once)
        assert len(pickled) < len(pickle.dumps(photos)) + file.stat().st_size // 2
        assert torch.equal(pickle.loads(pickled)[0].pixels, pixels)

    def test_without_labels(self, photos, tmp_path):
        unlabelled = FolderReader(photos._paths, None)
        assert equal(unlabelled, decode_once(unlabelled, tmp_path / "decoded"))

    def test_through_worker_processes(self, photos, tmp_path):
        once = decode_once(photos, tmp_path / "decoded")
        plain, none, two = (
            list(
                train_loader(
                    reader, workers=n, num_classes=2, augment=AugmentConfig(preset="vit")
                ).batches(0)
            )
            for reader, n in ((photos, 0), (once, 0), (once, 2))
        )
        assert len(plain) == 5
        assert same(plain, none)
        assert same(none, two)

    def test_many_are_decoded_by_several_processes_in_their_order(self, tmp_path):
        folder = tmp_path / "many"
        folder.mkdir()
        paths = [folder / f"{number:03}.bmp" for number in range(520)]
        for number, path in enumerate(paths):
            Image.new("RGB", (1 + number % 7, 2), (number % 256, number // 256, 0)).save(path)
        paths[7].write_bytes(b"no image")
        reader = FolderReader(paths, None)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        once = decode_once(reader, tmp_path / "decoded")
        assert torch.equal(torch.get_rng_state(), before)
        assert isinstance(once, DecodedReader)
        assert said(once, 7) == said(reader, 7)
        rest = [number for number in range(520) if number != 7]
        assert all(torch.equal(once[n].pixels, reader[n].pixels) for n in rest)

    def test_of_one_size_lie_on_a_device_as_those_in_memory_do(self, tmp_path):
        spec = SOURCES["folder"](tmp_path)
        once = open_data(DataConfig(source=spec, decoded=str(tmp_path / "decoded"))).train
        found = pixel_array(once)
        assert found is not None
        for position, array in enumerate(found):
            assert np.array_equal(array, once[position].pixels.permute(1, 2, 0))
        options = {"num_classes": 3, "augment": AugmentConfig(preset="cnn")}
        by_device, by_workers = (
            list(train_loader(once, views_on=views_on, **options).batches(0))
            for views_on in ("device", "workers")
        )
        assert indices(by_device) == indices(by_workers)
        for one, other in zip(by_device, by_workers, strict=True):
            assert (one.images - other.images).abs().max() < 2.5 / 255

    def test_of_several_sizes_or_unreadable_lie_on_none(self, photos, tmp_path):
        assert pixel_array(decode_once(photos, tmp_path / "decoded")) is None
        paths = [tmp_path / f"{number}.png" for number in range(3)]
        for path in paths:
            Image.new("RGB", (4, 5)).save(path)
        assert pixel_array(decode_once(FolderReader(paths, None), tmp_path / "decoded")) is not None
        for number in range(3):
            paths[number].write_bytes(b"no image" * (number + 1))
            reader = FolderReader(paths, None)
            assert pixel_array(decode_once(reader, tmp_path / "decoded")) is None


class TestBadImages:
    def test_are_told_as_the_files_are(self, photos, tmp_path):
        for position, content in ((0, b""), (5, photos._paths[5].read_bytes()[:50]), (19, b"x")):
            photos._paths[position].write_bytes(content)
        once = decode_once(photos, tmp_path / "decoded")
        for position in (0, 5, 19):
            assert said(once, position) == said(photos, position)
        assert torch.equal(once[6].pixels, photos[6].pixels)
        assert torch.equal(once[18].pixels, photos[18].pixels)

    def test_are_replaced_as_those_of_the_files_are(self, photos, tmp_path):
        photos._paths[5].write_bytes(b"no image")
        once = decode_once(photos, tmp_path / "decoded")
        plain, decoded = (
            list(
                train_loader(
                    reader, num_classes=2, bad_images="replace", max_bad_fraction=0.5
                ).batches(0)
            )
            for reader in (photos, once)
        )
        assert same(plain, decoded)

    def test_a_set_of_them_alone_can_be_opened(self, tmp_path):
        paths = [tmp_path / "a.png", tmp_path / "b.png"]
        for path in paths:
            path.write_bytes(b"no image")
        reader = FolderReader(paths, [0, 1])
        assert said(decode_once(reader, tmp_path / "decoded"), 1) == said(reader, 1)

    def test_the_limit_of_pixels_is_the_one_of_now(self, photos, tmp_path):
        folder, most = tmp_path / "decoded", 12 * 20

        for allowed, refused in ((most, 9), (most - 12, 10), (10**6, 0)):
            reader = FolderReader(photos._paths, photos.labels, max_pixels=allowed)
            once = decode_once(reader, folder, max_pixels=allowed)
            told = []
            for position in range(20):
                try:
                    expected = reader[position].pixels
                except DataError:
                    assert said(once, position) == said(reader, position)
                    told.append(position)
                else:
                    assert torch.equal(once[position].pixels, expected)
            assert len(told) == refused
        assert len(list(folder.glob("*/pixels.bin"))) == 1


class TestStorage:
    def test_is_read_in_the_place_of_the_files(self, photos, tmp_path, capfd):
        first = decode_once(photos, tmp_path / "decoded")
        expected = [first[position].pixels.clone() for position in range(20)]
        assert "decoding 20 images once" in capfd.readouterr().err
        overwrite(photos, 6)  # one of those that are not compared
        again = decode_once(photos, tmp_path / "decoded")
        assert capfd.readouterr().err == ""
        for position in range(20):
            assert torch.equal(again[position].pixels, expected[position])
        assert not torch.equal(photos[6].pixels, expected[6])

    @pytest.mark.parametrize(
        "damage", ["cut", "longer", "no index", "cut index", "foreign", "other pixels", "a file"]
    )
    def test_that_is_not_whole_is_made_anew(self, damage, photos, tmp_path, capfd):
        decode_once(photos, tmp_path / "decoded")
        (folder,) = (tmp_path / "decoded").iterdir()
        file, index = folder / "pixels.bin", folder / "index.json"
        found = json.loads(index.read_bytes())
        if damage in ("cut", "longer"):
            content = file.read_bytes()
            file.write_bytes(content[:-1] if damage == "cut" else content + b"x")
        elif damage == "no index":
            index.unlink()
        elif damage == "cut index":
            index.write_bytes(index.read_bytes()[:-20])
        elif damage == "foreign":
            index.write_text(json.dumps(found | {"fingerprint": "0" * 64}))
        elif damage == "other pixels":
            file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))
        else:
            index.write_text(json.dumps(found | {"shapes": found["shapes"][:-1]}))
        capfd.readouterr()
        assert equal(photos, decode_once(photos, tmp_path / "decoded"))
        told = capfd.readouterr().err
        assert str(folder) in told
        assert "images are decoded anew" in told
        assert [one.name for one in (tmp_path / "decoded").iterdir()] == [folder.name]

    def test_of_images_that_were_overwritten_is_made_anew(self, photos, tmp_path, capfd):
        before = decode_once(photos, tmp_path / "decoded").fingerprint
        overwrite(photos, 0)  # as long as before, so that the fingerprint stays
        again = decode_once(photos, tmp_path / "decoded")
        assert again.fingerprint == before
        assert equal(photos, again)
        assert "has other pixels of 00.bmp than its file" in capfd.readouterr().err

    def test_of_several_sets_can_share_a_folder(self, photos, tmp_path):
        other = FolderReader(photos._paths[:5], [0] * 5)
        for _ in range(2):
            for reader in (photos, other):
                assert equal(reader, decode_once(reader, tmp_path / "decoded"))
        assert len(list((tmp_path / "decoded").iterdir())) == 2

    def test_leaves_nothing_behind_where_it_is_broken_off(self, photos, tmp_path, monkeypatch):
        read = FolderReader.__getitem__
        calls = []

        def broken_off(reader: FolderReader, position: int):
            calls.append(position)
            if len(calls) > 25:  # 20 are looked at to guess the size
                raise KeyboardInterrupt
            return read(reader, position)

        with monkeypatch.context() as patched:
            patched.setattr(FolderReader, "__getitem__", broken_off)
            with pytest.raises(KeyboardInterrupt):
                decode_once(photos, tmp_path / "decoded")
        assert calls[-1] == 5
        assert list((tmp_path / "decoded").iterdir()) == []
        # What a killed process leaves is taken away.
        (tmp_path / "decoded" / ".anykd-left").mkdir()
        assert equal(photos, decode_once(photos, tmp_path / "decoded"))
        assert len(list((tmp_path / "decoded").iterdir())) == 1

    def test_needs_room(self, photos, tmp_path, monkeypatch):
        needed = sum(one.numel() for one in (photos[position].pixels for position in range(20)))
        usage = SimpleNamespace(free=needed - 1)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(DataError, match=r"20 images take about 0\.00 GiB as pixels") as caught:
            decode_once(photos, tmp_path / "decoded")
        assert "leave data.decoded out" in caught.value.hint
        assert list((tmp_path / "decoded").iterdir()) == []
        usage.free = needed
        assert equal(photos, decode_once(photos, tmp_path / "decoded"))

    def test_is_not_written_by_two_processes_at_once(self, photos, tmp_path):
        (tmp_path / "decoded").mkdir()
        with held(tmp_path / "decoded"), pytest.raises(DataError, match="is in use by") as caught:
            decode_once(photos, tmp_path / "decoded")
        assert "wait for that process" in caught.value.hint

    def test_is_no_file(self, photos, tmp_path):
        (tmp_path / "decoded").touch()
        with pytest.raises(DataError, match="a part of this path is a file"):
            decode_once(photos, tmp_path / "decoded")


def _pixels_of_all(spec: str, folder: Path) -> list[torch.Tensor]:
    with first_rank_first():
        reader = open_split(DataConfig(source=spec, decoded=str(folder)), "all").val
    assert isinstance(reader, DecodedReader)
    return [reader[position].pixels.contiguous() for position in range(len(reader))]


def test_two_ranks_share_what_the_first_has_decoded(tmp_path):
    spec = SOURCES["folder"](tmp_path)
    (tmp_path / "ranks").mkdir()
    found = run_on_ranks(_pixels_of_all, spec, tmp_path / "decoded", folder=tmp_path / "ranks")
    plain = open_split(DataConfig(source=spec), "all").val
    assert len(found) == 2
    for rank in found:
        for position, pixels_of_one in enumerate(rank):
            assert torch.equal(pixels_of_one, plain[position].pixels)


def test_a_folder_among_the_images_is_refused(tmp_path):
    root = tmp_path / "images"
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(DataError, match="lies among the images themselves"):
        open_data(DataConfig(source=str(root), decoded=str(root / "decoded")))
    assert sorted(path.name for path in root.iterdir()) == ["a", "b"]
