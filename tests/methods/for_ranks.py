"""Methods whose law is the same for parts of a batch, to be trained on several ranks."""

import torch
from torch import nn

from anykd.methods import METHODS, Method, build_methods, read_tables
from anykd.models import FrozenTeacher, StagedModel
from anykd.types import FeaturePart
from tests.methods.small import build_small, small, small_options, stored_teacher

COMBINED = [
    {"name": "fbt", "teachers": [1]},
    {"name": "crd", "weight": 0.5, **small_options("crd")},
    {"name": "rsd", "teachers": [2]},
]


def build_any(
    name: str, student: StagedModel, teachers: list[FrozenTeacher], task_weight: float = 1.0
) -> Method:
    """A method with the first teacher, or a combination of three with both."""
    if name == "combination":
        tables = read_tables([table | {"task_weight": task_weight} for table in COMBINED])
        return build_methods(tables, student, [(teacher, 1.0) for teacher in teachers])
    return build_small(name, student, teachers[0], task_weight=task_weight)


NAMES = [*METHODS, "combination"]
STUDENTS = {"vit": ("cnn", "wide"), "cnn": ("vit", "mlp")}
"""Families of students, each with those of its two teachers."""


def build_for_ranks(name: str, family: str, task_weight: float = 1.0) -> Method:
    """A method whose law is the same for half a batch: its images meet in no batch norm.

    Those over maps see one rank's images, the student's own and those of OFA's branches alike, so
    that they run on their running statistics. Others, of pooled vectors, see the gathered batch.
    In float64 the sums of two halves are those of the whole to the last digits.
    """
    teachers = [FrozenTeacher(small(each, 2).double()) for each in STUDENTS[family]]
    torch.manual_seed(4)
    return in_float64(build_any(name, small(family, 1), teachers, task_weight))


def build_stored_for_ranks(name: str, family: str) -> Method:
    """The same of a teacher that knows no better than to take what is stored of another."""
    reads: tuple[FeaturePart, ...] = ("logits",) if name in ("kd", "dist") else ("pooled",)
    ignorant = FrozenTeacher(small(STUDENTS[family][0], 9).double())
    torch.manual_seed(4)
    return in_float64(build_any(name, small(family, 1), [stored_teacher(ignorant, reads)]))


def in_float64(method: Method) -> Method:
    """A method in training, in float64 and without batch statistics of maps."""
    method.train()
    for part in method.modules():
        if not any(isinstance(inner, Method) for inner in part.modules()):
            part.double()  # methods keep buffers of their own in float32, as in training
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    return method
