import multiprocessing
import random
import re
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch

from anykd.data import AugmentConfig, DataConfig, open_data
from anykd.data.bundled import SyntheticReader
from anykd.data.reader import ArrayReader, SubsetReader, UnlabelledReader
from anykd.errors import DataError, RecipeError
from anykd.types import Batch
from tests.data.loading import READER, eval_loader, indices, parts, same, train_loader, views


def set_global_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No type checks: beartype draws from Python's generator to pick the items it looks at."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class TestTrainLoader:
    def test_yields_rgb_in_0_to_1_with_distributions_and_indices(self):
        for batch in train_loader(image_size=(16, 24)).batches(0):
            images, labels, index = parts(batch)
            assert images.shape == (4, 3, 16, 24)
            assert (images.dtype, labels.dtype, index.dtype) == (
                torch.float32,
                torch.float32,
                torch.int64,
            )
            assert images.min() >= 0
            assert 0.5 < images.max() <= 1
            assert labels.argmax(dim=1).tolist() == [READER.labels[i] for i in index]

    def test_an_epoch_shows_every_image_once_and_drops_what_fills_no_batch(self):
        loader = train_loader(batch_size=5)
        epoch = list(loader.batches(0))
        assert len(epoch) == loader.steps_per_epoch == 4
        assert len(set(indices(epoch))) == 20

    def test_order_differs_by_epoch_and_by_seed(self):
        orders = [
            indices(list(train_loader(seed=seed).batches(epoch)))
            for seed, epoch in [(0, 0), (0, 1), (1, 0)]
        ]
        assert all(sorted(order) == list(range(24)) for order in orders)
        assert len({tuple(order) for order in orders}) == 3

    def test_views_differ_by_epoch_and_by_seed_and_not_by_place_in_the_epoch(self):
        first, epoch_1, seed_1, other_batches = (
            views(list(train_loader(seed=seed, batch_size=size).batches(epoch)))
            for seed, epoch, size in [(0, 0, 4), (0, 1, 4), (1, 0, 4), (0, 0, 6)]
        )
        for i in range(24):
            assert torch.equal(first[i], other_batches[i])
            assert not torch.equal(first[i], epoch_1[i])
            assert not torch.equal(first[i], seed_1[i])

    def test_erasing_leaves_the_rest_of_the_view_as_it_was(self):
        plain, erased = (
            views(list(train_loader(augment=AugmentConfig(erasing=p)).batches(0))) for p in (0, 1)
        )
        for i in range(24):
            share = (plain[i] != erased[i]).any(dim=0).float().mean().item()
            assert 0 < share < 0.4

    def test_leaves_out_the_steps_to_skip(self):
        loader = train_loader(augment=AugmentConfig(preset="vit"))
        assert same(list(loader.batches(1))[2:], list(loader.batches(1, skip=2)))

    def test_worker_processes_give_the_same_batches_also_after_an_epoch_left_early(self):
        alone, helped = (
            train_loader(augment=AugmentConfig(preset="vit"), workers=workers) for workers in (0, 2)
        )
        assert same(list(alone.batches(0)), list(helped.batches(0)))
        for batch in helped.batches(1):
            assert batch is not None
            break
        assert same(list(alone.batches(2)), list(helped.batches(2)))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_global_generators_neither_matter_nor_change(self, workers, unchecked):
        vit = AugmentConfig(preset="vit")
        expected = list(train_loader(augment=vit, workers=workers).batches(0))

        set_global_generators(1)
        actual = list(train_loader(augment=vit, workers=workers).batches(0))
        list(eval_loader(workers=workers))
        after = random.random(), np.random.rand(), torch.rand(()).item()

        assert same(actual, expected)
        set_global_generators(1)
        assert after == (random.random(), np.random.rand(), torch.rand(()).item())

    @pytest.mark.parametrize("preset", ["cnn", "vit"])
    def test_two_ranks_have_the_global_batches_of_one(self, preset):
        options = {"augment": AugmentConfig(preset=preset), "label_smoothing": 0.1}
        one = list(train_loader(batch_size=8, **options).batches(3))
        halves = [
            list(train_loader(batch_size=4, rank=rank, world_size=2, **options).batches(3))
            for rank in (0, 1)
        ]
        joined = [Batch.joined(both) for both in zip(*halves, strict=True)]
        assert same(one, joined)

    def test_ranks_have_equally_many_steps_where_images_are_left_over(self):
        loaders = [train_loader(batch_size=3, rank=rank, world_size=3) for rank in range(3)]
        assert [len(list(loader.batches(0))) for loader in loaders] == [2, 2, 2]

    def test_an_epoch_begun_inside_another_is_noticed(self):
        loader = train_loader()
        first = loader.batches(0)
        next(first)
        next(loader.batches(1))
        with pytest.raises(AssertionError, match="another pass was begun"):
            next(first)

    def test_worker_processes_end_with_the_loader(self):
        before = set(multiprocessing.active_children())
        loader = train_loader(workers=2)
        next(loader.batches(0))
        assert len(set(multiprocessing.active_children()) - before) == 2
        del loader
        assert not set(multiprocessing.active_children()) - before

    def test_too_few_images_are_told_with_what_would_do(self):
        message = "24 training images do not fill one batch of 26"
        with pytest.raises(DataError, match=message) as caught:
            train_loader(batch_size=13, world_size=2)
        assert caught.value.hint == "lower train.batch_size to 24 or less"

    def test_an_odd_batch_cannot_be_mixed(self):
        with pytest.raises(RecipeError, match="even number of images on each rank, got 5") as e:
            train_loader(batch_size=5, augment=AugmentConfig(preset="vit"))
        assert "change train.batch_size" in e.value.hint

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_broken_image_is_told_on_one_line(self, write_images, workers):
        write_images("val", cat=1, dog=1)
        root = write_images("train", cat=3, dog=1)
        (root / "train" / "cat" / "1.png").write_bytes(b"no image")
        splits = open_data(DataConfig(source=str(root)))
        loader = train_loader(splits.train, num_classes=2, workers=workers, bad_images="stop")
        message = hint = ""
        try:
            list(loader.batches(0))
        except DataError as error:
            message, hint = str(error), error.hint
        assert re.fullmatch(r"[^\n]*cat/1\.png cannot be read[^\n]*", message)
        assert hint == "mend or remove the file"

    @pytest.mark.parametrize("policy", ["stop", "replace"])
    def test_worker_processes_end_with_a_loader_that_broke_off(self, write_images, policy):
        write_images("val", cat=1, dog=1)
        root = write_images("train", cat=3, dog=1)
        (root / "train" / "cat" / "1.png").write_bytes(b"no image")
        reader = open_data(DataConfig(source=str(root))).train
        before = set(multiprocessing.active_children())
        loader = train_loader(reader, num_classes=2, workers=1, bad_images=policy)
        before_it_ends = 0
        try:
            list(loader.batches(0))
        except DataError:
            before_it_ends = len(set(multiprocessing.active_children()) - before)
        assert before_it_ends == 1
        del loader
        assert not set(multiprocessing.active_children()) - before


class TestLastBatch:
    """23 images: 5 are left over where a step takes 6 or 9."""

    reader = SubsetReader(READER, range(23))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_holds_what_is_left_and_the_others_are_as_without_it(self, workers):
        dropping, whole = (
            train_loader(self.reader, batch_size=6, drop_last=drop, workers=workers)
            for drop in (True, False)
        )
        assert (dropping.steps_per_epoch, whole.steps_per_epoch) == (3, 4)
        expected, batches = list(dropping.batches(1)), list(whole.batches(1))
        assert same(expected, batches[:3])
        assert [len(batch) for batch in batches] == [6, 6, 6, 5]
        assert sorted(indices(batches)) == list(range(23))
        assert same(batches[2:], list(whole.batches(1, skip=2)))

    @pytest.mark.parametrize(
        ("ranks", "batch_size", "shares"),
        [(2, 3, [2, 3]), (3, 3, [1, 2, 2]), (5, 3, [1, 1, 2, 2, 2]), (2, 9, [2, 3])],
    )
    def test_is_shared_as_evenly_as_possible(self, ranks, batch_size, shares):
        options = {"batch_size": batch_size, "drop_last": False}
        loaders = [
            train_loader(self.reader, rank=rank, world_size=ranks, **options)
            for rank in range(ranks)
        ]
        batches = [list(loader.batches(2)) for loader in loaders]
        assert sorted(len(rank[-1]) for rank in batches) == shares
        one = train_loader(self.reader, **options | {"batch_size": ranks * batch_size})
        for step, whole in enumerate(one.batches(2)):
            assert indices([whole]) == [i for rank in batches for i in indices([rank[step]])]
            even = len({len(rank[step]) for rank in batches}) == 1
            assert [loader.is_even(step) for loader in loaders] == [even] * ranks
            assert one.is_even(step)

    def test_sits_out_where_a_rank_would_have_none(self):
        loader = train_loader(self.reader, batch_size=3, world_size=7, drop_last=False)
        assert loader.steps_per_epoch == 1  # 2 are left
        assert loader.is_even(0)

    def test_may_be_the_only_one(self):
        (batch,) = train_loader(self.reader, batch_size=64, drop_last=False).batches(0)
        assert len(batch) == 23
        with pytest.raises(DataError, match="23 training images are fewer than the 24 ranks"):
            train_loader(self.reader, batch_size=1, world_size=24, drop_last=False)

    def test_cannot_be_mixed(self):
        with pytest.raises(RecipeError, match=r"data\.drop_last is false") as caught:
            train_loader(drop_last=False, augment=AugmentConfig(preset="vit"))
        assert "leave data.drop_last true" in caught.value.hint


class TestLabels:
    def test_are_smoothed_over_all_classes(self):
        (batch,) = train_loader(batch_size=24, label_smoothing=0.1).batches(0)
        _, labels, index = parts(batch)
        expected = [[0.925 if c == READER.labels[i] else 0.025 for c in range(4)] for i in index]
        assert torch.allclose(labels, torch.tensor(expected))

    @pytest.mark.parametrize("kind", ["mixup", "cutmix"])
    def test_are_mixed_as_the_images_are(self, kind):
        # Images of one grey level each, so that a mixed image tells its shares.
        levels = np.arange(8) * 30 + 20
        greys = np.broadcast_to(levels[:, None, None, None], (8, 16, 16, 3)).astype(np.uint8)
        reader = ArrayReader(greys, [0, 1, 2, 3, 3, 2, 1, 0])
        augment = AugmentConfig.model_validate({"preset": "none", kind: 1.0})
        loader = train_loader(reader, batch_size=8, augment=augment, label_smoothing=0.2)
        shares = []
        for epoch in range(6):
            (batch,) = loader.batches(epoch)
            images, labels, index = parts(batch)
            order = index.tolist()
            partners = index.view(-1, 2).flip(1).flatten().tolist()
            assert torch.allclose(labels.sum(dim=1), torch.ones(8))
            for image, label, i, partner in zip(images, labels, order, partners, strict=True):
                mine, other = levels[i] / 255, levels[partner] / 255
                shares.append(((image - other) / (mine - other)).mean().item())
                expected = np.full(4, 0.05)
                expected[reader.labels[i]] += 0.8 * shares[-1]
                expected[reader.labels[partner]] += 0.8 * (1 - shares[-1])
                assert label.tolist() == pytest.approx(expected, abs=1e-5)
                assert len(image.unique()) == (1 if kind == "mixup" else 2)
        assert np.ptp(shares) > 0.3


class TestWithoutLabels:
    @pytest.mark.parametrize("num_classes", [0, 4])
    @pytest.mark.parametrize(
        "augment",
        [
            {"preset": "cnn"},
            {"preset": "none", "mixup": 0.8},
            {"preset": "none", "cutmix": 1.0},
            {"preset": "none", "erasing": 1.0},
            {"preset": "vit"},
        ],
        ids=lambda augment: "-".join(augment) + augment["preset"],
    )
    def test_batches_are_the_same_but_for_the_labels(self, augment, num_classes):
        options = {"augment": AugmentConfig.model_validate(augment), "label_smoothing": 0.1}
        labelled = train_loader(**options).batches(1)
        unlabelled = train_loader(UnlabelledReader(READER), num_classes=num_classes, **options)
        for with_labels, without in zip(labelled, unlabelled.batches(1), strict=True):
            assert without.labels is None
            assert torch.equal(without.images, with_labels.images)
            assert without.indices is not None
            assert without.indices.tolist() == parts(with_labels)[2].tolist()

    def test_worker_processes_give_the_same_batches(self):
        alone, helped = (
            list(
                train_loader(
                    UnlabelledReader(READER),
                    num_classes=0,
                    augment=AugmentConfig(preset="vit"),
                    workers=workers,
                ).batches(0)
            )
            for workers in (0, 2)
        )
        assert len(alone) == len(helped) == 6
        for one, other in zip(alone, helped, strict=True):
            assert one.labels is other.labels is None
            assert torch.equal(one.images, other.images)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_images_to_evaluate_on_are_the_same_but_for_the_labels(self, workers):
        labelled = eval_loader()
        unlabelled = eval_loader(UnlabelledReader(READER), num_classes=0, workers=workers)
        for with_labels, without in zip(labelled, unlabelled, strict=True):
            assert without.labels is None
            assert torch.equal(without.images, with_labels.images)
            assert without.indices is not None
            assert without.indices.tolist() == parts(with_labels)[2].tolist()


class TestEvalLoader:
    @pytest.mark.parametrize("world_size", [1, 2, 3])
    @pytest.mark.parametrize("workers", [0, 1])
    def test_every_image_comes_once_over_all_ranks(self, world_size, workers):
        reader = SyntheticReader(num_classes=11, per_class=1, split=1)
        seen = []
        for rank in range(world_size):
            loader = eval_loader(
                reader, num_classes=11, rank=rank, world_size=world_size, workers=workers
            )
            mine = indices(list(loader))
            assert mine == list(range(rank, 11, world_size))
            assert loader.num_samples == len(mine)
            seen += mine
        assert sorted(seen) == list(range(11))

    def test_gives_plain_crops_with_one_hot_labels_each_time(self):
        loader = eval_loader(augment=AugmentConfig(preset="vit"), image_size=64)
        first, second = list(loader), list(loader)
        assert same(first, second)
        for batch in first:
            images, labels, index = parts(batch)
            for image, label, i in zip(images, labels, index.tolist(), strict=True):
                pixels = np.asarray(READER[i].image).transpose(2, 0, 1) / 255
                assert np.allclose(image.numpy(), pixels, atol=1e-6)
                assert label.tolist() == [float(c == READER.labels[i]) for c in range(4)]

    def test_a_rank_without_images_has_no_batches(self):
        reader = SyntheticReader(num_classes=2, per_class=1, split=1)
        loader = eval_loader(reader, num_classes=2, rank=2, world_size=3)
        assert loader.num_samples == 0
        assert list(loader) == []
