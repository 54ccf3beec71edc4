import numpy as np
import pytest
import torch

from anykd.engine import evaluate
from anykd.errors import DataError
from anykd.types import Batch

CPU = torch.device("cpu")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(11, 3, 2, 2)


def batches(images: torch.Tensor, labels: torch.Tensor, size: int) -> list[Batch]:
    parts = zip(images.split(size), torch.eye(7)[labels].split(size), strict=True)
    return [Batch(*part) for part in parts]


def classify(images: torch.Tensor) -> torch.Tensor:
    """Seven scores from the first seven values."""
    return 2 * images.flatten(1)[:, :7]


class TestEvaluate:
    @pytest.mark.parametrize("size", [1, 4, 11])
    def test_equals_numpy_whatever_the_batches(self, images, size):
        labels = torch.arange(11) % 7
        labels[:5] = classify(images[:5]).argmax(dim=1)  # right more often than by chance
        scores = 2 * images.flatten(1)[:, :7].double().numpy()
        truth = labels.numpy()
        order = np.argsort(-scores, axis=1)
        log_sum = np.log(np.exp(scores).sum(axis=1))

        found = evaluate(classify, batches(images, labels, size), device=CPU)

        assert found.num_samples == 11
        assert found.top1 == pytest.approx(100 * np.mean(order[:, 0] == truth))
        assert found.top5 == pytest.approx(100 * np.mean((order[:, :5] == truth[:, None]).any(1)))
        assert found.loss == pytest.approx(np.mean(log_sum - scores[np.arange(11), truth]))
        assert 0 < found.top1 < found.top5 < 100

    def test_top5_of_fewer_than_six_classes_is_everything(self):
        batch = Batch(torch.rand(3, 3, 2, 2), torch.eye(4)[:3])
        found = evaluate(lambda x: x.flatten(1)[:, :4], [batch], device=CPU)
        assert found.top5 == 100

    def test_a_lower_precision_is_used_and_summed_exactly(self, images):
        seen = []

        def linear(images: torch.Tensor) -> torch.Tensor:
            scores = images.flatten(1) @ torch.eye(12)[:, :7]
            seen.append(scores.dtype)
            return scores

        given = batches(images, torch.arange(11) % 7, 4)
        low = evaluate(linear, given, device=CPU, dtype=torch.bfloat16)
        high = evaluate(linear, given, device=CPU)
        assert set(seen) == {torch.bfloat16, torch.float32}
        assert low.loss == pytest.approx(high.loss, rel=0.02)

    def test_of_nothing_is_told(self):
        with pytest.raises(DataError, match="no image to score by"):
            evaluate(classify, [], device=CPU)

    def test_leaves_no_graph(self, images):
        weight = torch.ones(12, 7, requires_grad=True)
        grads = []

        def linear(images: torch.Tensor) -> torch.Tensor:
            scores = images.flatten(1) @ weight
            grads.append(scores.requires_grad)
            return scores

        evaluate(linear, batches(images, torch.arange(11) % 7, 11), device=CPU)
        assert grads == [False]
