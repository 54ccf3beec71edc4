"""Inputs that the tests of several losses share."""

import hypothesis
import pytest
import torch
from torch import Tensor

# The first example pays for torch's start, and reruns must be the same: no deadline, no chance.
hypothesis.settings.register_profile("anykd", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("anykd")


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Student's and teacher's scores or vectors: 6 samples of 5 numbers, float64."""
    student, teacher = 3 * torch.randn(2, 6, 5, dtype=torch.float64)
    return student.requires_grad_(), teacher.requires_grad_()
