import numpy as np
import pytest

from anykd.data.split import hold_out, keep
from anykd.errors import DataError


def labels_of(*sizes: int) -> list[int]:
    """Labels of classes of these sizes, shuffled."""
    ordered = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).permutation(ordered).tolist()


class TestKeep:
    @pytest.mark.parametrize("count", [1, 7, 50, 99, 166])
    def test_each_class_gets_within_one_of_its_share(self, count):
        sizes = (3, 100, 40, 1, 23)
        labels = labels_of(*sizes)

        kept = keep(labels, count, seed=0)

        assert len(set(kept)) == count
        assert kept == sorted(kept)
        counts = np.bincount([labels[position] for position in kept], minlength=5)
        assert np.abs(counts - np.array(sizes) * count / 167).max() < 1

    def test_all_is_all(self):
        assert keep(labels_of(3, 4), 7, seed=3) == list(range(7))

    def test_the_seed_decides_which(self):
        labels = labels_of(50, 50)
        assert keep(labels, 20, seed=0) == keep(labels, 20, seed=0)
        assert keep(labels, 20, seed=0) != keep(labels, 20, seed=1)

    def test_fewer_than_the_classes_does_not_prefer_the_first_classes(self):
        labels = labels_of(*[10] * 20)
        chosen = {labels[p] for seed in range(30) for p in keep(labels, 2, seed=seed)}
        assert len(chosen) > 15


class TestHoldOut:
    def test_every_image_is_on_one_side_and_every_class_on_both(self):
        labels = labels_of(20, 40, 100)

        train, held_out = hold_out(labels, 0.1, seed=0)

        assert sorted(train + held_out) == list(range(160))
        counts = np.bincount([labels[position] for position in held_out])
        assert counts.tolist() == [2, 4, 10]

    def test_the_seed_decides_which(self):
        labels = labels_of(50, 50)
        assert hold_out(labels, 0.2, seed=0) == hold_out(labels, 0.2, seed=0)
        assert hold_out(labels, 0.2, seed=0) != hold_out(labels, 0.2, seed=1)

    def test_a_class_keeps_its_last_image(self):
        train, held_out = hold_out([0] * 50 + [1], 0.99, seed=0)
        assert 50 in train
        assert len(held_out) == 49

    def test_a_small_share_of_few_images_is_one_image(self):
        assert len(hold_out(labels_of(3, 3), 0.01, seed=0)[1]) == 1

    def test_one_image_of_each_class_is_too_few(self):
        with pytest.raises(DataError, match="3 images of 3 classes are too few") as caught:
            hold_out([0, 1, 2], 0.5, seed=0)
        assert caught.value.hint == "add images, or a val/ folder"
