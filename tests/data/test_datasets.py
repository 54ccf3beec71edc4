import re

import numpy as np
import pytest
from pydantic import ValidationError

from anykd.data import DataConfig, Reader, open_data, open_split
from anykd.errors import DataError
from tests.data.readers import labels_of


def images_of(reader: Reader) -> list[bytes]:
    return [reader[i].image.tobytes() for i in range(len(reader))]


class TestOpenData:
    def test_the_limit_leaves_each_class_its_share_of_the_training_images(self):
        splits = open_data(DataConfig(source="synthetic:4x50", limit=30))
        assert len(splits.train) == 30
        assert set(np.bincount(labels_of(splits.train))) == {7, 8}
        assert len(splits.val) == 48

    def test_a_limit_above_the_size_keeps_all(self):
        assert len(open_data(DataConfig(source="synthetic:4x5", limit=99)).train) == 20

    def test_no_image_is_in_both_parts(self):
        splits = open_data(DataConfig(source="digits", limit=500))
        assert not set(images_of(splits.train)) & set(images_of(splits.val))

    def test_the_seed_decides_which_images_are_kept(self):
        first, other = (
            open_data(DataConfig(source="synthetic:4x20", limit=20, split_seed=seed))
            for seed in (0, 1)
        )
        assert images_of(first.train) != images_of(other.train)

    def test_the_seed_decides_which_images(self):
        first, same, other = (
            open_data(DataConfig(source="digits", limit=100, split_seed=seed)) for seed in (0, 0, 1)
        )
        assert images_of(first.train) == images_of(same.train)
        assert images_of(first.val) == images_of(same.val)
        assert images_of(first.train) != images_of(other.train)
        assert images_of(first.val) != images_of(other.val)

    def test_the_limit_does_not_change_what_is_held_out(self):
        whole, limited = (
            open_data(DataConfig(source="digits", limit=limit)) for limit in (None, 100)
        )
        assert images_of(whole.val) == images_of(limited.val)


class TestWithoutLabels:
    @pytest.mark.parametrize("source", ["digits", "synthetic:4x10"])
    def test_the_images_are_divided_as_with_labels(self, source):
        labelled, unlabelled = (
            open_data(DataConfig(source=source, limit=30, labels=labels))
            for labels in (True, False)
        )
        assert images_of(unlabelled.train) == images_of(labelled.train)
        assert images_of(unlabelled.val) == images_of(labelled.val)

    @pytest.mark.parametrize("source", ["digits", "synthetic:4x10"])
    def test_only_the_images_to_evaluate_on_keep_their_labels(self, source):
        labelled, unlabelled = (
            open_data(DataConfig(source=source, labels=labels)) for labels in (True, False)
        )
        train, val = unlabelled.train, unlabelled.val
        assert train.labels is None
        assert [train[i].label for i in range(5)] == [None] * 5
        assert [train[i].index for i in range(5)] == list(range(5))
        assert val.labels == labelled.val.labels
        assert [val[i].label for i in range(5)] == labels_of(val)[:5]
        assert unlabelled.class_names == labelled.class_names

    def test_images_in_memory_are_still_in_memory(self):
        for limit in (None, 10):
            splits = open_data(DataConfig(source="digits", limit=limit, labels=False))
            assert splits.train.in_memory
            assert splits.val.in_memory


class TestUnknownSpecs:
    @pytest.mark.parametrize(
        ("spec", "meant"),
        [
            ("digit", "digits"),
            ("cifr100", "cifar100"),
            ("synthetc:2x2", "synthetic"),
            ("hf;pets", "hf"),
            ("parquett:/data/pets", "parquet"),
            ("wsd:/data/{0..9}.tar", "wds"),
            ("Food101", "food101"),
            ("svhm:~/data", "svhn"),
        ],
    )
    def test_a_misspelt_name_is_told_the_nearest(self, spec, meant):
        with pytest.raises(
            DataError, match=re.escape(f"no data is called '{spec}': known are")
        ) as caught:
            open_data(DataConfig(source=spec))
        assert f"did you mean {meant}" in caught.value.hint

    def test_what_exists_is_listed(self):
        with pytest.raises(
            DataError, match=r"digits, .* hf:NAME\[@SPLIT\], .* folder of class folders"
        ):
            open_data(DataConfig(source="imagenet"))

    def test_a_misspelt_folder_is_told_its_neighbour(self, tmp_path):
        (tmp_path / "my_images").mkdir()
        with pytest.raises(DataError, match="my_imags does not exist") as caught:
            open_data(DataConfig(source=f"{tmp_path}/my_imags"))
        assert caught.value.hint == f"did you mean my_images? (in {tmp_path})"

    def test_a_misspelt_folder_further_up_is_found(self, tmp_path):
        (tmp_path / "datasets" / "pets").mkdir(parents=True)
        with pytest.raises(DataError, match="datasts/pets does not exist") as caught:
            open_data(DataConfig(source=f"{tmp_path}/datasts/pets"))
        assert caught.value.hint == f"did you mean datasets? (in {tmp_path})"

    def test_a_misspelt_folder_of_the_working_directory_is_found(self, tmp_path, monkeypatch):
        (tmp_path / "my_images").mkdir()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError) as caught:
            open_data(DataConfig(source="my_imags"))
        assert caught.value.hint == "did you mean my_images?"

    @pytest.mark.parametrize("spec", ["./pets", "~/no/such/pets", "my/pets", "my/pets:old"])
    def test_a_path_that_leads_nowhere_is_no_misspelt_kind(self, spec, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=r"^folder .* does not exist$"):
            open_data(DataConfig(source=spec))

    @pytest.mark.parametrize(("name", "kind"), [("a.parquet", "parquet"), ("a-{0}.tar", "wds")])
    def test_a_file_of_images_is_told_its_kind(self, tmp_path, name, kind):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match="is a file") as caught:
            open_data(DataConfig(source=str(tmp_path / name)))
        assert caught.value.hint == f"write {kind}:{tmp_path / name}"

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "images.zip").touch()
        with pytest.raises(DataError, match=r"images\.zip is a file; data is a folder"):
            open_data(DataConfig(source=str(tmp_path / "images.zip")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": ""},
        {"val_fraction": 0},
        {"val_fraction": 1},
        {"limit": 0},
        {"workers": -1},
        {"root": "x"},
    ],
)
def test_config_refuses(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DataConfig(**{"source": "digits"} | wrong)


class TestOpenSplit:
    SOURCE = "synthetic:3x8"

    def test_val_is_what_is_held_out(self):
        config = DataConfig(source=self.SOURCE)
        assert open_split(config, "val").val.labels == open_data(config).val.labels

    def test_train_is_what_is_trained_on(self):
        config = DataConfig(source=self.SOURCE, limit=9)
        assert len(open_split(config, "train").val) == 9

    def test_all_is_both_whatever_the_limit(self):
        config = DataConfig(source=self.SOURCE, limit=9)
        whole, splits = open_split(config, "all").val, open_data(DataConfig(source=self.SOURCE))
        assert len(whole) == 24 + 6
        assert labels_of(whole) == labels_of(splits.train) + labels_of(splits.val)
        for position, (part, own) in {0: (splits.train, 0), 29: (splits.val, 5)}.items():
            sample = whole[position]
            assert (sample.index, sample.label) == (position, part[own].label)
            assert np.array_equal(np.asarray(sample.image), np.asarray(part[own].image))

    def test_all_of_what_is_not_divided_holds_nothing_out(self, write_images):
        folder = write_images(cat=1, dog=1)
        config = DataConfig(source=str(folder))
        with pytest.raises(DataError, match="too few to hold some out"):
            open_split(config, "val")
        assert len(open_split(config, "all").val) == 2
