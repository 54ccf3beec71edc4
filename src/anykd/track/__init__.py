"""Other homes for a run's numbers: TensorBoard, trackio, MLflow, Weights & Biases."""

from .base import RunToTrack as RunToTrack
from .config import TrackConfig as TrackConfig
from .trackers import Trackers as Trackers
from .trackers import position as position
from .trackers import require_trackers as require_trackers
