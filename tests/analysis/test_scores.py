"""Calibration, agreement, classes and rank, against scikit-learn and SciPy."""

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix

from anykd.analysis import (
    agreement,
    confusion_counts,
    effective_rank,
    expected_calibration_error,
    most_changed_classes,
    per_class_accuracy,
    reliability_curve,
)


def predictions(images=500, classes=7):
    """Logits, probabilities, choices and labels of a classifier that is often right."""
    labels = torch.randint(classes, (images,))
    logits = 2 * torch.randn(images, classes)
    logits[torch.arange(images), labels] += 3
    confidences, chosen = logits.softmax(dim=1).max(dim=1)
    return logits, confidences, chosen, labels


def recall(labels, chosen):
    """Percent of the images of each class that scikit-learn counts as found."""
    report: Any = classification_report(labels, chosen, output_dict=True)
    return tuple(100 * report[str(index)]["recall"] for index in range(7))


def test_the_reliability_curve_is_scikit_learns():
    _, confidences, chosen, labels = predictions()
    found = [one for one in reliability_curve(confidences, chosen == labels) if one.count]
    accuracy, confidence = calibration_curve(chosen == labels, confidences, n_bins=15)
    assert [one.accuracy for one in found] == pytest.approx(accuracy)
    assert [one.confidence for one in found] == pytest.approx(confidence)
    assert sum(one.count for one in found) == len(labels)


def test_bins_without_images_say_so():
    found = reliability_curve(torch.tensor([0.95]), torch.tensor([True]), num_bins=4)
    assert [one.count for one in found] == [0, 0, 0, 1]
    assert found[0].accuracy is None
    assert found[0].confidence is None
    assert found[3].accuracy == 1


def test_a_bin_contains_its_upper_end():
    sure = torch.tensor([0.0, 0.5, 0.50001, 1.0])
    found = reliability_curve(sure, torch.ones(4, dtype=torch.bool), num_bins=2)
    assert [one.count for one in found] == [2, 2]


def test_the_calibration_error_is_the_mean_distance():
    _, confidences, chosen, labels = predictions()
    right, sure = (chosen == labels).numpy(), confidences.double().numpy()
    which = np.ceil(sure * 15)
    expected = sum(
        (which == k).mean() * abs(right[which == k].mean() - sure[which == k].mean())
        for k in np.unique(which)
    )
    found = expected_calibration_error(confidences, chosen == labels)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_model_that_knows_how_often_it_is_right_has_no_error():
    sure = torch.tensor([0.75] * 4 + [0.5] * 2)
    right = torch.tensor([True, True, True, False, True, False])
    assert expected_calibration_error(sure, right) == 0


def test_calibration_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no image"):
        expected_calibration_error(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        reliability_curve(torch.zeros(1), torch.zeros(1, dtype=torch.bool), num_bins=0)


def test_agreement_is_scikit_learns_accuracy_and_scipys_divergence():
    student, _, chosen, _ = predictions()
    teacher, _, taught, _ = predictions()
    found = agreement(student, teacher)
    assert found.top1 == pytest.approx(100 * accuracy_score(taught, chosen))
    p, q = (logits.double().softmax(dim=1).numpy() for logits in (teacher, student))
    assert found.kl == pytest.approx(np.mean(scipy.stats.entropy(p, q, axis=1)), rel=1e-9)
    assert found.per_class == pytest.approx(recall(taught, chosen))


def test_models_that_say_the_same_agree_whatever_their_scale():
    logits = torch.randn(20, 5)
    found = agreement(logits + 3, logits)
    assert found.top1 == 100
    assert found.kl == pytest.approx(0, abs=1e-6)
    certain = agreement(1e4 * logits, 1e4 * logits)
    assert certain.kl == 0


def test_agreement_over_no_image_is_refused():
    with pytest.raises(ValueError, match="no image"):
        agreement(torch.zeros(0, 3), torch.zeros(0, 3))


def test_accuracy_of_classes_is_scikit_learns_recall():
    _, _, chosen, labels = predictions()
    assert per_class_accuracy(chosen, labels, 7) == pytest.approx(recall(labels, chosen))
    assert per_class_accuracy(chosen, labels, 9)[7:] == (None, None)


def test_confusion_is_scikit_learns():
    _, _, chosen, labels = predictions()
    found = confusion_counts(chosen, labels)
    dense = torch.zeros(7, 7, dtype=torch.int64)
    dense[found[:, 0], found[:, 1]] = found[:, 2]
    np.testing.assert_array_equal(dense, confusion_matrix(labels, chosen))
    counts = found[:, 2].tolist()
    assert counts == sorted(counts, reverse=True)
    assert min(counts) > 0


def test_the_most_changed_classes_come_first():
    found = most_changed_classes([50, 80, None, 10, 0], [60, 50, 3, None, 0])
    assert [(one.index, one.change) for one in found] == [(1, -30), (0, 10)]
    assert [one.index for one in most_changed_classes([50, 80], [60, 50], limit=1)] == [1]
    with pytest.raises(ValueError, match="the same classes, got 1 and 2"):
        most_changed_classes([1.0], [1.0, 2.0])


@pytest.mark.parametrize("centred", [False, True])
def test_the_effective_rank_is_that_of_scipys_singular_values(centred):
    features = torch.randn(50, 8) @ torch.randn(8, 20) + 4
    matrix = features.double().numpy()
    values = np.asarray(scipy.linalg.svdvals(matrix - matrix.mean(axis=0) if centred else matrix))
    expected = np.exp(scipy.stats.entropy(values / values.sum()))
    assert effective_rank(features, centred=centred) == pytest.approx(expected, rel=1e-6)


def test_effective_ranks_that_are_known():
    line = torch.arange(5.0)[:, None] * torch.tensor([[1.0, 2.0, 3.0]])
    assert effective_rank(line) == pytest.approx(1)
    corners = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(corners) == pytest.approx(4)
    assert effective_rank(torch.full((6, 3), 1e6 / 3)) == 0
    with pytest.raises(ValueError, match="no sample"):
        effective_rank(torch.zeros(0, 3))
