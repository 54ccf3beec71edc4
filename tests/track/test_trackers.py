"""Each tracker by its own library, on this machine's disk: what is written is read back."""

import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anykd.errors import AnykdError
from anykd.track import RunToTrack, TrackConfig, Trackers, position, require_trackers

SETTINGS = {"train.peak_lr": 0.1, "student.name": "resnet18", "teacher.1.classes": "x" * 600}
STEPS_PER_EPOCH = 10


def line(event: str, epoch: int, **values: Any) -> dict[str, Any]:
    return {"event": event, "epoch": epoch} | values


LINES = [
    line("step", 0, step=0, loss=3.0, task=1.0, lr=0.1),
    line("diagnosis", 0, step=5, grad_shares={"task": 0.25, "kd": 0.75}, teacher_share=None),
    line("step", 0, step=9, loss=2.0, task=0.75, lr=0.1),
    line("epoch", 0, top1=50.0, agreement=40.0),
    line("step", 1, step=0, loss=1.5, task=0.5, lr=0.1),
]
LATER = [line("step", 1, step=9, loss=1.0, task=0.25, lr=0.0), line("epoch", 1, top1=60.0)]
SUMMARY = {"top1": 60.0, "method": "kd", "findings": [], "best_epoch": 2}

EXPECTED = {
    "train/loss": {0: 3.0, 9: 2.0, 10: 1.5, 19: 1.0},
    "train/task": {0: 1.0, 9: 0.75, 10: 0.5, 19: 0.25},
    "val/top1": {9: 50.0, 19: 60.0},
    "val/agreement": {9: 40.0},
    "diagnosis/grad_shares/kd": {5: 0.75},
}


def tell(name: str, folder: Path, lines: list[dict[str, Any]], **options: Any) -> Trackers:
    """Open a tracker of a run and tell it some lines; a tracker that fails fails the test."""
    words: list[str] = []
    trackers = Trackers(
        TrackConfig(to=[name], project="pairs"),  # pyright: ignore[reportArgumentType]
        RunToTrack(folder, "pairs", "kd-0", SETTINGS),
        steps_per_epoch=STEPS_PER_EPOCH,
        warn=words.append,
        **options,
    )
    for one in lines:
        trackers.log(one)
    assert not words
    return trackers


def interrupted_and_resumed(name: str, folder: Path) -> None:
    """A run that is interrupted behind its checkpoint, so that two lines are logged again."""
    folder.mkdir(parents=True)
    tell(name, folder, LINES).finish(None)
    told = frozenset(map(position, LINES[3:]))
    tell(name, folder, LINES[3:] + LATER, told=told).finish(SUMMARY)


def read_tensorboard(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard")).Reload()
    curves = {
        name: [(point.step, point.value) for point in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }
    text = found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    return curves, text, curves["summary/top1"][0][1]


def read_trackio(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str, float]:
    from trackio.sqlite_storage import SQLiteStorage

    curves: dict[str, list[tuple[int, float]]] = {}
    for row in SQLiteStorage.get_logs("pairs", "kd-0"):
        for name in row.keys() - {"step", "timestamp"}:
            curves.setdefault(name, []).append((row["step"], row[name]))
    config = str(SQLiteStorage.get_run_config("pairs", "kd-0"))
    return curves, config, curves["summary/top1"][0][1]


def read_mlflow(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str, float]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pairs")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("kd-0", "FINISHED")
    curves = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return curves, str(run.data.params), run.data.metrics["summary/top1"]


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a file of wandb: LevelDB's log format behind a header of seven bytes."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no header fits into what is left of a block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""


def read_wandb(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str, float]:
    from wandb.proto import wandb_internal_pb2

    curves: dict[str, list[tuple[int, float]]] = {}
    config, top1, ids = "", float("nan"), set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in wandb_records(path):
            record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                config += str(record.run.config)
            items = {(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item}
            for name in items.keys() & EXPECTED.keys():
                curves.setdefault(name, []).append((int(items["_step"]), float(items[name])))
            for item in record.summary.update:
                if item.key == "top1" or list(item.nested_key) == ["top1"]:
                    top1 = float(item.value_json)
    assert len(ids) == 1
    return curves, config, top1


READERS: dict[str, Callable[[Path], tuple[dict[str, list[tuple[int, float]]], str, float]]] = {
    "tensorboard": read_tensorboard,
    "trackio": read_trackio,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}


@pytest.fixture(autouse=True, scope="module")
def own_folders(tmp_path_factory):
    """Nothing of the user's own environment, and nothing into their folders."""
    with pytest.MonkeyPatch.context() as patch:
        for key in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "TRACKIO_SPACE_ID"):
            patch.delenv(key, raising=False)
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        for key in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patch.setenv(key, str(tmp_path_factory.mktemp(key.lower())))
        yield


# Of MLflow, about SQLAlchemy.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
@pytest.mark.parametrize("name", READERS)
def test_holds_every_number_once_with_settings_and_summary(name, tmp_path):
    folder = tmp_path / "runs" / "kd-0"
    interrupted_and_resumed(name, folder)
    curves, settings, top1 = READERS[name](folder)
    assert {key: curves[key] for key in EXPECTED} == {
        key: list(points.items()) for key, points in EXPECTED.items()
    }
    assert "train.peak_lr" in settings
    assert "resnet18" in settings
    assert top1 == 60.0


class Broken:
    """Fails at the time that it is told to."""

    def __init__(self, when: str) -> None:
        self.when, self.seen, self.run_id = when, [], "x"
        self._fail("open")

    def _fail(self, when: str) -> None:
        if self.when == when:
            raise OSError(f"no {when}\nand more")

    def log(self, values: Any, step: int) -> None:
        self.seen.append(step)
        self._fail("log")

    def finish(self, summary: Any) -> None:
        self._fail("finish")


@pytest.mark.parametrize("when", ["open", "log", "finish"])
def test_one_that_fails_says_so_once_and_the_others_go_on(when, tmp_path, monkeypatch):
    import anykd.track.tensorboard as module

    monkeypatch.setattr(module, "TensorBoard", lambda run: Broken(when))
    words: list[str] = []
    trackers = Trackers(
        TrackConfig(to=("tensorboard",)),
        RunToTrack(tmp_path, "p", "n", {}),
        steps_per_epoch=STEPS_PER_EPOCH,
        warn=words.append,
    )
    for one in LINES:
        trackers.log(one)
    trackers.finish(SUMMARY)
    assert words == [f"tensorboard is not told of this run any more: no {when} and more"]


class TestRequired:
    def test_one_that_is_missing_is_named_with_the_way_to_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(AnykdError, match=r"track\.to names wandb, which is not installed") as e:
            require_trackers(TrackConfig(to=("wandb",)))
        assert e.value.hint == "pip install 'anykd[track]', or leave it out"

    def test_a_folder_of_its_name_is_none(self, tmp_path, monkeypatch):
        (tmp_path / "wandb").mkdir()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.delitem(sys.modules, "wandb", raising=False)
        with pytest.raises(AnykdError, match="not installed"):
            require_trackers(TrackConfig(to=("wandb",)))

    def test_those_that_are_there_are_not_imported(self):
        require_trackers(TrackConfig(to=("tensorboard", "trackio", "mlflow", "wandb")))
