"""PAT: each term from its parts, attention in NumPy, the feedback, and what stops a collapse."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from anykd.engine.config import TrainConfig
from anykd.engine.optim import build_optimizer
from anykd.errors import ModelError, RecipeError
from anykd.losses import pyramid_loss
from anykd.methods import build_method
from anykd.methods.pat import PAT
from anykd.models import FrozenTeacher, create_staged
from anykd.models.prompts import FeedbackPrompt
from anykd.models.regions import RegionAwareAttention
from anykd.types import Batch, Features
from tests.losses.test_pyramid import expected_loss
from tests.methods.small import PAIRS, fingerprint, random_batch, small, small_pair
from tests.models.moved import move_weights

STAGES = (1, 2, 3, 4)
FEEDBACKS = [
    {"feedback": "previous"},
    {"feedback": "current"},
    {"feedback": "current", "detach_feedback": False},
    {"feedback": "none"},
]


def build(student: str = "cnn", teacher: str = "vit", **options: Any) -> PAT:
    """A small method whose prompts and feedback are not at their first value, which is zero."""
    method = build_method("pat", *small_pair(student, teacher), **{"region_width": 32, **options})
    assert isinstance(method, PAT)
    move_weights(method.prompts)
    for name, buffer in method.named_buffers(recurse=False):
        assert name.startswith("feedback_stage")
        buffer.normal_()
    return method


def seen(method: PAT, batch: Batch) -> tuple[list[Tensor], Features, dict[int, Tensor]]:
    """The student's stages blended, what the teacher saw, and its stages adapted."""
    teacher = method.teacher(batch.images)
    blended = method.regions(method.student(batch.images).stages)
    adapted = {}
    for stage in method.config.prompt_stages:
        target, own = teacher.stages[stage - 1], blended[stage - 1]
        match method.config.feedback:
            case "previous":
                feedback = method.get_buffer(f"feedback_stage{stage}").expand_as(target)
            case "current":
                feedback = own - target
            case _:
                feedback = None
        adapted[stage] = method.prompts[str(stage)](target, feedback)
    return blended, teacher, adapted


def divergence(own: Tensor, other: Tensor, temperature: float = 1.0) -> float:
    """Of the first distribution from the second, in NumPy."""
    log_q, log_p = (
        log_softmax(x.detach().double().numpy() / temperature, axis=1) for x in (own, other)
    )
    return temperature**2 * float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def gradient_norm(term: Tensor, module: nn.Module) -> float:
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(g.square().sum()) for g in found if g is not None))


class TestTerms:
    @pytest.mark.parametrize(("student", "teacher"), [*PAIRS, ("distilled", "vit")])
    @pytest.mark.parametrize("options", FEEDBACKS, ids=str)
    def test_match_numpy(self, student, teacher, options):
        method = build(student, teacher, temperature=2.0, guard="logits", **options)
        method.eval().double()
        method.teacher.model.double()  # the divergence of the guard is small
        batch = random_batch()
        batch = Batch(batch.images.double(), batch.labels)
        blended, taught, adapted = seen(method, batch)
        scored = method.teacher.tail(adapted[3], taught.prefixes[2]).logits
        expected = {
            "pat_logits": divergence(method.student(batch.images).logits, taught.logits, 2.0),
            "pat_guard3": divergence(scored, taught.logits),
        }
        for stage, own, target in zip(STAGES, blended, taught.stages, strict=True):
            expected[f"pat_stage{stage}"] = expected_loss(own, adapted[stage])
            if stage != 3:
                expected[f"pat_guard{stage}"] = expected_loss(adapted[stage], target)
        terms = method(batch).terms
        assert terms.keys() == {"task", *expected}
        for name, value in expected.items():
            assert value > 0
            assert terms[name].item() == pytest.approx(value, rel=1e-9), name

    def test_are_scaled_by_their_weights(self):
        plain, batch = build().eval(), random_batch()
        weighted = build(kd_weight=0.5, feature_weight=0.1, guard_weight=3, task_weight=0).eval()
        weighted.load_state_dict(plain.state_dict())
        factors = {"pat_logits": 0.5, "pat_stage": 0.1, "pat_guard": 3}
        once, scaled = plain(batch).terms, weighted(batch).terms
        assert scaled.keys() == once.keys() - {"task"}
        for name, term in scaled.items():
            torch.testing.assert_close(term, factors[name.rstrip("1234")] * once[name])

    def test_divergence_is_left_out_at_weight_0(self):
        method = build(kd_weight=0)
        assert not method.config.reads_logits
        assert "pat_logits" not in method(random_batch()).terms
        teacher = FrozenTeacher(small("vit", 2, num_classes=9))
        other = build_method("pat", small("cnn", 1), teacher, kd_weight=0, region_width=32)
        assert other.train()(random_batch()).loss.isfinite()  # scored by its own 9 classes

    @pytest.mark.parametrize("stages", [(), (4,), (3, 1)])
    def test_only_the_stages_chosen_are_prompted_and_guarded(self, stages):
        method, batch = build(prompt_stages=stages).eval(), random_batch()
        terms = method(batch).terms
        guards = {f"pat_guard{stage}" for stage in stages}
        assert terms.keys() == {"task", "pat_logits", *guards, *(f"pat_stage{k}" for k in STAGES)}
        blended, taught, _ = seen(method, batch)
        for stage in {*STAGES} - {*stages}:
            expected = expected_loss(blended[stage - 1], taught.stages[stage - 1])
            assert terms[f"pat_stage{stage}"].item() == pytest.approx(expected, rel=1e-4)
        assert {name for name, _ in method.named_buffers(recurse=False)} == {
            f"feedback_stage{stage}" for stage in stages
        }

    def test_read_no_labels(self):
        method = build(task_weight=0)
        assert not method.needs_labels
        assert method(Batch(random_batch().images)).loss.isfinite()
        assert build().needs_labels

    @pytest.mark.parametrize("options", FEEDBACKS, ids=str)
    def test_take_one_image(self, options):
        method, batch = build(**options).train(), random_batch(1)
        method.student.eval()  # its own batch norms see one position
        method(batch).loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


class TestParameters:
    @pytest.mark.parametrize(
        "options", [*FEEDBACKS, {"guard": "maps"}, {"prompt_stages": ()}, {"kd_weight": 0}], ids=str
    )
    @pytest.mark.parametrize(("student", "teacher"), [("cnn", "vit"), ("mlp", "cnn")])
    def test_all_have_a_gradient_that_is_not_zero(self, student, teacher, options):
        method = build(student, teacher, **options).train()
        method(random_batch(8)).loss.backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None, name
            if not name.startswith("student."):
                assert parameter.grad.abs().sum() > 0, name

    def test_positions_do_not_decay(self):
        method = build()
        assert (
            "regions.positions" in method.no_weight_decay() & dict(method.named_parameters()).keys()
        )
        optimizer = build_optimizer(method, TrainConfig(weight_decay=0.05))
        free = [g["params"] for g in optimizer.param_groups if g["weight_decay"] == 0]
        assert any(p is method.regions.positions for group in free for p in group)

    def test_training_leaves_the_teacher_as_it_is(self):
        method = build("cnn", "cnn").train()
        before = fingerprint(method.teacher.model.state_dict())
        for _ in range(2):
            method(random_batch()).loss.backward()
        assert fingerprint(method.teacher.model.state_dict()) == before
        assert all(p.grad is None for p in method.teacher.model.parameters())


class TestRegions:
    SHAPES = ((8, 8, 8), (12, 5, 7), (16, 2, 2), (24, 1, 1))

    def attention(self, targets=SHAPES, sources=SHAPES, **options) -> RegionAwareAttention:
        regions = RegionAwareAttention(sources, targets, **{"grid": 4, "width": 6, **options})
        move_weights(regions)
        return regions.double()

    def stages(self, shapes=SHAPES) -> list[Tensor]:
        return [torch.randn(2, *shape, dtype=torch.float64) for shape in shapes]

    def test_attend_by_the_papers_formula(self):
        regions, stages = self.attention(), self.stages()
        tokens = torch.cat([f(x) for f, x in zip(regions.fold, stages, strict=True)], dim=1)
        x = tokens.detach().numpy()
        assert x.shape == (2, 16 + 16 + 4 + 1, 6)
        weights = {key: p.detach().numpy() for key, p in regions.named_parameters()}
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * weights["norm.weight"] + weights["norm.bias"] + weights["positions"]
        q, k, v = np.split(x @ weights["qkv.weight"].T + weights["qkv.bias"], 3, axis=-1)
        blended = torch.from_numpy(softmax(q @ k.transpose(0, 2, 1) / np.sqrt(6), axis=-1) @ v)
        for index, (start, end) in enumerate([(0, 16), (16, 32), (32, 36), (36, 37)]):
            expected = regions.unfold[index](blended[:, start:end])
            torch.testing.assert_close(regions(stages)[index], expected)

    @pytest.mark.parametrize(
        "targets",
        [
            ((8, 8, 8),) * 4,
            ((3, 14, 14), (4, 7, 7), (5, 3, 3), (6, 1, 1)),
            ((3, 56, 56), (4, 28, 28), (5, 14, 14), (6, 7, 7)),
            ((3, 1, 9), (4, 9, 1), (5, 2, 2), (6, 33, 5)),
        ],
    )
    def test_have_the_teachers_shapes_and_see_every_stage(self, targets):
        regions, stages = self.attention(targets), self.stages()
        for x in stages:
            x.requires_grad_()
        maps = regions(stages)
        assert [tuple(x.shape[1:]) for x in maps] == list(targets)
        for x in maps:
            for gradient in torch.autograd.grad(x.square().sum(), stages, retain_graph=True):
                assert gradient.abs().sum() > 0

    def test_of_one_image_do_not_see_another(self):
        regions, stages = self.attention(), self.stages()
        alone = regions([x[:1] for x in stages])
        for both, one in zip(regions(stages), alone, strict=True):
            torch.testing.assert_close(both[:1], one)

    def test_fold_reads_each_region_and_nothing_else(self):
        fold = self.attention().fold[0]  # 8x8 in 4x4 regions of 2x2
        maps = torch.randn(1, 8, 8, 8, dtype=torch.float64, requires_grad=True)
        tokens = fold(maps)
        assert tokens.shape == (1, 16, 6)
        (gradient,) = torch.autograd.grad(tokens[0, 6].sum(), maps)  # second row, third column
        rows, columns = (gradient[0].abs().sum(0) > 0).nonzero().T
        assert {*rows.tolist()} == {2, 3}
        assert {*columns.tolist()} == {4, 5}
        assert len(rows) == 4

    def test_unfold_writes_each_region_and_nothing_else(self):
        unfold = self.attention().unfold[0]
        tokens = torch.randn(1, 16, 6, dtype=torch.float64, requires_grad=True)
        stage = unfold(tokens)
        for row, column in [(0, 0), (3, 4), (7, 1)]:
            (gradient,) = torch.autograd.grad(
                stage[0, :, row, column].sum(), tokens, retain_graph=True
            )
            region = (gradient[0].abs().sum(1) > 0).nonzero().flatten().tolist()
            assert region == [row // 2 * 4 + column // 2]
        # All positions of a region are written by weights of their own.
        assert len(np.unique(stage[0, :, :2, :2].detach().numpy())) == 8 * 4

    def test_cost_the_same_for_maps_of_any_size(self):
        def cost(scale: int) -> int:
            shapes = [(8, scale * side, scale * side) for side in (16, 16, 16, 16)]
            regions = self.attention(shapes, shapes)
            assert sum(regions.tokens) == 4 * 16
            return sum(p.numel() for p in regions.parameters())

        assert cost(1) == cost(2) == cost(8)

    @pytest.mark.parametrize("grid", [1, 2, 3])
    def test_are_as_many_as_the_field_says(self, grid):
        method = build(region_grid=grid)  # the CNN's stages have 8, 4, 2 and 1 positions a side
        assert method.regions.tokens == [min(grid, side) ** 2 for side in (8, 4, 2, 1)]
        assert method(random_batch()).loss.isfinite()

    def test_are_as_wide_as_the_field_says(self):
        assert build(region_width=20).regions.positions.shape == (1, 16 + 16 + 4 + 1, 20)

    @pytest.mark.parametrize(
        ("student", "teacher"), [("cnn", "vit"), ("vit", "cnn"), ("vit", "vit"), ("cnn", "cnn")]
    )
    @pytest.mark.parametrize("sizes", [(40, 56), (56, 40), (72, 32)])
    def test_of_odd_grids_are_compared(self, student, teacher, sizes):
        method = build_method(
            "pat",
            small(student, 1, image_size=sizes[0]),
            FrozenTeacher(small(teacher, 2, image_size=sizes[1])),
            region_width=32,
        )
        output = method.train()(random_batch())
        output.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


class TestPrompts:
    def test_start_from_the_teacher_as_it_is(self):
        method = build_method("pat", *small_pair("cnn", "vit"), region_width=32).eval()
        assert isinstance(method, PAT)
        batch = random_batch()
        _, taught, adapted = seen(method, batch)
        for stage, maps in adapted.items():
            assert torch.equal(maps, taught.stages[stage - 1])
        terms = method(batch).terms
        assert all(terms[f"pat_guard{stage}"].item() == pytest.approx(0) for stage in STAGES)

    def test_are_as_wide_as_the_field_says(self):
        for prompt in build(prompt_width=5).prompts.values():
            assert isinstance(prompt, FeedbackPrompt)
            assert [len(p) for key, p in prompt.named_parameters() if key == "fuse.0.weight"] == [5]

    @pytest.mark.parametrize("stage", STAGES)
    def test_are_pulled_to_the_student_and_to_the_teacher(self, stage):
        method = build().eval()
        terms = method(random_batch()).terms
        for name in (f"pat_stage{stage}", f"pat_guard{stage}"):
            assert gradient_norm(terms[name], method.prompts[str(stage)]) > 0


class TestFeedback:
    def test_is_nothing_before_the_first_step(self):
        method = build_method("pat", *small_pair("cnn", "vit"))
        buffers = dict(method.named_buffers(recurse=False))
        assert buffers.keys() == {f"feedback_stage{stage}" for stage in STAGES}
        assert all((buffer == 0).all() for buffer in buffers.values())

    def test_is_the_mean_error_of_the_step_before(self):
        method, batch = build().train(), random_batch()
        with torch.no_grad():
            student = method.student(batch.images)
            blended = method.regions(student.stages)
            taught = method.teacher(batch.images)
            before = method(batch).terms
        for stage, own, target in zip(STAGES, blended, taught.stages, strict=True):
            expected = (own - target).double().mean(dim=0).float()
            found = method.get_buffer(f"feedback_stage{stage}")
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        with torch.no_grad():
            after = method(batch).terms  # of the same images: only the feedback has changed
        for stage in STAGES:
            assert after[f"pat_guard{stage}"] != before[f"pat_guard{stage}"]

    def test_of_the_images_at_hand_is_not_seen(self):
        method = build().train()
        terms = method(random_batch()).terms
        assert all(gradient_norm(terms[f"pat_guard{k}"], method.student) == 0 for k in STAGES)
        assert all(gradient_norm(terms[f"pat_guard{k}"], method.regions) == 0 for k in STAGES)

    def test_is_kept_while_the_student_is_evaluated(self):
        method = build().eval()
        before = fingerprint(dict(method.named_buffers()))
        method(random_batch())
        assert fingerprint(dict(method.named_buffers())) == before

    def test_of_a_batch_is_saved_with_the_method(self):
        method, batch = build().train(), random_batch()
        with torch.no_grad():
            method(random_batch())
        resumed = build().train()
        resumed.load_state_dict(method.state_dict(), strict=True)
        with torch.no_grad():
            expected, actual = method(batch).terms, resumed(batch).terms
        assert all(torch.equal(actual[name], expected[name]) for name in expected)

    @pytest.mark.parametrize("detached", [True, False])
    def test_of_the_images_at_hand_pulls_the_student_where_it_is_not_detached(self, detached):
        method = build(feedback="current", detach_feedback=detached).train()
        assert dict(method.named_buffers(recurse=False)) == {}
        terms = method(random_batch()).terms
        for stage in STAGES:
            pull = gradient_norm(terms[f"pat_guard{stage}"], method.student)
            assert (pull == 0) == detached
        # Either way it is seen: another student, another guard.
        other = build(feedback="current", detach_feedback=detached)
        other.load_state_dict(method.state_dict())
        move_weights(other.regions, seed=3)
        batch = random_batch()
        with torch.no_grad():
            mine, others = method.eval()(batch).terms, other.eval()(batch).terms
        assert all(mine[f"pat_guard{k}"] != others[f"pat_guard{k}"] for k in STAGES)

    def test_can_be_left_out(self):
        method = build(feedback="none")
        assert dict(method.named_buffers(recurse=False)) == {}
        chan = method.teacher.shapes[0][0]
        assert method.prompts["1"].get_parameter("fuse.0.weight").shape[1] == chan
        assert build().prompts["1"].get_parameter("fuse.0.weight").shape[1] == 2 * chan


class TestCollapse:
    @pytest.mark.parametrize(("features", "guard"), [(1.0, 1.0), (10.0, 0.1), (0.5, 4.0)])
    def test_costs_what_is_between_student_and_teacher_whatever_the_prompts_do(
        self, features, guard, monkeypatch
    ):
        options: dict[str, Any] = {"feature_weight": features, "guard_weight": guard}
        method = build(guard="maps", feedback="current", **options).eval()
        batch = random_batch()
        blended, taught, _ = seen(method, batch)
        best = features / (features + guard)  # how far to the student it pays to go
        for share in (0, best / 2, best, 1, 1.5):
            for prompt in method.prompts.values():
                monkeypatch.setattr(
                    prompt, "forward", lambda stage, error, share=share: stage + share * error
                )
            terms = method(batch).terms
            for stage, own, target in zip(STAGES, blended, taught.stages, strict=True):
                least = best * guard * expected_loss(own, target)
                cost = (terms[f"pat_stage{stage}"] + terms[f"pat_guard{stage}"]).item()
                if share == best:
                    assert cost == pytest.approx(least, rel=1e-4)
                else:
                    assert cost > least

    def test_by_free_prompts_would_leave_the_regression_of_the_teacher(self):
        own, target = torch.randn(2, 3, 4, 7, 7, dtype=torch.float64)
        own.requires_grad_()
        features, guard = 2.0, 0.5
        adapted = ((features * own + guard * target) / (features + guard)).detach()
        loss = features * pyramid_loss(own, adapted) + guard * pyramid_loss(adapted, target)
        least = features * guard / (features + guard) * pyramid_loss(own, target)
        assert loss.item() == pytest.approx(least.item())
        pulls = [torch.autograd.grad(x, own)[0] for x in (loss, least)]
        torch.testing.assert_close(*pulls)  # the student is still drawn to the teacher's own map

    @pytest.mark.parametrize("teacher", ["cnn", "mlp", "swin"])
    def test_of_stage_3_costs_the_class_scores(self, teacher, monkeypatch):
        method, batch = build("cnn", teacher).eval(), random_batch(8)
        monkeypatch.setattr(
            method.prompts["3"], "forward", lambda stage, feedback: torch.ones_like(stage)
        )
        taught = method.teacher(batch.images)
        p = taught.logits.double().softmax(dim=1)
        # No one answer for all images is nearer to the teacher's than their mean.
        least = (p * (p.log() - p.mean(dim=0).log())).sum(dim=1).mean().item()
        cost = method(batch).terms["pat_guard3"].item()
        assert cost > least > 1e-6
        scored = method.teacher.tail(torch.ones_like(taught.stages[2])).logits
        assert torch.allclose(scored, scored[:1], atol=1e-6)

    def test_needs_a_guard(self):
        with pytest.raises(RecipeError, match="guard_weight"):
            build(guard_weight=0)
        with pytest.raises(RecipeError, match="feature_weight"):
            build(feature_weight=0)


class TestGuard:
    def test_of_maps_holds_stage_3_like_the_others(self):
        method, batch = build(guard="maps").eval(), random_batch()
        _, taught, adapted = seen(method, batch)
        expected = expected_loss(adapted[3], taught.stages[2])
        assert method(batch).terms["pat_guard3"].item() == pytest.approx(expected, rel=1e-4)

    def test_of_scores_reaches_the_prompts_through_the_teachers_tail(self):
        method = build("vit", "cnn").eval()
        assert method.guards_logits
        assert gradient_norm(method(random_batch()).terms["pat_guard3"], method.prompts["3"]) > 0
        assert not build("vit", "cnn", prompt_stages=(1, 2)).guards_logits

    @pytest.mark.parametrize("teacher", ["vit", "distilled"])
    def test_beside_a_class_token_compares_maps_unless_told_otherwise(self, teacher):
        assert not build("cnn", teacher).guards_logits
        assert build("cnn", teacher, guard="logits").guards_logits

    def test_of_a_teacher_without_a_tail_compares_maps(self):
        teacher = FrozenTeacher(create_staged("pit_ti_224", num_classes=5, image_size=64))
        method = build_method("pat", small("cnn", 1), teacher, region_width=32)
        assert isinstance(method, PAT)
        assert not method.guards_logits
        assert method(random_batch()).loss.isfinite()
        with pytest.raises(ModelError, match="has no tail"):
            build_method("pat", small("cnn", 1), teacher, guard="logits")


class TestConfig:
    @pytest.mark.parametrize("stages", [(1, 1), (0,), (5,)])
    def test_stages_that_do_not_exist_or_repeat_are_refused(self, stages):
        with pytest.raises(RecipeError, match=r"prompt_stages|method"):
            build(prompt_stages=stages)

    @pytest.mark.parametrize("feedback", ["previous", "none"])
    def test_feedback_that_has_no_gradient_cannot_be_attached(self, feedback):
        with pytest.raises(RecipeError, match='detach_feedback = false needs feedback = "current"'):
            build(feedback=feedback, detach_feedback=False)


COMPILE = """
import torch
from tests.methods.small import random_batch
from tests.methods.test_pat import build

batch = random_batch()
for student, teacher, options in (  # guarded by scores, and by maps
    ("vit", "mlp", {"feedback": "previous"}),
    ("mlp", "vit", {"feedback": "current", "detach_feedback": False}),
):
    method, same = (build(student, teacher, **options).train() for _ in range(2))
    same.load_state_dict(method.state_dict())
    compiled = torch.compile(same, fullgraph=True, backend="eager")
    for _ in range(2):  # the second step sees the feedback of the first
        torch.testing.assert_close(compiled(batch).terms, method(batch).terms)
    torch.testing.assert_close(dict(same.named_buffers()), dict(method.named_buffers()))
    print(options["feedback"])
"""


def test_a_step_is_one_graph_for_the_compiler():
    # In another process: the compiler cannot look through the shape checks of a test run.
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["previous", "current"]
