import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anykd.data import AugmentConfig
from anykd.data.views import eval_view


@pytest.fixture
def image() -> Image.Image:
    return noise(50, 100)


def noise(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(1, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


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
