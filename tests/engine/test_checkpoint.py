import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anykd.distributed import rank
from anykd.engine import Checkpoint, newest_checkpoint, save_checkpoint
from anykd.errors import CheckpointError
from tests.ranks import run_on_ranks


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image_like = torch.randn(4, 3, 5, 5, generator=generator)
    weight = torch.randn(7, 3, generator=generator)
    return {
        "weight": weight,
        "tied": weight,
        "tied.rows": weight[2:4],
        "transposed": weight.T,
        "channels_last": image_like.to(memory_format=torch.channels_last),
        "half": image_like.bfloat16(),
        "double": torch.tensor(1 / 3, dtype=torch.float64),
        "step": torch.tensor(2**60),
        "flag": torch.tensor(True),
        "empty": torch.zeros(0, 3),
        "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def like(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, 1) for name, tensor in saved.items()}


def newest(folder: Path, warnings: list[str] | None = None) -> Checkpoint:
    found = newest_checkpoint(folder, (warnings if warnings is not None else []).append)
    assert found is not None
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three checkpoints, of which two are kept."""
    for step in (5, 10, 15):
        save_checkpoint(tmp_path / "c", step, tensors(), {"step": step, "share": 1 / 3})
    return tmp_path / "c"


class TestCheckpoint:
    def test_comes_back_as_it_was(self, folder):
        found = newest(folder)
        room = like(tensors())
        found.read_into(room)
        assert_same(room, tensors())
        assert found.state == {"step": 15, "share": 1 / 3}

    def test_knows_what_it_holds(self, folder):
        shapes = newest(folder).shapes()
        assert shapes == {name: (tuple(t.shape), t.dtype) for name, t in tensors().items()}

    def test_keeps_the_layout_of_who_reads_it(self, folder):
        room = like(tensors())
        newest(folder).read_into(room)
        assert room["channels_last"].is_contiguous(memory_format=torch.channels_last)

    def test_last_two_are_kept(self, folder):
        assert sorted(path.name for path in folder.iterdir()) == ["step-00000010", "step-00000015"]

    def test_of_the_same_step_takes_the_place_of_the_old_one(self, folder):
        save_checkpoint(folder, 15, {"other": torch.ones(1)}, {"second": True})
        assert newest(folder).state == {"second": True}
        assert list(newest(folder).shapes()) == ["other"]
        assert len(list(folder.iterdir())) == 2

    def test_is_none_where_nothing_was_saved(self, tmp_path):
        assert newest_checkpoint(tmp_path / "missing") is None

    def test_takes_what_requires_gradients(self, tmp_path):
        weight = torch.nn.Parameter(torch.ones(2))
        save_checkpoint(tmp_path, 1, {"weight": weight}, {})
        room = {"weight": torch.nn.Parameter(torch.zeros(2))}
        newest(tmp_path).read_into({**room})
        assert room["weight"].tolist() == [1, 1]


class TestTorn:
    @pytest.mark.parametrize("victim", ["shard-*.safetensors", "state.json", "manifest.json"])
    @pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
    def test_is_named_and_the_one_before_it_used(self, folder, victim, how):
        (path,) = (folder / "step-00000015").glob(victim)
        content = path.read_bytes()
        middle = len(content) // 2
        if how == "gone":
            path.unlink()
        elif how == "cut":
            path.write_bytes(content[:middle])
        else:
            flipped = bytes([content[middle] ^ 1])
            path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        warnings: list[str] = []
        assert newest(folder, warnings).state["step"] == 10
        assert len(warnings) == 1
        assert "step-00000015" in warnings[0]
        room = like(tensors())
        newest(folder).read_into(room)
        assert_same(room, tensors())

    def test_without_another_one_is_told(self, folder):
        for path in folder.glob("*/state.json"):
            path.write_text("{}")
        with pytest.raises(
            CheckpointError, match=r"no checkpoint in .* is whole: step-00000015"
        ) as e:
            newest_checkpoint(folder, lambda line: None)
        assert "\n" not in str(e.value)
        assert e.value.hint

    def test_makes_way_for_the_next_one_and_not_the_whole_one_before_it(self, folder):
        (folder / "step-00000015" / "state.json").write_text("{}")
        save_checkpoint(folder, 12, tensors(), {"step": 12})
        assert sorted(path.name for path in folder.iterdir()) == ["step-00000010", "step-00000012"]

    @pytest.mark.parametrize("victim", ["shard-*.safetensors", "state.json"])
    def test_with_digests_that_fit_is_not_read_either(self, folder, victim):
        path = folder / "step-00000015"
        (broken,) = path.glob(victim)
        broken.write_bytes(b"no such thing")
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][broken.name] = hashlib.sha256(b"no such thing").hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert newest(folder).state["step"] == 10

    def test_shard_from_elsewhere_is_not_read(self, folder):
        strange = folder / "step-00000015" / "shard-00009.safetensors"
        save_file({"weight": torch.zeros(7, 3)}, strange)
        assert newest(folder).state["step"] == 10

    def test_path_out_of_the_folder_is_not_followed(self, folder):
        path = folder / "step-00000015" / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["files"]["../step-00000010/state.json"] = "0"
        path.write_text(json.dumps(manifest))
        warnings: list[str] = []
        assert newest(folder, warnings).state["step"] == 10
        assert "outside of itself" in warnings[0]

    def test_of_another_format_is_told(self, folder):
        path = folder / "step-00000015" / "manifest.json"
        path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
        warnings: list[str] = []
        newest(folder, warnings)
        assert "has format 99" in warnings[0]

    def test_executes_nothing(self, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for path in (folder / "step-00000015").iterdir():
            path.write_bytes(pickle.dumps(Evil(), protocol=2))
        assert newest(folder).state["step"] == 10
        assert not (tmp_path / "executed").exists()

    def test_unfinished_one_of_a_killed_process_is_not_taken(self, folder):
        (folder / "step-00000015").rename(folder / ".anykd-step-00000020")
        assert newest(folder).state["step"] == 10
        save_checkpoint(folder, 20, tensors(), {"step": 20})
        assert newest(folder).state["step"] == 20


def save_on_ranks(folder: Path) -> dict[str, Tensor]:
    """Replicated tensors, as DistributedDataParallel has them; each rank's plain values differ."""
    save_checkpoint(folder, 1, tensors(), {"rank": rank()})
    room = like(tensors())
    newest(folder).read_into(room)
    return room


@pytest.mark.distributed
def test_several_ranks_write_one_checkpoint_that_one_process_reads(tmp_path):
    (tmp_path / "ranks").mkdir()
    for found in run_on_ranks(save_on_ranks, tmp_path / "c", folder=tmp_path / "ranks"):
        assert_same(found, tensors())
    found = newest(tmp_path / "c")
    assert found.state == {"rank": 0}
    room = like(tensors())
    found.read_into(room)
    assert_same(room, tensors())
