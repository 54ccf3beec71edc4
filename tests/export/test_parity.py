"""When an exported file is the student, and when it is not."""

import pytest
import torch

from anykd.errors import ModelError
from anykd.export.parity import compare, first, run_in_batches

LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def scores():
    return torch.tensor([[5.0, 1, 0], [0, 8, 1], [0, 1, 4], [1, 2, 0]])


def test_rounding_is_borne(scores):
    found = compare(scores, scores + 1e-5, LABELS)
    found.require("it")
    assert (found.agreement, found.top1, found.exported_top1) == (100, 75, 75)
    assert found.max_logit_difference == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize("wrong", [1e-2, float("nan"), float("inf")])
def test_one_wrong_score_is_refused(scores, wrong):
    other = scores.clone()
    other[2, 0] += wrong
    with pytest.raises(ModelError, match="on 4 held-out images: its scores differ by up to"):
        compare(scores, other, LABELS).require("it")


def test_what_may_differ_grows_with_the_scores(scores):
    assert compare(1000 * scores, 1000 * scores, None).tolerated == pytest.approx(0.8)
    assert compare(0 * scores, 0 * scores, None).tolerated == pytest.approx(1e-5)


def test_probabilities_and_classes_are_compared(scores):
    found = compare(scores, scores.flip(1), LABELS, is_exact=False)
    assert found.max_probability_difference == pytest.approx(0.96899, abs=1e-3)
    assert found.agreement == 50  # the middle class stays where it is
    assert found.exported_top1 == 25
    assert found.tolerated is None


def test_integers_may_differ_but_not_destroy(scores):
    compare(scores, scores + 0.5, LABELS, is_exact=False).require("it")
    with pytest.raises(ModelError, match=r"same class for 0.0 % of them"):
        compare(
            scores, scores.roll(1, 1), torch.zeros(4, dtype=torch.int64), is_exact=False
        ).require("it")


def test_without_classes_outputs_alone_are_compared(scores):
    found = compare(scores, scores, LABELS, has_classes=False)
    assert (found.agreement, found.top1, found.max_probability_difference) == (None, None, None)


def test_other_shapes_are_refused(scores):
    with pytest.raises(ModelError, match=r"gives \(4, 2\), the student \(4, 3\)"):
        compare(scores, scores[:, :2], LABELS)


@pytest.mark.parametrize("count", [1, 2, 5, 9, 10])
def test_batches_of_several_sizes_cover_every_image_once(count):
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return 2.0 * batch

    inputs = torch.arange(float(count))[:, None]
    assert torch.equal(run_in_batches(run, inputs, (1, 4)), 2 * inputs)
    assert sizes == {1: [1], 2: [1, 1], 5: [1, 4], 9: [1, 4, 4], 10: [1, 4, 4, 1]}[count]


def test_few_images_fill_a_batch_again_and_again():
    inputs = torch.arange(3)
    assert first(inputs, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert first(inputs, 2).tolist() == [0, 1]
