"""Weights & Biases: offline files in ``RUN/wandb``, which ``wandb sync`` sends when you like."""

import os
import uuid
from collections.abc import Mapping
from typing import Literal, cast, final

from .base import RunToTrack, environment_default

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported

import wandb

__all__ = ["WandB"]

_Mode = Literal["online", "offline", "disabled", "shared"]


@final
class WandB:
    """Writes files into the run directory.

    Only a ``WANDB_MODE`` of your own, such as ``online``, sends anything over a network. An
    interrupted run goes on under the same id: online in the same run, offline in files of their
    own, which ``wandb sync --append`` joins.
    """

    def __init__(self, run: RunToTrack) -> None:
        mode = cast("_Mode", os.environ.get("WANDB_MODE", "offline"))
        self.run_id = run.known_as or uuid.uuid4().hex[:8]
        goes_on = run.known_as is not None and mode == "online"
        # What it starts once for all runs writes a log there, by default in the home folder.
        with environment_default("WANDB_CACHE_DIR", str(run.folder.resolve() / "wandb" / "cache")):
            self._run = wandb.init(
                project=run.project,
                name=run.name,
                id=self.run_id,
                dir=str(run.folder),
                config=dict(run.settings),
                mode=mode,
                resume="allow" if goes_on else None,
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    x_disable_stats=True,
                ),
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add to the row of a step."""
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float] | None) -> None:
        """Put the last numbers into the run's summary and wait until all is written."""
        self._run.summary.update(dict(summary or {}))
        self._run.finish(exit_code=1 if summary is None else 0)
