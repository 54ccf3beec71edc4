"""A linear head on a teacher's pooled features: how it is fitted, kept and used."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anykd.data import DataConfig, hold_out, open_data
from anykd.distributed import from_first_rank, rank
from anykd.errors import CheckpointError, RecipeError
from anykd.experiment.teacher_head import fit_head, fit_linear, load_head, save_head
from anykd.models import FrozenTeacher, create_staged
from anykd.recipe import Recipe
from tests.experiment.results import InterruptionError, assert_same_run, interrupt, summary
from tests.experiment.runs import CNN, DATA, anykd, distill_cnn, short, train_vit
from tests.ranks import run_on_ranks

WIDER = "synthetic:6x8"


def clouds(num_classes: int = 3, count: int = 60, width: int = 5):
    """Vectors around one centre per class, on scales that differ by powers of ten."""
    rng = np.random.default_rng(0)
    labels = [i % num_classes for i in range(count)]
    centres = rng.standard_normal((num_classes, width)) * 3
    x = centres[labels] + rng.standard_normal((count, width))
    scales = 10.0 ** np.arange(width) + np.zeros(width)
    return torch.tensor(x * scales + 100 * scales, dtype=torch.float64).float(), labels


class TestFit:
    def test_head_takes_features_as_they_come(self):
        features, labels = clouds()
        head = fit_linear(features, labels, num_classes=3, seed=0)
        chosen = head.as_layer()(features).argmax(dim=1)
        accuracy = 100 * (chosen == torch.tensor(labels)).double().mean().item()
        scores = head.scores
        whole = scores.top1 * scores.num_samples
        assert scores.held_out_top1 is not None
        whole += scores.held_out_top1 * scores.held_out_samples
        assert accuracy == pytest.approx(whole / 60)
        assert accuracy > 90

    def test_is_a_function_of_its_seed(self):
        features, labels = clouds()
        one, again, other = (
            fit_linear(features, labels, num_classes=3, seed=seed) for seed in (0, 0, 1)
        )
        assert torch.equal(one.weight, again.weight)
        assert torch.equal(one.bias, again.bias)
        assert not torch.equal(one.weight, other.weight)

    def test_two_classes_have_a_row_each(self):
        features, labels = clouds(num_classes=2)
        head = fit_linear(features, labels, num_classes=2, seed=0)
        assert head.weight.shape == (2, 5)
        assert head.scores.top1 > 90
        chosen = head.as_layer()(features).argmax(dim=1)
        assert (chosen == torch.tensor(labels)).double().mean() > 0.9

    def test_held_out_images_have_no_part_in_the_head(self):
        features, labels = clouds()
        head = fit_linear(features, labels, num_classes=3, seed=0)
        fitted, held = hold_out(labels, 0.1, seed=0)
        twin = {labels[position]: position for position in fitted}
        for position in held:
            features[position] = features[twin[labels[position]]]
        again = fit_linear(features, labels, num_classes=3, seed=0)
        assert again.scores.strength == head.scores.strength
        assert torch.equal(again.weight, head.weight)
        assert again.scores.held_out_samples == len(held) == 6

    def test_weak_features_choose_a_strong_penalty(self):
        labels = [i % 2 for i in range(200)]
        noise = fit_linear(torch.randn(200, 80), labels, num_classes=2, seed=0)
        clear = fit_linear(*clouds(), num_classes=3, seed=0)
        assert noise.scores.strength < clear.scores.strength

    def test_one_image_a_class_leaves_none_to_hold_out(self):
        features = torch.eye(4)
        head = fit_linear(features, [0, 1, 2, 3], num_classes=4, seed=0)
        assert head.scores.held_out_top1 is None
        assert (head.scores.num_samples, head.scores.held_out_samples) == (4, 0)
        assert torch.equal(head.as_layer()(features).argmax(dim=1), torch.arange(4))

    def test_a_feature_that_never_varies_does_no_harm(self):
        features, labels = clouds()
        features[:, 2] = 7.0
        head = fit_linear(features, labels, num_classes=3, seed=0)
        assert head.weight.isfinite().all()
        assert head.bias.isfinite().all()


@pytest.fixture(scope="module")
def untrained() -> FrozenTeacher:
    return FrozenTeacher(create_staged("resnet18", num_classes=7, image_size=32))


class TestFitOnData:
    def fit(self, teacher, source=DATA, max_samples=1000, **tables):
        recipe = Recipe.from_dict(
            {"student": {"name": "resnet18"}, "data": {"source": source}, **tables}
        )
        return fit_head(
            teacher,
            open_data(DataConfig(source=source)),
            recipe,
            max_samples=max_samples,
            crop_pct=None,
            device=torch.device("cpu"),
            dtype=None,
        )

    def test_is_on_the_teachers_pooled_vector(self, untrained):
        head = self.fit(untrained)
        assert head.weight.shape == (4, untrained.width)
        assert head.scores.num_samples + head.scores.held_out_samples == 64
        assert head.scores.top1 == 100

    def test_takes_no_more_images_than_it_may(self, untrained):
        head = self.fit(untrained, max_samples=20)
        assert head.scores.num_samples + head.scores.held_out_samples == 20

    def test_a_class_without_an_image_is_refused(self, untrained):
        with pytest.raises(RecipeError, match=r"head_samples = 3 leaves the class 'pattern \d'"):
            self.fit(untrained, max_samples=3)


class TestFile:
    def test_gives_the_head_back(self, tmp_path):
        head = fit_linear(*clouds(), num_classes=3, seed=0)
        save_head(head, tmp_path / "head.safetensors")
        found = load_head(tmp_path / "head.safetensors")
        assert torch.equal(found.weight, head.weight)
        assert torch.equal(found.bias, head.bias)
        assert found.scores == head.scores

    def test_of_another_kind_is_refused(self, tmp_path):
        save_file({"weight": torch.ones(2)}, tmp_path / "head.safetensors")
        with pytest.raises(CheckpointError, match="is not the head of a teacher"):
            load_head(tmp_path / "head.safetensors")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run that knows four patterns; the data will have six."""
    return train_vit(tmp_path_factory.mktemp("teacher") / "run", epochs=2)


@pytest.fixture(scope="module")
def probed(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("probed") / "run"
    return distill_cnn(out, teacher, "teacher.head=probe", data=WIDER, epochs=2)


class TestRun:
    def test_tells_how_well_the_head_does(self, probed):
        (found,) = summary(probed)["teachers"]
        assert found["classes"] == "probe"
        head = found["head"]
        assert head["num_samples"] + head["held_out_samples"] == 48
        assert 0 < head["held_out_top1"] <= 100
        # The head is used on held-out images, where a random one would be at chance.
        assert found["top1"] > 60

    def test_keeps_the_head(self, probed):
        head = load_head(probed / "teacher_head.safetensors")
        assert head.weight.shape == (6, 32)

    def test_flag_is_the_same_as_the_table(self, teacher, probed, tmp_path):
        done = anykd(
            *("distill", "--teacher", teacher, "--teacher-head", "probe", "--student", "resnet18"),
            *("--data", WIDER, "--method", "kd", "-o", tmp_path / "run", *short(CNN, epochs=2)),
        )
        assert done.code == 0, done.err
        assert_same_run(tmp_path / "run", probed)
        assert "its new head 100.00 % on the 43 images it was fitted to" in done.err

    def test_resumed_takes_the_head_that_it_keeps(self, teacher, probed, tmp_path, monkeypatch):
        out = tmp_path / "run"
        interrupt(monkeypatch, epoch=1, step=0)
        with pytest.raises(InterruptionError):
            distill_cnn(
                out, teacher, "teacher.head=probe", "train.log_every=1", data=WIDER, epochs=2
            )
        monkeypatch.undo()
        kept = load_head(out / "teacher_head.safetensors")
        changed = kept.__class__(-kept.weight, -kept.bias, kept.scores)
        save_head(changed, out / "teacher_head.safetensors")
        done = anykd("distill", "--resume", "-o", out)
        assert done.code == 0, done.err
        # It was not fitted anew: a head turned round teaches something else.
        turned = (out / "student" / "model.safetensors").read_bytes()
        assert turned != (probed / "student" / "model.safetensors").read_bytes()
        assert torch.equal(load_head(out / "teacher_head.safetensors").weight, changed.weight)

    def test_fbt_runs_its_tail_with_the_new_head(self, teacher, tmp_path):
        done = distill_cnn(
            tmp_path / "run", teacher, "teacher.head=probe", method="fbt", data=WIDER
        )
        assert summary(done)["teachers"][0]["classes"] == "probe"
        assert "fusion_top1" in summary(done)

    def test_each_of_two_teachers_has_a_head_of_its_own(self, teacher, tmp_path):
        done = anykd(
            *("distill", "--teacher", teacher, "--teacher", teacher, "--teacher-head", "probe"),
            *("--student", "resnet18", "--data", WIDER, "--method", "kd", "-o", tmp_path / "run"),
            *short(CNN),
        )
        assert done.code == 0, done.err
        assert [found["classes"] for found in summary(tmp_path / "run")["teachers"]] == 2 * [
            "probe"
        ]
        assert (tmp_path / "run" / "teacher_head.safetensors").is_file()
        assert (tmp_path / "run" / "teacher_2_head.safetensors").is_file()

    def test_where_features_alone_are_compared_there_is_none(self, teacher, tmp_path):
        out = distill_cnn(tmp_path / "run", teacher, "teacher.head=probe", method="rsd", data=WIDER)
        assert summary(out)["teachers"][0]["classes"] == "none needed"
        assert not (out / "teacher_head.safetensors").exists()
        assert "teacher.head is not used" in json.dumps(summary(out)["findings"])

    @pytest.mark.parametrize("head", ["probe", "finetune"])
    def test_data_without_labels_is_refused(self, teacher, tmp_path, head):
        done = anykd(
            *("distill", "--teacher", teacher, "--teacher-head", head, "--student", "resnet18"),
            *("--data", DATA, "--method", "kd", "-o", tmp_path / "run"),
            *short(CNN, "data.labels=false", "method.task_weight=0"),
        )
        assert done.code == 2
        assert f"teacher.head = '{head}' needs labels to train on" in done.err
        assert not (tmp_path / "run").exists()


def head_of_a_rank() -> list[torch.Tensor]:
    """Only the first rank may fit: here each would find something else."""
    head = from_first_rank(lambda: fit_linear(*clouds(), num_classes=3, seed=rank()))
    return [head.weight, head.bias]


@pytest.mark.distributed
def test_every_rank_has_the_head_of_the_first(tmp_path):
    first, second = run_on_ranks(head_of_a_rank, folder=tmp_path)
    alone = fit_linear(*clouds(), num_classes=3, seed=0)
    for found in (first, second):
        torch.testing.assert_close(found, [alone.weight, alone.bias], rtol=0, atol=0)
