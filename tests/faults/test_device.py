"""A device that is not there."""

import pytest
import torch

from tests.experiment.runs import CNN, DATA, anykd, short


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("verb", ["train", "plan"])
def test_a_gpu_that_is_missing_is_said_before_anything_is_done(tmp_path, verb):
    run = tmp_path / "run"
    out = ("-o", run) if verb == "train" else ()
    model = "--model" if verb == "train" else "--student"
    method = () if verb == "train" else ("--method", "control")
    flags = short(CNN, "train.device=cuda")
    done = anykd(verb, model, "resnet18", "--data", DATA, *method, *out, *flags)
    assert done.code == 2
    assert done.err.startswith("error: train.device is cuda, and torch sees no GPU\nhint: ")
    assert "train.device = 'auto'" in done.err
    assert not run.exists()


def test_the_processor_is_taken_where_it_is_asked_for(tmp_path):
    flags = short(CNN, "train.device=cpu")
    done = anykd("train", "--model", "resnet18", "--data", DATA, "-o", tmp_path / "run", *flags)
    assert done.code == 0, done.err
