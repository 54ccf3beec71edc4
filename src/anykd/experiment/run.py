"""Train what a recipe describes, score it, and write the run."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from anykd.distributed import rank, wait_for_all
from anykd.engine import Listener, Trainer, launched, load_checkpoint, save_checkpoint
from anykd.environment import describe_environment
from anykd.errors import CheckpointError
from anykd.models import save_model
from anykd.progress import Progress
from anykd.recipe import Recipe
from anykd.rundir import RunDir, write_atomically

from .assemble import Parts, assemble
from .history import History
from .plan import Plan, kept_findings, plan_again, plan_first
from .scoring import class_names, kept_student, measure, score_run, score_teachers
from .teacher_head import save_head
from .teachers import Heads, finetuned_teachers, teacher_recipe

__all__ = ["Result", "run"]


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        path: The run directory.
        student: The trained classifier, as ``timm.create_model`` makes it.
        summary: The numbers, as in ``summary.json``.
    """

    path: Path
    student: nn.Module
    summary: dict[str, Any]

    @property
    def top1(self) -> float | None:
        """The student's accuracy on held-out images after the last epoch, in percent.

        None where these have no labels; the summary then holds the ``agreement`` with the teacher.
        """
        return self.summary.get("top1")


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
        force: Train in spite of errors that the plan finds; what is impossible stays so.
        brief: Show of the plan the errors and warnings alone.

    Raises:
        AnykdError: If something given does not fit, or the plan finds an error; nothing is written
            then.
    """
    directory = RunDir(out if out is not None else Path("runs") / _run_name(recipe))
    if resume:
        directory.require_unfinished()
    else:
        directory.require_new()
    # With a plan that is kept it was decided when the run began; a run that was stopped before,
    # such as while its teacher was finetuned, is decided now.
    force = force or (resume and directory.plan.is_file())
    with launched() as device:
        if resume:
            _require_same_recipe(recipe, directory)
        _train_teachers(recipe, directory, device, force=force)
        # A run that was interrupted before its student's first checkpoint begins there.
        goes_on = resume and directory.last.is_file()
        running = _Run(assemble(recipe, device, Heads(directory, resumed=goes_on)), directory)
        if goes_on:
            return running.resume(brief=brief)
        return running.start(force=force, brief=brief)


def _require_same_recipe(recipe: Recipe, directory: RunDir) -> None:
    if directory.recipe.read_text() != recipe.to_toml():
        raise CheckpointError(
            f"{directory.path} is a run of another recipe than this one",
            hint="resume it by --resume --out alone, or start a new run elsewhere",
        )


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
        resumed = own.last.is_file()
        run(teacher_recipe(recipe, number), own.path, resume=resumed, force=force)
        wait_for_all()  # until the first rank has written what all read


class _Run:
    """A run in progress. Only the first rank writes and speaks."""

    def __init__(self, parts: Parts, directory: RunDir) -> None:
        self.parts, self.directory = parts, directory
        self.is_first = rank() == 0
        self.progress = Progress(visible=self.is_first)
        self.history = History()
        self.plan = Plan()
        self.clock = time.perf_counter()

    def start(self, *, force: bool, brief: bool) -> Result:
        recipe = self.parts.recipe
        self.plan = plan_first(self.parts, self.progress, force=force, brief=brief)
        if self.is_first:
            self.directory.path.mkdir(parents=True, exist_ok=True)
            self.directory.metrics.unlink(missing_ok=True)  # of a run that came to nothing
            self.directory.write_text(self.directory.recipe, recipe.to_toml())
            environment = describe_environment(self.parts.device)
            self.directory.write_json(self.directory.environment, environment)
            self.directory.write_json(self.directory.plan, self.plan.to_dict())
            for number, built in enumerate(self.parts.built, start=1):
                if built.head is not None:
                    path = self.directory.teacher_head(number)
                    write_atomically(path, partial(save_head, built.head))
        self.history.teachers = score_teachers(self.parts)
        return self._train()

    def resume(self, *, brief: bool) -> Result:
        state = load_checkpoint(self.directory.last)
        num_samples = len(self.parts.data.train)
        if state["train_samples"] != num_samples:
            raise CheckpointError(
                f"{self.directory.path} was trained on {state['train_samples']} images, and "
                f"{self.parts.recipe.data.source} has {num_samples} now",
                hint="a run goes on with the images that it began with; start a new one",
            )
        self.plan = plan_again(self.parts, self.directory, self.progress, brief=brief)
        self.parts.trainer.load_state_dict(state["trainer"])
        self.history = History(**state["history"])
        if self.is_first:
            self.directory.keep_metrics(epochs=self.parts.trainer.epochs_done)
        return self._train()

    def _train(self) -> Result:
        trainer, epochs = self.parts.trainer, self.parts.recipe.train.epochs
        self._introduce()
        with self.progress.training(trainer.loader.steps_per_epoch, epochs, trainer.epochs_done):
            trainer.fit(Listener(self.progress.step, self._log, self._after_epoch))
        kept = kept_student(self.parts)
        summary = self._summary()
        if self.is_first:
            crop_pct, names = self.parts.recipe.augment.crop_pct, class_names(self.parts)
            save = partial(save_model, kept, class_names=names, crop_pct=crop_pct)
            write_atomically(self.directory.student, save)
            self.directory.write_json(self.directory.summary, summary)
        return Result(self.directory.path, kept.model, summary)

    def _introduce(self) -> None:
        for teacher in self.history.teachers:
            found = f"top-1 {teacher['top1']:.2f} %" if "top1" in teacher else "not scored"
            self.progress.say(f"teacher {teacher['source']}: {found}{_about_head(teacher)}")

    def _log(self, values: dict[str, Any]) -> None:
        if self.is_first:
            self.directory.log(values)

    def _after_epoch(self, trainer: Trainer) -> None:
        done, config = trainer.epochs_done, self.parts.recipe.train
        if done % config.eval_every == 0 or done == config.epochs:
            scores = score_run(self.parts)
            self._log({"event": "epoch", "epoch": done - 1} | scores)
            if self.history.add(scores, done) and self.is_first:
                self._write_best()
            self.progress.epoch(done, scores)
        now = time.perf_counter()
        self.history.seconds += now - self.clock
        self.clock = now
        if self.is_first:
            state = {
                "trainer": trainer.state_dict(),
                "history": self.history.state_dict(),
                "train_samples": len(self.parts.data.train),
            }
            write_atomically(self.directory.last, partial(save_checkpoint, state=state))

    def _write_best(self) -> None:
        state = kept_student(self.parts).model.state_dict()
        tensors = {name: value.cpu().contiguous() for name, value in state.items()}
        write_atomically(self.directory.best, partial(save_file, tensors))

    def _summary(self) -> dict[str, Any]:
        parts, history = self.parts, self.history
        by = measure(parts)
        best = {} if by is None else {f"best_{by}": history.best, "best_epoch": history.best_epoch}
        return {
            "method": parts.recipe.method_name,
            "student": parts.student.name,
            "teachers": history.teachers,
            "data": parts.recipe.data.source,
            "seed": parts.recipe.seed,
            **history.scores,
            **best,
            "epochs": parts.recipe.train.epochs,
            "train_samples": len(parts.data.train),
            "parameters": sum(p.numel() for p in parts.student.parameters()),
            "precision": "bf16" if parts.dtype is torch.bfloat16 else "float32",
            "seconds": round(history.seconds, 1),
            "findings": kept_findings(self.plan),
        }


def _about_head(teacher: dict[str, Any]) -> str:
    """How well the head of a teacher does on the training images, where one was fitted."""
    head = teacher.get("head")
    if head is None:
        return ""
    said = (
        f"; its new head {head['top1']:.2f} % on the {head['num_samples']} images it was fitted to"
    )
    if head["held_out_top1"] is None:
        return said
    held_out = f"{head['held_out_top1']:.2f} % on {head['held_out_samples']}"
    return f"{said}, {held_out} training images held out"


def _run_name(recipe: Recipe) -> str:
    data = Path(recipe.data.source.partition(":")[0]).name or "data"
    student = Path(recipe.student.name).name.replace(":", "-")
    return f"{data}_{student}_{recipe.method_name}_seed{recipe.seed}"
