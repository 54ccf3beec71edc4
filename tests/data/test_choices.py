"""What is chosen for a view is what timm's pipeline chooses under the same seeds."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Compose

from anykd.data import AugmentConfig
from anykd.data.choices import Chooser, Chosen
from anykd.data.rendering import render
from anykd.data.seeded import seeded
from anykd.data.views import height_width
from tests.data.pictures import noise, sample, smooth

PIPELINES = [
    (AugmentConfig(preset="cnn"), {"color_jitter": None}),
    (AugmentConfig(preset="vit"), {"auto_augment": "rand-m9-mstd0.5-inc1"}),
    (
        AugmentConfig(rand_augment="rand-m7-n3-p0.8-tweights"),
        {"auto_augment": "rand-m7-n3-p0.8-tweights"},
    ),
    (
        AugmentConfig(crop_scale=(0.3, 0.9), flip=0.2, color_jitter=0.4),
        {"color_jitter": 0.4, "scale": (0.3, 0.9), "hflip": 0.2},
    ),
]


def ours(
    augment: AugmentConfig, size: int | tuple[int, int], image: Image.Image, count: int
) -> list[Tensor]:
    """Views in levels, one for each seed."""
    chooser = Chooser(augment, height_width(size))
    drawn = []
    for seed in range(count):
        with seeded(seed):
            crop = chooser.crop(image)
        views = render(
            [sample(image)],
            Chosen([crop], [], []),
            height_width(size),
            interpolation=augment.interpolation,
            exact=True,
        )
        drawn.append((255 * views[0]).round())
    return drawn


def timms(size: int | tuple[int, int], image: Image.Image, count: int, **options) -> list[Tensor]:
    pipeline = create_transform(size, is_training=True, normalize=False, **options)
    assert isinstance(pipeline, Compose)
    drawn = []
    for seed in range(count):
        with seeded(seed):
            drawn.append(torch.as_tensor(pipeline(image)).float())
    return drawn


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


class TestCrop:
    @pytest.mark.parametrize("size", [24, (24, 32)])
    @pytest.mark.parametrize(("augment", "options"), PIPELINES)
    def test_boxes_flips_and_ops_are_timms(self, size, augment, options):
        # No pixel is a mean of others: all are equal only where all that was chosen is.
        augment = augment.model_copy(update={"interpolation": "nearest"})
        image = noise(50, 100)
        actual = ours(augment, size, image, 30)
        expected = timms(size, image, 30, interpolation="nearest", **options)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        assert not torch.equal(actual[0], actual[1])

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
    def test_pixels_are_timms_where_neighbours_are_alike(self, interpolation):
        # Not where they are unlike: which axis is resized first depends on Pillow's version.
        image = smooth(90, 120)
        actual = ours(AugmentConfig(interpolation=interpolation), 40, image, 20)
        expected = timms(40, image, 20, interpolation=interpolation, color_jitter=None)
        for a, b in zip(actual, expected, strict=True):
            assert (a - b).abs().max() <= 2
            assert ((a - b).abs() > 1).float().mean() < 1e-3

    def test_colour_jitter_is_not_lost_beside_rand_augment(self):
        plain, jittered = (
            ours(AugmentConfig(preset="vit", color_jitter=j), 24, noise(50, 100), 8)
            for j in (0, 0.4)
        )
        assert not any(torch.equal(a, b) for a, b in zip(plain, jittered, strict=True))

    def test_the_largest_magnitude_posterises_to_black_and_breaks_nothing_off(self):
        drawn = ours(AugmentConfig(rand_augment="rand-m10-inc1"), 24, noise(50, 100), 150)
        assert any(not view.any() for view in drawn)

    @pytest.mark.parametrize("crop_pct", [1.0, 0.8])
    @pytest.mark.parametrize("size", [40, (40, 30), (20, 46)])
    @pytest.mark.parametrize("shape", [(50, 100), (93, 51), (40, 40), (30, 9)])
    def test_none_is_the_view_of_evaluation(self, shape, size, crop_pct):
        augment = AugmentConfig(preset="none", crop_pct=crop_pct, interpolation="nearest")
        image = noise(*shape)
        chosen = timms_evaluation(size, image, crop_pct)
        for actual in ours(augment, size, image, 2):
            assert torch.equal(actual, chosen)

    def test_padding_shifts_the_image_into_black(self):
        image = noise(32, 32)
        padded = torch.nn.functional.pad(pixels(image), (4, 4, 4, 4))
        corners = [(top, left) for top in range(9) for left in range(9)]
        shifts = set()
        for actual in ours(AugmentConfig(crop_padding=4, flip=0), 32, image, 60):
            (shift,) = [
                (top, left)
                for top, left in corners
                if torch.equal(actual, padded[:, top : top + 32, left : left + 32])
            ]
            shifts.add(shift)
        assert {top for top, _ in shifts} == {left for _, left in shifts} == set(range(9))

    def test_what_lies_outside_of_the_padded_window_is_not_shown(self):
        # The centre crop cuts white off on both sides; a shift must not bring it back.
        white = Image.new("RGB", (40, 16), "white")
        views = ours(AugmentConfig(crop_padding=4, flip=0), 16, white, 30)
        widths = {int(view[0].any(dim=0).sum()) for view in views}
        assert widths == {12, 13, 14, 15, 16}

    def test_the_probability_of_a_flip_is_as_given(self):
        image = noise(8, 8)
        views = ours(AugmentConfig(preset="none", flip=0.25), 8, image, 400)
        flips = [torch.equal(view, pixels(image).flip(2)) for view in views]
        assert np.mean(flips) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 400) ** 0.5)


def timms_evaluation(size: int | tuple[int, int], image: Image.Image, crop_pct: float) -> Tensor:
    pipeline = create_transform(
        height_width(size), crop_pct=crop_pct, interpolation="nearest", normalize=False
    )
    assert isinstance(pipeline, Compose)
    return torch.as_tensor(pipeline(image)).float()


class TestPatch:
    def test_is_what_timm_would_have_written(self):
        chooser = Chooser(AugmentConfig(preset="none", erasing=0.5), (24, 30))
        erasing = RandomErasing(0.5, mode="pixel", device="cpu")
        erased = 0
        for seed in range(40):
            with seeded(seed):
                patch = chooser.patch()
            with seeded(seed):
                expected = erasing(torch.zeros(3, 24, 30))
            actual = torch.zeros(3, 24, 30)
            if patch is not None:
                erased += 1
                height, width = patch.noise.shape[1:]
                place = slice(patch.top, patch.top + height), slice(patch.left, patch.left + width)
                actual[:, *place] = patch.noise
            assert torch.equal(actual, expected)
        assert 0 < erased < 40


class TestMixing:
    @pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
    def test_is_what_timm_would_have_done(self, mixup, cutmix):
        augment = AugmentConfig(preset="none", mixup=mixup, cutmix=cutmix)
        chooser = Chooser(augment, (24, 30))
        timm = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=2)
        pair = [noise(24, 30), smooth(24, 30)]
        whole = Chooser(AugmentConfig(preset="none"), (24, 30))
        crops = [whole.crop(image) for image in pair]
        for seed in range(30):
            with seeded(seed):
                mixing = chooser.mixing()
            plain, actual = (
                render(
                    [sample(image) for image in pair],
                    Chosen(crops, [], mixings),
                    (24, 30),
                    interpolation="bicubic",
                )
                for mixings in ([], [mixing])
            )
            with seeded(seed):
                expected, labels = timm(plain, torch.tensor([0, 1]))
            assert torch.equal(actual, expected)
            assert labels[0, 0].item() == pytest.approx(mixing.share, abs=1e-6)
