"""Steps without a finite loss or gradient, through the command line."""

import json
from pathlib import Path

import pytest

from tests.experiment.runs import CNN, DATA, Outcome, anykd, saved_tensors, short, train_vit

STUDENT = """
import timm
import torch

class Ill(torch.nn.Module):
    '''Gives NaN in some of its training steps.'''

    def __init__(self, num_classes, steps):
        super().__init__()
        self.net = timm.create_model("test_resnet", num_classes=num_classes)
        self.steps, self.seen = steps, 0

    def forward(self, images):
        features = self.net.forward_features(images)
        if self.training:
            self.seen += 1
            if self.seen in self.steps:
                features = features * float("nan")
        return self.net.forward_head(features)

    def forward_stages(self, images):
        final, stages = self.net.forward_intermediates(images)
        if self.training:
            self.seen += 1
            if self.seen in self.steps:
                final = final * float("nan")
        return stages[-4:], final

    def forward_head(self, final, pre_logits=False):
        return self.net.forward_head(final, pre_logits=pre_logits)

def some(num_classes=1000, **options):
    return Ill(num_classes, {3, 4, 6})

def always(num_classes=1000, **options):
    return Ill(num_classes, set(range(3, 1000)))
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return train_vit(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture
def code(tmp_path) -> Path:
    (tmp_path / "ill.py").write_text(STUDENT)
    return tmp_path / "ill.py"


def distill(student: str, teacher: Path, out: Path, *sets: str) -> Outcome:
    return anykd(
        *("distill", "--teacher", teacher, "--student", student, "--data", DATA),
        *("--method", "kd", "--out", out, *short("train.log_every=1", *sets, epochs=3)),
    )


def test_some_are_skipped_named_and_counted(code, teacher, tmp_path):
    done = distill(f"{code}:some", teacher, tmp_path / "run")
    assert done.code == 0, done.err
    said = [line for line in done.err.splitlines() if "was skipped" in line]
    # Once for each row of them.
    assert said == [
        f"epoch {epoch}, step {step} was skipped: the term task was nan and the term kd was nan"
        for epoch, step in ((1, 3), (2, 2))
    ]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["bad_steps"] == 3
    written = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    assert [number for number, loss in enumerate(losses, start=1) if loss is None] == [3, 4, 6]
    assert all(tensor.isfinite().all() for tensor in saved_tensors(tmp_path / "run").values())


def test_many_in_a_row_stop_the_run_and_leave_what_is_known(code, teacher, tmp_path):
    run = tmp_path / "run"
    done = distill(f"{code}:always", teacher, run, "train.max_bad_steps=4")
    assert done.code == 2
    assert done.err.splitlines()[-2] == (
        "error: 4 steps in a row had no finite loss and gradient; in epoch 2, step 2 the term task "
        f"was nan and the term kd was nan; images and terms are in {run / 'bad_steps.json'}"
    )
    assert done.err.splitlines()[-1].startswith("hint: lower train.peak_lr")
    record = json.loads((run / "bad_steps.json").read_text())
    assert (record["epoch"], record["step"]) == (1, 1)
    assert len(set(record["indices"])) == 16
    assert record["terms"][0]["kd"] == "nan"
    assert not (run / "summary.json").exists()
    assert all(tensor.isfinite().all() for tensor in saved_tensors(run).values())


def test_a_rate_that_is_far_too_high_is_stopped_in_words(teacher, tmp_path):
    sets = (CNN, "train.optimizer=sgd", "train.peak_lr=1e30", "train.warmup_epochs=0")
    done = distill("resnet18", teacher, tmp_path / "run", *sets)
    assert done.code == 2
    assert "10 steps in a row had no finite loss and gradient" in done.err
    assert "Traceback" not in done.err
