import gc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anykd.data import DataConfig, DataSplits, Reader, open_data
from anykd.errors import DataError
from tests.data.readers import labels_of


def open_path(path) -> DataSplits:
    return open_data(DataConfig(source=str(path), val_fraction=0.25))


def open_unlabelled(path, **options) -> DataSplits:
    return open_data(DataConfig(source=str(path), val_fraction=0.25, labels=False, **options))


def images_of(reader: Reader) -> list[bytes]:
    return sorted(reader[i].image.tobytes() for i in range(len(reader)))


def read_all(root: Path) -> list[bytes]:
    return sorted(Image.open(path).tobytes() for path in root.rglob("*.png"))


class TestLayout:
    def test_class_folders_are_divided_by_fraction(self, write_images):
        splits = open_path(write_images(dog=8, cat=4))
        assert splits.class_names == ("cat", "dog")
        assert np.bincount(labels_of(splits.train)).tolist() == [3, 6]
        assert np.bincount(labels_of(splits.val)).tolist() == [1, 2]

    def test_both_parts_of_a_divided_folder_number_their_images_from_0(self, write_images):
        splits = open_path(write_images(dog=8, cat=4))
        for reader in (splits.train, splits.val):
            assert [reader[i].index for i in range(len(reader))] == list(range(len(reader)))
            assert [reader[i].label for i in range(len(reader))] == labels_of(reader)

    @pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
    def test_train_and_val_folders_are_taken_as_they_are(self, write_images, val):
        write_images("train", cat=2, dog=3)
        splits = open_path(write_images(val, cat=1, dog=1))
        assert (len(splits.train), len(splits.val)) == (5, 2)

    def test_val_comes_before_test(self, write_images):
        write_images("train", cat=2, dog=3)
        write_images("test", cat=5, dog=5)
        assert len(open_path(write_images("val", cat=1, dog=1)).val) == 2

    def test_train_alone_is_divided(self, write_images):
        splits = open_path(write_images("train", cat=4, dog=4))
        assert (len(splits.train), len(splits.val)) == (6, 2)

    def test_a_class_may_be_called_train(self, write_images):
        assert open_path(write_images(train=4, plane=4)).class_names == ("plane", "train")

    def test_files_are_found_by_extension_at_any_depth_and_hidden_ones_are_not(self, write_images):
        root = write_images(cat=1, dog=1)
        (root / "cat" / "0.png").rename(root / "cat" / "0.PNG")
        (root / "cat" / "more").mkdir()
        for name in ("more/1.JPEG", ".hidden.png", "notes.txt", "._0.jpg"):
            (root / "cat" / name).write_bytes(b"")
        (root / ".cache").mkdir()
        splits = open_path(root)
        assert splits.class_names == ("cat", "dog")
        assert np.bincount([*labels_of(splits.train), *labels_of(splits.val)]).tolist() == [2, 1]


class TestMisfits:
    def test_val_without_train_is_refused(self, write_images):
        with pytest.raises(DataError, match="has val/ with class folders, but no train/"):
            open_path(write_images("val", cat=1, dog=1))

    def test_classes_that_differ_are_named(self, write_images):
        write_images("train", cat=2, dog=3)
        root = write_images("val", cat=1, hog=1)
        with pytest.raises(DataError, match=r"only one of them has dog, hog$"):
            open_path(root)

    def test_one_class_is_refused(self, write_images):
        with pytest.raises(DataError, match="1 class folders, a classifier needs at least 2"):
            open_path(write_images(cat=4))

    def test_an_empty_folder_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="has 0 class folders") as caught:
            open_path(tmp_path)
        assert "a folder of its own" in caught.value.hint

    def test_a_class_without_images_is_named(self, write_images):
        with pytest.raises(DataError, match=r"class folder .*dog holds no images") as caught:
            open_path(write_images(cat=4, dog=0))
        assert ".jpg" in caught.value.hint

    def test_a_truncated_image_is_named_when_it_is_read(self, write_images):
        root = write_images("train", cat=1, dog=1)
        write_images("val", cat=1, dog=1)
        path = root / "train" / "cat" / "0.png"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(DataError, match=r"cat/0\.png cannot be read as an image"):
            open_path(root).train[0]


class TestWithoutLabels:
    def test_a_flat_folder_gives_every_image_to_one_of_two_parts(self, tmp_path, write_images):
        root = write_images(flat=8) / "flat"
        splits = open_unlabelled(root)
        assert (len(splits.train), len(splits.val)) == (6, 2)
        assert sorted(images_of(splits.train) + images_of(splits.val)) == read_all(root)
        assert splits.name == "flat"

    def test_nested_folders_give_every_image_at_any_depth(self, write_images):
        write_images(".", cat=3, dog=2)
        root = write_images("more/of/them", cat=3)
        (root / ".hidden").mkdir()
        (root / "cat" / "0.png").rename(root / "top.PNG")
        (root / "dog" / "0.png").rename(root / ".hidden" / "0.png")
        (root / "notes.txt").write_text("no image")
        splits = open_unlabelled(root)
        assert len(splits.train) + len(splits.val) == 7

    def test_class_folders_are_no_classes(self, write_images):
        splits = open_unlabelled(write_images(cat=4, dog=4))
        assert (splits.class_names, splits.num_classes) == ((), 0)
        assert splits.train.labels is None
        assert splits.val.labels is None
        assert (len(splits.train), len(splits.val)) == (6, 2)

    def test_samples_have_no_label_and_count_from_0(self, write_images):
        splits = open_unlabelled(write_images(flat=8))
        for reader in (splits.train, splits.val):
            samples = [reader[i] for i in range(len(reader))]
            assert [sample.label for sample in samples] == [None] * len(reader)
            assert [sample.index for sample in samples] == list(range(len(reader)))
            assert not reader.in_memory

    @pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
    def test_labelled_images_to_evaluate_on_keep_their_classes(self, write_images, val):
        write_images("train", all=5)
        splits = open_unlabelled(write_images(val, cat=1, dog=2))
        assert splits.class_names == ("cat", "dog")
        assert (len(splits.train), splits.train.labels) == (5, None)
        assert labels_of(splits.val) == [0, 1, 1]
        assert [splits.val[i].label for i in range(3)] == [0, 1, 1]

    def test_train_folders_need_not_be_the_classes_of_val(self, write_images):
        write_images("train", monday=2, tuesday=3)
        splits = open_unlabelled(write_images("val", cat=1, dog=2))
        assert splits.class_names == ("cat", "dog")
        assert len(splits.train) == 5

    @pytest.mark.parametrize("folder", ["val", "val/from_camera"])
    def test_images_to_evaluate_on_may_have_no_labels_either(self, write_images, folder):
        root = write_images("train", all=5)
        write_images(Path(folder).parent, **{Path(folder).name: 3})
        splits = open_unlabelled(root)
        assert (splits.class_names, splits.val.labels) == ((), None)
        assert images_of(splits.train) == read_all(root / "train")
        assert images_of(splits.val) == read_all(root / "val")

    def test_train_alone_is_divided(self, write_images):
        write_images("train", all=8)
        splits = open_unlabelled(write_images(other=3))
        assert (len(splits.train), len(splits.val)) == (6, 2)

    @pytest.mark.parametrize("empty", [".", "train", "val"])
    def test_a_folder_without_images_is_named(self, write_images, tmp_path, empty):
        if empty != ".":
            write_images("train", all=0 if empty == "train" else 4)
            (tmp_path / "val").mkdir()
        with pytest.raises(DataError, match=r"holds no images$") as caught:
            open_unlabelled(tmp_path)
        assert str(caught.value) == f"{tmp_path / empty} holds no images"
        assert ".jpg" in caught.value.hint

    def test_one_image_is_too_few_to_hold_some_out(self, write_images):
        with pytest.raises(DataError, match="too few to hold some out"):
            open_unlabelled(write_images(flat=1))

    def test_the_limit_and_the_fraction_count_all_images_as_one_group(self, write_images):
        root = write_images(cat=12, dog=4)
        whole, limited = (open_unlabelled(root, limit=limit) for limit in (None, 5))
        assert (len(whole.train), len(whole.val)) == (12, 4)
        assert len(limited.train) == 5
        assert images_of(limited.val) == images_of(whole.val)
        assert set(images_of(limited.train)) < set(images_of(whole.train))
        other = open_unlabelled(root, split_seed=1)
        assert images_of(other.val) != images_of(whole.val)

    def test_the_way_out_is_told_where_labels_are_missing(self, write_images):
        with pytest.raises(DataError) as caught:
            open_path(write_images(flat=4))
        assert "images without labels take data.labels = false" in caught.value.hint


class TestFiles:
    def test_files_are_closed(self, write_images):
        root = write_images("train", cat=2, dog=2)
        write_images("val", cat=1, dog=1)
        reader = open_path(root).train
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            for i in range(4):
                reader[i]
            gc.collect()
        assert not [w for w in caught if issubclass(w.category, ResourceWarning)]

    def test_a_broken_one_is_named(self, write_images):
        root = write_images("train", cat=1, dog=1)
        write_images("val", cat=1, dog=1)
        (root / "train" / "cat" / "0.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"cat/0\.png cannot be read as an image: it is of no"):
            open_path(root).train[0]

    def test_the_limit_of_the_recipe_holds(self, write_images):
        root = write_images("train", cat=2, dog=2)
        write_images("val", cat=1, dog=1)
        for labels in (True, False):
            for part in ("train", "val"):
                config = DataConfig(source=str(root), max_pixels=119, labels=labels)
                with pytest.raises(DataError, match=r"max_pixels = 119"):
                    getattr(open_data(config), part)[0]

    def test_keys_are_paths_within_the_data_set(self, write_images):
        root = write_images("train", cat=1, dog=1)
        write_images("val", cat=1, dog=1)
        splits = open_path(root)
        assert [splits.train.key(0), splits.train.key(1)] == ["train/cat/0.png", "train/dog/0.png"]
        assert splits.val.key(1) == "val/dog/0.png"
