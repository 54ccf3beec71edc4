"""Operations on batches of pixels: what timm and Pillow make of one image at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anykd.data.pixel_ops import SUPPORTED, Op, apply_ops, batch

FILL = (124, 116, 104)
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
FACTORS = [-0.5, 0.0, 0.1, 0.19, 0.37, 0.73, 1.0, 1.0000001, 1.45, 1.9, 2.5]
SHARES = [-0.45, -0.405, -0.1, -0.03, 0.0, 0.1, 0.25, 0.31, 0.45]
# 0.2 puts points right on the border of an image.
SHEARS = [-0.3, -0.27, -0.2, -0.111, 0.0, 0.05, 0.2, 0.25, 0.3]
PIXELS = [-250, -40.5, -7, -3, -0.5, -0.3, 0, 0.2, 0.5, 1, 4, 14.4, 100]
WARPS = {
    "Rotate": [-30, -17.3, -0.01, 0, 3.3, 27, 45, 90, 180, 270, -90, 359.9],
    "ShearX": SHEARS,
    "ShearY": SHEARS,
    "TranslateX": PIXELS,
    "TranslateXRel": SHARES,
    "TranslateY": PIXELS,
    "TranslateYRel": SHARES,
}
THRESHOLDS = [0, 1, 77, 128, 255, 256]
BITS = [1, 2, 3, 4, 5, 7, 8, 9]
COLOURS: dict[str, Sequence[float] | None] = {
    "AutoContrast": None,
    "Brightness": FACTORS,
    "BrightnessIncreasing": FACTORS,
    "Color": FACTORS,
    "ColorIncreasing": FACTORS,
    "Contrast": FACTORS,
    "ContrastIncreasing": FACTORS,
    "Desaturate": [0.0, 0.5, 0.6, 0.75, 1.0, 1.2],
    "Equalize": None,
    "Invert": None,
    "Posterize": BITS,
    "PosterizeIncreasing": BITS,
    "PosterizeOriginal": BITS,
    "Sharpness": FACTORS,
    "SharpnessIncreasing": FACTORS,
    "Solarize": THRESHOLDS,
    "SolarizeAdd": [0, 1, 55, 110, 128],
    "SolarizeIncreasing": THRESHOLDS,
}
SIZES = [(31, 33), (8, 8), (2, 5), (64, 64)]


def kinds_of_images(height: int, width: int) -> list[Image.Image]:
    """Noise, smooth, one level, two neighbouring levels, black, white."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    shape = (height, width, 3)
    smooth = [3 * y + x, 5 * x, 128 + 60 * np.sin(x / 5) * np.cos(y / 7)]
    arrays = [
        rng.integers(0, 256, shape),
        np.stack(smooth, axis=-1) % 256,
        np.full(shape, (200, 37, 91)),
        rng.integers(40, 42, shape),
        np.zeros(shape),
        np.full(shape, 255),
    ]
    return [Image.fromarray(array.astype(np.uint8)) for array in arrays]


def stacked(images: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2)


def noise(count: int, height: int = 9, width: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def of_pillow(images: Sequence[Image.Image], op: Op, interpolation: str) -> Tensor:
    name, arguments = op
    options: dict[str, Any] = {"fillcolor": FILL, "resample": RESAMPLING[interpolation]}
    return stacked([NAME_TO_OP[name](image, *arguments, **options) for image in images])


def levels_apart(op: Op, size: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    images = kinds_of_images(*size)
    made = apply_ops(stacked(images), [op] * len(images), fill=FILL, interpolation=interpolation)
    return (made.int() - of_pillow(images, op, interpolation).int()).abs()


def test_knows_all_operations_of_timm_but_blurs():
    assert set(NAME_TO_OP) == set(LEVEL_TO_ARG)
    assert set(NAME_TO_OP) - SUPPORTED == {"GaussianBlur", "GaussianBlurRand"}
    assert set(NAME_TO_OP) >= SUPPORTED
    assert WARPS.keys() | COLOURS.keys() == SUPPORTED


class TestAsTimmAndPillow:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("name", COLOURS)
    def test_colours_are_equal(self, name, size):
        values = COLOURS[name]
        for arguments in [()] if values is None else [(value,) for value in values]:
            apart = levels_apart((name, arguments), size)
            assert apart.max() == 0, (arguments, apart.amax(dim=(1, 2, 3)))

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("interpolation", RESAMPLING)
    @pytest.mark.parametrize("name", WARPS)
    def test_warps_are_within_one_level(self, name, interpolation, size):
        for value in WARPS[name]:
            apart = levels_apart((name, (value,)), size, interpolation)
            # A right angle or a whole number of pixels needs no colour between two others.
            exact = interpolation == "nearest" or (
                value == round(value) and not (name == "Rotate" and value % 90)
            )
            assert apart.max() <= (0 if exact else 1), (value, apart.amax(dim=(1, 2, 3)))
            # What all have in common must not lie between two levels, either.
            assert apart[2:3].max() == apart[4:].max() == 0, value
            assert (apart > 0).float().mean() < 0.1, value

    @pytest.mark.parametrize(
        "op",
        [
            ("AutoContrast", ()),
            ("Contrast", (1.7,)),
            ("Equalize", ()),
            ("Rotate", (27.3,)),
            ("Sharpness", (1.7,)),
            ("ShearX", (0.27,)),
        ],
        ids=lambda op: op[0],
    )
    def test_holds_at_224_pixels(self, op):
        assert levels_apart(op, (224, 224)).max() <= (op[0] in WARPS)

    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast"])
    def test_holds_for_any_histogram(self, name, seed):
        rng = np.random.default_rng(seed)
        low, high = sorted(rng.integers(0, 256, 2))
        shape = (*rng.integers(1, 60, 2), 3)
        image = Image.fromarray(rng.integers(low, high + 1, shape).astype(np.uint8))
        op = (name, (1.3,) if name == "Contrast" else ())
        made = apply_ops(stacked([image]), [op], fill=FILL, interpolation="bicubic")
        assert torch.equal(made, of_pillow([image], op, "bicubic"))

    @pytest.mark.parametrize("bits", [0, -2])
    def test_no_bits_are_a_black_image(self, bits):
        made = apply_ops(noise(1), [("Posterize", (bits,))], fill=FILL, interpolation="nearest")
        assert made.max() == 0


def any_op() -> st.SearchStrategy[Op | None]:
    values = {name: st.sampled_from(values) for name, values in WARPS.items()}
    values |= {name: st.sampled_from(values) for name, values in COLOURS.items() if values}
    return st.none() | st.sampled_from(sorted(SUPPORTED)).flatmap(
        lambda name: st.tuples(
            st.just(name), st.tuples(values[name]) if name in values else st.just(())
        )
    )


class TestABatch:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(any_op(), min_size=1, max_size=9), st.sampled_from(sorted(RESAMPLING)))
    def test_is_its_images(self, ops, interpolation):
        images = noise(len(ops))
        options: dict[str, Any] = {"fill": FILL, "interpolation": interpolation}
        made = apply_ops(images, ops, **options)
        for k, op in enumerate(ops):
            alone = apply_ops(images[k : k + 1], [op], **options)
            assert torch.equal(made[k : k + 1], alone), op

    def test_of_many_pixels_goes_through_in_pieces(self, monkeypatch):
        images, ops = noise(12), [*every_op()[:10], ("Rotate", (5.0,)), ("Rotate", (7.0,))]
        whole = apply_ops(images, ops, fill=FILL, interpolation="bicubic")
        monkeypatch.setattr(batch, "_PIXELS_AT_ONCE", 2 * 9 * 11)
        assert torch.equal(apply_ops(images, ops, fill=FILL, interpolation="bicubic"), whole)

    def test_is_not_changed_and_may_lie_in_memory_in_any_way(self):
        ops = every_op()
        images = noise(len(ops))
        kept = images.clone()
        made = apply_ops(images, ops, fill=FILL, interpolation="bicubic")
        assert torch.equal(images, kept)
        spread = torch.zeros(len(ops), 9, 22, 4, dtype=torch.uint8)
        spread[:, :, ::2, 1:] = images.permute(0, 2, 3, 1)
        side_by_side = images.contiguous(memory_format=torch.channels_last)
        for other in (side_by_side, spread[:, :, ::2, 1:].permute(0, 3, 1, 2)):
            again = apply_ops(other, ops, fill=FILL, interpolation="bicubic")
            assert torch.equal(again, made)
            assert again.is_contiguous()

    @pytest.mark.parametrize("ops", [[None, None], [("Invert", ()), None]])
    def test_is_new_even_where_nothing_is_done(self, ops):
        images = noise(2)
        made = apply_ops(images, ops, fill=FILL, interpolation="lanczos")
        made.zero_()
        assert images.max() > 0

    @pytest.mark.parametrize("interpolation", RESAMPLING)
    def test_is_never_read_by_the_host(self, interpolation):
        ops = every_op()
        # A tensor without data can be computed with, and any attempt to read it fails.
        images = noise(len(ops)).to("meta")
        made = apply_ops(images, ops, fill=FILL, interpolation=interpolation)
        assert (made.shape, made.dtype, made.device) == (images.shape, torch.uint8, images.device)

    def test_takes_as_many_calls_as_its_kinds_of_operations(self):
        ops = every_op()
        assert calls(ops * 4) == calls(ops)
        geometric: list[Op | None] = [(name, (0.2,)) for name in WARPS]
        assert calls(geometric) == calls(geometric[:1])


class TestRefuses:
    def test_an_unknown_operation(self):
        with pytest.raises(ValueError, match="no such operation on pixels: GaussianBlur; use"):
            apply_ops(noise(1), [("GaussianBlur", (0.1,))], fill=FILL, interpolation="bicubic")

    def test_an_interpolation_that_pillow_has_for_resizing_only(self):
        with pytest.raises(ValueError, match=r"Rotate takes interpolation .*, got 'lanczos'"):
            apply_ops(noise(1), [("Rotate", (3.0,))], fill=FILL, interpolation="lanczos")

    def test_another_number_of_operations_than_of_images(self):
        with pytest.raises(ValueError, match="shorter"):
            apply_ops(noise(2), [None], fill=FILL, interpolation="bicubic")


def every_op() -> list[Op | None]:
    values = {**COLOURS, **WARPS}
    return [(name, tuple(values[name] or ())[2:3]) for name in sorted(SUPPORTED)]


class Calls(TorchDispatchMode):
    """Counts what is asked of a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def calls(ops: Sequence[Op | None]) -> int:
    images = noise(len(ops))
    with Calls() as counted:
        apply_ops(images, ops, fill=FILL, interpolation="bicubic")
    return counted.count
