"""Train what a recipe describes, score it, and write the run."""

import signal
from contextlib import nullcontext
from pathlib import Path

import torch

from anykd.distributed import from_first_rank, rank, wait_for_all
from anykd.engine import StopSignals, begun_before_restart, launched, note_begun
from anykd.errors import StoppedError
from anykd.models import create_staged
from anykd.progress import Progress
from anykd.recipe import Recipe
from anykd.rundir import RunDir
from anykd.track import require_trackers

from .apart import require_apart
from .assemble import assemble
from .cache.use import adopt_views
from .plan import plan_first
from .result import Result
from .resume import require_same_recipe
from .running import Running
from .teachers import Heads, finetuned_teachers, teacher_recipe

__all__ = ["Result", "run"]


def run(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    brief: bool = False,
) -> Result:
    """Train what a recipe describes, score it, and write the run.

    Args:
        recipe: The experiment.
        out: The run directory; None makes a name in ``runs/``.
        resume: Continue the run in ``out`` from its last checkpoint.
        force: Train in spite of errors that the plan finds, or go on with other settings than the
            run began with; what is impossible stays so.
        brief: Show of the plan the errors and warnings alone.

    Raises:
        AnykdError: If something given does not fit, or the plan finds an error; nothing is written
            then.
    """
    require_trackers(recipe.track)
    recipe = adopt_views(recipe)
    directory = RunDir(out if out is not None else Path("runs") / _run_name(recipe))
    require_apart(recipe, directory.path, "run")
    with launched(device=recipe.train.device) as device, StopSignals() as signals:
        try:
            with directory.hold() if rank() == 0 else nullcontext():
                return _begin_or_go_on(
                    recipe, directory, device, signals, resume, force=force, brief=brief
                )
        except StoppedError as stopped:
            raise StoppedError(stopped.number, _how_it_stands(directory, stopped)) from None


def _begin_or_go_on(
    recipe: Recipe,
    directory: RunDir,
    device: torch.device,
    signals: StopSignals,
    resume: bool,
    *,
    force: bool,
    brief: bool,
) -> Result:
    progress = Progress(visible=rank() == 0)
    restarted = begun_before_restart(directory.path)
    if restarted and directory.finished:  # a rank ended after the first one had written all
        student = create_staged(str(directory.path)).model
        return Result(directory.path, student, directory.read_summary())
    goes_on = resume or restarted
    if goes_on and directory.recipe.is_file():
        directory.require_unfinished()
        changed = require_same_recipe(recipe, directory, force=force)
        if changed:
            progress.say(f"goes on with other settings: {', '.join(changed)}")
        # With a plan that is kept it was decided when the run began; a run that was stopped
        # before, such as while its teacher was finetuned, is decided now.
        force = force or directory.plan.is_file()
    else:
        directory.require_new()
    # Every rank has looked before the first one begins to write.
    has_checkpoint = from_first_rank(lambda: directory.begun)
    note_begun(directory.path)
    _train_teachers(recipe, directory, device, force=force)
    # A run that was interrupted before its student's first checkpoint begins there.
    goes_on = goes_on and has_checkpoint
    heads = Heads(directory, resumed=goes_on)
    parts = assemble(recipe, device, heads, on_bad_image=progress.say)
    running = Running(parts, directory, signals, progress)
    if goes_on:
        return running.resume(brief=brief)
    return running.start(force=force, brief=brief)


def _how_it_stands(directory: RunDir, stopped: StoppedError) -> str:
    name = signal.Signals(stopped.number).name
    if not directory.recipe.is_file():
        return f"stopped by {name} before training; nothing was written"
    return f"stopped by {name}; continue with --resume --out {directory.path}"


def _train_teachers(
    recipe: Recipe, directory: RunDir, device: torch.device, *, force: bool
) -> None:
    """Train the teachers that are to be finetuned, each in a run of its own in this one."""
    asked = finetuned_teachers(recipe)
    waiting = [number for number in asked if not directory.teacher(number).finished]
    wait_for_all()  # before the first of them begins to write
    if not waiting:
        return
    # What does not fit is refused before hours are spent.
    progress = Progress(visible=rank() == 0)
    plan_first(assemble(recipe, device), progress, force=force, brief=True)
    if rank() == 0:
        # From here on there is something to resume.
        directory.write_text(directory.recipe, recipe.to_toml())
    for number in waiting:
        own = directory.teacher(number)
        run(teacher_recipe(recipe, number), own.path, resume=own.begun, force=force)
        wait_for_all()  # until the first rank has written what all read


def _run_name(recipe: Recipe) -> str:
    data = Path(recipe.data.source.partition(":")[0]).name or "data"
    student = Path(recipe.student.name).name.replace(":", "-")
    return f"{data}_{student}_{recipe.method_name}_seed{recipe.seed}"
