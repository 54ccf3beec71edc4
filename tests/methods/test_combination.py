"""Several methods and several teachers: the sum of what each would do alone."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from anykd.engine.config import TrainConfig
from anykd.engine.optim import build_optimizer
from anykd.errors import DataError
from anykd.methods import Method, build_methods, read_tables
from anykd.methods.combination import Combination
from anykd.methods.fbt import FBT
from anykd.models import FrozenTeacher, StagedModel
from anykd.types import Batch
from tests.methods.small import (
    NUM_SAMPLES,
    build_small,
    fingerprint,
    random_batch,
    small,
    small_pair,
)

Tables = Sequence[dict[str, Any]]


def three_teachers() -> list[tuple[FrozenTeacher, float]]:
    """Of other sizes, other normalisation, other widths and, the third, other classes."""
    models = [
        small("cnn", 2),
        small("vit", 3, image_size=48),
        small("mlp", 4, num_classes=9),
    ]
    models[1].mean.fill_(0.3)
    models[2].std.fill_(0.25)
    return [(FrozenTeacher(model), w) for model, w in zip(models, (1.0, 0.5, 2.0), strict=True)]


# Every kind of part: scores, maps, vectors, a memory, companions, one method twice.
TABLES: Tables = [
    {"name": "ofa", "teachers": [1], "gamma": 1.3},
    {"name": "fitnet", "kd_weight": 0, "weight": 0.25, "stages": [2, 3]},
    {"name": "fbt", "teachers": [2], "weight": 3.0},
    {"name": "crd", "teachers": [3], "num_samples": NUM_SAMPLES, "num_negatives": 16},
    {"name": "rsd", "teachers": [1, 3]},
    {"name": "kd", "teachers": [1], "temperature": 4.0},
    {"name": "kd", "teachers": [2], "weight": 0.7},
]
# (method, options, number of the teacher, weight, suffix), put together by hand.
PARTS: list[tuple[str, dict[str, Any], int, float, str]] = [
    ("ofa", {"gamma": 1.3}, 1, 1.0, "_teacher1"),
    ("fitnet", {"kd_weight": 0, "stages": (2, 3)}, 1, 0.25, "_teacher1"),
    ("fitnet", {"kd_weight": 0, "stages": (2, 3)}, 2, 0.25 * 0.5, "_teacher2"),
    ("fitnet", {"kd_weight": 0, "stages": (2, 3)}, 3, 0.25 * 2.0, "_teacher3"),
    ("fbt", {}, 2, 3.0 * 0.5, "_teacher2"),
    ("crd", {"num_negatives": 16}, 3, 2.0, "_teacher3"),
    ("rsd", {}, 1, 1.0, "_teacher1"),
    ("rsd", {}, 3, 2.0, "_teacher3"),
    ("kd", {"temperature": 4.0}, 1, 1.0, "_1_teacher1"),
    ("kd", {}, 2, 0.7 * 0.5, "_2_teacher2"),
]


def combine(
    tables: Tables = TABLES,
    student: StagedModel | None = None,
    teachers: list[tuple[FrozenTeacher, float]] | None = None,
) -> Combination:
    method = build_methods(
        read_tables(tables), student or small("vit", 1), teachers or three_teachers()
    )
    assert isinstance(method, Combination)
    return method


def parts_alone(method: Combination) -> list[Method]:
    """Each part built by itself around the same student, with the same weights."""
    teachers, alone = three_teachers(), []
    for (name, options, number, *_), part in zip(PARTS, method.methods, strict=True):
        single = build_small(name, method.student, teachers[number - 1][0], **options)
        state = copy.deepcopy(part.state_dict())
        missing, unexpected = single.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(key.startswith("student.") for key in missing)
        alone.append(single)
    return alone


def terms_alone(method: Combination, batch: Batch) -> dict[str, Tensor]:
    """The task term, and every part's weighted terms."""
    expected: dict[str, Tensor] = {}
    for single, (_, _, _, weight, suffix) in zip(parts_alone(method), PARTS, strict=True):
        terms = single.train(method.training)(batch).terms
        expected["task"] = terms.pop("task")
        for key, term in terms.items():
            assert key + suffix not in expected
            expected[key + suffix] = weight * term
    return expected


class TestTerms:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("student", ["vit", "cnn"])
    def test_are_those_of_the_parts_alone_with_their_weights(self, student, training):
        method, batch = combine(student=small(student, 1)).train(training), random_batch()
        expected = terms_alone(method, batch)
        actual = method(batch).terms
        assert actual.keys() == expected.keys()
        for key, term in expected.items():
            torch.testing.assert_close(actual[key], term, msg=key)

    def test_have_the_sum_of_the_parts_gradients(self):
        method, batch = combine().train(), random_batch()
        parameters = list(method.student.parameters())
        alone = torch.stack([*terms_alone(method, batch).values()]).sum()
        expected = torch.autograd.grad(alone, parameters)
        actual = torch.autograd.grad(method(batch).loss, parameters)
        for own, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)

    def test_of_the_same_name_are_added(self):
        # KD has a term kd, and FitNet has one beside its hints.
        student, teacher = small_pair("vit", "cnn")
        tables = [{"name": "kd", "weight": 3.0}, {"name": "fitnet", "stages": [1], "kd_weight": 2}]
        method = combine(tables, student, [(teacher, 1.0)]).eval()
        batch = random_batch()
        kd = build_small("kd", student, teacher).eval()(batch).terms["kd"]
        terms = method(batch).terms
        assert terms.keys() == {"task", "kd", "hint_stage1"}
        torch.testing.assert_close(terms["kd"], (3.0 + 2.0) * kd)

    def test_share_one_task_term_of_its_own_weight(self):
        tables = [{"name": "kd", "task_weight": 0.5, "weight": 9.0}, {"name": "rsd"}]
        student, teacher = small_pair("vit", "cnn")
        batch = random_batch()
        terms = combine(tables, student, [(teacher, 0.1)]).eval()(batch).terms
        task = build_small("control", student, None).eval()(batch).terms["task"]
        torch.testing.assert_close(terms["task"], 0.5 * task)

    def test_have_no_suffix_where_none_is_needed(self):
        tables = [{"name": "kd"}, {"name": "rsd"}]
        method = combine(tables, *_pair_and_weight())
        assert method(random_batch()).terms.keys() == {"task", "kd", "rsd"}

    def test_of_one_method_for_two_teachers_say_whose_they_are(self):
        method = combine([{"name": "kd"}], teachers=three_teachers()[:2])
        assert method(random_batch()).terms.keys() == {"task", "kd_teacher1", "kd_teacher2"}

    def test_of_one_method_used_twice_are_numbered(self):
        tables = [{"name": "kd"}, {"name": "rsd"}, {"name": "kd", "temperature": 4}]
        method = combine(tables, *_pair_and_weight())
        assert method(random_batch()).terms.keys() == {"task", "kd_1", "rsd", "kd_2"}


def _pair_and_weight() -> tuple[StagedModel, list[tuple[FrozenTeacher, float]]]:
    student, teacher = small_pair("vit", "cnn")
    return student, [(teacher, 1.0)]


class TestForward:
    def test_runs_the_student_and_every_teacher_once_on_the_images_as_they_are(self):
        teachers = three_teachers()
        method, batch = combine(teachers=teachers).train(), random_batch()
        calls: Counter[str] = Counter()

        def count(name: str):
            def hook(module, args) -> None:
                calls[name] += 1
                assert torch.equal(args[0].images, batch.images)

            return hook

        method.student.register_forward_pre_hook(count("student"))
        for number, (teacher, _) in enumerate(teachers):
            teacher.model.register_forward_pre_hook(count(f"teacher {number}"))
        method(batch).loss.backward()
        assert calls == {"student": 1, "teacher 0": 1, "teacher 1": 1, "teacher 2": 1}

    def test_leaves_every_bit_of_the_teachers(self):
        teachers = three_teachers()
        method = combine(teachers=teachers).train()
        before = [fingerprint(teacher.model.state_dict()) for teacher, _ in teachers]
        train(method)
        assert [fingerprint(teacher.model.state_dict()) for teacher, _ in teachers] == before
        assert not any(m.training for teacher, _ in teachers for m in teacher.model.modules())

    def test_trains_every_parameter(self):
        method = combine().train()
        method(random_batch()).loss.backward()
        trained = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
        assert not [name for name, gradient in trained.items() if gradient is None]


def train(method: Method, steps: int = 2) -> torch.optim.Optimizer:
    method.train()
    optimizer = build_optimizer(method, TrainConfig(peak_lr=0.01))
    for _ in range(steps):
        optimizer.zero_grad()
        method(random_batch()).loss.backward()
        optimizer.step()
    return optimizer


class TestState:
    def test_holds_the_student_once(self):
        method = combine()
        state = method.state_dict()
        own = {key.removeprefix("student.") for key in state if key.startswith("student.")}
        assert own == method.student.state_dict().keys()
        assert {key.split(".")[0] for key in state} == {"student", "methods"}
        assert not any("student.model" in key for key in state if key.startswith("methods."))
        places = [x.data_ptr() for x in state.values() if x.numel()]
        assert len(places) == len(set(places))

    def test_holds_no_teacher(self):
        teachers = three_teachers()
        method = combine(teachers=teachers)
        places = {x.data_ptr() for teacher, _ in teachers for x in teacher.model.parameters()}
        assert not places & {x.data_ptr() for x in method.state_dict().values()}
        assert not places & {p.data_ptr() for p in method.parameters()}

    def test_saved_gives_the_same_terms_in_a_fresh_combination(self):
        teachers, batch = three_teachers(), random_batch()
        method = combine(teachers=teachers)
        train(method)
        torch.manual_seed(9)
        fresh = combine(student=small("vit", 5), teachers=teachers)
        fresh.load_state_dict(copy.deepcopy(method.state_dict()), strict=True)
        expected, actual = (each.train()(batch).terms for each in (method, fresh))
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
        assert fingerprint(fresh.state_dict()) == fingerprint(method.state_dict())

    def test_of_a_copy_has_the_copys_student(self):
        # An average of weights copies what it averages.
        method = combine()
        copied = copy.deepcopy(method)
        assert all(part.method.student is copied.student for part in copied.parts)
        assert copied.student is not method.student


class TestOptimizer:
    def test_holds_everything_that_trains_once(self):
        method = combine()
        optimizer = build_optimizer(method, TrainConfig())
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in method.parameters() if p.requires_grad)
        assert {id(p) for p in method.student.parameters()} <= set(held)

    def test_spares_what_the_student_and_the_parts_keep_from_weight_decay(self):
        tables = [{"name": "rsd"}, {"name": "fbt"}]
        method = combine(tables, *_cnn_and_vit())
        names = method.no_weight_decay()
        wanted = {"methods.1.l2g.prefix", "methods.1.l2g.position"}
        fbt = method.methods[1]
        assert isinstance(fbt, FBT)
        wanted |= {f"methods.1.log_temperatures.{link}" for link in fbt.weights}
        tables_of_positions = {n for n, _ in method.named_parameters() if "bias_table" in n}
        assert tables_of_positions
        assert wanted | tables_of_positions <= names
        assert wanted | tables_of_positions <= dict(method.named_parameters()).keys()
        optimizer = build_optimizer(method, TrainConfig(weight_decay=0.1))
        free = {
            id(p) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]
        }
        parameters = dict(method.named_parameters())
        assert {id(parameters[key]) for key in wanted | tables_of_positions} <= free

    def test_spares_the_students_tokens_and_positions(self):
        method = combine([{"name": "kd"}, {"name": "rsd"}], *_pair_and_weight())
        wanted = {"student.model.pos_embed", "student.model.cls_token"}
        assert wanted <= method.no_weight_decay() & dict(method.named_parameters()).keys()


def _cnn_and_vit() -> tuple[StagedModel, list[tuple[FrozenTeacher, float]]]:
    student, teacher = small_pair("cnn", "vit")
    return student, [(teacher, 1.0)]


class TestLabels:
    @pytest.mark.parametrize(
        ("tables", "needed"),
        [
            ([{"name": "kd"}, {"name": "rsd"}], True),
            ([{"name": "kd", "task_weight": 0}, {"name": "rsd"}], False),
            ([{"name": "kd", "task_weight": 0}, {"name": "dkd"}], True),
            ([{"name": "ofa", "task_weight": 0}, {"name": "fbt"}], False),
            ([{"name": "ofa", "task_weight": 0, "gamma": 1.2}, {"name": "fbt"}], True),
            ([{"name": "ofa", "task_weight": 0, "form": "paper"}, {"name": "rsd"}], True),
            ([{"name": "fbt", "task_weight": 0, "gamma": 1.2}, {"name": "kd"}], True),
            (
                [{"name": "fbt", "task_weight": 0, "gamma": 1.2, "ofa_weight": 0}, {"name": "kd"}],
                False,
            ),
            ([{"name": "crd", "task_weight": 0, "num_samples": 64}, {"name": "cc"}], False),
        ],
        ids=str,
    )
    def test_are_needed_where_a_part_reads_them(self, tables, needed):
        method, batch = combine(tables, *_pair_and_weight()), random_batch()
        assert method.needs_labels == needed
        unlabelled = Batch(batch.images, None, batch.indices)
        if needed:
            with pytest.raises(DataError, match="needs labels and the data has none"):
                method(unlabelled)
        else:
            output = method(unlabelled)
            assert "task" not in output.terms
            output.loss.backward()
            first = next(method.student.parameters()).grad
            assert first is not None
            assert first.isfinite().all()
            assert first.abs().sum() > 0

    def test_of_the_whole_training_set_are_told_to_every_part(self):
        crd = {"name": "crd", "num_samples": NUM_SAMPLES}
        method = combine([{"name": "kd"}, crd, crd], *_pair_and_weight())
        labels = torch.randint(5, (NUM_SAMPLES,))
        method.know_labels(labels)
        for part in method.methods[1:]:
            assert torch.equal(part.get_buffer("seen_labels"), labels)

    @pytest.mark.parametrize(
        ("tables", "trained"),
        [
            ([{"name": "rsd"}, {"name": "cc"}], True),
            ([{"name": "rsd", "task_weight": 0}, {"name": "cc"}], False),
            ([{"name": "rsd", "task_weight": 0}, {"name": "kd"}], True),
        ],
        ids=str,
    )
    def test_or_scores_train_the_classifier_just_as_trains_logits_says(self, tables, trained):
        method = combine(tables, *_pair_and_weight())
        output = method(random_batch())
        output.loss.backward()
        gradient = method.student.model.get_classifier().weight.grad
        assert (gradient is not None) == method.trains_logits == output.logits.requires_grad
        assert method.trains_logits == trained


class TestCompanions:
    def test_of_a_part_classify_as_it_does_alone(self):
        student, teachers = _cnn_and_vit()
        method = combine([{"name": "rsd"}, {"name": "fbt"}], student, teachers).eval()
        alone = build_small("fbt", student, teachers[0][0]).eval()
        alone.load_state_dict(method.methods[1].state_dict(), strict=False)
        images = random_batch().images
        assert method.companions().keys() == {"fusion"}
        with torch.no_grad():
            actual, expected = (each.companions()["fusion"](images) for each in (method, alone))
        assert torch.equal(actual, expected)

    def test_of_two_teachers_are_told_apart(self):
        teachers = three_teachers()[:2]
        method = combine([{"name": "fbt"}], small("cnn", 1), teachers).eval()
        assert method.companions().keys() == {"fusion_teacher1", "fusion_teacher2"}
        images = random_batch().images
        with torch.no_grad():
            first, second = (classify(images) for classify in method.companions().values())
        assert first.shape == second.shape == (4, 5)
        assert not torch.allclose(first, second)
