"""Where a run's numbers go beside its own files."""

from typing import Literal

from anykd.config import FrozenConfig

__all__ = ["TrackConfig", "TrackerName"]

TrackerName = Literal["tensorboard", "trackio", "mlflow", "wandb"]


class TrackConfig(FrozenConfig):
    """The ``[track]`` table of a recipe. ``metrics.jsonl`` is written whatever stands here."""

    to: tuple[TrackerName, ...] = ()
    """Trackers that get the numbers as well; they come with ``pip install 'anykd[track]'``. All of
    them write to this machine's disk, unless your own environment says otherwise."""
    project: str = "anykd"
    """What the run is filed under; MLflow calls it an experiment, TensorBoard knows none."""
    name: str | None = None
    """What the run is called there; None takes the name of its folder."""
