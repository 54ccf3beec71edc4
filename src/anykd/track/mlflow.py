"""MLflow: a database beside the runs, shown by ``mlflow ui``."""

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import final

from .base import RunToTrack

# Both are read when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # it tells of every table that it makes

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.time import get_current_time_millis

__all__ = ["MLflow"]

_MOST_PARAMS = 100
"""That MLflow takes at once."""
_LONGEST = 500
"""Characters of a value of a parameter."""


@final
class MLflow:
    """Writes to ``mlflow.db`` in the folder that holds the run directory.

    With a ``MLFLOW_TRACKING_URI`` of your own it writes there instead.
    ``mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`` shows what is on this disk.
    """

    def __init__(self, run: RunToTrack) -> None:
        beside = run.folder.resolve().parent
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            path = beside / "mlflow.db"
            _require_writable(path)
            uri = f"sqlite:///{path}"
        self._client = MlflowClient(tracking_uri=uri)
        if run.known_as is not None:
            self.run_id = run.known_as
            self._client.update_run(self.run_id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(run.project)
        artifacts = (beside / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        experiment = (
            self._client.create_experiment(run.project, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )
        self.run_id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in run.settings.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + _MOST_PARAMS])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each name."""
        now = get_current_time_millis()
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def finish(self, summary: Mapping[str, float] | None) -> None:
        """Add the last numbers and end the run."""
        if summary is not None:
            self.log({f"summary/{name}": value for name, value in summary.items()}, 0)
        self._client.set_terminated(self.run_id, "KILLED" if summary is None else "FINISHED")


def _require_writable(path: Path) -> None:
    """Refuse at once a database that cannot be written to; MLflow would try for two minutes.

    Raises:
        sqlite3.Error: If it cannot.
    """
    with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")
