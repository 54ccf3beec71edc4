r"""What a cache of a teacher's outputs costs, saves and changes.

    python -m benchmarks.cache --teacher runs/cifar100-small/teacher \
        --data cifar100:../shared/data/cifar100
    python -m benchmarks.cache --page     # the page anew, from the results

Everything is timed within this one process, the arms of a comparison in turn, each several times.
It writes benchmarks/results/cache.json and docs/results/cache.md.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from anykd.data import ReplayLoader
from anykd.data.cache import Cache, Codec
from anykd.engine import Listener
from anykd.environment import describe_environment
from anykd.experiment import build_cache
from anykd.experiment.assemble import assemble
from anykd.experiment.cache.source import open_source
from anykd.experiment.teachers import Heads
from anykd.losses import kd_loss
from anykd.models import create_staged
from anykd.recipe import Recipe
from anykd.rundir import RunDir

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cache.json"
PAGE = ROOT / "docs" / "results" / "cache.md"
CPU = torch.device("cpu")
STUDENTS = {
    "vit": {
        "name": "vit_tiny_patch16_224",
        "options": {"patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3},
    },
    "resnet": {"name": "resnet18", "options": {"channels": [16, 32, 64, 128]}},
}
KEPT = (10, 20, 50)
BATCH = 64
FASTER = 16
"""How many times as fast as these processors a device is that reading is to keep up with."""


def recipe_of(
    arguments: argparse.Namespace, student: str, method: str, cache: Path | None
) -> Recipe:
    """One epoch of a student; views repeat, so that live and stored teachers see the same."""
    teacher: dict[str, Any] = {"name": arguments.teacher}
    if cache is not None:
        teacher["cache"] = str(cache)
    return Recipe.from_dict(
        {
            "student": STUDENTS[student],
            "teacher": teacher,
            "method": {"name": method},
            "image_size": arguments.image_size,
            "data": {
                "source": arguments.data,
                "limit": arguments.limit,
                "workers": arguments.workers,
            },
            "augment": {"crop_padding": arguments.image_size // 8, "num_views": 1},
            "train": {
                "epochs": 1,
                "batch_size": BATCH,
                "optimizer": "adamw",
                "peak_lr": 1e-3,
                "precision": arguments.precision,
                "log_every": 1,
            },
        }
    )


def epoch_seconds(recipe: Recipe) -> tuple[float, list[dict[str, float]]]:
    """Train an epoch by the real loop; the seconds, and what was logged at each step."""
    parts = assemble(recipe, CPU)
    logged: list[dict[str, Any]] = []
    begun = time.perf_counter()
    parts.trainer.fit(Listener(log=logged.append))
    return time.perf_counter() - begun, logged


def compare_epochs(arguments: argparse.Namespace, cache: Path, student: str) -> dict[str, Any]:
    """Epochs of control, KD with the live teacher and KD from the cache, in turn."""
    arms = {
        "control": recipe_of(arguments, student, "control", None),
        "live": recipe_of(arguments, student, "kd", None),
        "cache": recipe_of(arguments, student, "kd", cache),
    }
    epoch_seconds(arms["control"])  # warm up
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    traces: dict[str, list[float]] = {}
    for turn in range(arguments.repeats):
        for arm in sorted(arms, key=lambda arm: (list(arms).index(arm) + turn) % len(arms)):
            taken, logged = epoch_seconds(arms[arm])
            seconds[arm].append(taken)
            traces[arm] = [line["kd"] for line in logged if "kd" in line]
    control = statistics.median(seconds["control"])
    apart = [abs(a - b) / abs(b) for a, b in zip(traces["cache"], traces["live"], strict=True)]
    return {
        "student": student,
        "seconds": seconds,
        "cache / control": statistics.median(seconds["cache"]) / control,
        "live / control": statistics.median(seconds["live"]) / control,
        "steps": len(apart),
        "largest relative difference of the kd term, first step": apart[0],
        "largest relative difference of the kd term, whole epoch": max(apart),
    }


def building(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Build throughput against the teacher's bare forward pass, for two teachers.

    The second is one of the papers' teachers at their size, with random weights: its speed counts.
    """
    light = recipe_of(arguments, "vit", "kd", None)
    torch.manual_seed(0)
    swin = create_staged("swin_tiny_patch4_window7_224", num_classes=100)
    save_file(swin.model.state_dict(), folder / "swin.safetensors")
    table = {"name": "swin_tiny_patch4_window7_224", "weights": str(folder / "swin.safetensors")}
    heavy = Recipe.from_dict(
        {
            "student": table,
            "teacher": table,
            "method": {"name": "kd"},
            "data": {"source": arguments.data, "workers": arguments.workers},
            "augment": {"preset": "cnn", "num_views": 1},
            "train": {"precision": arguments.precision},
        }
    )
    return [
        _build_against_bare(recipe, count, arguments.repeats, folder / name)
        for name, recipe, count in (
            ("light", light, arguments.build_images),
            ("heavy", heavy, arguments.build_images // 10),
        )
    ]


def _build_against_bare(recipe: Recipe, count: int, turns: int, folder: Path) -> dict[str, Any]:
    """The two in turn."""
    limited = recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": count})})
    source = open_source(limited, CPU, Heads(RunDir(folder / "none"), resumed=False), number=1)
    size = source.manifest(Codec(num_classes=1), {}).shard_slots  # the batches of so small a build
    batch = next(ReplayLoader(source.views, workers=0).batches([(0, list(range(size)))]))
    source.answer(batch)
    bare, built = [], []
    for turn in range(turns):
        begun = time.perf_counter()
        for _ in range(count // size):
            source.answer(batch)
        bare.append(count // size * size / (time.perf_counter() - begun))
        made = build_cache(limited, folder / f"built-{turn}")
        built.append(made.images / made.seconds)
    return {
        "teacher": source.built.model.name,
        "image_size": source.built.model.image_size[0],
        "images": count,
        "batch": size,
        "bare images/s": bare,
        "built images/s": built,
        "build / bare": statistics.median(built) / statistics.median(bare),
    }


def waiting(arguments: argparse.Namespace, cache: Path, step_seconds: float) -> dict[str, Any]:
    """The share of a step that a null model, so many times as fast, waits for its batch.

    The null model sleeps, as a process does whose device computes.
    """
    found: dict[str, Any] = {"step_ms": 1000 * step_seconds}
    arms = {"images alone": None, "images and cache": cache}
    for _ in range(arguments.repeats):
        for name, stored in arms.items():
            method = "kd" if stored else "control"
            parts = assemble(recipe_of(arguments, "vit", method, stored), CPU)
            found.setdefault(name, []).append(_wait(parts.loader.batches(0), step_seconds))
            del parts
    opened = Cache(cache)
    rng = np.random.default_rng(0)
    slots = [rng.integers(0, opened.manifest.num_slots, BATCH) for _ in range(200)]
    opened.read(0, range(opened.manifest.num_slots))  # every file is mapped
    reads = (opened.read(0, chosen) for chosen in slots)
    found["cache alone"] = [_wait(reads, step_seconds)]
    return found


def _wait(batches: Iterator[Any], step_seconds: float) -> float:
    next(batches)  # worker processes begin
    waited = total = 0.0
    while True:
        begun = time.perf_counter()
        try:
            next(batches)
        except StopIteration:
            return waited / total
        waited += time.perf_counter() - begun
        time.sleep(step_seconds)
        total += time.perf_counter() - begun


def top_k(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """What keeping the best k scores does to the loss and to its gradient.

    For a student that has not begun, and for one that a run has trained.
    """
    recipe = recipe_of(arguments, "vit", "kd", None)
    source = open_source(recipe, CPU, Heads(RunDir(folder / "none"), resumed=False), number=1)
    batch = next(ReplayLoader(source.views, workers=0).batches([(0, list(range(512)))]))
    answer = source.answer(batch).logits.float()
    torch.manual_seed(0)
    options = STUDENTS["vit"]["options"] | {"num_classes": answer.shape[1]}
    fresh = create_staged(STUDENTS["vit"]["name"], image_size=arguments.image_size, **options)
    students = {"untrained": fresh, "trained": create_staged(arguments.student)}
    with torch.no_grad():
        scores = {name: model.eval()(batch.images).logits for name, model in students.items()}
    found = []
    for kept, temperature in itertools.product((None, *KEPT), (1.0, 4.0)):
        codec = Codec(num_classes=answer.shape[1], top_k=kept)
        stored = codec.decode(codec.encode(answer)).logits
        assert stored is not None
        beyond = answer.softmax(1).sort(1, descending=True).values[:, kept or answer.shape[1] :]
        line: dict[str, Any] = {"k": kept, "temperature": temperature, "bytes": codec.record_bytes}
        line["mass beyond k"] = beyond.sum(1).mean().item()
        for name, given in scores.items():
            (live, own), (cached, other) = (
                _loss_and_gradient(given, target, temperature) for target in (answer, stored)
            )
            line[f"loss {name}"], line[f"loss {name}, stored"] = live, cached
            line[f"gradient apart {name}"] = ((other - own).norm() / own.norm()).item()
        found.append(line)
    return found


def _loss_and_gradient(
    scores: torch.Tensor, target: torch.Tensor, temperature: float
) -> tuple[float, torch.Tensor]:
    student = scores.clone().requires_grad_()
    loss = kd_loss(student, target, temperature=temperature)
    return loss.item(), torch.autograd.grad(loss, student)[0]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, in one process."""
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cache = folder / "cache"
        build_cache(recipe_of(arguments, "vit", "kd", None), cache)
        manifest = Cache(cache).manifest
        epochs = [compare_epochs(arguments, cache, student) for student in STUDENTS]
        control = statistics.median(epochs[0]["seconds"]["control"])
        images = manifest.num_slots // BATCH * BATCH
        step = control / images * BATCH / FASTER
        return {
            "environment": describe_environment(CPU),
            "threads": arguments.threads,
            "workers": arguments.workers,
            "precision": manifest.precision,
            "teacher": manifest.teacher.source,
            "images": manifest.num_slots,
            "image_size": arguments.image_size,
            "batch": BATCH,
            "record_bytes": manifest.codec.record_bytes,
            "epochs": epochs,
            "building": building(arguments, folder),
            "waiting": waiting(arguments, cache, step),
            "top_k": top_k(arguments, folder),
        }


def page(found: dict[str, Any]) -> str:
    """The results as a page."""
    environment = found["environment"]
    lines = [
        "# What a cache costs, saves and changes",
        "",
        f"Made by `{environment['command']}` from benchmarks/results/cache.json: "
        f"{environment['device']}, {found['threads']} threads, {found['workers']} loader "
        f"processes, torch {environment['packages']['torch']}, {found['precision']}, commit "
        f"{environment['commit']}, {environment['started'][:10]}. {found['images']:,} images at "
        f"{found['image_size']} px, batch {found['batch']}, teacher {found['teacher']}. Every "
        "ratio is of medians within one process, the arms in turn.",
        "",
        "## An epoch",
        "",
        "| student | control | KD, live teacher ÷ control | KD, from the cache ÷ control | n |",
        "|---|---|---|---|---|",
    ]
    for one in found["epochs"]:
        seconds = one["seconds"]["control"]
        lines.append(
            f"| {one['student']} | {statistics.median(seconds):.1f} s | "
            f"{one['live / control']:.2f} | {one['cache / control']:.3f} | {len(seconds)} |"
        )
    lines += ["", "The bar is 1.10 for the cache.", "", "## The loss", ""]
    for one in found["epochs"]:
        first, most = (
            one[f"largest relative difference of the kd term, {which}"]
            for which in ("first step", "whole epoch")
        )
        lines.append(
            f"- {one['student']}: with all scores in float16 the KD term differs from the live "
            f"run's by {first:.1e} of itself in the first step, and by {most:.1e} at most over "
            f"{one['steps']} steps of training."
        )
    lines += [
        "",
        "Of the best k scores alone (T is the temperature; the loss and its gradient to the "
        "scores, of a student that has not begun and of a trained one):",
        "",
        "| k | bytes a view | mass beyond | T | loss, untrained | stored | gradient apart | loss, "
        "trained | stored | gradient apart |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found["top_k"]:
        cells = [
            one["k"] or "all",
            one["bytes"],
            f"{100 * one['mass beyond k']:.2g} %",
            f"{one['temperature']:g}",
        ]
        for name in ("untrained", "trained"):
            cells += [f"{one[f'loss {name}']:.4f}", f"{one[f'loss {name}, stored']:.4f}"]
            cells += [f"{100 * one[f'gradient apart {name}']:.2g} %"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    waited = found["waiting"]
    shares = {name: statistics.median(waited[name]) for name in waited if name != "step_ms"}
    lines += [
        "",
        "## Size and building",
        "",
        f"- {found['record_bytes']} bytes for each image and view, all scores.",
        *map(_about_building, found["building"]),
        "",
        "One core does both here. Where the teacher is light, cutting and augmenting an image "
        "takes half as long as looking at it; with more cores or a GPU, loader processes do it "
        "beside.",
        "",
        "## Reading",
        "",
        f"A null model that takes {waited['step_ms']:.1f} ms a step, {FASTER} times as fast as "
        "these processors train the ViT, waits for its batch for this share of a step (the bar is "
        "5 %):",
        "",
        *(f"- {name}: {100 * share:.1f} %" for name, share in shares.items()),
        "",
        "Reading the cache keeps up. Making views of the images, which a run does with or without "
        "a cache, does not on one core.",
    ]
    return "\n".join(lines) + "\n"


def _about_building(one: dict[str, Any]) -> str:
    fast, bare = (statistics.median(one[f"{which} images/s"]) for which in ("built", "bare"))
    return (
        f"- Building with {one['teacher']} at {one['image_size']} px, with loading, augmenting and "
        f"writing, goes at {one['build / bare']:.2f} of the speed of its bare forward pass "
        f"({fast:.3g} against {bare:.3g} images a second in batches of {one['batch']}, n "
        f"{len(one['bare images/s'])}; the bar is 0.9)."
    )


def main() -> int:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description="What a cache of a teacher's outputs costs")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    parser.add_argument("--building", action="store_true", help="only measure the building anew")
    parser.add_argument("--teacher", default="runs/cifar100-small/teacher")
    parser.add_argument("--student", default="runs/cifar100-small/kd_seed0", help="a trained one")
    parser.add_argument("--data", default="cifar100:../shared/data/cifar100")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--limit", type=int, default=2_000)
    parser.add_argument("--build-images", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    if arguments.building:
        torch.set_num_threads(arguments.threads)
        with tempfile.TemporaryDirectory() as scratch:
            again = {"building": building(arguments, Path(scratch))}
        found = json.loads(RESULTS.read_text()) | again
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    elif not arguments.page:
        RESULTS.write_text(json.dumps(measure(arguments), indent=1) + "\n")
    PAGE.write_text(page(json.loads(RESULTS.read_text())))
    print(PAGE.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
