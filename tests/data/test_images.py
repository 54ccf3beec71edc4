import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from anykd.data import Sample
from anykd.data.images import EXTENSIONS, MAX_PIXELS, decode_pixels, read_pixels, read_rgb
from anykd.errors import DataError
from tests.data.image_files import bomb, png, tiff

# Sixteen bits, the upper eight of which are 0, 0, 1, 1, 128 and 255.
WIDE = np.array([[0, 255, 256, 511, 0x8000, 0xFFFF]])
HIGH = [0, 0, 1, 1, 128, 255]


def channels(*levels: np.ndarray, dtype: str) -> np.ndarray:
    return np.stack(levels, axis=-1).astype(dtype)


def read(content: bytes) -> np.ndarray:
    image = Sample(decode_pixels(content, "a file"), None, 0).image
    assert image.mode == "RGB"
    return np.asarray(image)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def on_white(levels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """What is to be seen of ink on white paper, from its share of the paper."""
    share = alpha / 255
    return np.rint(levels * share + 255 * (1 - share))


class TestEightBits:
    PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)

    @pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm", "webp"])
    def test_rgb_comes_back_as_it_was(self, kind):
        options = {"lossless": True} if kind == "webp" else {}
        assert np.array_equal(
            read(saved(Image.fromarray(self.PIXELS), kind, **options)), self.PIXELS
        )

    def test_a_file_is_read_as_its_bytes_are(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(saved(Image.fromarray(self.PIXELS), "png"))
        assert np.array_equal(np.asarray(read_rgb(path)), self.PIXELS)

    @pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
    def test_grey_is_the_same_in_all_channels(self, kind):
        grey = self.PIXELS[..., 0]
        assert np.array_equal(read(saved(Image.fromarray(grey), kind)), np.stack([grey] * 3, -1))

    @pytest.mark.parametrize("kind", ["png", "tiff", "bmp"])
    def test_one_bit_is_black_and_white(self, kind):
        image = Image.fromarray(self.PIXELS[..., 0] > 100)
        assert image.mode == "1"
        assert np.array_equal(read(saved(image, kind))[..., 1], (self.PIXELS[..., 0] > 100) * 255)

    def test_a_palette_gives_its_colours(self):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putpixel((1, 0), 1)
        for kind in ("png", "gif", "bmp", "tiff"):
            assert read(saved(image, kind)).tolist() == [[[10, 20, 30], [200, 100, 50]]]

    def test_ycbcr_is_turned_into_rgb(self):
        colours = np.array([[[200, 30, 40], [10, 90, 180], [255, 255, 255]]], dtype=np.uint8)
        blocks = colours.repeat(16, axis=0).repeat(16, axis=1)
        file = saved(Image.fromarray(blocks), "jpeg", quality=100, subsampling=0)
        assert np.abs(read(file).astype(int) - blocks).max() <= 3
        # Pillow 12 cannot read the uncompressed ones that it writes.
        file = saved(Image.fromarray(blocks).convert("YCbCr"), "tiff", compression="tiff_lzw")
        assert np.abs(read(file).astype(int) - blocks).max() <= 3

    @pytest.mark.parametrize("kind", ["jpeg", "tiff"])
    def test_cmyk_gives_the_colour_of_the_ink(self, kind):
        # JPEG holds it the other way round, as Adobe began to do.
        inks = np.array([[[255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], "u1")
        blocks = inks.repeat(16, axis=0).repeat(16, axis=1)
        file = saved(Image.fromarray(blocks, "CMYK"), kind)
        assert (b"Adobe" in file) == (kind == "jpeg")
        colours = read(file)[8, 8::16].astype(int)
        cyan_red_black_white = [[0, 255, 255], [255, 0, 0], [0, 0, 0], [255, 255, 255]]
        assert np.abs(colours - cyan_red_black_white).max() <= 3

    def test_the_first_picture_of_several_is_taken(self):
        first, second = (Image.fromarray(np.full((4, 4, 3), level, "u1")) for level in (50, 200))
        for kind in ("gif", "tiff", "png", "webp"):
            options = {"lossless": True} if kind == "webp" else {}
            file = saved(first, kind, save_all=True, append_images=[second], **options)
            with Image.open(io.BytesIO(file)) as image:
                assert getattr(image, "n_frames", 1) == 2
            assert np.unique(read(file)).tolist() == [50]


class TestMoreBits:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("count", [1, 3, 4])
    def test_of_a_tiff_the_upper_eight_stay(self, order, count):
        planes = [WIDE, WIDE[:, ::-1], np.full_like(WIDE, 0x1234), np.full_like(WIDE, 0xFFFF)]
        pixels = channels(*planes[:count], dtype=f"{order}u2")
        result = read(
            tiff(pixels, photometric=1 if count == 1 else 2, alpha=2 if count == 4 else None)
        )
        expected = [HIGH, HIGH[::-1], [0x12] * 6] if count > 1 else [HIGH] * 3
        assert result[0].T.tolist() == expected

    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    def test_of_a_png_the_upper_eight_stay(self, count):
        planes = [WIDE, WIDE[:, ::-1], np.full_like(WIDE, 0x1234)][: 3 if count > 2 else 1]
        opaque = [np.full_like(WIDE, 0xFFFF)] if count in (2, 4) else []
        result = read(png(channels(*planes, *opaque, dtype="u2")))
        assert result[0].T.tolist() == ([HIGH, HIGH[::-1], [0x12] * 6] if count > 2 else [HIGH] * 3)

    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("most", [1023, 4095, 65535])
    def test_of_a_netpbm_file_the_most_is_white(self, count, most):
        levels = np.array([0, most // 2, most])
        header = f"P{5 if count == 1 else 6} 3 1 {most}\n".encode()
        body = channels(*[levels] * count, dtype=">u2").tobytes()
        assert np.abs(read(header + body)[0] - np.array([[0], [127], [255]])).max() <= 1

    def test_grey_with_white_at_0_is_turned(self):
        result = read(tiff(channels(WIDE, dtype="<u2"), photometric=0))
        assert result[0, :, 0].tolist() == [255 - level for level in HIGH]
        byte = np.array([[[0], [10], [255]]], dtype="<u1")
        assert read(tiff(byte, photometric=0))[0, :, 0].tolist() == [255, 245, 0]

    def test_twelve_bits_are_not_taken_for_sixteen(self):
        packed = np.array([[[0x00], [0x08], [0x00], [0xFF], [0xF0], [0x00]]], dtype="<u1")
        file = tiff(packed, photometric=1, bits=12, width=4)  # 0x000, 0x800, 0xFFF, 0x000
        assert read(file)[0, :, 0].tolist() == [0, 128, 255, 0]

    @pytest.mark.parametrize("white", [1, 255])
    def test_floats_are_shares_of_white_or_levels(self, white):
        levels = np.array([[0, 0.25, 0.5, 1]]) * white
        file = saved(Image.fromarray(levels.astype(np.float32)), "tiff")
        assert read(file)[0, :, 0].tolist() == [0, 64, 128, 255]

    def test_floats_may_overshoot_a_little(self):
        file = saved(Image.fromarray(np.array([[-0.02, 0.5, 1.02]], "f4")), "tiff")
        assert read(file)[0, :, 0].tolist() == [0, 128, 255]

    @pytest.mark.parametrize("levels", [[-1, 1], [0, 40000], [-30, 255]])
    def test_floats_of_another_range_are_refused(self, levels):
        file = saved(Image.fromarray(np.array([levels], "f4")), "tiff")
        with pytest.raises(DataError, match=r"reach from .* known are 0 to 1 and 0 to 255$"):
            read(file)

    @pytest.mark.parametrize("pixel", [np.nan, np.inf])
    def test_pixels_that_are_no_numbers_are_refused(self, pixel):
        levels = np.full((4, 4), 100, dtype=np.float32)
        assert np.unique(read(saved(Image.fromarray(levels), "tiff"))) == 100
        levels[1, 2] = pixel
        with pytest.raises(DataError, match="some of its pixels are no finite numbers"):
            read(saved(Image.fromarray(levels), "tiff"))

    @pytest.mark.parametrize("dtype", ["<i4", "<i2"])
    def test_integers_without_a_known_white_are_levels_or_refused(self, dtype):
        levels = np.array([[[0], [100], [255]]])
        assert read(tiff(levels.astype(dtype), photometric=1))[0, :, 0].tolist() == [0, 100, 255]
        levels[0, 2] = 300
        with pytest.raises(DataError, match="reach from 0 to 300, and nothing says which"):
            read(tiff(levels.astype(dtype), photometric=1))

    def test_what_pillow_does_not_know_is_refused_in_words(self):
        with pytest.raises(DataError) as caught:
            read(tiff(np.zeros((1, 2, 3), "<f4"), photometric=2))
        assert str(caught.value) == (
            "a file cannot be read as an image: it is of no format that is read here"
        )


class TestTransparency:
    ALPHA = np.array([[0, 64, 128, 255]], dtype=np.uint8)
    COLOUR = np.array([[[10, 20, 30]] * 4], dtype=np.uint8)
    SEEN = on_white(COLOUR, ALPHA[..., None])

    def is_seen(self, pixels: np.ndarray) -> bool:
        return np.abs(pixels - self.SEEN).max() <= 1

    @pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
    def test_is_laid_on_white(self, kind):
        image = Image.fromarray(np.dstack([self.COLOUR, self.ALPHA]))
        options = {"lossless": True, "exact": True} if kind == "webp" else {}
        result = read(saved(image, kind, **options))
        assert result[0, 0].tolist() == [255, 255, 255]
        assert self.is_seen(result)

    def test_of_grey_is_laid_on_white(self):
        for kind in ("png", "tiff"):
            result = read(
                saved(Image.fromarray(np.dstack([self.COLOUR[..., 0], self.ALPHA])), kind)
            )
            assert np.abs(result - self.SEEN[..., :1]).max() <= 1

    def test_of_sixteen_bits_is_laid_on_white(self):
        wide = np.dstack([self.COLOUR, self.ALPHA]).astype("u2") * 257
        assert self.is_seen(read(png(wide)))
        assert self.is_seen(read(tiff(wide.astype("<u2"), photometric=2, alpha=2)))
        assert np.abs(read(png(wide[..., 2:])) - self.SEEN[..., 2:]).max() <= 1

    def test_multiplied_beforehand_is_not_multiplied_again(self):
        multiplied = np.rint(self.COLOUR * (self.ALPHA[..., None] / 255))
        pixels = np.dstack([multiplied, self.ALPHA]).astype("<u1")
        assert np.abs(read(tiff(pixels, photometric=2, alpha=1)) - self.SEEN).max() <= 3

    def test_a_channel_of_which_nothing_is_known_is_no_alpha(self):
        pixels = np.dstack([self.COLOUR, self.ALPHA]).astype("<u1")
        assert np.array_equal(read(tiff(pixels, photometric=2, alpha=0)), self.COLOUR)

    def test_of_a_palette_is_laid_on_white(self):
        image = Image.new("P", (3, 1))
        image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
        for place in (1, 2):
            image.putpixel((place, 0), place)
        result = read(saved(image, "png", transparency=bytes([128, 255, 0])))
        assert result.tolist() == [[[132, 137, 142], [200, 100, 50], [255, 255, 255]]]
        result = read(saved(image, "gif", transparency=2))
        assert result.tolist() == [[[10, 20, 30], [200, 100, 50], [255, 255, 255]]]

    def test_of_one_colour_is_laid_on_white(self):
        grey = Image.fromarray(np.array([[5, 6]], dtype=np.uint8))
        assert read(saved(grey, "png", transparency=5))[0, :, 0].tolist() == [255, 6]
        colour = Image.fromarray(np.array([[[1, 2, 3], [1, 2, 4]]], dtype=np.uint8))
        result = read(saved(colour, "png", transparency=(1, 2, 3)))
        assert result.tolist() == [[[255, 255, 255], [1, 2, 4]]]

    def test_of_one_colour_of_sixteen_bits_is_laid_on_white(self):
        assert read(png(channels(WIDE, dtype="u2"), transparent=(256,)))[0, :, 0].tolist() == [
            0, 0, 255, 1, 128, 255,
        ]  # fmt: skip
        colour = channels(WIDE, WIDE, WIDE, dtype="u2")
        result = read(png(colour, transparent=(0x8000,) * 3))
        assert result[0, :, 0].tolist() == [0, 0, 1, 1, 255, 255]


UPRIGHT = np.random.default_rng(1).integers(0, 256, (3, 5, 3), dtype=np.uint8)
# How a camera stores what EXIF then tells to turn: the standard's "0th row, 0th column".
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


class TestOrientation:
    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("kind", ["png", "webp", "jpeg", "tiff"])
    def test_pictures_come_out_upright(self, orientation, kind):
        stored, upright = STORED[orientation], UPRIGHT
        if kind == "jpeg":  # blocks, which its losses leave alone
            stored, upright = (one.repeat(8, 0).repeat(8, 1) for one in (stored, upright))
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"webp": {"lossless": True}, "jpeg": {"quality": 100, "subsampling": 0}}
        image = Image.fromarray(np.ascontiguousarray(stored))
        result = read(saved(image, kind, exif=exif, **options.get(kind, {})))
        assert result.shape == upright.shape
        assert np.abs(result.astype(int) - upright).max() <= (4 if kind == "jpeg" else 0)

    @pytest.mark.parametrize("orientation", STORED)
    def test_wide_pictures_come_out_upright_too(self, orientation):
        wide = STORED[orientation][..., :1].astype("<u2") * 256
        result = read(tiff(np.ascontiguousarray(wide), photometric=1, orientation=orientation))
        assert np.array_equal(result[..., 0], UPRIGHT[..., 0])


def said(read, *arguments) -> Tensor | str:
    """The pixels of a file, or what is wrong with it."""
    try:
        return Sample(read(*arguments), None, 0).pixels
    except DataError as error:
        return f"{error} ({error.hint})"


def same(path: Path, content: bytes) -> bool:
    """Whether a file gives what Pillow makes of it, be it pixels or words."""
    path.write_bytes(content)
    ours, pillows = said(read_pixels, path), said(read_rgb, path)
    if isinstance(ours, Tensor) and isinstance(pillows, Tensor):
        return torch.equal(ours, pillows)
    return isinstance(ours, str) and ours == pillows


def jpeg(rng: np.random.Generator, **options) -> bytes:
    """A JPEG of random size, content and way of coding."""
    height, width = rng.integers(1, 70, size=2)
    blocks = rng.integers(0, 256, (1 + height // 8, 1 + width // 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(blocks).resize((int(width), int(height)))).astype(int)
    picture = (picture + rng.integers(-20, 20, picture.shape)).clip(0, 255).astype(np.uint8)
    defaults = {
        "quality": int(rng.integers(1, 101)),
        "subsampling": int(rng.integers(3)),
        "restart_marker_blocks": int(rng.integers(4)),
        "progressive": bool(rng.integers(2)),
    }
    return saved(Image.fromarray(picture), "jpeg", **(defaults | options))


class TestJpeg:
    """What torchvision decodes, and what is left to Pillow, have the pixels that Pillow finds."""

    def test_plain_ones_come_as_pixels_with_channels_side_by_side(self, tmp_path):
        rng = np.random.default_rng(0)
        for number in range(200):
            content = jpeg(rng, **({"keep_rgb": True, "subsampling": 0} if number % 5 == 0 else {}))
            pixels = decode_pixels(content, "a file")
            assert isinstance(pixels, Tensor)
            assert pixels.permute(1, 2, 0).is_contiguous()
            assert same(tmp_path / "a.jpg", content)

    def test_the_smallest_is_read(self, tmp_path):
        content = saved(Image.new("RGB", (1, 1), (9, 99, 199)), "jpeg", quality=100)
        assert isinstance(decode_pixels(content, "a file"), Tensor)
        assert same(tmp_path / "a.jpg", content)

    def test_photographs_are_decoded_as_pillow_does(self, dev_data, tmp_path):
        with np.load(dev_data / "imagenet_samples" / "images.npz") as stored:
            files, offsets = stored["jpeg"], stored["offsets"]
        contents = [files[offsets[i] : offsets[i + 1]].tobytes() for i in range(0, 1000, 25)]
        assert all(isinstance(decode_pixels(one, "a file"), Tensor) for one in contents)
        assert all(same(tmp_path / "a.jpg", one) for one in contents)

    def test_others_are_left_to_pillow(self, tmp_path):
        rng = np.random.default_rng(1)
        picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6
        xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
        inks = saved(picture.convert("CMYK"), "jpeg")
        adobe = inks.index(b"Adobe")
        assert inks[adobe + 11] == 0  # inks as they are; 2 is their form of YCbCr
        files = {
            "grey": saved(picture.convert("L"), "jpeg"),
            "inks": inks,
            "other inks": inks[: adobe + 11] + b"\2" + inks[adobe + 12 :],
            "turned": saved(picture, "jpeg", exif=exif),
            "turned elsewhere": saved(picture, "jpeg", xmp=xmp),
        }
        for name, content in files.items():
            image = decode_pixels(content, "a file")
            assert isinstance(image, Image.Image), name
            assert image.size == ((20, 30) if "turned" in name else (30, 20)), name
            assert same(tmp_path / "a.jpg", content), name

    def test_exif_that_turns_nothing_costs_nothing(self, tmp_path):
        for orientation in (None, 1):
            exif = Image.Exif()
            exif[0x010F] = "a camera"
            if orientation is not None:
                exif[0x0112] = orientation
            content = saved(Image.new("RGB", (30, 20)), "jpeg", exif=exif)
            assert isinstance(decode_pixels(content, "a file"), Tensor)

    @pytest.mark.parametrize("damage", ["cut", "cut and ended", "more behind", "bytes", "header"])
    def test_damaged_ones_are_told_and_read_as_by_pillow(self, tmp_path, damage):
        rng, refused = np.random.default_rng(2), 0
        for _ in range(150):
            content = bytearray(jpeg(rng))
            cut = int(rng.integers(2, len(content)))
            if damage.startswith("cut"):
                content = content[:cut] + (b"\xff\xd9" if damage == "cut and ended" else b"")
            elif damage == "more behind":
                content += rng.bytes(cut)
            else:
                start = content.index(b"\xff\xda") if damage == "bytes" else 2
                end = len(content) if damage == "bytes" else content.index(b"\xff\xda")
                for place in rng.integers(start, end, size=3):
                    content[place] = rng.integers(256)
            assert same(tmp_path / "a.jpg", bytes(content))
            refused += isinstance(said(decode_pixels, bytes(content), "a file"), str)
        assert {"cut": refused == 150, "more behind": refused == 0}.get(damage, 0 < refused < 150)

    def test_a_size_that_the_header_lies_about_is_refused_as_by_pillow(self, tmp_path):
        content = bytearray(saved(Image.new("RGB", (40, 40)), "jpeg"))
        height = content.index(b"\xff\xc0") + 5
        content[height : height + 2] = b"\xff\xff"
        assert same(tmp_path / "a.jpg", bytes(content))
        with pytest.raises(
            DataError, match=r"40 x 65535 pixels, more than data\.max_pixels = 2000"
        ):
            decode_pixels(bytes(content), "a file", 2000)

    def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(self, monkeypatch):
        content = saved(Image.new("RGB", (50, 40)), "jpeg")
        assert isinstance(decode_pixels(content, "a file", 2000), Tensor)
        refuse = SimpleNamespace(decode_jpeg=lambda *_: pytest.fail("it was decoded"))
        monkeypatch.setattr(torch.ops, "image", refuse)
        with pytest.raises(DataError, match=r"50 x 40 pixels, more than data\.max_pixels = 1999$"):
            decode_pixels(content, "a file", 1999)

    def test_pillow_does_without_torchvisions_decoder(self, monkeypatch):
        content = jpeg(np.random.default_rng(3))
        pixels = decode_pixels(content, "a file")
        monkeypatch.setattr(torch.ops, "image", SimpleNamespace())
        image = decode_pixels(content, "a file")
        assert isinstance(image, Image.Image)
        assert isinstance(pixels, Tensor)
        assert torch.equal(Sample(image, None, 0).pixels, pixels)


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

    def test_bytes_are_limited_as_files_are(self):
        content = saved(Image.new("RGB", (50, 40)), "png")
        assert decode_pixels(content, "a file", 2000).size == (50, 40)
        with pytest.raises(
            DataError, match=r"^a file cannot .* more than data\.max_pixels = 1999$"
        ):
            decode_pixels(content, "a file", 1999)
        with pytest.raises(DataError, match="a file cannot be read as an image"):
            decode_pixels(b"", "a file")
