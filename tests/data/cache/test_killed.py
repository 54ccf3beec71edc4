"""A cache whose building is killed, at every moment there is, ends as if nobody had touched it."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from anykd.data.cache import Cache, CacheWriter, Manifest
from anykd.errors import CacheError
from tests.data.cache.processes import ended, killed_before, started
from tests.data.cache.small import contents, manifest, records

WHAT = manifest(views=1, slots=4)
SHARDS = WHAT.layout.shards


def build(path: Path, what: Manifest = WHAT) -> None:
    with CacheWriter(path, what) as writer:
        for shard in writer.todo():
            writer.write(shard, records(shard))
        if not writer.finished:
            writer.finish()


def told_of(path: Path) -> dict[str, int]:
    """When the files were written that a journal, or the manifest, tells of."""
    names: set[str] = set()
    for journal in path.glob("written-*.jsonl"):
        names |= {json.loads(line)["name"] for line in journal.read_text().split("\n") if line}
    if (path / "manifest.json").is_file():
        names |= {*json.loads((path / "manifest.json").read_text())["shards"]}
    return {name: (path / name).stat().st_mtime_ns for name in names}


@pytest.fixture
def straight(tmp_path) -> dict[str, bytes]:
    build(tmp_path / "straight")
    return contents(tmp_path / "straight")


def require_finished_or_said_not_to_be(path: Path, what: Manifest = WHAT) -> bool:
    """Nobody ever reads a part of a cache for the whole."""
    if (path / "manifest.json").is_file():
        assert Cache(path).verify_checksums() == []
        return True
    done = f"is not finished: {len(told_of(path))} of {len(what.layout.shards)} files are written"
    said = done if (path / "building.json").is_file() else "holds no cache"
    with pytest.raises(CacheError, match=said):
        Cache(path)
    return False


def test_at_every_moment(tmp_path, straight):
    assert len(SHARDS) == 2
    event, finished = 0, []
    path = tmp_path / "cache-0"
    while killed_before(event := event + 1, lambda path=path: build(path)):
        finished.append(require_finished_or_said_not_to_be(path))
        before = told_of(path)
        build(path)
        assert contents(path) == straight, event
        after = told_of(path)
        assert all(after[name] == when for name, when in before.items()), "written twice"
        path = tmp_path / f"cache-{event}"
    assert contents(path) == straight
    assert event > 30
    # Unfinished, then finished, and never the other way round.
    assert finished == sorted(finished)
    assert True in finished


def test_again_and_again(tmp_path, straight):
    path, chance, kills = tmp_path / "cache", random.Random(0), 0
    # Before its 25th event a process has written at least one file.
    while killed_before(chance.randint(25, 40), lambda: build(path)):
        kills += 1
        require_finished_or_said_not_to_be(path)
    assert contents(path) == straight
    assert kills >= 2


def test_while_it_is_mended(tmp_path, straight):
    damaged, event, path = tmp_path / "damaged", 0, tmp_path / "cache-0"
    build(damaged)
    (damaged / SHARDS[1].name).unlink()
    shutil.copytree(damaged, path)
    while killed_before(event := event + 1, lambda path=path: build(path)):
        build(path)
        assert contents(path) == straight, event
        path = tmp_path / f"cache-{event}"
        shutil.copytree(damaged, path)
    assert contents(path) == straight
    assert event > 20


MANY = manifest(views=4, slots=8)


def rank(path: Path, number: int, ranks: int) -> None:
    """One of several processes: the first enters first, and finishes what all have written."""
    if number:
        while not (path / "building.json").is_file() and not (path / "manifest.json").is_file():
            time.sleep(0.001)
    with CacheWriter(path, MANY, rank=number) as writer:
        (path.parent / f"entered-{number}").touch()
        while not all((path.parent / f"entered-{other}").is_file() for other in range(ranks)):
            time.sleep(0.001)
        for shard in writer.todo()[number::ranks]:
            writer.write(shard, records(shard))
            time.sleep(0.01)


def test_in_several_processes_at_any_time(tmp_path):
    path, chance = tmp_path / "cache", random.Random(1)
    killed = 0
    for ranks in (2, 3, 2, 4, 3, 2):
        for mark in tmp_path.glob("entered-*"):
            mark.unlink()
        processes = [
            started(lambda number=number, ranks=ranks: rank(path, number, ranks))
            for number in range(ranks)
        ]
        time.sleep(chance.uniform(0.01, 0.06))
        for process in processes:
            os.kill(process, signal.SIGKILL)
        statuses = [ended(process) for process in processes]
        assert set(statuses) <= {0, -signal.SIGKILL}
        killed += statuses.count(-signal.SIGKILL)
        require_finished_or_said_not_to_be(path, MANY)
    assert killed > 2
    build(path, MANY)
    build(tmp_path / "straight", MANY)
    assert contents(path) == contents(tmp_path / "straight")
