"""The losses written a second time, in NumPy and float64, and the golden files made from them.

    python tests/golden/make.py

writes one file per loss beside this one. Nothing here knows torch or anykd.

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


def dkd(student, teacher, labels, *, alpha=1.0, beta=2.0, temperature=1.0):
    """Divergence of target against the rest, and of the rest among itself; T² and mean."""
    total = 0
    for s, t, target in zip(student / temperature, teacher / temperature, labels, strict=True):
        e_s, e_t = np.exp(s - s.real.max()), np.exp(t - t.real.max())
        rest_s, rest_t = np.delete(e_s, target), np.delete(e_t, target)
        b_s = np.array([e_s[target], rest_s.sum()]) / e_s.sum()
        b_t = np.array([e_t[target], rest_t.sum()]) / e_t.sum()
        q_s, q_t = rest_s / rest_s.sum(), rest_t / rest_t.sum()
        total = total + alpha * np.sum(b_t * np.log(b_t / b_s))
        total = total + beta * np.sum(q_t * np.log(q_t / q_s))
    return temperature**2 * total / len(student)


def pearson(x, y):
    """Correlation of two lists of numbers."""
    x, y = x - x.mean(), y - y.mean()
    return np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y))


def dist(student, teacher, *, temperature=1.0, inter_weight=1.0, intra_weight=1.0):
    """One minus the correlation of rows and of columns of the probabilities; T²."""
    p, q = (np.exp(log_softmax(z / temperature)) for z in (student, teacher))
    total = 0
    for weight, x, y in ((inter_weight, p, q), (intra_weight, p.T, q.T)):
        if weight:
            total = total + weight * (1 - np.mean([pearson(*z) for z in zip(x, y, strict=True)]))
    return temperature**2 * total


def hint(student, teacher):
    """Mean squared error."""
    return np.sum((student - teacher) ** 2) / student.size


def rsd(student, teacher, *, off_diagonal_weight=0.01):
    """Distance of the correlation matrix from the identity; std is biased, plus 1e-5."""
    batch, width = student.shape
    total = 0
    for i in range(width):
        for j in range(width):
            t, s = (x - x.sum() / batch for x in (teacher[:, i], student[:, j]))
            t, s = (x / (np.sqrt(np.sum(x * x) / batch) + 1e-5) for x in (t, s))
            m = np.sum(t * s) / batch
            total = total + ((m - 1) ** 2 if i == j else off_diagonal_weight * m**2)
    return total


def crd(positive, negative, *, num_samples, eps=1e-7):
    """Noise-contrastive estimation: own pairs against pairs that were drawn by chance."""
    noise = negative.shape[1] / num_samples
    own = np.log(np.exp(positive) / (np.exp(positive) + noise + eps))
    drawn = np.log(noise / (np.exp(negative) + noise + eps))
    return -(own.sum() + drawn.sum()) / len(positive)


def magnitude(x):
    """Absolute value of the real part, with the derivative carried along."""
    return np.where(x.real < 0, -x, x)


def length(vector):
    """Euclidean length; 0 has no derivative."""
    return np.sqrt(np.sum(vector * vector)) if vector.real.any() else 0.0


def direction(vector):
    """Unit vector; 0 stays."""
    return vector / length(vector) if vector.real.any() else np.zeros_like(vector)


def correlation(student, teacher, *, variant="consecutive"):
    """Products of neighbouring errors, or the distance of two matrices of a truncated kernel."""
    batch, total = len(student), 0
    if variant == "consecutive":
        for i in range(batch - 1):
            now, following = (magnitude(student[k] - teacher[k]) for k in (i, i + 1))
            total = total + np.sum(now * following)
        return total / (batch - 1)
    for i in range(batch):
        for j in range(batch):
            s, t = (np.sum(direction(x[i]) * direction(x[j])) for x in (student, teacher))
            s, t = (np.exp(-0.8) * (1 + 0.8 * c + 0.32 * c**2) for c in (s, t))
            total = total + (s - t) ** 2
    return total / batch**2


def smooth_l1(x):
    """Half the square up to 1, straight beyond."""
    return np.sum(np.where(magnitude(x).real < 1, x * x / 2, magnitude(x) - 0.5))


def relative_distances(vectors):
    """Distances over the mean of those that are positive."""
    distances = np.array([[length(x - y) for x in vectors] for y in vectors])
    return distances / distances[np.real(distances) > 0].mean()


def rkd_distance(student, teacher):
    """Error of the relative distances."""
    s, t = relative_distances(student), relative_distances(teacher)
    return smooth_l1(s - t) / s.size


def rkd_angle(student, teacher):
    """Error of the cosines of all angles."""
    total = 0
    for corner in range(len(student)):
        s, t = (
            np.array([direction(vector - vectors[corner]) for vector in vectors])
            for vectors in (student, teacher)
        )
        total = total + smooth_l1(s @ s.T - t @ t.T)
    return total / len(student) ** 3


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
    for alpha, beta, temperature in ((1.0, 2.0, 1.0), (1.0, 8.0, 4.0), (0.5, 0.0, 2.0)):
        options = {"alpha": alpha, "beta": beta, "temperature": temperature}
        yield "dkd", options, lambda s, t, o=options: dkd(s, t, LABELS, **o)
    for temperature, inter_weight, intra_weight in ((1.0, 1.0, 1.0), (4.0, 2.0, 0.5)):
        options = {
            "temperature": temperature,
            "inter_weight": inter_weight,
            "intra_weight": intra_weight,
        }
        yield "dist", options, lambda s, t, o=options: dist(s, t, **o)
    yield "hint", {}, hint
    for off_diagonal_weight in (0.01, 0.5):
        options = {"off_diagonal_weight": off_diagonal_weight}
        yield "rsd", options, lambda s, t, o=options: rsd(s, t, **o)
    for num_samples, eps in ((10, 1e-7), (50000, 1e-7), (50000, 0.01)):
        options = {"num_samples": num_samples, "eps": eps}
        yield "crd", options, lambda s, t, o=options: crd(s[:, 0], t, **o)
    for variant in ("consecutive", "matrix"):
        options = {"variant": variant}
        yield "correlation", options, lambda s, t, o=options: correlation(s, t, **o)
    yield "rkd_distance", {}, rkd_distance
    yield "rkd_angle", {}, rkd_angle


def golden() -> dict[str, dict[str, Any]]:
    """Compute the contents of every golden file."""
    student, teacher = wave(**STUDENT), wave(**TEACHER)
    files: dict[str, dict[str, Any]] = {}
    for name, options, loss in cases():
        empty = {
            "inputs": "scale * sin(frequency * i + phase), i = 0, 1, ... row by row",
            "student": STUDENT,
            "teacher": TEACHER,
            **({"labels": LABELS} if name in ("dkd", "ofa") else {}),
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
