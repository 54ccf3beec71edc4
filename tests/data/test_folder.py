import gc
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from anykd.data import DataConfig, DataSplits, Reader, open_data
from anykd.data.folder import EXTENSIONS, MAX_PIXELS, read_rgb
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

    def test_a_broken_image_is_named_when_it_is_read(self, write_images):
        root = write_images("train", cat=1, dog=1)
        write_images("val", cat=1, dog=1)
        (root / "train" / "cat" / "0.png").write_bytes(b"no image")
        reader = open_path(root).train
        with pytest.raises(DataError, match=r"cat/0\.png cannot be read as an image"):
            reader[0]

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


@pytest.fixture
def read_back(write_images):
    """A function that saves an image in a class folder and reads it through anykd."""

    def read(image: Image.Image, name: str, **options) -> np.ndarray:
        root = write_images("train", cat=0, dog=1)
        write_images("val", cat=1, dog=1)
        image.save(root / "train" / "cat" / name, **options)
        result = open_path(root).train[0].image
        assert result.mode == "RGB"
        return np.asarray(result)

    return read


class TestPixels:
    def test_rgb_comes_back_as_it_was(self, read_back):
        pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        assert np.array_equal(read_back(Image.fromarray(pixels), "a.webp", lossless=True), pixels)

    def test_grey_is_the_same_in_all_channels(self, read_back):
        grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
        assert np.array_equal(read_back(Image.fromarray(grey), "a.bmp"), np.stack([grey] * 3, -1))

    def test_16_bit_grey_keeps_its_range(self, read_back):
        grey = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
        assert read_back(Image.fromarray(grey), "a.png")[0, :, 0].tolist() == [0, 0, 1, 128, 255]

    def test_a_palette_with_transparency_keeps_its_colours(self, read_back):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putpixel((1, 0), 1)
        pixels = read_back(image, "a.png", transparency=bytes([128, 255]))
        assert pixels.tolist() == [[[10, 20, 30], [200, 100, 50]]]

    def test_a_photo_taken_sideways_is_turned(self, read_back):
        exif = Image.Exif()
        exif[0x0112] = 6  # Orientation: to be turned clockwise by a quarter
        pixels = np.zeros((2, 3, 3), dtype=np.uint8)
        pixels[0, 0] = 255  # top left goes to top right
        turned = read_back(Image.fromarray(pixels), "a.png", exif=exif)
        assert turned.shape == (3, 2, 3)
        assert np.argwhere(turned[..., 0]).tolist() == [[0, 1]]

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


class TestUnfit:
    """Files that are no images to learn from, and what is said of them."""

    def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(
        self, tmp_path, monkeypatch
    ):
        path = tmp_path / "a.png"
        Image.new("RGB", (50, 40)).save(path)
        assert read_rgb(path, 2000).size == (50, 40)
        monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("it was decoded"))
        with pytest.raises(DataError, match=r"50 x 40 pixels, more than data\.max_pixels = 1999$"):
            read_rgb(path, 1999)

    @pytest.mark.parametrize("side", [10_000, 20_000])  # where Pillow warns, where it raises
    def test_a_decompression_bomb_is_refused(self, tmp_path, side):
        path = tmp_path / "bomb.png"
        path.write_bytes(bomb(side))
        assert path.stat().st_size < 1_000_000
        with pytest.raises(DataError, match=r"^[^\n]*bomb\.png cannot [^\n]*$") as caught:
            read_rgb(path)
        assert f"data.max_pixels = {MAX_PIXELS}" in str(caught.value)

    @pytest.mark.parametrize("allowed", [50, 100])
    def test_no_limit_of_pillow_is_below_ours(self, tmp_path, monkeypatch, allowed):
        path = tmp_path / "a.png"
        Image.new("RGB", (10, 10)).save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
        if allowed < 100:
            with pytest.raises(DataError, match="cannot be read as an image"):
                read_rgb(path, allowed)
            return
        image = read_rgb(path, allowed)
        assert image.crop((0, 0, 10, 10)).size == (10, 10)  # as a view does, and no warning

    def test_the_limit_of_the_recipe_holds(self, write_images):
        root = write_images("train", cat=2, dog=2)
        write_images("val", cat=1, dog=1)
        for labels in (True, False):
            for part in ("train", "val"):
                config = DataConfig(source=str(root), max_pixels=119, labels=labels)
                with pytest.raises(DataError, match=r"max_pixels = 119"):
                    getattr(open_data(config), part)[0]

    @pytest.mark.parametrize("pixel", [np.nan, np.inf])
    def test_pixels_that_are_no_numbers_are_refused(self, tmp_path, pixel):
        path = tmp_path / "a.tif"
        pixels = np.full((4, 4), 100, dtype=np.float32)
        Image.fromarray(pixels).save(path)
        assert np.unique(np.asarray(read_rgb(path))) == 100
        pixels[1, 2] = pixel
        Image.fromarray(pixels).save(path)
        with pytest.raises(DataError, match="some of its pixels are no finite numbers"):
            read_rgb(path)

    def test_what_the_extensions_announce_is_read(self, tmp_path):
        for extension in EXTENSIONS:
            Image.new("RGB", (3, 2)).save(path := tmp_path / f"a{extension}")
            assert read_rgb(path).size == (3, 2)

    def test_a_format_that_starts_a_program_is_refused_whatever_its_name(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
        with pytest.raises(DataError, match="EPS is no format of images that is read here"):
            read_rgb(path)

    def test_whatever_a_decoder_raises_is_said_in_one_line(self, tmp_path):
        whole = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(whole, "tiff", compression="tiff_lzw")
        content, rng, said = whole.getvalue(), np.random.default_rng(0), []
        path = tmp_path / "a.tif"
        for _ in range(300):
            damaged = bytearray(content)
            for place in rng.integers(0, len(damaged), size=20):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of odd metadata
                try:
                    read_rgb(path)
                except DataError as error:
                    said.append(str(error))
        assert len(said) > 30
        assert all(words.startswith(f"{path} cannot be read as an image: ") for words in said)
        assert not any("\n" in words for words in said)


def bomb(side: int) -> bytes:
    """A PNG of one bit a pixel, all of them 0: a few bytes for every thousand pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (1 + side // 8)), 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
