import pytest
import torch

from anykd.engine import choose_device, choose_dtype
from anykd.engine.precision import autocast

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class TestChooseDtype:
    @pytest.mark.parametrize("device", [CPU, GPU])
    def test_does_what_is_asked_on_any_device(self, device):
        assert choose_dtype("float32", device) is None
        assert choose_dtype("bf16", device) is torch.bfloat16

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


def test_device_is_this_ranks_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device(1) == torch.device("cuda", 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device(1) == CPU


def test_autocast_of_no_type_changes_nothing():
    with autocast(CPU, None):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype is torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype is torch.bfloat16
