import pickle
from pathlib import Path

import pytest
import torch

from anykd.engine import load_checkpoint, save_checkpoint
from anykd.errors import CheckpointError


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


class TestCheckpoint:
    def test_comes_back_as_it_was(self, tmp_path):
        state = {"a": torch.randn(3), "b": {"epochs": 2, "none": None, "list": [1.5, "x"]}}
        save_checkpoint(tmp_path / "last.pt", state)
        found = load_checkpoint(tmp_path / "last.pt")
        assert torch.equal(found["a"], state["a"])
        assert found["b"] == state["b"]

    def test_that_is_torn_is_told(self, tmp_path):
        path = tmp_path / "last.pt"
        save_checkpoint(path, {"a": torch.randn(100)})
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(CheckpointError, match=r"last\.pt cannot be read") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
        assert caught.value.hint

    def test_executes_nothing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "last.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "last.pt")
        assert not (tmp_path / "executed").exists()
