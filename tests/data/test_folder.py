import gc
import warnings

import numpy as np
import pytest
from PIL import Image

from anykd.data import DataConfig, DataSplits, open_data
from anykd.errors import DataError


def open_path(path) -> DataSplits:
    return open_data(DataConfig(source=str(path), val_fraction=0.25))


class TestLayout:
    def test_class_folders_are_divided_by_fraction(self, write_images):
        splits = open_path(write_images(dog=8, cat=4))
        assert splits.class_names == ("cat", "dog")
        assert np.bincount(splits.train.labels).tolist() == [3, 6]
        assert np.bincount(splits.val.labels).tolist() == [1, 2]

    def test_both_parts_of_a_divided_folder_number_their_images_from_0(self, write_images):
        splits = open_path(write_images(dog=8, cat=4))
        for reader in (splits.train, splits.val):
            assert [reader[i].index for i in range(len(reader))] == list(range(len(reader)))
            assert [reader[i].label for i in range(len(reader))] == list(reader.labels)

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
        assert np.bincount([*splits.train.labels, *splits.val.labels]).tolist() == [2, 1]


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
