"""Views made image by image: what torch resizes, against Pillow; noise and mixtures."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from anykd.data import AugmentConfig
from anykd.data.choices import Chooser, Chosen
from anykd.data.rendering import FILL, crop_and_flip, render
from anykd.data.seeded import seeded
from tests.data.pictures import noise, sample, smooth


def levels_apart(
    image: Image.Image, augment: AugmentConfig, size: tuple[int, int], *, as_pixels: bool
) -> Tensor:
    """Between the fast crops and Pillow's, for some seeds."""
    chooser = Chooser(augment, size)
    apart = []
    for seed in range(40):
        with seeded(seed):
            crop = chooser.crop(image)
        fast, exact = (
            crop_and_flip(
                sample(image, as_pixels=as_pixels),
                crop,
                size,
                interpolation=augment.interpolation,
                exact=exact,
            ).int()
            for exact in (False, True)
        )
        apart.append((fast - exact).abs())
    return torch.stack(apart)


class TestCropAndFlip:
    @pytest.mark.parametrize("as_pixels", [False, True])
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("image", [smooth(90, 120), noise(90, 120)], ids=["smooth", "noise"])
    def test_is_pillows_to_a_level_and_to_two_in_a_few_pixels(
        self, image, interpolation, as_pixels
    ):
        augment = AugmentConfig(interpolation=interpolation)
        apart = levels_apart(image, augment, (40, 48), as_pixels=as_pixels)
        assert 1 <= apart.max() <= 2
        assert apart.float().mean() < 0.02
        assert (apart > 1).float().mean() < 1e-3

    @pytest.mark.parametrize("as_pixels", [False, True])
    @pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
    def test_what_torch_does_not_resize_is_pillows(self, interpolation, as_pixels):
        augment = AugmentConfig(interpolation=interpolation)
        apart = levels_apart(noise(90, 120), augment, (40, 48), as_pixels=as_pixels)
        assert apart.max() == 0

    def test_leaves_the_pixels_of_the_reader_alone(self):
        image = sample(noise(20, 20), as_pixels=True)
        before = image.pixels.clone()
        chooser = Chooser(AugmentConfig(preset="vit", crop_padding=2), (20, 20))
        for seed in range(10):
            with seeded(seed):
                chosen = Chosen([chooser.crop(image.pixels)], [chooser.patch()], [])
            render([image], chosen, (20, 20), interpolation="bicubic")
        assert torch.equal(image.pixels, before)


class TestErasing:
    def test_erased_pixels_are_normal_in_imagenets_normalisation_and_the_others_untouched(self):
        mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
        std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
        image = sample(noise(64, 64))
        chooser = Chooser(AugmentConfig(preset="none", erasing=1.0), (64, 64))
        crop = chooser.crop(image.image)
        (original,) = render([image], Chosen([crop], [], []), (64, 64), interpolation="bicubic")
        noises, shares = [], []
        for seed in range(40):
            with seeded(seed):
                chosen = Chosen([crop], [chooser.patch()], [])
            (view,) = render([image], chosen, (64, 64), interpolation="bicubic")
            rows, columns = torch.nonzero((view != original).all(dim=0), as_tuple=True)
            erased = (view - mean) / std
            box = erased[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box[0].numel() == len(rows)  # a rectangle, and nothing outside it
            assert (view != original).any(dim=0).sum() == len(rows)
            noises.append(box.flatten(1))
            shares.append(len(rows) / 64**2)
        found = torch.cat(noises, dim=1)
        assert found.mean(dim=1).abs().max() < 0.02
        assert (found.std(dim=1) - 1).abs().max() < 0.02
        assert 0.015 < min(shares) < 0.1 < max(shares) < 0.35

    def test_the_probability_is_as_given(self):
        chooser = Chooser(AugmentConfig(preset="none", erasing=0.25), (8, 8))
        erased = []
        for seed in range(400):
            with seeded(seed):
                erased.append(chooser.patch() is not None)
        assert np.mean(erased) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 400) ** 0.5)


def test_new_corners_get_imagenets_mean_colour():
    assert tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN) == FILL
