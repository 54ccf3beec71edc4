"""How a cache is read, and what is said where it cannot be."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anykd.data.cache import Cache, Codec
from anykd.errors import CacheError
from anykd.types import Stored
from tests.data.cache.processes import ended, started
from tests.data.cache.small import CODEC, answers, build, manifest

VIEWS, SLOTS = 2, 101


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished cache that no test changes."""
    path = tmp_path_factory.mktemp("read") / "cache"
    build(path)
    return path


@pytest.fixture
def cache(folder) -> Cache:
    return Cache(folder)


@pytest.fixture
def own(tmp_path) -> Path:
    """A finished cache that a test may damage."""
    build(tmp_path / "cache")
    return tmp_path / "cache"


def both(stored: Stored) -> tuple[Tensor, Tensor]:
    assert stored.logits is not None
    assert stored.pooled is not None
    return stored.logits, stored.pooled


def same(stored: Stored, other: Stored) -> bool:
    return all(map(torch.equal, both(stored), both(other)))


class TestRead:
    @pytest.mark.parametrize("view", range(VIEWS))
    def test_gives_each_slot_its_own_answer(self, cache, view):
        slots = np.random.default_rng(view).permutation(SLOTS)
        logits, pooled = both(cache.read(view, slots))
        expected_logits, expected_pooled = answers(view, slots.tolist())
        torch.testing.assert_close(pooled, expected_pooled, rtol=2**-11, atol=2**-14)
        assert torch.equal(logits.argmax(dim=1), expected_logits.argmax(dim=1))
        best = expected_logits.topk(4).indices
        torch.testing.assert_close(
            logits.softmax(dim=1).gather(1, best),
            expected_logits.softmax(dim=1).gather(1, best),
            rtol=0.01,
            atol=0,
        )

    @pytest.mark.parametrize("slots", [[0], [100], [7, 7, 7], [13, 14, 0, 100, 14], range(20, 40)])
    def test_takes_any_slots_in_any_order(self, cache, slots):
        found = both(cache.read(1, slots))
        one_by_one = [both(cache.read(1, [slot])) for slot in slots]
        for part, parts in zip(found, zip(*one_by_one, strict=True), strict=True):
            assert torch.equal(part, torch.cat(parts))

    def test_of_no_slots_gives_no_rows(self, cache):
        logits, pooled = both(cache.read(0, []))
        assert (tuple(logits.shape), tuple(pooled.shape)) == ((0, 10), (0, 3))

    @pytest.mark.parametrize(("view", "slots"), [(2, [0]), (-1, [0]), (0, [101]), (0, [3, -1])])
    def test_refuses_what_there_is_not(self, cache, view, slots):
        with pytest.raises(IndexError, match="the cache has"):
            cache.read(view, slots)

    def test_of_one_part_alone(self, tmp_path):
        codec = Codec(num_classes=0, pooled_width=3)
        cache = build(tmp_path, manifest(codec=codec))
        stored = cache.read(1, [5, 2])
        assert stored.logits is None
        torch.testing.assert_close(stored.pooled, answers(1, [5, 2], codec)[1].half().float())

    def test_gives_tensors_of_the_readers_own(self, cache):
        first = cache.read(0, [3])
        for part in both(first):
            part.zero_()
        assert not same(first, cache.read(0, [3]))

    def test_keeps_no_file_open(self, folder):
        before = _open_files()
        cache = Cache(folder)
        for view in range(VIEWS):
            cache.read(view, range(SLOTS))
        assert _open_files() == before
        maps = Path("/proc/self/maps").read_text()
        assert all(str(folder / shard.name) in maps for shard in cache.manifest.layout.shards)


class TestOtherProcesses:
    def test_read_the_same_behind_a_fork(self, cache):
        expected = cache.read(0, range(SLOTS))  # mapped before the fork

        def work() -> None:
            assert same(cache.read(0, range(SLOTS)), expected)
            assert cache.read(1, [4]).logits is not None

        assert ended(started(work)) == 0

    def test_read_the_same_from_a_pickle(self, cache):
        cache.read(0, [1])
        pickled = pickle.dumps(cache)
        assert len(pickled) < 1000  # no records
        assert same(pickle.loads(pickled).read(1, range(SLOTS)), cache.read(1, range(SLOTS)))


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def other_count(path: Path) -> None:
    np.save(path, np.zeros(13, CODEC.record))


def other_kind(path: Path) -> None:
    np.save(path, np.zeros(14, [("classes", "<u2", (4,)), ("scores", "<f2", (9,))]))


def pickled(path: Path) -> None:
    np.save(path, np.array([print] * 14, dtype=object), allow_pickle=True)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "is missing": Path.unlink,
    "is damaged: it has 546 bytes, and 556 were written": cut,
    "is damaged: it holds other records than were written": other_count,
    "is damaged: it holds other records than were": other_kind,
    "is damaged: it holds other records than": pickled,
    "is damaged: it holds other records": lambda path: path.write_bytes(b"not an array"),
    "is damaged: it holds other": lambda path: path.write_bytes(b""),
    "cannot be read: [Errno 21] Is a directory": lambda path: (path.unlink(), path.mkdir()),
}


class TestDamaged:
    @pytest.mark.parametrize("said", DAMAGES)
    def test_files_are_named_when_they_are_needed(self, own, said):
        damaged = own / "view-0001-00002.npy"
        DAMAGES[said](damaged)
        cache = Cache(own)
        cache.read(1, [0])
        with pytest.raises(CacheError) as caught:
            cache.read(1, [0, 30])
        assert str(caught.value).startswith(f"{damaged} {said}")
        assert "`anykd cache verify" in caught.value.hint
        assert "`anykd cache build`" in caught.value.hint
        assert cache.verify_checksums() == ["view-0001-00002.npy"]

    def test_in_any_byte_of_its_header_a_file_is_refused_or_read_right(self, own):
        path = own / "view-0000-00001.npy"
        whole, expected = path.read_bytes(), Cache(own).read(0, [15])
        for place in range(len(whole) - 14 * CODEC.record_bytes):
            for bit in (1, 4, 64):
                content = bytearray(whole)
                content[place] ^= bit
                path.write_bytes(content)
                try:
                    found = Cache(own).read(0, [15])
                except CacheError:
                    continue
                assert same(found, expected)

    def test_in_one_bit_of_its_records_a_file_is_found_by_its_checksum(self, own):
        assert Cache(own).verify_checksums() == []
        for name in ("view-0001-00007.npy", "view-0000-00003.npy"):
            flip(own / name)
        assert Cache(own).verify_checksums() == ["view-0000-00003.npy", "view-0001-00007.npy"]


class TestOpen:
    def test_refuses_a_folder_without_a_cache(self, tmp_path):
        for path in (tmp_path, tmp_path / "missing"):
            with pytest.raises(CacheError) as caught:
                Cache(path)
            assert str(caught.value) == f"{path} holds no cache"
            assert caught.value.hint == "make one: anykd cache build"

    def test_says_how_far_an_unfinished_one_is(self, own):
        lost = own / "view-0000-00000.npy"
        lost.unlink()
        values = json.loads((own / "manifest.json").read_text())
        journal = [{"name": name, "sha256": it} for name, it in values["shards"].items()]
        (own / "building.json").write_text(json.dumps(values | {"shards": {}}))
        (own / "written-0.jsonl").write_text("\n".join(map(json.dumps, journal)))
        (own / "manifest.json").unlink()
        with pytest.raises(CacheError) as caught:
            Cache(own)
        assert str(caught.value) == f"{own} is not finished: 15 of 16 files are written"
        assert caught.value.hint.startswith("run the same `anykd cache build` again")

    def test_counts_the_bytes_on_the_disk(self, own):
        cache = Cache(own)
        files = list(own.iterdir())
        assert cache.bytes == sum(path.stat().st_size for path in files)
        assert cache.bytes > cache.manifest.layout.bytes == VIEWS * SLOTS * CODEC.record_bytes
        (own / "notes.txt").write_text("mine")
        assert cache.bytes == sum(path.stat().st_size for path in files)
