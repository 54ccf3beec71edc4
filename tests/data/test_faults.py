"""Images that cannot be read, on real files and in real worker processes."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from anykd.data import AugmentConfig, Reader
from anykd.data.faults import StandIns
from anykd.data.folder import FolderReader
from anykd.data.reader import UnlabelledReader
from anykd.errors import DataError, RecipeError
from anykd.types import Batch
from tests.data.loading import eval_loader, indices, parts, same, train_loader, views

BROKEN = (3, 17)
"""Of 24 images of 4 classes, six of each in turn."""
LABELS = [position % 4 for position in range(24)]


@pytest.fixture
def paths(write_images) -> list[Path]:
    root = write_images(all=24) / "all"
    return [root / f"{position}.png" for position in range(24)]


def broken(paths: list[Path], *positions: int) -> FolderReader:
    """A reader of the files, of which some are cut short."""
    for position in positions:
        paths[position].write_bytes(paths[position].read_bytes()[:60])
    return FolderReader(paths, LABELS)


def error_of(batches: Iterable[Batch]) -> DataError:
    """What a loader breaks off with; nothing holds its frames, so that its workers end at once."""
    try:
        list(batches)
    except DataError as error:
        return error.with_traceback(None)
    raise AssertionError("it did not break off")


def loader_of(reader: Reader, **options):
    options.setdefault("max_bad_fraction", 0.5)
    return train_loader(reader, **options)


class TestReplaced:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_by_another_of_the_same_class_named_once_in_many_epochs(self, paths, workers):
        said: list[str] = []
        reader = broken(paths, *BROKEN)
        loader = loader_of(reader, workers=workers, on_bad_image=said.append)
        stand_ins = []
        for epoch in range(4):
            batches = list(loader.batches(epoch))
            shown = Counter(indices(batches))
            assert sum(shown.values()) == 24
            assert set(shown) == set(range(24)) - set(BROKEN)
            for batch in batches:
                _, labels, index = parts(batch)
                assert labels.argmax(dim=1).tolist() == [LABELS[i] for i in index]
            twice = [i for i, times in shown.items() for _ in range(times - 1)]
            assert sorted(LABELS[i] for i in twice) == sorted(LABELS[i] for i in BROKEN)
            stand_ins.append(tuple(sorted(twice)))
        assert len(set(stand_ins)) > 1
        assert sorted(loader.bad_images) == list(BROKEN)
        assert len(said) == 2
        for line in said:
            assert "\n" not in line
            assert "cannot be read as an image" in line
            assert line.endswith("another of its class takes its place")

    def test_and_nothing_else_of_a_batch_changes(self, paths):
        whole = views(list(loader_of(FolderReader(paths, LABELS)).batches(1)))
        loader = loader_of(broken(paths, *BROKEN))
        seen = views(list(loader.batches(1)))
        assert set(seen) == set(whole) - set(BROKEN)
        assert all(torch.equal(image, whole[index]) for index, image in seen.items())

    @pytest.mark.parametrize("preset", ["cnn", "vit"])
    def test_alike_for_any_number_of_workers_and_whatever_was_read_before(self, paths, preset):
        reader, augment = broken(paths, *BROKEN), AugmentConfig(preset=preset)
        loaders = [loader_of(reader, augment=augment, workers=workers) for workers in (0, 1, 2)]
        first, *others = ([*loader.batches(2)] for loader in loaders)
        assert all(same(first, batches) for batches in others)
        assert same(first[3:], list(loaders[2].batches(2, skip=3)))

    def test_alike_for_any_number_of_ranks(self, paths):
        reader = broken(paths, *BROKEN)
        one = indices(list(loader_of(reader, batch_size=8).batches(1)))
        halves = [
            list(loader_of(reader, batch_size=4, rank=rank, world_size=2).batches(1))
            for rank in (0, 1)
        ]
        assert one == [i for pair in zip(*halves, strict=True) for i in indices(list(pair))]

    def test_by_a_third_where_the_second_is_broken_too(self, paths):
        same_class = [position for position, label in enumerate(LABELS) if label == 1]
        reader = broken(paths, *same_class[1:])
        loader = loader_of(reader)
        batches = list(loader.batches(0))
        assert indices(batches).count(same_class[0]) == 6
        assert sorted(loader.bad_images) == same_class[1:]
        bad = {same_class[1]: ""}
        assert StandIns(reader, 0)(0, same_class[1], bad).index == same_class[0]
        assert set(bad) <= set(same_class[1:])
        assert len(bad) > 1  # with this seed a broken one was tried first

    def test_by_any_other_without_labels(self, paths):
        reader = UnlabelledReader(broken(paths, *BROKEN))
        classes = set()
        for epoch in range(8):
            shown = Counter(indices_without_labels(loader_of(reader), epoch))
            assert set(shown) == set(range(24)) - set(BROKEN)
            classes |= {LABELS[i] for i, times in shown.items() if times > 1}
        assert classes > {LABELS[i] for i in BROKEN}

    def test_not_where_its_class_has_no_other(self, paths):
        reader = FolderReader(broken(paths, 3)._paths, [*LABELS[:3], 4, *LABELS[4:]])
        with pytest.raises(DataError, match=r"3\.png cannot .*; its class has no other image$"):
            list(loader_of(reader, num_classes=5).batches(0))

    def test_not_after_twenty_in_a_row(self, paths):
        reader = UnlabelledReader(broken(paths, *range(24)))
        with pytest.raises(DataError, match="nor can 20 others of its class"):
            list(loader_of(reader).batches(0))
        bad = {0: "broken"}
        with pytest.raises(DataError):
            StandIns(reader, 0)(0, 0, bad)
        assert len(bad) == 21


def indices_without_labels(loader, epoch: int) -> list[int]:
    return [int(i) for batch in loader.batches(epoch) for i in batch.indices]


class TestDropped:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_from_its_batch(self, paths, workers):
        whole = list(loader_of(FolderReader(paths, LABELS)).batches(1))
        said: list[str] = []
        reader = broken(paths, *BROKEN)
        loader = loader_of(reader, bad_images="drop", workers=workers, on_bad_image=said.append)
        for full, batch in zip(whole, loader.batches(1), strict=True):
            kept = [slot for slot, i in enumerate(indices([full])) if i not in BROKEN]
            expected = [part[kept] for part in parts(full)]
            assert all(torch.equal(x, y) for x, y in zip(expected, parts(batch), strict=True))
        assert sorted(loader.bad_images) == list(BROKEN)
        assert all(line.endswith("its batches go without it") for line in said)
        assert len(said) == 2

    def test_and_a_step_keeps_one_image(self, paths):
        reader = broken(paths, *BROKEN)
        loader = loader_of(reader, batch_size=1, bad_images="drop")
        assert len(indices(list(loader.batches(0)))) == 24

    def test_makes_every_step_uneven_over_ranks(self):
        assert train_loader(bad_images="drop").is_even(0)
        assert not train_loader(bad_images="drop", world_size=2, batch_size=2).is_even(0)

    def test_not_where_images_are_mixed_in_pairs(self):
        augment = AugmentConfig(preset="none", cutmix=1.0)
        with pytest.raises(RecipeError, match=r"data\.bad_images is 'drop'") as caught:
            train_loader(augment=augment, bad_images="drop")
        assert "set data.bad_images = 'replace'" in caught.value.hint


class TestTooMany:
    def test_are_counted_as_images_and_not_as_times(self, paths):
        reader = broken(paths, *BROKEN)
        loader = loader_of(reader, max_bad_fraction=2 / 24)
        for epoch in range(5):
            assert len(list(loader.batches(epoch))) == 6

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("policy", ["replace", "drop"])
    def test_stop_with_words_that_name_them(self, paths, workers, policy):
        loader = loader_of(
            broken(paths, *BROKEN), workers=workers, bad_images=policy, max_bad_fraction=0.05
        )
        error = error_of(loader.batches(0))
        words = str(error)
        assert words.startswith("2 of 24 training images cannot be read so far, more than data.max")
        assert all(f"{position}.png" in words for position in BROKEN)
        assert "raise data.max_bad_fraction" in error.hint

    def test_stop_at_the_first_where_none_may_be(self, paths):
        with pytest.raises(DataError, match="1 of 24"):
            list(loader_of(broken(paths, 3), max_bad_fraction=0).batches(0))

    def test_are_those_of_all_ranks(self, paths):
        reader = broken(paths, *BROKEN)
        ranks = [
            loader_of(reader, batch_size=2, rank=rank, world_size=2, max_bad_fraction=0.05)
            for rank in (0, 1)
        ]
        epoch = 0
        for loader in ranks:
            list(loader.batches(epoch))
        one, other = (dict(loader.bad_images) for loader in ranks)
        assert len(one) == len(other) == 1  # each has met one of the two
        for loader in ranks:
            loader.add_bad_images(loader.bad_images)
            with pytest.raises(DataError, match="2 of 24"):
                loader.add_bad_images(one | other)

    def test_are_remembered_in_json_and_not_named_again(self, paths):
        said: list[str] = []
        reader = broken(paths, *BROKEN)
        before = loader_of(reader)
        list(before.batches(0))
        state = json.loads(json.dumps(before.state_dict()))
        after = loader_of(reader, on_bad_image=said.append, max_bad_fraction=0.1)
        after.load_state_dict(state)
        assert after.bad_images == before.bad_images
        list(after.batches(1))
        assert not said
        broken(paths, 5)
        with pytest.raises(DataError, match="3 of 24"):
            list(after.batches(2))
        assert len(said) == 1


class TestStop:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_at_the_first(self, paths, workers):
        reader = broken(paths, *BROKEN)
        for loader in (
            loader_of(reader, bad_images="stop", workers=workers).batches(0),
            eval_loader(reader, bad_images="stop", workers=workers, max_bad_fraction=0.5),
        ):
            words = str(error_of(loader))
            assert re.search(r"/(3|17)\.png cannot be read as an image: [^;]*$", words)


class TestHeldOut:
    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_are_left_out_named_and_counted(self, paths, workers, batch_size):
        said: list[str] = []
        options = {"batch_size": batch_size, "max_bad_fraction": 0.5}
        whole = views(list(eval_loader(FolderReader(paths, LABELS), **options)))
        loader = eval_loader(
            broken(paths, *BROKEN), workers=workers, on_bad_image=said.append, **options
        )
        for _ in range(2):
            seen = views(list(loader))
            assert set(seen) == set(range(24)) - set(BROKEN)
            assert all(torch.equal(image, whole[index]) for index, image in seen.items())
        assert sorted(loader.bad_images) == list(BROKEN)
        assert len(said) == 2

    def test_are_named_once_by_all_loaders_of_them(self, paths):
        said: list[str] = []
        known: dict[int, str] = {}
        reader = broken(paths, *BROKEN)
        options = {"max_bad_fraction": 0.5, "on_bad_image": said.append, "known": known}
        for size in (16, 24):
            list(eval_loader(reader, image_size=size, **options))
        assert len(said) == len(known) == 2

    def test_more_than_may_be_stop(self, paths):
        with pytest.raises(DataError, match="2 of 24 images cannot be read so far"):
            list(eval_loader(broken(paths, *BROKEN), max_bad_fraction=0.05))

    def test_of_other_ranks_count_too(self, paths):
        reader = broken(paths, 4, 17)  # one on each of two ranks
        ranks = [
            eval_loader(reader, rank=rank, world_size=2, max_bad_fraction=0.05) for rank in (0, 1)
        ]
        counted = sum(len(indices(list(loader))) for loader in ranks)
        assert counted == 22
        with pytest.raises(DataError, match="2 of 24"):
            ranks[0].add_bad_images(ranks[1].bad_images)
