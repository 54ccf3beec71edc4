import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Compose

from anykd.data import AugmentConfig
from anykd.data.seeded import seeded
from anykd.data.views import View, erase_, eval_view, train_view


@pytest.fixture
def image() -> Image.Image:
    return noise(50, 100)


def noise(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(1, 256, (height, width, 3), dtype=np.uint8))


def views(view: View, image: Image.Image, count: int) -> list[Tensor]:
    drawn = []
    for i in range(count):
        with seeded(i):
            drawn.append(view(image))
    return drawn


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class TestTrainView:
    @pytest.mark.parametrize("size", [24, (24, 32)])
    @pytest.mark.parametrize(
        ("augment", "timm_options"),
        [
            (AugmentConfig(preset="cnn"), {"color_jitter": None}),
            (AugmentConfig(preset="vit"), {"auto_augment": "rand-m9-mstd0.5-inc1"}),
            (
                AugmentConfig(crop_scale=(0.3, 0.9), flip=0.2, color_jitter=0.4),
                {"color_jitter": 0.4, "scale": (0.3, 0.9), "hflip": 0.2},
            ),
        ],
    )
    def test_is_the_view_of_timms_pipeline(self, image, size, augment, timm_options):
        theirs = create_transform(
            size, is_training=True, interpolation="bicubic", normalize=False, **timm_options
        )
        actual = views(train_view(augment, size), image, 20)
        assert isinstance(theirs, Compose)
        expected = views(theirs, image, 20)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        assert not torch.equal(actual[0], actual[1])

    def test_colour_jitter_is_not_lost_beside_rand_augment(self, image):
        plain, jittered = (
            views(train_view(AugmentConfig(preset="vit", color_jitter=j), 24), image, 8)
            for j in (0, 0.4)
        )
        assert not any(torch.equal(a, b) for a, b in zip(plain, jittered, strict=True))

    def test_the_largest_magnitude_posterises_to_black_and_breaks_nothing_off(self, image):
        drawn = views(train_view(AugmentConfig(rand_augment="rand-m10-inc1"), 24), image, 150)
        assert any(not view.any() for view in drawn)

    def test_none_is_resize_and_centre_crop(self, image):
        view = train_view(AugmentConfig(preset="none"), 50)
        for actual in views(view, image, 3):
            assert torch.equal(actual, pixels(image)[:, :, 25:75])

    def test_padding_shifts_the_image_into_black(self):
        image = noise(32, 32)
        padded = torch.nn.functional.pad(pixels(image), (4, 4, 4, 4))
        corners = [(top, left) for top in range(9) for left in range(9)]
        shifts = set()
        for actual in views(train_view(AugmentConfig(crop_padding=4, flip=0), 32), image, 60):
            (shift,) = [
                (top, left)
                for top, left in corners
                if torch.equal(actual, padded[:, top : top + 32, left : left + 32])
            ]
            shifts.add(shift)
        assert {top for top, _ in shifts} == {left for _, left in shifts} == set(range(9))

    def test_the_probability_of_a_flip_is_as_given(self):
        image = noise(8, 8)
        view = train_view(AugmentConfig(preset="none", flip=0.25), 8)
        flips = [torch.equal(actual, pixels(image).flip(2)) for actual in views(view, image, 400)]
        assert np.mean(flips) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 400) ** 0.5)


class TestEvalView:
    def test_crops_the_share_of_the_short_side(self, image):
        # 40 px are 0.8 of 50 px, the short side as it is: nothing is resized.
        view = eval_view(AugmentConfig(preset="vit", crop_pct=0.8), 40)
        assert torch.equal(view(image), pixels(image)[:, 5:45, 30:70])

    def test_resizes_the_short_side_with_the_interpolation_given(self, image):
        view = eval_view(AugmentConfig(interpolation="bilinear"), 25)
        resized = image.resize((50, 25), Image.Resampling.BILINEAR)
        assert torch.equal(view(image), pixels(resized)[:, :, 12:37])

    def test_a_size_may_be_height_and_width(self, image):
        assert eval_view(AugmentConfig(), (20, 30))(image).shape == (3, 20, 30)


class TestErase:
    def test_erased_pixels_are_normal_in_imagenets_normalisation_and_the_others_untouched(self):
        mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
        std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
        noises, shares = [], []
        for i in range(40):
            image = original = torch.rand(3, 64, 64)
            image = image.clone()
            with seeded(i):
                erase_(image, 1.0)
            rows, columns = torch.nonzero((image != original).all(dim=0), as_tuple=True)
            erased = (image - mean) / std
            box = erased[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box[0].numel() == len(rows)  # a rectangle, and nothing outside it
            assert (image != original).any(dim=0).sum() == len(rows)
            noises.append(box.flatten(1))
            shares.append(len(rows) / 64**2)
        noise = torch.cat(noises, dim=1)
        assert noise.mean(dim=1).abs().max() < 0.02
        assert (noise.std(dim=1) - 1).abs().max() < 0.02
        assert 0.015 < min(shares) < 0.1 < max(shares) < 0.35

    def test_the_probability_is_as_given(self):
        changed = []
        for i in range(400):
            image = torch.full((3, 8, 8), 0.5)
            with seeded(i):
                erase_(image, 0.25)
            changed.append(not torch.equal(image, torch.full((3, 8, 8), 0.5)))
        assert np.mean(changed) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 400) ** 0.5)
