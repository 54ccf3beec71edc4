"""The main job on bundled images: a ViT teaches a small CNN, by every method, in minutes."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anykd.errors import CheckpointError
from anykd.experiment import load_recipe, run
from anykd.progress import Progress
from anykd.report import build_report
from anykd.rundir import RunDir

__all__ = ["run_demo"]

_ARMS = ("control", "kd", "ofa", "fbt")


@dataclass(frozen=True)
class _Row:
    """A line of the table: percent for each seed, seconds of one run, and where the runs are."""

    name: str
    top1: list[float]
    seconds: float | None
    path: str


def run_demo(out: Path, *, num_seeds: int = 3) -> str:
    """Train the demo's teacher and every arm, and put the numbers into a table and a report.

    What is finished in ``out`` is not trained again; what was interrupted goes on.

    Args:
        out: Folder for the run directories.
        num_seeds: How often each arm is trained.

    Returns:
        The table, how to read it, and in the last line where the report is.

    Raises:
        CheckpointError: If ``out`` holds runs of other recipes.
    """
    progress = Progress()
    jobs = 1 + len(_ARMS) * num_seeds
    progress.say(f"anykd demo: {jobs} short trainings on scikit-learn's digits, into {out}")
    teacher_path = out / "teacher"
    progress.say(f"[1/{jobs}] teacher: a small ViT")
    teacher = _finished("teacher", teacher_path, [])
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in _ARMS}
    for seed in range(num_seeds):
        for arm in _ARMS:
            number = 2 + seed * len(_ARMS) + _ARMS.index(arm)
            progress.say(f"[{number}/{jobs}] {arm}: a small CNN, seed {seed}")
            overrides = [f"seed={seed}"]
            if arm != "control":
                overrides.append(f"teacher.name='{teacher_path}'")
            found[arm].append(_finished(arm, out / f"{arm}_seed{seed}", overrides))
    rows = [_Row("teacher", [teacher["top1"]], teacher["seconds"], str(teacher_path))]
    rows += _arm_rows(found, out)
    paths = [teacher_path] + [
        out / f"{arm}_seed{seed}" for seed in range(num_seeds) for arm in _ARMS
    ]
    report = build_report(paths, out / "report.html")
    return "\n".join(_table(rows)) + f"\n\n{_reading(found)}\n\nThe report is\n{report}"


def _finished(name: str, path: Path, overrides: list[str]) -> dict[str, Any]:
    """Train a demo recipe, unless that has been done, and return its numbers."""
    directory = RunDir(path)
    recipe = load_recipe(_recipes() / f"{name}.toml", {}, overrides)
    if directory.recipe.is_file() and directory.recipe.read_text() != recipe.to_toml():
        raise CheckpointError(
            f"{path} holds a run of another recipe", hint="remove it, or give another --out"
        )
    if directory.finished:
        return directory.read_summary()
    return run(recipe, path, resume=directory.begun, brief=True).summary


def _recipes() -> Path:
    """The demo's recipes: in the source tree, or inside an installed package."""
    package = Path(__file__).parent
    installed = package / "recipes" / "demo"
    return installed if installed.is_dir() else package.parents[1] / "recipes" / "demo"


def _arm_rows(found: dict[str, list[dict[str, Any]]], out: Path) -> Iterator[_Row]:
    for arm, summaries in found.items():
        seconds = statistics.mean(summary["seconds"] for summary in summaries)
        path = f"{out / arm}_seed*"
        yield _Row(arm, [summary["top1"] for summary in summaries], seconds, path)
        if "fusion_top1" in summaries[0]:
            top1 = [summary["fusion_top1"] for summary in summaries]
            yield _Row(f"  fusion of {arm}", top1, None, "(trained beside the student, not kept)")


def _table(rows: list[_Row]) -> Iterator[str]:
    yield f"{'':16} {'top-1 (%)':>14}  {'seeds':>5}  {'seconds':>7}  runs"
    for row in rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
        yield f"{row.name:16} {_spread(row.top1):>14}  {len(row.top1):5}  {seconds:>7}  {row.path}"


def _spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.2f}       "
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}"


def _reading(found: dict[str, list[dict[str, Any]]]) -> str:
    """What the numbers say, arm by arm, from the same seeds."""
    control = [summary["top1"] for summary in found["control"]]
    gains = {
        arm: [a["top1"] - b for a, b in zip(summaries, control, strict=True)]
        for arm, summaries in found.items()
        if arm != "control"
    }
    said = ", ".join(f"{arm} {statistics.mean(gain):+.2f}" for arm, gain in gains.items())
    return (
        f"Gain over control in points, mean over {len(control)} seeds: {said}.\n"
        "top-1 is that of the last epoch on held-out images; ± is the standard deviation over "
        "seeds;\nseconds are those of one run."
    )
