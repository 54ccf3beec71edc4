import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from anykd.data import DataConfig, Reader, open_data
from anykd.data.bundled import SyntheticReader, open_digits
from anykd.errors import DataError
from tests.data.readers import labels_of


def pixels(reader: Reader) -> np.ndarray:
    return np.stack([np.asarray(reader[i].image) for i in range(len(reader))])


class TestDigits:
    def test_are_those_of_scikit_learn(self):
        reader = open_digits("").train
        pixels_of_7, label_of_7 = (values[7] for values in load_digits(return_X_y=True))

        sample = reader[7]

        assert len(reader) == 1797
        assert sample.image.mode == "RGB"
        assert (sample.label, sample.index) == (label_of_7, 7)
        for channel in np.asarray(sample.image).transpose(2, 0, 1):
            assert np.abs(channel / 255 - pixels_of_7.reshape(8, 8) / 16).max() <= 0.5 / 255

    def test_are_divided_by_fraction(self):
        splits = open_data(DataConfig(source="digits", val_fraction=0.2))
        assert (len(splits.train), len(splits.val)) == (1438, 359)
        assert splits.class_names == tuple("0123456789")
        assert splits.num_classes == 10
        shares = np.bincount(labels_of(splits.val)) / np.bincount(load_digits(return_X_y=True)[1])
        assert np.abs(shares - 0.2).max() < 0.01

    def test_take_no_argument(self):
        with pytest.raises(DataError, match="digits takes no argument, got 'digits:8x8'"):
            open_data(DataConfig(source="digits:8x8"))


class TestSynthetic:
    def test_has_as_many_images_as_it_says(self):
        splits = open_data(DataConfig(source="synthetic:3x8"))
        assert np.bincount(labels_of(splits.train)).tolist() == [8, 8, 8]
        assert np.bincount(labels_of(splits.val)).tolist() == [2, 2, 2]
        assert splits.num_classes == 3
        assert splits.train[5].image.size == (64, 64)

    def test_one_training_image_leaves_one_to_evaluate_on(self):
        assert len(open_data(DataConfig(source="synthetic:2x1")).val) == 2

    def test_is_a_function_of_the_index(self):
        first, second = (SyntheticReader(3, 4, split=0) for _ in range(2))
        assert np.array_equal(pixels(first), pixels(second))

    def test_has_no_image_twice(self):
        both = np.concatenate([pixels(SyntheticReader(2, 8, split=split)) for split in (0, 1)])
        assert len(np.unique(both.reshape(32, -1), axis=0)) == 32

    def test_can_be_learnt(self):
        splits = open_data(DataConfig(source="synthetic:10x16"))
        train, val = (pixels(reader)[:, ::4, ::4] / 255 for reader in (splits.train, splits.val))
        model = KNeighborsClassifier(1).fit(train.reshape(160, -1), labels_of(splits.train))
        assert model.score(val.reshape(40, -1), labels_of(splits.val)) > 0.9

    @pytest.mark.parametrize("argument", ["", "10", "10x", "x5", "10x0", "10x5x2", "tenx5"])
    def test_a_malformed_spec_is_told_the_form(self, argument):
        with pytest.raises(DataError, match="synthetic:CLASSESxN, got") as caught:
            open_data(DataConfig(source=f"synthetic:{argument}"))
        assert "synthetic:10x100" in caught.value.hint

    def test_one_class_is_refused(self):
        with pytest.raises(DataError, match="at least 2 classes, got 'synthetic:1x5'"):
            open_data(DataConfig(source="synthetic:1x5"))
