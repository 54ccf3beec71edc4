"""FBT: who stands in front, what is shared, what each switch takes away, and NumPy's values."""

import copy
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from anykd.engine.config import TrainConfig
from anykd.engine.optim import build_optimizer
from anykd.errors import RecipeError
from anykd.methods import build_method
from anykd.methods.fbt import FBT
from anykd.models import FrozenTeacher, StagedModel, create_staged
from anykd.models.fusion import L2G
from anykd.types import Batch, Features
from tests.methods.small import fingerprint, random_batch, small, small_pair
from tests.models.moved import move_weights

LINKS = ("teacher_student", "teacher_fusion", "fusion_student")
TERMS = {"task"} | {f"{link}_{part}" for link in LINKS for part in ("info_nce", "ofa")}


def build(student: str = "cnn", teacher: str = "vit", **options: Any) -> FBT:
    method = build_method("fbt", *small_pair(student, teacher), **options)
    assert isinstance(method, FBT)
    return method


def l2g_of(method: FBT) -> L2G:
    assert method.l2g is not None
    return method.l2g


def fused(method: FBT, batch: Batch) -> Features:
    """The fusion put together from its parts: three stages, L2G, the other model's tail."""
    models = (method.student, method.teacher.model)
    front, tail = models if method.student_first else models[::-1]
    return tail.tail(*l2g_of(method)(front(batch.images).stages[2]))


# The table of CIFAR-100 results: each teacher's students, and whose stages 1 to 3 stand in front.
CIFAR = [
    ("swin_tiny_patch4_window7_224", "resnet18", True),
    ("swin_tiny_patch4_window7_224", "mobilenetv2_100", True),
    ("swin_tiny_patch4_window7_224", "resmlp_12_224", True),
    ("vit_small_patch16_224", "resnet18", True),
    ("vit_small_patch16_224", "mobilenetv2_100", True),
    ("mixer_b16_224", "resnet18", True),
    ("mixer_b16_224", "mobilenetv2_100", True),
    ("mixer_b16_224", "deit_tiny_patch16_224", True),
    ("mixer_b16_224", "swin_pico_patch4_window7_224", True),
    ("convnext_tiny", "deit_tiny_patch16_224", False),
    ("convnext_tiny", "swin_pico_patch4_window7_224", False),
    ("convnext_tiny", "resmlp_12_224", False),
]


@functools.lru_cache(maxsize=1)
def cifar_teacher(name: str) -> tuple[FrozenTeacher, dict[str, int]]:
    """A teacher with the checksums of its weights; the pairs of one teacher follow each other."""
    staged = create_staged(name, num_classes=5, image_size=64)
    move_weights(staged.model.get_classifier())  # Mixer's head of zeros passes no gradient
    return FrozenTeacher(staged), fingerprint(staged.state_dict())


@pytest.mark.parametrize(("teacher", "student", "student_first"), CIFAR)
def test_trains_every_pair_of_the_cifar_table(teacher, student, student_first):
    frozen, before = cifar_teacher(teacher)
    model = create_staged(student, num_classes=5, image_size=64)
    method = build_method("fbt", model, frozen).train()
    assert isinstance(method, FBT)
    assert method.student_first == student_first
    optimizer = build_optimizer(method, TrainConfig(optimizer="sgd", peak_lr=1e-3))
    for _ in range(2):
        optimizer.zero_grad()
        output = method(random_batch(image_size=64))
        assert output.terms.keys() == TERMS
        output.loss.backward()
        optimizer.step()
    gradients = {name: p.grad for name, p in method.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    embedding = [g for name, g in gradients.items() if name.startswith("l2g.embed")]
    assert all(g is not None and g.abs().sum() > 0 for g in embedding)
    assert fingerprint(frozen.model.state_dict()) == before
    kept = {key.split(".")[0] for key in method.state_dict()}
    assert kept <= {"student", "l2g", "links", "log_temperatures"}


class TestOrder:
    @pytest.mark.parametrize(
        ("student", "teacher", "student_first"),
        [
            ("cnn", "vit", True),
            ("cnn", "mlp", True),
            ("cnn", "swin", True),
            ("vit", "cnn", False),
            ("mlp", "cnn", False),
            ("swin", "cnn", False),
            ("cnn", "cnn", True),
            ("vit", "vit", True),
            ("vit", "mlp", True),
            ("mlp", "vit", True),
            ("swin", "mlp", True),
        ],
    )
    def test_puts_the_convolutional_model_in_front_and_else_the_student(
        self, student, teacher, student_first
    ):
        assert build(student, teacher).student_first == student_first

    @pytest.mark.parametrize("order", ["student_first", "teacher_first"])
    @pytest.mark.parametrize(("student", "teacher"), [("cnn", "vit"), ("swin", "cnn")])
    def test_can_be_forced_both_ways(self, student, teacher, order):
        method, batch = build(student, teacher, order=order), random_batch()
        tail = method.teacher.model if order == "student_first" else method.student
        assert method.student_first == (order == "student_first")
        stage, _ = l2g_of(method)(torch.randn(2, *_front(method).shapes[2]))
        assert stage.shape[1:] == tail.shapes[2]
        method.train()(batch).loss.backward()
        assert all(p.grad is not None for p in method.parameters())


def _front(method: FBT) -> StagedModel:
    return method.student if method.student_first else method.teacher.model


class TestFusion:
    @pytest.mark.parametrize(
        ("student", "teacher"),
        [("cnn", "vit"), ("vit", "cnn"), ("distilled", "cnn"), ("cnn", "mlp"), ("vit", "swin")],
    )
    def test_classifies_with_stages_l2g_and_tail(self, student, teacher):
        method, batch = build(student, teacher).eval(), random_batch()
        with torch.no_grad():
            logits = method.companions()["fusion"](batch.images)
            torch.testing.assert_close(logits, fused(method, batch).logits)
        assert logits.std() > 1e-4

    def test_runs_the_very_modules_of_student_and_teacher(self):
        method, batch = build("vit", "cnn").eval(), random_batch()
        with torch.no_grad():
            before = method.companions()["fusion"](batch.images)
            method.student.model.blocks[3].mlp.fc2.bias.add_(torch.randn(28))
            assert not torch.allclose(method.companions()["fusion"](batch.images), before)
        new = {name.split(".")[0] for name, _ in method.named_parameters()} - {"student"}
        assert new == {"l2g", "links", "log_temperatures"}

    @pytest.mark.parametrize(("student", "teacher"), [("cnn", "vit"), ("vit", "cnn")])
    def test_is_taught_by_the_teacher_down_to_l2g(self, student, teacher):
        method = build(student, teacher)
        terms = method(random_batch()).terms
        loss = terms["teacher_fusion_info_nce"] + terms["teacher_fusion_ofa"]
        gradients = torch.autograd.grad(loss, list(l2g_of(method).embed.parameters()))
        assert all(gradient.abs().sum() > 0 for gradient in gradients)

    def test_teaches_the_students_front_through_l2g_and_the_teachers_tail(self):
        method = build("cnn", "vit")
        loss = method(random_batch()).terms["teacher_fusion_ofa"]
        model = method.student.model
        front, back = torch.autograd.grad(
            loss, [model.conv1.weight, model.layer4[0].conv1.weight], allow_unused=True
        )
        assert front.abs().sum() > 0
        assert back is None

    def test_trains_the_students_own_tail_where_the_teacher_stands_in_front(self):
        method = build("vit", "cnn")
        loss = method(random_batch()).terms["teacher_fusion_ofa"]
        blocks = method.student.model.blocks
        front, back = torch.autograd.grad(
            loss, [blocks[2].mlp.fc1.weight, blocks[3].mlp.fc1.weight], allow_unused=True
        )
        assert front is None
        assert back is not None
        assert back.abs().sum() > 0

    def test_leaves_the_running_statistics_of_a_students_tail_alone(self):
        method, batch = build("cnn", "vit", order="teacher_first").train(), random_batch()
        alone = copy.deepcopy(method.student).train()
        before = alone.model.layer4[0].bn1.running_mean.clone()
        alone(batch.images)
        method(batch)
        for (name, own), other in zip(method.student.named_buffers(), alone.buffers(), strict=True):
            if "running" in name:
                assert torch.equal(own, other), name
        assert not torch.equal(method.student.model.layer4[0].bn1.running_mean, before)

    def test_is_absent_where_no_link_needs_it(self):
        method = build(teacher_fusion_weight=0, fusion_student_weight=0)
        assert method.companions() == {}
        assert method.l2g is None
        assert method(random_batch()).terms.keys() == {
            "task",
            "teacher_student_info_nce",
            "teacher_student_ofa",
        }


def numpy_info_nce(own: Tensor, other: Tensor, temperature: float) -> float:
    u, v = (x.detach().double().numpy() for x in (own, other))
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, v))
    return -np.diag(log_softmax(u @ v.T / temperature, axis=1)).mean()


def numpy_ofa(own: Tensor, other: Tensor, labels: Tensor, gamma: float) -> float:
    log_p = log_softmax(own.detach().double().numpy(), axis=1)
    p = softmax(other.detach().double().numpy(), axis=1)
    target = np.eye(p.shape[1])[labels.argmax(1).numpy()]
    return -(((p + target) ** gamma - target) * log_p).sum(1).mean()


class TestTerms:
    @pytest.mark.parametrize(
        ("student", "teacher"), [("cnn", "vit"), ("vit", "cnn"), ("mlp", "swin"), ("cnn", "wide")]
    )
    @pytest.mark.parametrize(
        ("info_nce", "heads", "gamma"),
        [("one_way", "when_needed", 1.0), ("symmetric", "always", 1.4)],
    )
    def test_match_numpy(self, student, teacher, info_nce, heads, gamma):
        method = build(student, teacher, info_nce=info_nce, heads=heads, gamma=gamma).eval()
        batch = random_batch(6)
        assert batch.labels is not None
        known = {
            "student": method.student(batch.images),
            "teacher": method.teacher(batch.images),
            "fusion": fused(method, batch),
        }
        terms = method(batch).terms
        assert terms.keys() == TERMS
        for link in LINKS:
            provider, receiver = (known[party] for party in link.split("_"))
            head = method.links[link].get_submodule("head")
            own, other = head(receiver.pooled), provider.pooled
            expected = numpy_info_nce(own, other, 0.07)
            if info_nce == "symmetric":
                expected = (expected + numpy_info_nce(other, own, 0.07)) / 2
            assert terms[f"{link}_info_nce"].item() == pytest.approx(expected, rel=1e-3)
            expected = numpy_ofa(receiver.logits, provider.logits, batch.labels, gamma)
            assert terms[f"{link}_ofa"].item() == pytest.approx(expected, rel=1e-4)

    def test_are_scaled_by_the_weights_of_link_and_loss(self):
        weights: dict[str, Any] = {
            "task_weight": 7.0,
            "ofa_weight": 0.5,
            "info_nce_weight": 0.25,
            "teacher_student_weight": 2.0,
            "teacher_fusion_weight": 3.0,
            "fusion_student_weight": 5.0,
        }
        plain, batch = build().eval(), random_batch()
        weighted = build(**weights).eval()
        weighted.load_state_dict(plain.state_dict())
        once, scaled = plain(batch).terms, weighted(batch).terms
        torch.testing.assert_close(scaled["task"], 7 * once["task"])
        for link in LINKS:
            for part in ("ofa", "info_nce"):
                factor = weights[f"{link}_weight"] * weights[f"{part}_weight"]
                name = f"{link}_{part}"
                torch.testing.assert_close(scaled[name], factor * once[name])

    @pytest.mark.parametrize("detach", [True, False])
    @pytest.mark.parametrize("part", ["info_nce", "ofa"])
    def test_of_fusion_to_student_reach_the_fusion_only_where_asked(self, detach, part):
        method = build("cnn", "vit", detach_fusion=detach)
        loss = method(random_batch()).terms[f"fusion_student_{part}"]
        weight = l2g_of(method).norm.weight
        own, student = torch.autograd.grad(
            loss, [weight, method.student.model.conv1.weight], allow_unused=True
        )
        assert student.abs().sum() > 0
        assert (own is None) == detach
        if own is not None:
            assert own.abs().sum() > 0


class TestHeads:
    def test_stand_on_the_receiver_where_widths_differ(self):
        links = build("cnn", "vit").links  # 24 and 28; the fusion ends in the teacher's tail
        heads = {name: link.get_submodule("head") for name, link in links.items()}
        assert isinstance(heads["teacher_fusion"], nn.Identity)
        for name in ("teacher_student", "fusion_student"):
            head = heads[name]
            assert isinstance(head, nn.Linear)
            assert (head.in_features, head.out_features) == (24, 28)

    def test_are_absent_where_widths_are_equal(self):
        links = build("cnn", "wide").links
        assert not list(links.parameters())

    def test_are_everywhere_where_asked(self):
        links = build("cnn", "wide", heads="always").links
        assert all(isinstance(link.get_submodule("head"), nn.Linear) for link in links.values())


class TestTemperature:
    def test_starts_at_0_07_for_each_link(self):
        temperatures = build().log_temperatures
        assert set(temperatures) == set(LINKS)
        assert all(p.exp().item() == pytest.approx(0.07) for p in temperatures.values())

    def test_can_be_shared(self):
        method = build(shared_temperature=True, temperature=0.2)
        assert list(method.log_temperatures) == ["shared"]
        method(random_batch()).loss.backward()
        shared = method.log_temperatures["shared"]
        assert shared.exp().item() == pytest.approx(0.2)
        assert shared.grad is not None
        assert shared.grad != 0

    def test_is_kept_at_a_hundredth_and_can_still_rise(self):
        method, batch = build(), random_batch()
        for parameter in method.log_temperatures.values():
            parameter.data.fill_(-50.0)
        terms = method(batch).terms
        at_limit = build()
        at_limit.load_state_dict(method.state_dict())
        for parameter in at_limit.log_temperatures.values():
            parameter.data.fill_(math.log(0.01))
        expected = at_limit(batch).terms
        sum(terms.values()).backward()  # type: ignore[union-attr]
        for link in LINKS:
            name, parameter = f"{link}_info_nce", method.log_temperatures[link]
            assert terms[name].item() == pytest.approx(expected[name].item(), rel=1e-4)
            assert parameter.exp().item() == pytest.approx(0.01, rel=1e-5)
            assert parameter.grad is not None
            assert parameter.grad.isfinite()
            assert parameter.grad != 0

    def test_is_kept_from_weight_decay(self):
        method = build()
        groups = build_optimizer(method, TrainConfig(weight_decay=0.1)).param_groups
        free = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
        kept = [*method.log_temperatures.values(), l2g_of(method).prefix, l2g_of(method).position]
        assert {id(p) for p in kept} <= free


SWITCHES = {
    "A": ({"fusion": "patch_embed"}, TERMS),
    "B": ({"fusion": "no_tail"}, TERMS),
    "C": ({"teacher_fusion_weight": 0}, {t for t in TERMS if "teacher_fusion" not in t}),
    "D": ({"teacher_student_weight": 0}, {t for t in TERMS if "teacher_student" not in t}),
    "E": ({"fusion_student_weight": 0}, {t for t in TERMS if "fusion_student" not in t}),
    "F": ({"info_nce_weight": 0}, {t for t in TERMS if "info_nce" not in t}),
    "G": ({"ofa_weight": 0}, {t for t in TERMS if "ofa" not in t}),
}


@pytest.mark.parametrize(("student", "teacher"), [("cnn", "vit"), ("vit", "cnn")])
@pytest.mark.parametrize("switch", SWITCHES)
class TestSwitch:
    def test_leaves_exactly_the_terms_it_should(self, switch, student, teacher):
        options, terms = SWITCHES[switch]
        assert build(student, teacher, **options)(random_batch()).terms.keys() == terms

    def test_leaves_no_trainable_parameter_without_gradient(self, switch, student, teacher):
        # DistributedDataParallel would wait for it.
        method = build(student, teacher, **SWITCHES[switch][0]).train()
        method(random_batch()).loss.backward()
        trained = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
        assert not [name for name, gradient in trained.items() if gradient is None]


@pytest.mark.parametrize(
    "options",
    [
        {"fusion": "no_tail", "teacher_fusion_weight": 0},
        {"fusion": "no_tail", "ofa_weight": 0},
        {"detach_fusion": False, "teacher_fusion_weight": 0},
        {"fusion_student_weight": 0, "teacher_student_weight": 0},
    ],
    ids=str,
)
def test_switches_together_leave_no_trainable_parameter_without_gradient(options):
    method = build(**options).train()
    method(random_batch()).loss.backward()
    trained = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in trained.items() if gradient is None]


class TestAblation:
    def test_a_pools_the_patch_embedding_before_a_classifier(self):
        method, batch = build(fusion="patch_embed").eval(), random_batch()
        l2g = l2g_of(method)
        assert isinstance(l2g.block, nn.Identity)
        assert {name.split(".")[0] for name, _ in l2g.named_parameters()} == {"embed", "norm"}
        assert method.classifier is not None
        with torch.no_grad():
            stage = l2g.embed(method.student(batch.images).stages[2])
            vector = l2g.norm(stage.flatten(2).transpose(1, 2)).mean(dim=1)
            expected = method.classifier(vector)
            torch.testing.assert_close(method.companions()["fusion"](batch.images), expected)

    def test_b_keeps_the_swin_block_and_drops_the_tail(self):
        method, batch = build(fusion="no_tail").eval(), random_batch()
        l2g = l2g_of(method)
        assert not isinstance(l2g.block, nn.Identity)
        assert l2g.prefix is None
        assert method.classifier is not None
        with torch.no_grad():
            stage, _ = l2g(method.student(batch.images).stages[2])
            expected = method.classifier(stage.mean((2, 3)))
            torch.testing.assert_close(method.companions()["fusion"](batch.images), expected)

    def test_b_needs_no_tail(self):
        teacher = create_staged("eva02_tiny_patch14_224", num_classes=5, image_size=56)
        method = build_method("fbt", small("cnn"), FrozenTeacher(teacher), fusion="no_tail")
        assert method(random_batch()).loss.isfinite()

    def test_c_freezes_an_l2g_that_nothing_would_train(self):
        frozen, open_ = (
            build(teacher_fusion_weight=0, detach_fusion=detach) for detach in (True, False)
        )
        assert not any(p.requires_grad for p in l2g_of(frozen).parameters())
        assert all(p.requires_grad for p in l2g_of(open_).parameters())

    def test_f_has_no_temperature(self):
        assert not list(build(info_nce_weight=0).log_temperatures)


@pytest.mark.parametrize(
    ("option", "value"),
    [("order", "conv_first"), ("fusion", "none"), ("info_nce", "both"), ("gamma", 0)],
)
def test_a_value_that_means_nothing_is_refused(option, value):
    with pytest.raises(RecipeError, match=rf"method.{option}: .*got {value!r}"):
        build(**{option: value})


@pytest.mark.parametrize(
    "options",
    [
        {"ofa_weight": 0, "info_nce_weight": 0},
        {"teacher_student_weight": 0, "teacher_fusion_weight": 0, "fusion_student_weight": 0},
    ],
    ids=str,
)
def test_a_config_that_transfers_nothing_is_refused(options):
    with pytest.raises(RecipeError, match="use the method control"):
        build(**options)
