"""Sharded training through the real command line, on two ranks."""

import json
from pathlib import Path

import pytest
import timm

from tests.experiment.runs import anykd, train_vit
from tests.test_distributed_training import distill_on_two_ranks

SETS = (
    *("train.fsdp=true", "teacher.fsdp=true", "train.grad_checkpointing=true"),
    *("train.ema_decay=0.5", "train.clip_grad=1", "train.grad_accum=2"),
)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """A run whose student and teacher were sharded, with whatever else touches their weights."""
    folder = tmp_path_factory.mktemp("sharded")
    teacher = train_vit(folder / "teacher", data="synthetic:3x12")
    done = distill_on_two_ranks(folder / "run", teacher, "fbt", *SETS, epochs=1)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "failed" not in done.stderr
    return folder / "run"


@pytest.mark.distributed
@pytest.mark.end_to_end
class TestShardedRun:
    def test_scores_student_fusion_and_teacher_on_every_image_once(self, sharded):
        # Nine images: the ranks have different numbers of them, and of batches.
        found = json.loads((sharded / "summary.json").read_text())
        assert found["num_samples"] == found["teachers"][0]["num_samples"] == 9
        for top1 in (found["top1"], found["raw_top1"], found["fusion_top1"]):
            assert top1 * 9 / 100 == pytest.approx(round(top1 * 9 / 100))

    def test_leaves_a_whole_student_that_timm_loads(self, sharded):
        model = timm.create_model(f"local-dir:{sharded / 'student'}", pretrained=True)
        assert model.num_classes == 3

    def test_saves_the_student_that_it_scored(self, sharded):
        found = json.loads((sharded / "summary.json").read_text())
        assert f"loss {found['loss']:.4f}  9 images" in anykd("evaluate", sharded).out

    def test_is_analysed_once_on_all_images(self, sharded):
        found = json.loads((sharded / "analysis" / "analysis.json").read_text())
        said = json.loads((sharded / "summary.json").read_text())
        assert found["num_samples"] == 9
        assert found["student"]["top1"] == pytest.approx(said["top1"])
        assert found["student"]["nll"] == pytest.approx(said["loss"], rel=1e-4)
        assert found["cka"][0]["before"] != found["cka"][0]["after"]
        assert found["cost"]["student"]["parameters"] == said["parameters"]
