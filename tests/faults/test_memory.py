"""Too little memory, and what would do with it."""

import pytest
import torch

from anykd.engine import TrainConfig
from anykd.engine.memory import out_of_memory_in_words
from anykd.errors import RecipeError
from tests.experiment.runs import CNN
from tests.faults.processes import typed


def test_a_run_that_does_not_fit_names_what_would(tmp_path):
    run = tmp_path / "run"
    sets = [CNN, "train.precision=float32", "data.workers=0"]
    flags = [part for value in sets for part in ("--set", value)]
    where = ("--model", "resnet18", "--data", "synthetic:4x256", "-o", run)
    size = ("--epochs", 1, "--batch-size", 512, "--image-size", 64)
    with typed("train", *where, *size, *flags, more_bytes=300 * 2**20) as child:
        done = child.outcome()
    assert done.code == 2, done.err
    assert "error: out of memory with 512 images in a pass\n" in done.err
    assert "train.grad_accum = 2" in done.err
    assert "train.batch_size = 256" in done.err
    assert "Traceback" not in done.err


def said(config: TrainConfig, world_size: int, error: Exception) -> tuple[str, str]:
    with (
        pytest.raises(RecipeError) as caught,
        out_of_memory_in_words(config, world_size),
    ):
        raise error
    return str(caught.value), caught.value.hint


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=str,
)
def test_every_allocator_is_understood(error):
    message, _ = said(TrainConfig(batch_size=64), 1, error)
    assert message == "out of memory with 64 images in a pass"


def test_other_errors_are_left_alone():
    error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError) as caught, out_of_memory_in_words(TrainConfig(), 1):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("config", "world_size", "images", "ways"),
    [
        ({"batch_size": 64}, 4, "16 images", ["grad_accum = 2 ", "batch_size = 32"]),
        ({"batch_size": 12, "grad_accum": 4}, 1, "3 images", ["grad_accum = 6 ", "batch_size = 8"]),
        ({"batch_size": 9}, 1, "9 images", ["grad_accum = 3 ", "batch_size = 3"]),
        ({"batch_size": 8, "grad_accum": 8}, 1, "1 image", ["grad_checkpointing = true"]),
        ({"batch_size": 8, "precision": "float32"}, 1, "8 images", ["precision = 'bf16'"]),
    ],
)
def test_what_is_proposed_divides_the_batch(config, world_size, images, ways):
    message, hint = said(TrainConfig(**config), world_size, MemoryError())
    assert message == f"out of memory with {images} in a pass"
    for way in ways:
        assert f"train.{way}" in hint


def test_where_nothing_is_left_to_set_smaller_models_are():
    used = {"batch_size": 1, "grad_checkpointing": True, "precision": "bf16"}
    assert said(TrainConfig(**used), 1, MemoryError())[1] == "try a smaller image_size or student"
