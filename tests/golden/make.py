"""The losses written a second time, in NumPy and float64, and the golden files made from them.

    python tests/golden/make.py

writes kd.json, ofa.json and info_nce.json beside this file. Nothing here knows torch or anykd.

Gradients come from a complex step: for an analytic f, Im f(x + ih) / h is f'(x) without the
cancellation of a finite difference, so that h = 1e-30 gives all digits of float64. Therefore the
formulas use only functions that hold for complex arguments.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
LABELS = [0, 4, 2, 2]
STUDENT = {"shape": [4, 5], "scale": 3.0, "frequency": 1.0, "phase": 0.5}
TEACHER = {"shape": [4, 5], "scale": 4.0, "frequency": 0.7, "phase": 2.0}


def log_softmax(scores):
    """Logarithm of the softmax over classes."""
    shifted = scores - scores.real.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def kd(student, teacher, *, temperature=1.0):
    """T² KL(teacher || student), mean over samples."""
    log_s, log_t = log_softmax(student / temperature), log_softmax(teacher / temperature)
    return temperature**2 * np.mean(np.sum(np.exp(log_t) * (log_t - log_s), axis=1))


def ofa(student, teacher, labels, *, gamma=1.0, temperature=1.0, form="code"):
    """Cross-entropy to the teacher with the target class enhanced; labels are class indices."""
    log_s, p = log_softmax(student / temperature), np.exp(log_softmax(teacher / temperature))
    total = 0
    for row, target in enumerate(labels):
        for k in range(student.shape[1]):
            if form == "code":
                weight = (p[row, k] + 1) ** gamma - 1 if k == target else p[row, k] ** gamma
            else:
                weight = (p[row, k] + 1) ** gamma if k == target else p[row, k]
            total = total - weight * log_s[row, k]
    return total / len(student)


def info_nce(student, teacher, *, temperature):
    """Cross-entropy of each student vector's similarities to all teacher vectors."""
    student = student / np.sqrt((student * student).sum(axis=1, keepdims=True))
    teacher = teacher / np.sqrt((teacher * teacher).sum(axis=1, keepdims=True))
    return -np.mean(np.diag(log_softmax(student @ teacher.T / temperature)))


def gradient(f: Callable[..., Any], *points: np.ndarray, wrt: int = 0) -> np.ndarray:
    """Gradient of a scalar function with respect to one of its arguments, by complex steps."""
    step = 1e-30
    result = np.empty(points[wrt].shape)
    for index in np.ndindex(result.shape):
        moved = [np.array(point, dtype=complex) for point in points]
        moved[wrt][index] += 1j * step
        result[index] = np.imag(f(*moved)) / step
    return result


def wave(shape: list[int], scale: float, frequency: float, phase: float) -> np.ndarray:
    """Return scale · sin(frequency · i + phase), i counting the elements row by row."""
    i = np.arange(np.prod(shape))
    return (scale * np.sin(frequency * i + phase)).reshape(shape)


def cases() -> Iterator[tuple[str, dict[str, Any], Callable[..., Any]]]:
    """Name of the file, options, and the loss of (student, teacher)."""
    for temperature in (0.5, 1.0, 4.0):
        options: dict[str, Any] = {"temperature": temperature}
        yield "kd", options, lambda s, t, o=options: kd(s, t, **o)
    for form in ("code", "paper"):
        for gamma, temperature in ((1.0, 1.0), (1.5, 1.0), (0.7, 2.0)):
            options = {"gamma": gamma, "temperature": temperature, "form": form}
            yield "ofa", options, lambda s, t, o=options: ofa(s, t, LABELS, **o)
    for temperature in (0.07, 0.5, 1.0):
        options = {"temperature": temperature}
        yield "info_nce", options, lambda s, t, o=options: info_nce(s, t, **o)


def golden() -> dict[str, dict[str, Any]]:
    """Compute the contents of every golden file."""
    student, teacher = wave(**STUDENT), wave(**TEACHER)
    files: dict[str, dict[str, Any]] = {}
    for name, options, loss in cases():
        empty = {
            "inputs": "scale * sin(frequency * i + phase), i = 0, 1, ... row by row",
            "student": STUDENT,
            "teacher": TEACHER,
            **({"labels": LABELS} if name == "ofa" else {}),
            "cases": [],
        }
        files.setdefault(name, empty)["cases"].append(
            {
                "options": options,
                "value": float(loss(student, teacher)),
                "student_gradient_norm": float(
                    np.linalg.norm(gradient(loss, student, teacher, wrt=0))
                ),
                "teacher_gradient_norm": float(
                    np.linalg.norm(gradient(loss, student, teacher, wrt=1))
                ),
            }
        )
    return files


if __name__ == "__main__":
    for name, content in golden().items():
        (HERE / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
