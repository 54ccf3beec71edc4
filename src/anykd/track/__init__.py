"""Other homes for a run's numbers: TensorBoard, trackio, MLflow, Weights & Biases."""

from .config import TrackConfig as TrackConfig
