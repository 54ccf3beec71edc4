"""How a cache is written: by any number of ranks, in any number of starts, or not at all."""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anykd.data.cache import Cache, CacheWriter, Codec, Manifest, ShardKey
from anykd.errors import CacheError
from anykd.lock import held
from tests.data.cache.processes import ended, started, with_small_files
from tests.data.cache.small import CODEC, build, contents, manifest, records


def write(writer: CacheWriter, shards: list[ShardKey]) -> None:
    for shard in shards:
        writer.write(shard, records(shard, writer.manifest.codec))


def begin(path: Path, count: int) -> None:
    """Write the first files of a cache, and no more."""
    with CacheWriter(path, manifest()) as writer:
        write(writer, writer.todo()[:count])


def refused(path: Path, what: Manifest | None = None, *, rank: int = 0) -> CacheError:
    before = contents(path)
    with pytest.raises(CacheError) as caught:
        CacheWriter(path, what or manifest(), rank=rank).__enter__()
    assert contents(path) == before
    return caught.value


@pytest.fixture
def straight(tmp_path) -> dict[str, bytes]:
    """What a cache has that was written in one go."""
    build(tmp_path / "straight")
    return contents(tmp_path / "straight")


class TestFinished:
    def test_has_every_record_where_numpy_finds_it(self, tmp_path):
        what = manifest()
        build(tmp_path / "cache")
        for shard in what.layout.shards:
            path = tmp_path / "cache" / shard.name
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            assert mapped.dtype == CODEC.record
            assert mapped.tobytes() == records(shard).tobytes()

    def test_has_its_manifest_with_the_digest_of_each_file_and_nothing_else(self, tmp_path):
        with CacheWriter(tmp_path, manifest(built={"host": "here"})) as writer:
            write(writer, writer.todo())
            returned = writer.finish(seconds=3)
            assert writer.finished
        names = [shard.name for shard in manifest().layout.shards]
        assert sorted(contents(tmp_path)) == ["manifest.json", *sorted(names)]
        read = Manifest.read(tmp_path / "manifest.json")
        assert read.shards == returned.shards
        assert read.built == {"host": "here", "seconds": 3}
        assert list(read.shards) == names
        for name, digest in read.shards.items():
            assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()

    def test_is_left_as_it_is(self, tmp_path, straight):
        path = tmp_path / "straight"
        with CacheWriter(path, manifest(built={"host": "there"})) as writer:
            assert writer.finished
            assert writer.todo() == []
            assert writer.finish(seconds=1) == Manifest.read(path / "manifest.json")
        assert contents(path) == straight

    def test_of_another_kind_is_refused_in_words(self, tmp_path):
        build(tmp_path)
        error = refused(tmp_path, manifest(teacher_weights="3c4d" * 16, precision="bfloat16"))
        assert str(error) == (
            f"{tmp_path} holds another cache: teacher.weights: 1a2b1a2b… in the cache, "
            "3c4d3c4d… here; precision: float32 in the cache, bfloat16 here"
        )
        assert error.hint == "give another folder, or remove this one"

    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\x93NUMPY")])
    def test_but_damaged_is_mended_by_writing_what_is_missing(self, tmp_path, straight, damage):
        path = tmp_path / "straight"
        lost = manifest().layout.shards[3]
        damage(path / lost.name)
        with CacheWriter(path, manifest()) as writer:
            assert not writer.finished
            assert writer.todo() == [lost]
            with pytest.raises(CacheError, match="is not finished: 15 of 16 files"):
                Cache(path)
            write(writer, [lost])
            writer.finish()
        assert contents(path) == straight


class TestGoesOn:
    @pytest.mark.parametrize("count", [0, 1, 5, 16])
    def test_where_it_was_and_ends_the_same(self, tmp_path, straight, count):
        path = tmp_path / "cache"
        begin(path, count)
        times = {each.name: each.stat().st_mtime_ns for each in path.glob("*.npy")}
        assert len(times) == count
        time.sleep(0.01)
        with CacheWriter(path, manifest()) as writer:
            assert not writer.finished
            assert writer.todo() == [*manifest().layout.shards[count:]]
            write(writer, writer.todo())
            writer.finish()
        assert contents(path) == straight
        assert all((path / name).stat().st_mtime_ns == when for name, when in times.items())

    def test_with_another_number_of_ranks(self, tmp_path, straight):
        path = tmp_path / "cache"
        for ranks, count in ((3, 7), (2, 5), (4, 4)):
            with CacheWriter(path, manifest()) as first:
                others = [CacheWriter(path, manifest(), rank=rank) for rank in range(1, ranks)]
                writers = [first, *(other.__enter__() for other in others)]
                todo = first.todo()
                assert all(writer.todo() == todo for writer in writers)
                for rank, writer in enumerate(writers):
                    write(writer, todo[:count][rank::ranks])
        with CacheWriter(path, manifest()) as writer:
            assert writer.todo() == []
            assert not writer.finished
            writer.finish()
        assert contents(path) == straight

    def test_as_soon_as_another_machine_sees_what_the_first_has_made(self, tmp_path):
        seen, made = tmp_path / "seen", tmp_path / "made"
        with CacheWriter(made, manifest()):
            beginning = (made / "building.json").read_text()
        seen.mkdir()

        def late() -> None:
            time.sleep(0.2)
            (seen / "building.json").write_text(beginning)

        other = started(late)
        with CacheWriter(seen, manifest(), rank=1) as writer:
            assert len(writer.todo()) == 16
        assert ended(other) == 0

    def test_behind_half_a_line_of_a_journal(self, tmp_path, straight):
        path = tmp_path / "cache"
        begin(path, 5)
        journal = path / "written-0.jsonl"
        lines = journal.read_text().rstrip()
        journal.write_text(lines[: lines.rindex("sha256") + 15])
        with CacheWriter(path, manifest()) as writer:
            assert writer.todo() == [*manifest().layout.shards[4:]]
            write(writer, writer.todo()[:2])
        with CacheWriter(path, manifest()) as writer:
            assert writer.todo() == [*manifest().layout.shards[6:]]
            write(writer, writer.todo())
            writer.finish()
        assert contents(path) == straight

    @pytest.mark.parametrize(
        "damage",
        [
            Path.unlink,
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            lambda path: path.write_bytes(path.read_bytes() + b"0"),
            lambda path: path.write_bytes(b""),
            lambda path: np.save(path, np.zeros(14)),
        ],
    )
    def test_with_files_that_are_told_of_but_are_not_whole(self, tmp_path, straight, damage):
        path = tmp_path / "cache"
        begin(path, 4)
        lost = manifest().layout.shards[2]
        damage(path / lost.name)
        with CacheWriter(path, manifest()) as writer:
            assert writer.todo() == [lost, *manifest().layout.shards[4:]]
            write(writer, writer.todo())
            writer.finish()
        assert contents(path) == straight

    def test_where_two_ranks_wrote_one_file_differently(self, tmp_path):
        shards = manifest().layout.shards
        with CacheWriter(tmp_path, manifest()) as writer:
            other = CacheWriter(tmp_path, manifest(), rank=1)
            other.write(shards[0], records(shards[0])[::-1])
            write(writer, [*shards])
            writer.finish()
        assert Cache(tmp_path).verify_checksums() == []

    def test_without_what_a_journal_says_of_other_files(self, tmp_path, straight):
        path = tmp_path / "cache"
        begin(path, 2)
        outside = {"name": "../straight/manifest.json", "sha256": "00" * 32}
        strange = [outside, {"name": 3, "sha256": "x"}, {"name": "view-0000-00005.npy"}, [], "a"]
        with (path / "written-7.jsonl").open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in strange)
        cache = build(path)
        assert set(cache.manifest.shards) == {shard.name for shard in manifest().layout.shards}
        assert contents(path) == straight

    def test_not_with_another_beginning(self, tmp_path):
        begin(tmp_path, 2)
        other = manifest(codec=Codec(num_classes=10, top_k=5, pooled_width=3), views_seed=4)
        error = refused(tmp_path, other)
        assert str(error) == (
            f"{tmp_path} holds the beginning of another cache: views.seed: 0 in the cache, 4 here; "
            "codec.top_k: 4 in the cache, 5 here"
        )
        assert error.hint


class TestRefuses:
    def test_a_folder_with_something_else(self, tmp_path):
        (tmp_path / "holiday.png").touch()
        assert str(refused(tmp_path)) == f"{tmp_path} is not empty"

    def test_a_path_that_is_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(CacheError, match="a part of this path is a file"):
            CacheWriter(tmp_path / "file", manifest()).__enter__()
        with pytest.raises(CacheError, match="a part of this path is a file"):
            CacheWriter(tmp_path / "file" / "cache", manifest()).__enter__()
        assert contents(tmp_path) == {"file": b""}

    def test_a_folder_that_a_live_process_writes_to(self, tmp_path):
        with CacheWriter(tmp_path / "cache", manifest()):

            def enter() -> None:
                with pytest.raises(CacheError, match="is in use by process"):
                    CacheWriter(tmp_path / "cache", manifest()).__enter__()

            assert ended(started(enter)) == 0
        with held(tmp_path / "cache"):
            pass  # and it is free again

    def test_a_rank_that_does_not_see_what_the_first_has_made(self, tmp_path, monkeypatch):
        monkeypatch.setattr("anykd.data.cache.writer._MOMENT", 0.1)
        assert "rank 2 on " in str(refused(tmp_path, rank=2))

    def test_to_finish_before_all_is_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr("anykd.data.cache.writer._MOMENT", 0.1)
        with CacheWriter(tmp_path, manifest()) as writer:
            write(writer, writer.todo()[1:])
            with pytest.raises(CacheError) as caught:
                writer.finish()
        assert str(caught.value) == (
            f"{tmp_path} cannot be finished: 1 of 16 files are not written, the first of them "
            "view-0000-00000.npy"
        )
        assert not (tmp_path / "manifest.json").exists()

    def test_records_of_another_file_or_kind(self, tmp_path):
        with CacheWriter(tmp_path, manifest()) as writer:
            shard = writer.todo()[0]
            with pytest.raises(CacheError, match=r"takes 14 records of 26 bytes, got \(13,\)"):
                writer.write(shard, records(shard)[:-1])
            with pytest.raises(
                CacheError, match=r"takes 14 records of 26 bytes, got \(14,\) of 20"
            ):
                writer.write(shard, np.zeros(14, Codec(num_classes=10).record))
            assert not list(tmp_path.glob("*.npy"))


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system in memory, of 60 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", "-o", "size=60k", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], capture_output=True)


class TestFullDisk:
    def test_ends_a_build_in_words_that_goes_on_where_there_is_room(self, tmp_path, straight, disk):
        path = disk / "cache"
        with pytest.raises(CacheError) as caught, CacheWriter(path, manifest()) as writer:
            write(writer, writer.todo())
        assert "cannot be written: no space is left on its disk" in str(caught.value)
        assert "anykd cache build" in caught.value.hint
        assert not list(path.rglob(".anykd*"))  # nothing half-written takes room
        assert all(each.read_bytes() == straight[each.name] for each in path.glob("*.npy"))
        with pytest.raises(CacheError, match="is not finished"):
            Cache(path)
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        with CacheWriter(path, manifest()) as writer:
            assert 0 < len(writer.todo()) < 16
        build(path)
        assert contents(path) == straight

    def test_leaves_no_folder_where_not_even_the_beginning_fits(self, disk):
        (disk / "full").write_bytes(bytes(60_000))
        path = disk / "cache"
        with pytest.raises(CacheError, match="no space is left on its disk"):
            CacheWriter(path, manifest()).__enter__()
        assert [each.name for each in disk.iterdir()] == ["full"]


def test_a_file_that_may_not_grow_ends_a_build_in_words(tmp_path):
    what = manifest(codec=Codec(num_classes=10, pooled_width=500))
    path = tmp_path / "cache"

    def work() -> None:
        with CacheWriter(path, what) as writer:
            shard = writer.todo()[0]
            with pytest.raises(CacheError, match="it would be larger than a file may be here"):
                writer.write(shard, records(shard, what.codec))

    with_small_files(5000, work)
    assert sorted(contents(path)) == ["building.json"]
    build(path, what)
    build(tmp_path / "straight", what)
    assert contents(path) == contents(tmp_path / "straight")
