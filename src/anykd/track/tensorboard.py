"""TensorBoard: event files in ``RUN/tensorboard``."""

from collections.abc import Mapping
from typing import final

from torch.utils.tensorboard import SummaryWriter

from .base import RunToTrack

__all__ = ["TensorBoard"]


@final
class TensorBoard:
    """Writes event files; ``tensorboard --logdir runs`` shows those of all runs."""

    def __init__(self, run: RunToTrack) -> None:
        folder = run.folder / "tensorboard"
        self.run_id = folder.name
        self._writer = SummaryWriter(str(folder))
        if run.known_as is not None:
            return
        rows = [f"| {key} | {value} |" for key, value in run.settings.items()]
        self._writer.add_text("recipe", "\n".join(["| setting | value |", "|---|---|", *rows]))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed process loses what is not in the file

    def finish(self, summary: Mapping[str, float] | None) -> None:
        """Add the last numbers and close the file."""
        for name, value in (summary or {}).items():
            self._writer.add_scalar(f"summary/{name}", value, 0)
        self._writer.close()
