"""Each tracker by its own library, on this machine's disk: what is written is read back."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
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
    run = json.loads((folder / "trackers.json").read_text())["trackio"]
    assert run.startswith("kd-0-")
    for row in SQLiteStorage.get_logs("pairs", run):
        for name in row.keys() - {"step", "timestamp"}:
            curves.setdefault(name, []).append((row["step"], row[name]))
    config = str(SQLiteStorage.get_run_config("pairs", run))
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


def wandb_records_to_the_end(path: Path) -> list[bytes]:
    """All records: what wandb runs beside Python may write the last ones after `finish`."""
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + 20
    while True:
        found = list(wandb_records(path))
        last = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        if found:
            last.ParseFromString(found[-1])
        if last.HasField("exit"):
            return found
        assert time.monotonic() < deadline, f"{path} never ends"
        time.sleep(0.05)


def read_wandb(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str, float]:
    from wandb.proto import wandb_internal_pb2

    curves: dict[str, list[tuple[int, float]]] = {}
    config, top1, ids = "", float("nan"), set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in wandb_records_to_the_end(path):
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


def test_two_runs_of_one_name_stay_apart_in_trackio(tmp_path):
    first, second = tmp_path / "x1" / "kd-0", tmp_path / "x2" / "kd-0"
    for folder in (first, second):
        folder.mkdir(parents=True)
    tell("trackio", first, LINES).finish(None)
    tell("trackio", second, LINES + LATER).finish(SUMMARY)
    tell("trackio", first, LATER, told=frozenset()).finish(SUMMARY)
    for folder in (first, second):
        curves, _, _ = read_trackio(folder)
        assert [step for step, _ in curves["train/loss"]] == [0, 9, 10, 19]
        assert len(curves["summary/top1"]) == 1


ALONE = """
import sys
from pathlib import Path
from anykd.track import RunToTrack, TrackConfig, Trackers

for folder in map(Path, sys.argv[2:]):
    run = RunToTrack(folder, "pairs", folder.name, {"train.peak_lr": 0.1})
    config = TrackConfig(to=tuple(sys.argv[1].split(",")))
    trackers = Trackers(config, run, steps_per_epoch=10, warn=print)
    for step in range(10):
        trackers.log({"event": "step", "epoch": 0, "step": step, "loss": 1.0})
    trackers.finish({"top1": 60.0})
"""


def alone(tmp_path: Path, *folders: Path, names: Iterable[str] = READERS) -> list[str]:
    """Tell trackers of runs in a process of their own; the lines that it prints."""
    home, current = tmp_path / "home", tmp_path / "current"
    home.mkdir()
    current.mkdir()
    ours = ("MLFLOW_", "WANDB_", "TRACKIO_", "HF_", "XDG_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, ",".join(names), *folders],
        env=environment | {"HOME": str(home)},
        cwd=current,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not [*home.iterdir(), *current.iterdir()]
    return (done.stderr + done.stdout).splitlines()


def test_they_write_beside_the_run_and_print_nothing(tmp_path):
    runs = tmp_path / "runs"
    (runs / "kd-0").mkdir(parents=True)
    assert alone(tmp_path, runs / "kd-0") == []
    assert {path.name for path in runs.iterdir()} == {"kd-0", "trackio", "mlflow.db"}
    assert (runs / "trackio" / "pairs.db").is_file()
    written = {path.name for path in (runs / "kd-0").iterdir()}
    assert written == {"tensorboard", "wandb", "trackers.json"}


def test_a_process_that_changes_trackio_s_folder_is_told_how(tmp_path):
    folders = [tmp_path / name / "kd-0" for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    (line,) = alone(tmp_path, *folders, names=["trackio"])
    assert line == (
        f"trackio is not told of this run any more: this process uses it with "
        f"{tmp_path / 'a' / 'trackio'} and cannot change to {tmp_path / 'b' / 'trackio'}; "
        f"set TRACKIO_DIR to have one folder for all runs"
    )
    assert not (folders[1] / "trackers.json").exists()


def test_where_they_cannot_write_each_says_one_line(tmp_path):
    folder = tmp_path / "runs" / "kd-0"
    folder.mkdir(parents=True)
    for path in (folder / "tensorboard", folder / "wandb", folder.parent / "trackio"):
        path.write_text("no folder")
    (folder.parent / "mlflow.db").write_text("no database, but longer than its header would be")
    lines = alone(tmp_path, folder)
    dropped = " is not told of this run any more: "
    assert [line.partition(dropped)[:2] for line in lines] == [(name, dropped) for name in READERS]


def test_trackio_that_breaks_while_it_is_told_says_so_once(tmp_path, capsys):
    import trackio

    words: list[str] = []
    trackers = Trackers(
        TrackConfig(to=("trackio",)),
        RunToTrack(tmp_path, "breaks", "kd-0", SETTINGS),
        steps_per_epoch=STEPS_PER_EPOCH,
        warn=words.append,
    )
    (trackio.utils.TRACKIO_DIR / "breaks.db").mkdir()
    deadline = time.monotonic() + 20
    while not words and time.monotonic() < deadline:
        trackers.log(LINES[0])
        time.sleep(0.05)
    for one in LINES:
        trackers.log(one)
    trackers.finish(SUMMARY)
    (word,) = words
    assert word.startswith("trackio is not told of this run any more: trackio failed to flush")
    assert capsys.readouterr() == ("", "")
    assert trackio.context_vars.current_run.get() is None  # nothing is left to speak at exit


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
