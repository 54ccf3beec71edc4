"""What was asked for: recipes, plans, environments, and the commands that repeat it."""

from dataclasses import dataclass
from shlex import quote
from typing import Any

from anykd.rundir import RunDir
from anykd.units import amount, duration, shape

from .arms import Arm, Experiment
from .parts import Cell, Table
from .record import RunRecord

__all__ = ["Asked", "asked", "run_table", "training_table"]


@dataclass(frozen=True)
class Asked:
    """What one arm was asked to do.

    Attributes:
        arm: The arm.
        recipe: The text of its first run's recipe.
        path: Of that recipe.
        models: Student and teachers, of the plan; None without one.
        stages: Where they meet, of the plan.
        commands: One for each run, which trains it again into a new folder.
    """

    arm: Arm
    recipe: str
    path: str
    models: Table | None
    stages: Table | None
    commands: tuple[str, ...]


def asked(arm: Arm) -> Asked:
    """Read what an arm was asked to do."""
    run = arm.runs[0]
    recipe = RunDir(run.path).recipe
    return Asked(
        arm,
        recipe.read_text(),
        str(recipe),
        _models(run.plan),
        _stages(run.plan),
        tuple(_repeat(run) for run in arm.runs),
    )


def _repeat(run: RunRecord) -> str:
    out = quote(f"{run.path}_again")
    return f"anykd distill {quote(str(run.path / 'recipe.toml'))} --out {out}"


def _models(plan: dict[str, Any]) -> Table | None:
    models = plan.get("models") or []
    if not models:
        return None
    rows = {
        "model": [model["name"] for model in models],
        "weights": [model["weights"] for model in models],
        "kind": [model["kind"] for model in models],
        "parameters": [amount(model["parameters"]) for model in models],
        "FLOPs an image": [amount(model["flops"]) for model in models],
        "input": [shape(tuple(model["image_size"])) for model in models],
        "licence": [model["license"] or "not named" for model in models],
        "classes": [model["classes"] for model in models],
    }
    data = plan.get("data") or {}
    images = data.get("train_images")
    on = f", on {images:,} images" if images else ""
    return Table(
        f"Who teaches whom{on}.",
        ("", *(model["role"] for model in models)),
        tuple((Cell(name), *map(Cell, cells)) for name, cells in rows.items()),
    )


def _stages(plan: dict[str, Any]) -> Table | None:
    joins = plan.get("joins") or []
    rows = []
    for join in joins:
        met = shape(tuple(join["teacher"]))
        if join["target"] != join["place"]:
            met = f"{met} ({join['target']})".strip()
        how = f"{join['part']}: {join['how']}" if join["part"] else join["how"]
        held = amount(join["parameters"]) if join["parameters"] else ""
        place = join["place"]
        named = f"stage {place}" if isinstance(place, int) else place
        rows.append((Cell(named), *map(Cell, (shape(tuple(join["student"])), met, how, held))))
    if not rows:
        return None
    return Table(
        "Where student and teacher meet.",
        ("", "student", "teacher", "joined by", "parameters"),
        tuple(rows),
    )


def training_table(experiment: Experiment) -> Table | None:
    """What training took, for every arm."""
    rows = []
    for arm in experiment.arms:
        speeds = sorted(
            line["images_per_second"]
            for run in arm.runs
            for line in run.steps
            if line.get("images_per_second")
        )
        shares = [
            line["teacher_share"]
            for run in arm.runs
            for line in run.diagnoses
            if line.get("teacher_share") is not None
        ]
        bad = [run.summary["bad_steps"] for run in arm.runs if "bad_steps" in run.summary]
        seconds = arm.spread("seconds")
        cells = [
            f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "",
            duration(seconds.mean) if seconds else "",
            f"{100 * sum(shares) / len(shares):.0f} %" if shares else "",
            str(sum(bad)) if bad else "",
            str(len(arm.runs)),
        ]
        rows.append((Cell(arm.label, arm=arm.number), *map(Cell, cells)))
    columns = ("", "images/s", "time of a run", "teacher's share", "bad steps", "n")
    kept = [0, *(at for at in range(1, len(columns)) if any(row[at].text for row in rows))]
    return Table(
        "Median images per second, and what else a run took. "
        "A machine that did other work beside it shows here.",
        tuple(columns[at] for at in kept),
        tuple(tuple(row[at] for at in kept) for row in rows),
    )


def run_table(experiment: Experiment) -> Table:
    """Every run: its seed, where it is, and with what it was made."""
    rows = []
    arms = {run.path: arm for arm in experiment.arms for run in arm.runs}
    for run in (*experiment.teacher_runs, *experiment.runs):
        arm = arms.get(run.path)
        environment = run.environment
        packages = environment.get("packages") or {}
        versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "timm", "anykd") if name in packages)
        python = f"Python {environment['python']}" if environment.get("python") else ""
        threads, ranks = environment.get("threads"), environment.get("ranks")
        hardware = [str(environment.get("device", ""))]
        hardware += [f"{threads} thread{'s' if threads != 1 else ''}"] if threads else []
        hardware += [f"{ranks} ranks"] if ranks and ranks > 1 else []
        first = Cell(arm.label if arm else "teacher", arm=arm.number if arm else -1)
        rows.append(
            (
                first,
                Cell(str(run.seed)),
                Cell("finished" if run.summary else "unfinished"),
                Cell(str(run.path)),
                Cell(str(environment.get("started", ""))[:16].replace("T", " ")),
                Cell(str(environment.get("commit") or "")),
                Cell(", ".join(part for part in (python, versions) if part)),
                Cell(", ".join(part for part in hardware if part)),
            )
        )
    columns = ("", "seed", "state", "run", "started, UTC", "commit", "versions", "hardware")
    return Table("Every run, and with what it was made.", columns, tuple(rows))
