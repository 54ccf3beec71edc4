import builtins
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, config
from datasets import Image as ImageType
from PIL import Image

from anykd.data import DataConfig, DataSplits, Reader, open_data, open_split
from anykd.errors import DataError
from tests.data.readers import labels_of
from tests.data.sources import CLASSES, encoded, pixels, write_folder, write_saved, write_table


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> None:
    """Leave the user's caches alone, and the network too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache" / "hf"))


def open_spec(spec: str, **options) -> DataSplits:
    return open_data(DataConfig(**{"source": spec, "val_fraction": 0.25} | options))


def shows(reader: Reader, *numbers: int) -> bool:
    """Whether a reader has just these pictures."""
    found = [np.asarray(reader[position].image) for position in range(len(reader))]
    return len(found) == len(numbers) and all(
        np.array_equal(one, pixels(number)) for one, number in zip(found, numbers, strict=True)
    )


def save(root: Path, features: dict, **columns) -> str:
    """Write a table as ``save_to_disk`` does, and give its spec."""
    Dataset.from_dict(columns, features=Features(features)).save_to_disk(str(root / "saved"))
    return f"hf:{root / 'saved'}"


IMAGES = [{"bytes": encoded(number), "path": None} for number in range(8)]
IMAGE, NUMBER = ImageType(), Value("int64")


class TestSaved:
    def test_parts_are_what_was_saved(self, tmp_path):
        features = Features({"image": IMAGE, "label": ClassLabel(names=["cat", "dog"])})
        parts = {
            name: Dataset.from_dict(
                {"image": [IMAGES[n] for n in numbers], "label": [n % 2 for n in numbers]},
                features=features,
            )
            for name, numbers in (("train", range(4)), ("test", (7, 5)), ("validation", (6, 4)))
        }
        DatasetDict(parts).save_to_disk(str(tmp_path / "pets"))  # type: ignore[arg-type]
        splits = open_spec(f"hf:{tmp_path / 'pets'}")
        assert splits.name == "pets"
        assert splits.class_names == ("cat", "dog")
        assert shows(splits.train, 0, 1, 2, 3)
        assert labels_of(splits.train) == [0, 1, 0, 1]
        assert shows(splits.val, 6, 4)  # validation comes before test
        assert splits.val.key(1) == "validation/1"
        asked = open_spec(f"hf:{tmp_path / 'pets'}@test", val_fraction=0.5)
        assert (len(asked.train), len(asked.val)) == (1, 1) or pytest.fail("test is not divided")

    def test_one_part_is_divided_by_fraction(self, tmp_path):
        splits = open_spec(write_saved(tmp_path))
        assert (len(splits.train), len(splits.val)) == (9, 3)
        assert splits.class_names == CLASSES
        assert sorted(labels_of(splits.val)) == [0, 1, 2]

    def test_a_part_that_is_not_there_is_told_the_nearest(self, tmp_path):
        with pytest.raises(DataError, match="has no part 'trian'") as caught:
            open_spec(f"{write_saved(tmp_path)}@trian")
        assert caught.value.hint == "did you mean train?"

    def test_rows_that_were_chosen_are_in_their_order(self, tmp_path):
        rows = Dataset.from_dict(
            {"image": IMAGES, "label": [number // 4 for number in range(8)]},
            features=Features({"image": IMAGE, "label": NUMBER}),
        )
        rows.select([5, 2, 7, 0]).save_to_disk(str(tmp_path / "saved"))
        whole = open_split(DataConfig(source=f"hf:{tmp_path / 'saved'}"), "all").val
        assert shows(whole, 5, 2, 7, 0)
        assert labels_of(whole) == [1, 0, 1, 0]

    def test_a_folder_that_is_damaged_is_told_in_words(self, tmp_path):
        spec = write_saved(tmp_path)
        (table,) = (tmp_path / "saved").glob("*.arrow")
        table.write_bytes(table.read_bytes()[:100])
        with pytest.raises(DataError, match="cannot be read as save_to_disk wrote it") as caught:
            open_spec(spec)
        assert "\n" not in str(caught.value)


class TestColumns:
    def test_names_of_other_columns_do(self, tmp_path):
        features = {"id": Value("string"), "img": IMAGE, "fine_label": ClassLabel(names=["a", "b"])}
        columns = {"id": list("01234567"), "img": IMAGES, "fine_label": [0, 1] * 4}
        splits = open_spec(save(tmp_path, features, **columns))
        assert splits.class_names == ("a", "b")
        assert len(splits.train) == 6

    def test_fine_labels_come_before_coarse_ones(self, tmp_path):
        kinds = {
            "coarse_label": ClassLabel(names=["x", "y"]),
            "fine_label": ClassLabel(names=["a", "b"]),
        }
        columns = {"coarse_label": [0] * 8, "fine_label": [0, 1] * 4, "image": IMAGES}
        assert open_spec(save(tmp_path, kinds | {"image": IMAGE}, **columns)).class_names == (
            "a",
            "b",
        )

    def test_plain_bytes_are_images_too(self, tmp_path):
        features = {"data": Value("binary"), "label": NUMBER}
        content = [encoded(number) for number in range(8)]
        splits = open_spec(save(tmp_path, features, data=content, label=[7, 3] * 4))
        assert splits.class_names == ("3", "7")
        assert sorted(labels_of(splits.val)) == [0, 1]
        assert shows(
            splits.train,
            *[
                n
                for n in range(8)
                if pixels(n).tobytes() not in {splits.val[i].image.tobytes() for i in range(2)}
            ],
        )

    def test_names_are_classes(self, tmp_path):
        features = {"image": IMAGE, "label": Value("string")}
        splits = open_spec(save(tmp_path, features, image=IMAGES, label=["dog", "ant"] * 4))
        assert splits.class_names == ("ant", "dog")
        image, label = splits.train[0].image, splits.train[0].label
        assert label == (1 if np.array_equal(np.asarray(image), pixels(0)) else 0)

    def test_numbers_below_0_are_classes_too(self, tmp_path):
        features = {"image": IMAGE, "label": NUMBER}
        splits = open_spec(save(tmp_path, features, image=IMAGES, label=[-1, 1] * 4))
        assert splits.class_names == ("-1", "1")

    def test_a_missing_label_column_is_told_what_there_is(self, tmp_path):
        spec = save(
            tmp_path, {"image": IMAGE, "text": Value("string")}, image=IMAGES, text=["x"] * 8
        )
        with pytest.raises(
            DataError, match=r"no column of labels beside 'image': its .* text$"
        ) as e:
            open_spec(spec)
        assert "data.labels = false" in e.value.hint
        splits = open_spec(spec, labels=False)
        assert (splits.class_names, splits.train.labels, splits.val.labels) == ((), None, None)
        assert splits.train[2].label is None

    def test_a_missing_image_column_is_told_what_there_is(self, tmp_path):
        spec = save(
            tmp_path, {"text": Value("string"), "label": NUMBER}, text=["x"] * 4, label=[0, 1] * 2
        )
        with pytest.raises(DataError, match=r"no column of images: its columns are text, label$"):
            open_spec(spec)

    def test_columns_that_cannot_be_told_apart_are_named(self, tmp_path):
        features = {"left": IMAGE, "right": IMAGE, "label": NUMBER}
        with pytest.raises(DataError, match=r"several columns of images: .* left, right, label$"):
            open_spec(save(tmp_path, features, left=IMAGES, right=IMAGES, label=[0, 1] * 4))

    @pytest.mark.parametrize(
        ("kind", "values", "message"),
        [
            (NUMBER, [0, 1, None, 1] * 2, "2 of 8 rows have no value in the column 'label'"),
            (Value("float64"), [0.5, 1.0] * 4, r"the column 'label' holds floats, such as 0\.5"),
            (datasets.List(NUMBER), [[0, 1]] * 8, "the column 'label' holds lists"),
            (NUMBER, [3] * 8, "has 1 classes, a classifier needs at least 2"),
            (ClassLabel(names=["a", "b"]), [-1] * 8, "has no labels in its part 'train'"),
        ],
    )
    def test_labels_that_are_none_are_told(self, tmp_path, kind, values, message):
        spec = save(tmp_path, {"image": IMAGE, "label": kind}, image=IMAGES, label=values)
        with pytest.raises(DataError, match=message):
            open_spec(spec)

    def test_a_part_whose_labels_are_kept_secret_is_not_evaluated_on(self, tmp_path):
        features = Features({"image": IMAGE, "label": ClassLabel(names=["cat", "dog"])})
        parts = {
            name: Dataset.from_dict({"image": IMAGES, "label": labels}, features=features)
            for name, labels in (("train", [0, 1] * 4), ("test", [-1] * 8))
        }
        DatasetDict(parts).save_to_disk(str(tmp_path / "contest"))  # type: ignore[arg-type]
        splits = open_spec(f"hf:{tmp_path / 'contest'}")
        assert (len(splits.train), len(splits.val)) == (6, 2)
        assert splits.val.key(0).startswith("train/")

    def test_classes_that_are_only_evaluated_on_are_refused(self, tmp_path):
        write_table(tmp_path / "train-0.parquet", range(4))
        write_table(tmp_path / "val-0.parquet", range(4), label=["cat", "dog", "owl", "yak"])
        with pytest.raises(DataError, match="has labels that name no class: owl, yak") as caught:
            open_spec(f"parquet:{tmp_path}")
        assert caught.value.hint == "known are 3 classes: cat, dog, eel"


class TestDecoding:
    def test_images_are_decoded_as_files_are(self, tmp_path):
        image = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
        image.save(tmp_path / "wide.png")
        cell = {"bytes": (tmp_path / "wide.png").read_bytes(), "path": "wide.png"}
        splits = open_spec(
            save(tmp_path, {"image": IMAGE, "label": NUMBER}, image=[cell] * 8, label=[0, 1] * 4)
        )
        assert np.unique(np.asarray(splits.train[0].image)).tolist() == [128]

    @pytest.mark.parametrize("content", [b"no image", b"", None])
    def test_a_row_that_is_no_image_is_named(self, tmp_path, content):
        cell = None if content is None else {"bytes": content, "path": "7.png"}
        spec = save(tmp_path, {"image": IMAGE, "label": NUMBER}, image=[cell] * 8, label=[0, 1] * 4)
        with pytest.raises(
            DataError, match=r"^hf:.*saved train/\d.* cannot be read as an image: "
        ) as e:
            open_spec(spec).train[1]
        assert ("(7.png)" in str(e.value)) == (content is not None)

    def test_the_limit_of_pixels_holds(self, tmp_path):
        with pytest.raises(DataError, match=r"data\.max_pixels = 119"):
            open_spec(write_saved(tmp_path), max_pixels=119).train[0]


class TestFolders:
    def test_folders_of_images_are_read_where_they_lie(self, tmp_path):
        root = write_folder(tmp_path)
        splits = open_spec(f"hf:{root}")
        assert splits.class_names == CLASSES
        assert (len(splits.train), len(splits.val)) == (9, 3)
        shutil.rmtree(Path(root) / "eel")
        last = len(splits.train) - 1
        assert splits.train[0].image.size == (10, 12)
        with pytest.raises(DataError, match=r"eel/\d+\.png cannot be read"):
            splits.train[last]

    def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(self, tmp_path):
        (tmp_path / "saved").mkdir()
        with pytest.raises(DataError, match="saevd does not exist") as caught:
            open_spec(f"hf:{tmp_path}/saevd")
        assert caught.value.hint == f"did you mean saved? (in {tmp_path})"

    def test_an_empty_folder_is_told_what_it_must_hold(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="empty cannot be read as a data set") as caught:
            open_spec(f"hf:{tmp_path / 'empty'}")
        assert "save_to_disk" in caught.value.hint

    def test_a_script_in_a_folder_is_not_run(self, tmp_path):
        folder = tmp_path / "evil"
        folder.mkdir()
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
        with pytest.raises(DataError):
            open_spec(f"hf:{folder}")
        assert not (tmp_path / "harm").exists()

    def test_nothing_is_no_name(self):
        with pytest.raises(DataError, match=r"hf data is written hf:NAME\[@SPLIT\], got 'hf:'"):
            open_spec("hf:")

    def test_a_name_that_cannot_be_had_is_told_in_words(self, monkeypatch):
        def refuse(name: str, **options) -> None:
            raise ConnectionError(f"Couldn't reach {name!r} on the Hub\nand more")

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(
            DataError, match="nobody/pets cannot be had from Hugging Face: Couldn't"
        ) as e:
            open_spec("hf:nobody/pets@train")
        assert "HF_HUB_OFFLINE" in e.value.hint


class TestParquet:
    def test_files_are_divided_by_their_names(self, tmp_path):
        write_table(tmp_path / "data" / "train-00001-of-2.parquet", range(4, 6))
        write_table(tmp_path / "data" / "train-00000-of-2.parquet", range(4))
        write_table(tmp_path / "data" / "validation-0.parquet", range(8, 10))
        write_table(tmp_path / "data" / "test-0.parquet", range(10, 12))
        splits = open_spec(f"parquet:{tmp_path}")
        assert splits.name == tmp_path.name
        assert shows(splits.train, 0, 1, 2, 3, 4, 5)
        assert shows(splits.val, 8, 9)
        assert labels_of(splits.val) == [2, 0]

    def test_files_are_divided_by_their_folders(self, tmp_path):
        write_table(tmp_path / "train" / "0000.parquet", range(3))
        write_table(tmp_path / "test" / "0000.parquet", range(5, 7))
        splits = open_spec(f"parquet:{tmp_path}")
        assert shows(splits.train, 0, 1, 2)
        assert shows(splits.val, 5, 6)

    def test_one_file_is_divided_by_fraction(self, tmp_path):
        file = write_table(tmp_path / "pets.parquet", range(8), as_hugging_face=False)
        splits = open_spec(f"parquet:{file}", val_fraction=0.4)
        assert splits.name == "pets"
        assert (len(splits.train), len(splits.val)) == (5, 3)

    def test_names_that_are_patterns_are_names(self, tmp_path):
        file = write_table(tmp_path / "a[1]*" / "pets{1,2}.parquet", range(8))
        write_table(tmp_path / "a1x" / "pets1.parquet", range(20))
        assert len(open_spec(f"parquet:{file}").train) == 6

    def test_what_is_unpacked_goes_to_the_users_cache(self, tmp_path):
        write_table(tmp_path / "data" / "pets.parquet", range(8))
        open_spec(f"parquet:{tmp_path / 'data'}")
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["pets.parquet"]
        assert list((tmp_path / "cache" / "anykd" / "parquet").rglob("*.arrow"))

    def test_a_file_that_changed_is_read_anew(self, tmp_path):
        file = write_table(tmp_path / "pets.parquet", range(8))
        before = open_spec(f"parquet:{file}").train.fingerprint
        write_table(file, range(20, 28))
        after = open_spec(f"parquet:{file}").train
        assert after.fingerprint != before
        assert np.asarray(after[0].image).tobytes() in {pixels(n).tobytes() for n in (20, 21)}

    @pytest.mark.parametrize("change", ["image", "order", "label", "one byte"])
    def test_the_fingerprint_changes_with_the_rows(self, tmp_path, change):
        file = write_table(tmp_path / "pets.parquet", range(8))
        before = open_spec(f"parquet:{file}").train.fingerprint
        table = pyarrow.parquet.read_table(file)
        if change == "order":
            table = table.take([1, 0, *range(2, 8)])
        elif change == "label":
            table = table.set_column(1, "label", pa.array([*CLASSES, *CLASSES, "dog", "dog"]))
        else:
            rows = table["image"].to_pylist()
            content = bytearray(rows[0]["bytes"])
            content[50] ^= 1
            rows[0]["bytes"] = bytes(content) + b"" if change == "one byte" else encoded(70)
            table = table.set_column(0, "image", pa.array(rows, table.schema.field("image").type))
        pyarrow.parquet.write_table(table, file)
        assert open_spec(f"parquet:{file}").train.fingerprint != before

    def test_a_file_that_does_not_tell_its_part_is_named(self, tmp_path):
        for name in ("train-0", "more-0"):
            write_table(tmp_path / f"{name}.parquet", range(4))
        with pytest.raises(DataError, match=r"more-0\.parquet does not tell whether"):
            open_spec(f"parquet:{tmp_path}")

    def test_parts_without_one_to_train_on_are_refused(self, tmp_path):
        for name in ("val-0", "test-0"):
            write_table(tmp_path / f"{name}.parquet", range(4))
        with pytest.raises(DataError, match="has the parts test, val, and none is called train"):
            open_spec(f"parquet:{tmp_path}")

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("", "there is no parquet file ''"),
            ("pets.parquet", "there is no parquet file"),
            ("petz", "petz does not exist"),
            ("empty", "holds no files that end in .parquet"),
            ("broken.parquet", "cannot be read as parquet: "),
        ],
    )
    def test_what_is_not_there_is_told(self, tmp_path, monkeypatch, argument, message):
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=message) as caught:
            open_spec(f"parquet:{argument}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["hf:cifar10", "parquet:{root}"])
def test_a_missing_package_is_told_how_to_get_it(spec, tmp_path, monkeypatch):
    write_table(tmp_path / "pets.parquet", range(8))
    real = builtins.__import__

    def without(name: str, *args, **options):
        if name.split(".")[0] == "datasets":
            raise ImportError("No module named 'datasets'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "datasets")
    with pytest.raises(DataError, match="needs the package datasets, which is not installed") as e:
        open_spec(spec.format(root=tmp_path))
    assert e.value.hint == "pip install 'anykd[data]'"
