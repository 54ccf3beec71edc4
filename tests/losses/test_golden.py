"""The losses against tests/golden/*.json, which NumPy computed in float64."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anykd.losses import (
    correlation_loss,
    crd_loss,
    dist_loss,
    dkd_loss,
    hint_loss,
    info_nce_loss,
    kd_loss,
    ofa_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rsd_loss,
)
from tests.golden import make

FOLDER = Path(make.__file__).parent
LOSSES = {
    "kd": kd_loss,
    "ofa": ofa_loss,
    "info_nce": info_nce_loss,
    "dkd": dkd_loss,
    "dist": dist_loss,
    "hint": hint_loss,
    "rsd": rsd_loss,
    # It takes scores of pairs: the first class stands in for the positive, the rest of the student
    # has no gradient.
    "crd": lambda student, teacher, **options: crd_loss(student[:, 0], teacher, **options),
    "correlation": correlation_loss,
    "rkd_distance": rkd_distance_loss,
    "rkd_angle": rkd_angle_loss,
}
CASES = [
    pytest.param(name, content, case, id=f"{name}-{'-'.join(map(str, case['options'].values()))}")
    for name in LOSSES
    for content in [json.loads((FOLDER / f"{name}.json").read_text())]
    for case in content["cases"]
]


def wave(shape: list[int], scale: float, frequency: float, phase: float) -> Tensor:
    i = torch.arange(shape[0] * shape[1], dtype=torch.float64)
    return (scale * (frequency * i + phase).sin()).reshape(shape)


@pytest.mark.parametrize(("name", "content", "case"), CASES)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients_are_golden(name, content, case, dtype, rel):
    student = wave(**content["student"]).to(dtype).requires_grad_()
    teacher = wave(**content["teacher"]).to(dtype).requires_grad_()
    labels = [torch.tensor(content["labels"])] if "labels" in content else []

    loss = LOSSES[name](student, teacher, *labels, **case["options"])
    gradients = torch.autograd.grad(loss, (student, teacher))

    assert loss.item() == pytest.approx(case["value"], rel=rel)
    assert [gradient.norm().item() for gradient in gradients] == pytest.approx(
        [case["student_gradient_norm"], case["teacher_gradient_norm"]], rel=rel
    )


def test_golden_files_are_what_the_script_writes():
    made = make.golden()
    assert sorted(made) == sorted(path.stem for path in FOLDER.glob("*.json"))
    for name, content in made.items():
        stored = json.loads((FOLDER / f"{name}.json").read_text())
        new_cases, old_cases = content.pop("cases"), stored.pop("cases")
        assert content == stored
        assert [case.pop("options") for case in new_cases] == [
            case.pop("options") for case in old_cases
        ]
        for new, old in zip(new_cases, old_cases, strict=True):
            assert new == pytest.approx(old, rel=1e-12)
