import pytest
import torch

from anykd.engine import choose_device, choose_dtype
from anykd.engine.precision import autocast
from anykd.errors import RecipeError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class TestChooseDtype:
    @pytest.mark.parametrize("device", [CPU, GPU])
    def test_does_what_is_asked_on_any_device(self, device):
        assert choose_dtype("float32", device) is None
        assert choose_dtype("bf16", device) is torch.bfloat16
        assert choose_dtype("fp16", device) is torch.float16

    @pytest.mark.parametrize(("has_amx", "expected"), [(True, torch.bfloat16), (False, None)])
    def test_auto_is_bf16_on_processors_with_amx(self, monkeypatch, has_amx, expected):
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has_amx)
        assert choose_dtype("auto", CPU) is expected

    @pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, None)])
    def test_auto_is_bf16_on_gpus_that_do_not_emulate_it(self, monkeypatch, supported, expected):
        asked = {}
        monkeypatch.setattr(
            "torch.cuda.is_bf16_supported", lambda **options: asked.update(options) or supported
        )
        assert choose_dtype("auto", GPU) is expected
        assert asked == {"including_emulation": False}


@pytest.fixture
def gpus(monkeypatch):
    """Let torch see so many GPUs."""

    def see(count: int) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    return see


class TestChooseDevice:
    def test_auto_is_this_ranks_gpu_where_there_is_one(self, gpus):
        gpus(2)
        assert choose_device(1) == torch.device("cuda", 1)
        gpus(0)
        assert choose_device(1) == CPU

    def test_does_what_is_asked(self, gpus):
        gpus(2)
        assert choose_device(1, "cuda") == torch.device("cuda", 1)
        assert choose_device(1, "cpu") == CPU

    @pytest.mark.parametrize(
        ("cuda", "remedy"), [(None, "built without CUDA"), ("13.0", "CUDA_VISIBLE_DEVICES")]
    )
    def test_a_missing_gpu_is_refused_by_what_is_wrong(self, gpus, monkeypatch, cuda, remedy):
        gpus(0)
        monkeypatch.setattr("torch.version.cuda", cuda)
        with pytest.raises(RecipeError, match="torch sees no GPU") as caught:
            choose_device(0, "cuda")
        assert remedy in caught.value.hint
        assert "train.device = 'auto'" in caught.value.hint

    @pytest.mark.parametrize("asked", ["auto", "cuda"])
    def test_more_processes_than_gpus_are_refused(self, gpus, asked):
        gpus(2)
        with pytest.raises(RecipeError, match="local rank 2 has no GPU: torch sees 2") as caught:
            choose_device(2, asked)
        assert "--nproc-per-node 2" in caught.value.hint

    @pytest.mark.parametrize(
        ("there", "rank", "problem"),
        [(False, 0, "torch sees none"), (True, 1, "there is one for all processes")],
    )
    def test_mps_is_one_device(self, monkeypatch, there, rank, problem):
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: there)
        with pytest.raises(RecipeError, match=f"is mps, and {problem}"):
            choose_device(rank, "mps")
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
        assert choose_device(0, "mps") == torch.device("mps")


def test_autocast_of_no_type_changes_nothing():
    with autocast(CPU, None):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype is torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype is torch.bfloat16
