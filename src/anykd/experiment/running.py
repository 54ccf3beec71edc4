"""A run in progress: what it does at each point of training, and what it writes."""

import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

from safetensors.torch import save_file

from anykd.distributed import from_each_rank, from_first_rank, rank, world_size
from anykd.engine import (
    BadStepsError,
    Listener,
    StopSignals,
    Trainer,
    newest_checkpoint,
    precision_name,
    save_checkpoint,
)
from anykd.environment import describe_environment
from anykd.errors import CheckpointError, StoppedError, first_line
from anykd.files import finite
from anykd.models import StagedModel, save_model
from anykd.progress import Progress
from anykd.report.record import read_run
from anykd.report.working import judge
from anykd.rundir import RunDir, write_atomically
from anykd.track import RunToTrack, TrackConfig, Trackers, position
from anykd.track.trackers import Position

from .analysis import analyze_after, analyze_before
from .assemble import Parts
from .history import History
from .plan import Plan, kept_findings, plan_again, plan_first
from .result import Result
from .resume import settings
from .scoring import class_names, measure, score_run, score_teachers
from .teacher_head import save_head
from .teacher_time import watch_teachers

__all__ = ["Running"]

_FEW = 2
"""Signs that are printed beside the warnings."""


class Running:
    """A run in progress. The first rank alone speaks, and writes all but the others' shards.

    Args:
        parts: What it consists of.
        directory: Where it is written.
        signals: Say when it is to stop.
        progress: What a person sees of it.
    """

    def __init__(
        self, parts: Parts, directory: RunDir, signals: StopSignals, progress: Progress
    ) -> None:
        self.parts, self.directory, self.signals = parts, directory, signals
        self.progress = progress
        self.is_first = rank() == 0
        self.history = History()
        self.plan = Plan()
        self.clock = time.perf_counter()

    def start(self, *, force: bool, brief: bool) -> Result:
        """Plan the run, begin its folder and train from the first step, as `run` says."""
        self.plan = plan_first(self.parts, self.progress, force=force, brief=brief)
        if self.is_first:
            self._write_beginning()
        self.directory.require_shared()
        self.history.teachers = score_teachers(self.parts)
        analyze_before(self.parts, self.directory, self.progress)
        return self._train_and_track(told=None)

    def resume(self, *, brief: bool) -> Result:
        """Go on from the newest checkpoint that is whole.

        Raises:
            CheckpointError: If there is none, or it is of other images or of another model.
        """
        found = newest_checkpoint(self.directory.checkpoints, self.progress.say)
        assert found is not None  # there is one, or this would be a start
        state, trainer = found.state, self.parts.trainer
        num_samples = len(self.parts.data.train)
        if state["train_samples"] != num_samples:
            raise CheckpointError(
                f"{self.directory.path} was trained on {state['train_samples']} images, and "
                f"{self.parts.recipe.data.source} has {num_samples} now",
                hint="a run goes on with the images that it began with; start a new one",
            )
        self.plan = plan_again(self.parts, self.directory, self.progress, brief=brief)
        trainer.load(found, state["trainer"])
        self.history = History(**state["history"])
        self.parts.bad_val_images.update(state["bad_val_images"])
        told = frozenset[Position]()
        if self.is_first:
            told = frozenset(map(position, self.directory.metrics_behind(state["metrics_bytes"])))
            self.directory.truncate_metrics(state["metrics_bytes"])
            self.directory.write_text(self.directory.recipe, self.parts.recipe.to_toml())
        where = f"epoch {trainer.epochs_done + 1}, step {trainer.steps_done + 1}"
        if trainer.epochs_done < self.parts.recipe.train.epochs:
            self.progress.say(f"resumed at {where}")
        return self._train_and_track(told=told)

    def _write_beginning(self) -> None:
        """Write what is known before the first step."""
        self.directory.metrics.unlink(missing_ok=True)  # of a run that came to nothing
        self.directory.write_text(self.directory.recipe, self.parts.recipe.to_toml())
        environment = describe_environment(self.parts.device)
        self.directory.write_json(self.directory.environment, environment)
        self.directory.write_json(self.directory.plan, self.plan.to_dict())
        for number, built in enumerate(self.parts.built, start=1):
            if built.head is not None:
                path = self.directory.teacher_head(number)
                write_atomically(path, partial(save_head, built.head))

    def _train_and_track(self, *, told: frozenset[Position] | None) -> Result:
        """Train to the end, and tell the trackers of it."""
        recipe, path = self.parts.recipe, self.directory.path
        config = recipe.track
        run = RunToTrack(path, config.project, config.name or path.resolve().name, settings(recipe))
        self.trackers = Trackers(
            config if self.is_first else TrackConfig(),
            run,
            steps_per_epoch=self.parts.trainer.loader.steps_per_epoch,
            warn=self.progress.say,
            told=told,
        )
        try:
            result = self._train()
        except BaseException:
            self.trackers.finish(None)
            raise
        self.trackers.finish(result.summary)
        return result

    def _train(self) -> Result:
        trainer, config = self.parts.trainer, self.parts.recipe.train
        self._introduce()
        listener = Listener(
            step=self.progress.step,
            log=self._log,
            warn=self.progress.say,
            checkpoint=self._save,
            score=self._score,
            epoch=self._save,
            stop=self.signals.asked,
            stopped=self.signals.check,
            watch=watch_teachers(self.parts.teachers),
        )
        per_epoch, done = trainer.loader.steps_per_epoch, trainer.all_steps_done
        with self.progress.training(per_epoch, config.epochs, done), self.signals.deferred():
            try:
                trainer.fit(listener)
            except BadStepsError as error:
                raise self._with_record(error) from None
        kept = self._kept()
        if self.is_first:
            crop_pct, names = self.parts.recipe.augment.crop_pct, class_names(self.parts)
            save = partial(save_model, kept, class_names=names, crop_pct=crop_pct)
            write_atomically(self.directory.student, save)
        # The student is safe now, whatever becomes of what is told of it.
        analyze_after(self.parts, self.directory, self.progress)
        summary = finite(self._summary())  # what is returned is what the file says
        summary["working"] = from_first_rank(partial(self._signs, summary))
        if self.is_first:
            self.directory.write_json(self.directory.summary, summary)
        return Result(self.directory.path, kept.model, summary)

    def _signs(self, summary: dict[str, Any]) -> list[dict[str, str]]:
        """Say what the numbers mean: warnings, and a little of what else there is."""
        try:
            signs = judge(replace(read_run(self.directory.path), summary=summary))
        except Exception as error:
            # Whatever it is: what is said of a run must not lose it.
            self.progress.say(f"what the numbers mean could not be told: {first_line(error)}")
            return []
        others = [sign for sign in signs if sign.severity != "warning"]
        for sign in (*(sign for sign in signs if sign not in others), *others[:_FEW]):
            remedy = f"; {sign.remedy}" if sign.remedy else ""
            self.progress.say(f"{sign.severity}: {sign.message}{remedy}")
        return [asdict(sign) for sign in signs]

    def _with_record(self, error: BadStepsError) -> BadStepsError:
        """Keep what is known of steps without a finite loss, for a look."""
        path = self.directory.bad_steps
        if self.is_first:
            self.directory.write_json(path, error.record)
        return BadStepsError(f"{error}; images and terms are in {path}", error.hint, error.record)

    def _introduce(self) -> None:
        train, ranks = self.parts.recipe.train, world_size()
        if ranks * train.grad_accum > 1:
            self.progress.say(
                f"{train.batch_size} images per optimiser step, shared by {ranks} "
                f"{'ranks' if ranks > 1 else 'rank'} with {train.grad_accum} "
                f"{'parts' if train.grad_accum > 1 else 'part'} each; the learning rate "
                f"{train.peak_lr:g} is used as written"
            )
        for teacher in self.history.teachers:
            found = f"top-1 {teacher['top1']:.2f} %" if "top1" in teacher else "not scored"
            stored = f"; its outputs come from {teacher['cache']}" if "cache" in teacher else ""
            self.progress.say(f"teacher {teacher['source']}: {found}{_about_head(teacher)}{stored}")

    def _log(self, values: dict[str, Any]) -> None:
        if self.is_first:
            self.directory.log(values)
            self.trackers.log(values)

    def _score(self, trainer: Trainer) -> None:
        """Score the student after the steps of an epoch, where it is the turn."""
        done, config = trainer.epochs_done + 1, self.parts.recipe.train
        if done % config.eval_every and done != config.epochs:
            return
        try:
            # Scoring changes nothing, so it may end anywhere; several ranks end it together.
            with self.signals.at_once() if world_size() == 1 else nullcontext():
                scores = score_run(self.parts)
        except StoppedError:
            self._save(trainer)
            raise
        self._log({"event": "epoch", "epoch": done - 1} | scores)
        if self.history.add(scores, done):
            self._write_best(self._kept())
        self.progress.epoch(done, scores)

    def _save(self, trainer: Trainer) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: If it cannot be written, or the run directory is gone.
        """
        if self.is_first and not self.directory.recipe.is_file():
            raise CheckpointError(
                f"{self.directory.path} was removed while it was written to",
                hint="start the run again; it cannot be continued",
            )
        for found in from_each_rank(self.parts.loader.bad_images):
            self.parts.loader.add_bad_images(found)
        now = time.perf_counter()
        self.history.seconds += now - self.clock
        self.clock = now
        tensors, plain = trainer.state()
        state = {
            "trainer": plain,
            "history": self.history.state_dict(),
            "bad_val_images": list(self.parts.bad_val_images.items()),
            "train_samples": len(self.parts.data.train),
            "metrics_bytes": self.directory.metrics_bytes() if self.is_first else 0,
        }
        save_checkpoint(self.directory.checkpoints, trainer.all_steps_done, tensors, state)

    def _kept(self) -> StagedModel:
        return cast("StagedModel", self.parts.trainer.kept())

    def _write_best(self, kept: StagedModel) -> None:
        if self.is_first:
            state = kept.model.state_dict()
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
            "images_per_step": parts.recipe.train.batch_size,
            "parameters": sum(p.numel() for p in parts.student.parameters()),
            "precision": precision_name(parts.dtype),
            "bad_steps": parts.trainer.bad_steps,
            "bad_images": len(parts.loader.bad_images) + len(parts.bad_val_images),
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
