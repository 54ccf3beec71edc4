"""Run folders with every file that a run may write, without a training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image

EVIL = "<script>alert(1)</script>\"'&]]>$x$"
"""A name that must stay text wherever it stands."""

TERMS = {
    "control": ["task"],
    "kd": ["task", "kd"],
    "ofa": ["task", "ofa_logits", "ofa_stage1", "ofa_stage2"],
}
LAYERS = ["stage 1", "stage 2", "stage 3", "stage 4", "pooled"]


def write_run(
    path: Path,
    *,
    method: str = "kd",
    seed: int = 0,
    classes: list[str] | None = None,
    epochs: int = 10,
    finished: bool = True,
    analysed: bool = True,
    student: str = "resnet18",
    teacher: str = "runs/teacher",
    data: str = "digits",
    gain: float = 1.0,
    num_examples: int = 6,
) -> Path:
    """Write a run.

    Args:
        path: Its folder.
        method: Of the terms; unknown ones have those of ``kd``.
        seed: Of the numbers too.
        classes: Their names.
        epochs: How many lines of scores there are.
        finished: Whether it has a summary.
        analysed: Whether it has an analysis.
        student: Name of the model.
        teacher: Name of the teacher's model.
        data: Spec of the data.
        gain: What the method adds to the control's score.
        num_examples: Images on which student and teacher disagree.
    """
    names = classes or [str(number) for number in range(10)]
    rng = np.random.default_rng(1000 * seed + len(method))
    taught = method != "control"
    path.mkdir(parents=True)
    recipe: dict[str, Any] = {
        "seed": seed,
        "student": {"name": student, "pretrained": False},
        "method": {"name": method},
        "data": {"source": data},
        "train": {"epochs": epochs, "peak_lr": 0.002},
    }
    if taught:
        recipe["teacher"] = {"name": teacher}
    (path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    _json(path / "plan.json", _plan(method, student, teacher, data, names))
    environment = {
        "command": f"anykd distill --out {path}",
        "started": f"2026-01-0{seed % 9 + 1}T10:00:00+00:00",
        "commit": "0123456789ab",
        "python": "3.11.7",
        "packages": {"anykd": "0.1.0", "torch": "2.15.0", "timm": "1.0.31"},
        "device": "A processor",
        "threads": 1,
        "ranks": 1,
    }
    _json(path / "environment.json", environment)
    top1 = 90 + rng.normal(0, 0.2) + (gain if taught else 0)
    agreement = top1 + 1 if taught else None
    _write_metrics(path, TERMS.get(method, TERMS["kd"]), epochs, float(top1), agreement, rng)
    told = {"name": teacher, "source": teacher, "top1": 95.5, "top5": 99.0}
    if finished:
        summary: dict[str, Any] = {
            "method": method,
            "student": student,
            "teachers": [told] if taught else [],
            "data": data,
            "seed": seed,
            "top1": top1,
            "top5": 99.0,
            "loss": 0.4,
            "num_samples": 719,
            "best_top1": top1,
            "best_epoch": epochs,
            "epochs": epochs,
            "parameters": 325_866,
            "precision": "float32",
            "bad_steps": 0,
            "seconds": 21.5,
            "findings": _plan(method, student, teacher, data, names)["findings"],
        }
        if agreement is not None:
            summary["agreement"] = agreement
        _json(path / "summary.json", summary)
    if analysed:
        _write_analysis(path / "analysis", names, taught, teacher, student, num_examples, rng)
    return path


def _json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values))


def _plan(method: str, student: str, teacher: str, data: str, names: list[str]) -> dict[str, Any]:
    def model(role: str, name: str, parameters: int) -> dict[str, Any]:
        return {
            "role": role,
            "name": name,
            "source": name,
            "weights": "random",
            "kind": "conv",
            "parameters": parameters,
            "flops": 40 * parameters,
            "image_size": [32, 32],
            "license": None,
            "classes": f"{len(names)}",
        }

    models = [model("student", student, 325_866)]
    joins = []
    if method != "control":
        models.append(model("teacher", teacher, 915_978))
        joins = [
            {
                "place": place,
                "how": "divergence of the class scores",
                "student": [len(names)],
                "teacher": [len(names)],
                "target": "logits",
                "parameters": 0,
                "part": "",
            }
            for place in (4, "logits")
        ]
    finding = {
        "severity": "note",
        "code": "images-enlarged",
        "message": f"images of {data} are enlarged 4 times",
        "remedy": "set an image_size nearer to the images'",
    }
    return {
        "method": method,
        "data": {"source": data, "classes": len(names), "train_images": 1000, "val_images": 719},
        "models": models,
        "joins": joins,
        "findings": [finding],
    }


def _write_metrics(
    path: Path,
    terms: list[str],
    epochs: int,
    top1: float,
    agreement: float | None,
    rng: np.random.Generator,
) -> None:
    lines: list[dict[str, Any]] = []
    for epoch in range(epochs):
        done = (epoch + 1) / epochs
        for step in (0, 5, 9):
            values = {term: (2.5 - 2 * done) / (1 + n) for n, term in enumerate(terms)}
            noisy = {term: float(value + rng.normal(0, 0.02)) for term, value in values.items()}
            common = {"epoch": epoch, "step": step, "lr": 0.002 * (1 - 0.9 * done)}
            lines.append(
                {"event": "step"}
                | common
                | {"loss": sum(noisy.values())}
                | noisy
                | {"grad_norm": 1.5 - done, "bad_steps": 0, "images_per_second": 400.0 + step}
            )
        shares = np.abs(rng.normal(1, 0.2, len(terms)))
        shares /= shares.sum()
        lines.append(
            {
                "event": "diagnosis",
                "epoch": epoch,
                "step": 5,
                "grad_norms": {
                    term: float(share) for term, share in zip(terms, shares, strict=True)
                },
                "grad_shares": {
                    term: float(share) for term, share in zip(terms, shares, strict=True)
                },
                "teacher_share": None if agreement is None else 0.25,
                "step_seconds": 0.05,
            }
        )
        scores: dict[str, Any] = {"event": "epoch", "epoch": epoch, "top1": top1 - 40 * (1 - done)}
        if agreement is not None:
            scores["agreement"] = agreement - 38 * (1 - done)
        lines.append(scores)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_analysis(
    folder: Path,
    names: list[str],
    taught: bool,
    teacher: str,
    student: str,
    num_examples: int,
    rng: np.random.Generator,
) -> None:
    def model(name: str, sure: float) -> dict[str, Any]:
        bins: list[dict[str, Any]] = []
        for number in range(15):
            middle = (number + 0.5) / 15
            empty = {"confidence": None, "accuracy": None, "count": 0}
            full = {"confidence": middle, "accuracy": middle**sure, "count": 10 + number}
            bins.append(empty if number < 3 else full)
        return {
            "name": name,
            "top1": 91.0,
            "ece": 0.03 * sure,
            "nll": 0.3,
            "reliability": bins,
            "per_class": [float(v) for v in np.clip(rng.normal(90, 6, len(names)), 0, 100)],
            "effective_rank": {layer: 3.0 + 4 * n for n, layer in enumerate(LAYERS)},
        }

    confusion = [[true, true, 60] for true in range(min(len(names), 1000))]
    confusion += [[true, (true + 1) % len(names), 6] for true in range(min(len(names), 1000))]
    (folder / "examples").mkdir(parents=True)
    examples = []
    for number in range(num_examples if taught else 0):
        file = f"examples/{number:03}.png"
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / file)
        examples.append(
            {
                "file": file,
                "index": number,
                "label": number % len(names),
                "student": (number + 1) % len(names),
                "student_confidence": 0.81,
                "teacher": number % len(names),
                "teacher_confidence": 0.97,
            }
        )
    cost = {"parameters": 325_866, "flops": 12_000_000, "latency_ms": 1.2, "image_size": [32, 32]}
    cka = {"teacher": 0, "num_samples": 512, "student_layers": LAYERS, "teacher_layers": LAYERS}
    analysis: dict[str, Any] = {
        "num_samples": 719,
        "classes": names,
        "student": model(student, 1.4),
        "teachers": [],
        "cka": [],
        "confusion": confusion,
        "examples": examples,
        "cost": {"student": cost, "teachers": []},
    }
    if taught:
        agreement = {"top1": 93.1, "kl": 0.21, "per_class": [93.0] * len(names)}
        analysis["teachers"] = [
            model(teacher, 1.1) | {"source": teacher, "agreement": agreement},
        ]
        size = len(LAYERS)
        before = rng.uniform(0.05, 0.5, (size, size))
        cka |= {"before": before.tolist(), "after": (before**0.5).tolist()}
        analysis["cka"] = [cka]
        bigger = {"parameters": 915_978, "flops": 30_000_000, "latency_ms": 2.9}
        analysis["cost"]["teachers"] = [cost | bigger]
    _json(folder / "analysis.json", analysis)
