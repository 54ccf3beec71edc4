"""OFA against NumPy, and the sizes of its branches."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from anykd.errors import RecipeError
from anykd.methods import build_method
from anykd.methods.ofa import OFA
from anykd.models import FrozenTeacher, create_staged
from anykd.models.branches import MapBranch, TokenBranch
from tests.methods.small import random_batch, small_pair


def build(student: str = "cnn", teacher: str = "vit", **options) -> OFA:
    method = build_method("ofa", *small_pair(student, teacher), **options).eval()
    assert isinstance(method, OFA)
    return method


def expected_loss(scores, target, labels, *, gamma=1.0, temperature=1.0, form="code") -> float:
    """The paper's formula, class by class."""
    log_p = log_softmax(scores.detach().double().numpy() / temperature, axis=1)
    p_t = softmax(target.double().numpy() / temperature, axis=1)
    total = 0.0
    for b, c in np.ndindex(*p_t.shape):
        is_target = c == int(labels[b].argmax())
        if form == "code":
            weight = (p_t[b, c] + is_target) ** gamma - is_target
        else:
            weight = (1 + p_t[b, c]) ** gamma if is_target else p_t[b, c]
        total -= weight * log_p[b, c]
    return total / len(p_t)


def scores_of(method: OFA, batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What is matched, by term, and the teacher's scores."""
    seen = method.student(batch.images)
    scores = {"ofa_logits": seen.logits}
    for stage, branch in zip(method.config.stages, method.branches, strict=True):
        scores[f"ofa_stage{stage}"] = branch(seen.stages[stage - 1], seen.prefixes[stage - 1])
    return scores, method.teacher(batch.images).logits


class TestTerms:
    @pytest.mark.parametrize(
        ("student", "teacher"), [("cnn", "vit"), ("vit", "cnn"), ("mlp", "cnn"), ("swin", "cnn")]
    )
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"gamma": 1.4, "temperature": 2.0},
            {"gamma": 1.2, "form": "paper"},
        ],
        ids=str,
    )
    def test_match_numpy(self, student, teacher, options):
        method, batch = build(student, teacher, **options), random_batch()
        scores, target = scores_of(method, batch)
        terms = method(batch).terms
        assert terms.keys() == {"task", *scores}
        for name, own in scores.items():
            expected = expected_loss(own, target, batch.labels, **options)
            assert terms[name].item() == pytest.approx(expected, rel=1e-4), name

    def test_each_stage_and_the_logits_have_their_own_gamma(self):
        gammas = (1.0, 1.1, 1.3, 1.5, 2.0)
        method, batch = build(gamma=gammas), random_batch()
        scores, target = scores_of(method, batch)
        terms = method(batch).terms
        order = ["ofa_stage1", "ofa_stage2", "ofa_stage3", "ofa_stage4", "ofa_logits"]
        for name, gamma in zip(order, gammas, strict=True):
            expected = expected_loss(scores[name], target, batch.labels, gamma=gamma)
            assert terms[name].item() == pytest.approx(expected, rel=1e-4), name

    def test_are_scaled_by_their_weights(self):
        plain, batch = build(), random_batch()
        weighted = build(kd_weight=0.5, branch_weight=0.1, task_weight=0)
        weighted.load_state_dict(plain.state_dict())
        once, scaled = plain(batch).terms, weighted(batch).terms
        assert "task" not in scaled
        for name, term in scaled.items():
            factor = 0.5 if name == "ofa_logits" else 0.1
            torch.testing.assert_close(term, factor * once[name])

    def test_branches_read_the_class_token(self):
        method, batch = build("vit", "cnn"), random_batch()
        seen = method.student(batch.images)
        branch = method.branches[0]
        without = branch(seen.stages[0], None)
        assert not torch.allclose(branch(seen.stages[0], seen.prefixes[0]), without, atol=1e-3)


class TestStages:
    @pytest.mark.parametrize("stages", [(), (4,), (1, 3), (3, 1)])
    def test_those_chosen_have_a_branch_and_a_term(self, stages):
        method = build(stages=stages)
        terms = method(random_batch()).terms
        assert len(method.branches) == len(stages)
        assert set(terms) == {"task", "ofa_logits", *(f"ofa_stage{stage}" for stage in stages)}

    @pytest.mark.parametrize("stages", [(1, 1), (0,), (5,), (1, 2, 3, 4, 4)])
    def test_those_that_do_not_exist_or_repeat_are_refused(self, stages):
        with pytest.raises(RecipeError, match=r"method\.?(stages)?"):
            build(stages=stages)

    def test_a_wrong_number_of_gammas_is_refused(self):
        with pytest.raises(RecipeError, match=r"gamma needs 3 values .* got 2"):
            build(stages=(1, 2), gamma=(1.0, 1.0))


class TestBranches:
    @pytest.mark.parametrize(
        ("student", "kind"),
        [("cnn", MapBranch), ("vit", TokenBranch), ("mlp", TokenBranch), ("swin", TokenBranch)],
    )
    def test_suit_the_students_stages(self, student, kind):
        method = build(student, "cnn")
        assert [type(branch) for branch in method.branches] == [kind] * 4

    @pytest.mark.parametrize(
        ("student", "design", "kind"),
        [("cnn", "token", TokenBranch), ("vit", "map", MapBranch), ("swin", "map", MapBranch)],
    )
    def test_of_the_other_design_can_be_chosen(self, student, design, kind):
        method = build(student, "mlp", branch_design=design)
        assert [type(branch) for branch in method.branches] == [kind] * 4
        method.train()(random_batch()).loss.backward()
        assert all(p.grad is not None for p in method.branches.parameters())

    @pytest.mark.parametrize(("target_grid", "merges"), [(7, 0), (4, 0), (2, 1), (1, 2)])
    def test_of_tokens_merge_down_to_the_target_grid(self, target_grid, merges):
        method = build("vit", "cnn", target_grid=target_grid)
        for branch in method.branches:
            assert isinstance(branch, TokenBranch)
            assert len(branch.merges) == merges
        assert method(random_batch()).loss.isfinite()

    def test_start_with_the_papers_weights(self):
        method = build()
        for branch in method.branches:
            assert isinstance(branch, MapBranch)
            assert (branch.classifier.bias == 0).all()
            assert branch.classifier.weight.std().item() == pytest.approx(0.02, rel=0.3)


# Channels of the four stages at 224 pixels, typed from the architectures' publications.
CNN_STUDENTS = {"resnet18": (64, 128, 256, 512), "mobilenetv2_100": (24, 32, 96, 1280)}
# Channels and grid of the four stages.
TOKEN_STUDENTS = {
    "deit_tiny_patch16_224": ((192, 14),) * 4,
    "resmlp_12_224": ((384, 14),) * 4,
    "swin_pico_patch4_window7_224": ((48, 56), (96, 28), (192, 14), (384, 7)),
    "swin_nano_patch4_window7_224": ((64, 56), (128, 28), (256, 14), (512, 7)),
}


def map_parameters(chan: int, stage: int, width: int) -> int:
    """Of a map branch with 100 classes, from the paper's description alone."""
    classifier = width * 100 + 100
    if stage == 4:
        return chan * width + width + classifier
    total, widths = 0, [chan * 2**i for i in range(4 - stage)] + [width]
    for i, o in itertools.pairwise(widths):
        depthwise, norms = 2 * 9 * i, 2 * i + 2 * o
        total += depthwise + i * i + i * o + norms
    return total + classifier


def token_parameters(chan: int, grid: int, stage: int, width: int) -> int:
    """Of a token branch with 100 classes, from the paper's description alone."""
    total = 0
    while grid // 7 >= 2:
        total += 2 * 4 * chan + 4 * chan * width  # norm and projection of 2x2 neighbours
        grid, chan = grid // 2, width
    attention = width * 3 * width + width * width + width
    mlp = width * 4 * width + 4 * width + 4 * width * width + width
    block = 2 * width + attention + 2 * width + mlp
    return total + max(4 - stage, 1) * block + width * 100 + 100


def branch_parameters(student: str, teacher: str) -> list[int]:
    # Of the teacher only the width counts, which is the same at 64 pixels.
    method = build_method(
        "ofa",
        create_staged(student, num_classes=100, image_size=224),
        FrozenTeacher(create_staged(teacher, num_classes=100, image_size=64)),
    )
    assert isinstance(method, OFA)
    return [sum(p.numel() for p in branch.parameters()) for branch in method.branches]


@pytest.mark.parametrize(
    ("teacher", "teacher_width"), [("convnext_tiny", 768), ("vit_small_patch16_224", 384)]
)
@pytest.mark.parametrize("student", CNN_STUDENTS)
def test_branches_of_cnn_students_have_the_papers_numbers_of_parameters(
    student, teacher, teacher_width
):
    widths = CNN_STUDENTS[student]
    width = max(widths[3], teacher_width)
    expected = [map_parameters(chan, stage, width) for stage, chan in enumerate(widths, start=1)]
    assert branch_parameters(student, teacher) == expected


@pytest.mark.parametrize("student", TOKEN_STUDENTS)
def test_branches_of_token_students_have_the_papers_numbers_of_parameters(student):
    stages = TOKEN_STUDENTS[student]
    width = stages[3][0]
    expected = [
        token_parameters(chan, grid, i, width) for i, (chan, grid) in enumerate(stages, start=1)
    ]
    assert branch_parameters(student, "convnext_tiny") == expected


def test_branches_of_swin_at_64_pixels_are_trained():
    student = create_staged("swin_pico_patch4_window7_224", num_classes=5, image_size=64)
    _, teacher = small_pair("cnn", "cnn")
    method = build_method("ofa", student, teacher)
    method(random_batch(image_size=64)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
