"""Learning from what teachers are known to say: the same as from teachers that run."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from anykd.errors import RecipeError
from anykd.methods import METHODS, Method, MethodConfig, build_methods, read_tables
from anykd.methods.fbt import FBT
from anykd.models import FrozenTeacher
from anykd.types import Batch, FeaturePart, Features, Terms
from tests.methods.for_ranks import in_float64
from tests.methods.small import (
    PAIRS,
    accepted,
    build_small,
    random_batch,
    small,
    small_pair,
    stored_teacher,
    with_stored,
)
from tests.models.test_stored import modules_that_run

TAUGHT = [name for name, cls in METHODS.items() if cls.needs_teacher]
HELD = [
    frozenset(parts) for parts in chain(*(combinations(("logits", "pooled"), n) for n in range(3)))
]
VARIANTS = accepted(
    TAUGHT,
    *({}, {"kd_weight": 0}, {"ofa_weight": 0}, {"info_nce_weight": 0}, {"stages": (3,)}),
    *({"order": "student_first"}, {"order": "teacher_first"}, {"fusion": "no_tail"}),
    *({"prompt_stages": (2,)}, {"prompt_stages": (2,), "kd_weight": 0}, {"guard": "maps"}),
    *({"gamma": 1.4}, {"form": "paper"}, {"variant": "matrix"}, {"angle_weight": 0}),
    *({"intra_weight": 0}, {"temperature": 4.0}, {"ramp_steps": 3}, {"info_nce": "symmetric"}),
    {"fusion_student_weight": 0},
    {"teacher_fusion_weight": 0, "fusion_student_weight": 0},
    {"teacher_student_weight": 0, "teacher_fusion_weight": 0},
    {"task_weight": 0},
    {"task_weight": 0, "teacher_student_weight": 0, "teacher_fusion_weight": 0},
)


class Watched(Features):
    """Features that remember which of their parts were asked for."""

    asked: set[FeaturePart]

    def __init__(self, features: Features) -> None:
        super().__init__(**vars(features))
        object.__setattr__(self, "asked", set())

    def __getattribute__(self, name: str) -> Any:
        parts: dict[str, FeaturePart] = {"prefixes": "stages"}
        parts |= {"stages": "stages", "pooled": "pooled", "logits": "logits"}
        if name in parts and "asked" in vars(self):
            self.asked.add(parts[name])
        return super().__getattribute__(name)


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request) -> tuple[str, str]:
    """Families of student and teacher."""
    return request.param


@pytest.fixture(params=TAUGHT)
def name(request) -> str:
    return request.param


class TestReads:
    """What a method says that it reads is what it reads."""

    @pytest.mark.parametrize(("name", "options"), VARIANTS)
    @pytest.mark.parametrize("pair", [("cnn", "vit"), ("vit", "cnn"), ("cnn", "swin")])
    def test_exactly_what_the_terms_ask_for(self, name, options, pair, monkeypatch):
        student, teacher = small_pair(*pair)
        method = build_small(name, student, teacher, **options)
        tails: list[Tensor] = []
        tail: Callable[..., Features] = teacher.tail
        monkeypatch.setattr(teacher, "tail", lambda *args: tails.append(args[0]) or tail(*args))
        batches = [random_batch()]
        if not method.needs_labels:
            batches.append(replace(batches[0], labels=None))
        asked: set[FeaturePart] = set()
        for batch in batches:
            seen = Watched(teacher(batch.images))
            method.terms(batch, student(batch.images), seen)
            asked |= seen.asked
        assert asked == method.reads
        assert bool(tails) == method.runs_tail

    def test_for_every_pair(self, name, pair):
        student, teacher = small_pair(*pair)
        method, batch = build_small(name, student, teacher), random_batch()
        seen = Watched(teacher(batch.images))
        method.terms(batch, student(batch.images), seen)
        assert seen.asked == method.reads

    def test_nothing_where_labels_alone_teach(self):
        assert build_small("control", *small_pair("cnn", "vit")).reads == frozenset()

    def test_everything_where_a_method_does_not_say(self):
        class Own(Method):
            Config = MethodConfig

            def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
                return {}

        student, live = small_pair("cnn", "vit")
        assert Own(student, live, MethodConfig()).reads == {"stages", "pooled", "logits"}
        with pytest.raises(RecipeError, match="Own reads the teacher's stages"):
            Own(student, stored_teacher(live, ("logits", "pooled")), MethodConfig())

    def test_of_a_combination_by_teacher(self):
        first, second = FrozenTeacher(small("vit", 2)), FrozenTeacher(small("mlp", 3))
        tables = [
            {"name": "kd", "teachers": [1]},
            {"name": "fbt", "teachers": [1]},
            {"name": "fitnet", "teachers": [2], "kd_weight": 0},
        ]
        method = build_methods(read_tables(tables), small("cnn", 1), [(first, 1.0), (second, 1.0)])
        assert method.reads_of(first) == {"pooled", "logits"}
        assert method.reads_of(second) == {"stages"}
        assert method.reads_of(FrozenTeacher(small("vit", 2))) == frozenset()
        assert method.reads == {"stages", "pooled", "logits"}
        assert method.runs_tail
        names = [type(part).__name__ for part in method.taught_by(first)]
        assert names == ["KD", "FBT"]


class TestRefusal:
    @pytest.mark.parametrize("holds", HELD, ids=lambda holds: "+".join(sorted(holds)) or "nothing")
    @pytest.mark.parametrize("pair", [("cnn", "vit"), ("vit", "cnn")], ids="-".join)
    def test_is_exactly_of_what_the_cache_lacks(self, name, pair, holds):
        student, live = small_pair(*pair)
        reads = build_small(name, student, live).reads
        teacher = stored_teacher(live, holds)
        if reads <= holds:
            build_small(name, student, teacher)
        else:
            with pytest.raises(RecipeError):
                build_small(name, student, teacher)

    @pytest.mark.parametrize(
        ("name", "pair", "holds", "message", "hint"),
        [
            (
                *("fitnet", ("cnn", "vit"), ("logits", "pooled")),
                "FitNet reads the teacher's stages, which no cache holds",
                "leave teacher.cache out: FitNet needs the live teacher",
            ),
            (
                *("pat", ("cnn", "vit"), ("logits", "pooled")),
                "PAT reads the teacher's stages, which no cache holds",
                "leave teacher.cache out: PAT needs the live teacher",
            ),
            (
                *("rsd", ("cnn", "vit"), ("logits",)),
                "the cache holds no pooled vectors, which RSD reads",
                "build it with --pooled",
            ),
            (
                *("kd", ("cnn", "vit"), ("pooled",)),
                "the cache holds no class scores, which KD reads",
                "build one that holds them",
            ),
            (
                *("fbt", ("vit", "cnn"), ("logits", "pooled")),
                "FBT puts the teacher first in this pair, so that its stages 1 to 3 must run live",
                'leave teacher.cache out, or set method.order = "student_first"',
            ),
        ],
    )
    def test_says_what_is_missing_and_what_to_do(self, name, pair, holds, message, hint):
        student, live = small_pair(*pair)
        with pytest.raises(RecipeError) as caught:
            build_small(name, student, stored_teacher(live, holds))
        assert str(caught.value) == message
        assert caught.value.hint == hint

    def test_of_one_part_is_that_of_the_combination(self):
        student, live = small_pair("cnn", "vit")
        tables = read_tables([{"name": "kd"}, {"name": "fitnet"}])
        with pytest.raises(RecipeError, match="FitNet reads the teacher's stages"):
            build_methods(tables, student, [(stored_teacher(live, ("logits",)), 1.0)])

    def test_ends_where_fbt_is_told_to_put_the_student_first(self):
        student, live = small_pair("vit", "cnn")
        teacher = stored_teacher(live, ("logits", "pooled"))
        build_small("fbt", student, teacher, order="student_first")


SERVED = [
    *[
        pytest.param(name, {}, pair, id=f"{name}-{pair[0]}-{pair[1]}")
        for name in TAUGHT
        for pair in PAIRS
        if name not in ("fitnet", "pat") and (name, pair[1]) != ("fbt", "cnn")
    ],
    pytest.param("fbt", {"order": "student_first"}, ("vit", "cnn"), id="fbt-turned-round"),
    pytest.param("fbt", {"fusion": "no_tail"}, ("cnn", "swin"), id="fbt-no-tail"),
    pytest.param("ofa", {"form": "paper", "gamma": 1.3}, ("cnn", "vit"), id="ofa-paper"),
    pytest.param("ofa", {"temperature": 3.0}, ("cnn", "vit"), id="ofa-temperature"),
    pytest.param("dkd", {"temperature": 4.0, "beta": 8.0}, ("cnn", "vit"), id="dkd-temperature"),
    pytest.param("dist", {"temperature": 4.0}, ("cnn", "vit"), id="dist-temperature"),
    pytest.param("kd", {"temperature": 4.0}, ("cnn", "vit"), id="kd-temperature"),
    pytest.param("cc", {"variant": "matrix"}, ("cnn", "vit"), id="cc-matrix"),
]


def twins(name: str, options: dict[str, Any], pair: tuple[str, str]) -> tuple[Method, Method]:
    """A method with the live teacher, and one of which just what is read is stored."""
    made = []
    student, live = small_pair(*pair)
    holds = build_small(name, student, live, **options).reads
    for teacher in (live, stored_teacher(live, holds)):
        torch.manual_seed(3)
        made.append(build_small(name, small(pair[0], 1), teacher, **options).train())
    return made[0], made[1]


def shifted(batch: Batch) -> Batch:
    """With another constant added to the stored scores of each image."""
    stored = []
    for one in batch.stored:
        assert one is not None
        assert one.logits is not None
        constants = 10 * torch.randn(len(batch), 1, dtype=one.logits.dtype)
        stored.append(replace(one, logits=one.logits + constants))
    return replace(batch, stored=tuple(stored))


def train_step(method: Method, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms and gradients of a step; what the student drops is the same every time."""
    torch.manual_seed(7)
    output = method(batch)
    output.loss.backward()
    gradients = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    return output.terms, gradients


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    largest = max(x.abs().max().item() for x in expected.values())
    for key, tensor in expected.items():
        torch.testing.assert_close(
            actual[key], tensor, rtol=tolerance, atol=tolerance * largest, msg=key
        )


class TestExactness:
    @pytest.mark.parametrize(("name", "options", "pair"), SERVED)
    def test_terms_and_gradients_are_those_of_the_live_teacher(self, name, options, pair):
        live, stored = twins(name, options, pair)
        for _ in range(2):  # a second step sees what memories took in at the first
            batch = random_batch(8)
            expected = train_step(live, batch)
            actual = train_step(stored, with_stored(batch, live.teacher))
            for own, other in zip(actual, expected, strict=True):
                assert own.keys() == other.keys()
                assert not [key for key in other if not torch.equal(own[key], other[key])]

    @pytest.mark.parametrize(
        ("name", "options", "pair"), [one for one in SERVED if "vit" in str(one.id)]
    )
    def test_a_constant_added_to_the_scores_of_an_image_changes_nothing(self, name, options, pair):
        live, stored = twins(name, options, pair)
        for method in (live, stored):
            in_float64(method)
        live.teacher.model.double()
        batch = random_batch(8)
        batch = replace(batch, images=batch.images.double())
        expected = train_step(live, batch)
        actual = train_step(stored, shifted(with_stored(batch, live.teacher)))
        for own, other in zip(actual, expected, strict=True):
            assert_near(own, other, 1e-6 if name == "crd" else 1e-9)

    @pytest.mark.parametrize("rest", [-65504.0, -20.0, -1.0])
    @pytest.mark.parametrize("name", [n for n in TAUGHT if n not in ("fitnet", "pat")])
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_few_scores_and_one_for_all_the_rest_will_do(self, name, rest, precision):
        _, method = twins(name, {}, ("cnn", "vit"))
        batch = with_stored(random_batch(8), method.teacher)
        (known,) = batch.stored
        assert known is not None
        assert known.logits is not None
        best = known.logits.topk(2)
        logits = torch.full_like(known.logits, rest)
        logits.scatter_(1, best.indices, best.values - best.values[:, :1])
        batch = replace(batch, stored=(replace(known, logits=logits),))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            output = method(batch)
        output.loss.backward()
        assert all(term.isfinite() for term in output.terms.values())
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_what_is_stored_is_what_is_learnt(self):
        # From a teacher that says otherwise than the live one would.
        student, live = small_pair("cnn", "vit")
        other = FrozenTeacher(small("vit", 8))
        method = build_small("kd", student, stored_teacher(live, ("logits",))).eval()
        batch = random_batch()
        actual = method(with_stored(batch, other)).terms["kd"]
        torch.testing.assert_close(
            actual, build_small("kd", student, other).eval()(batch).terms["kd"]
        )
        assert not torch.allclose(
            actual, build_small("kd", student, live).eval()(batch).terms["kd"]
        )


class TestTeacher:
    @pytest.mark.parametrize("name", [n for n in TAUGHT if n not in ("fitnet", "pat", "fbt")])
    def test_does_not_run(self, name):
        _, method = twins(name, {}, ("cnn", "vit"))
        batch = with_stored(random_batch(), method.teacher)
        with modules_that_run(method.teacher.model) as called:
            method(batch).loss.backward()
        assert called == []

    @pytest.mark.parametrize("pair", [("cnn", "vit"), ("cnn", "swin")])
    def test_runs_its_stage_4_and_head_alone_behind_a_fusion(self, pair):
        _, method = twins("fbt", {}, pair)
        assert isinstance(method, FBT)
        batch = with_stored(random_batch(), method.teacher)
        model = method.teacher.model
        with modules_that_run(model) as tail:
            shape = (4, *model.shapes[2])
            count = model.num_prefix_tokens
            model.tail(torch.rand(shape), torch.rand(4, count, shape[1]) if count else None)
        with modules_that_run(model) as called:
            method(batch).loss.backward()
        assert called == tail
        with modules_that_run(model) as whole:
            method.teacher(batch.images)
        assert len(tail) < len(whole) / 2

    def test_runs_for_the_accuracy_of_a_fusion(self):
        live, stored = twins("fbt", {}, ("cnn", "vit"))
        images = random_batch().images
        with torch.no_grad():
            actual, expected = (
                method.eval().companions()["fusion"](images) for method in (stored, live)
            )
        assert torch.equal(actual, expected)

    def test_runs_on_a_batch_without_its_answer(self):
        live, stored = twins("kd", {}, ("cnn", "vit"))
        batch = random_batch()
        assert torch.equal(stored(batch).loss, live(batch).loss)


class TestCombination:
    TABLES = (
        {"name": "kd"},
        {"name": "fitnet", "teachers": [1], "kd_weight": 0},
        {"name": "rsd", "teachers": [2], "weight": 0.5},
        {"name": "fbt", "teachers": [3], "weight": 2.0},
    )

    def build(self, *teachers: FrozenTeacher) -> Method:
        torch.manual_seed(3)
        weighted = [(teacher, 1.0) for teacher in teachers]
        return build_methods(read_tables(self.TABLES), small("cnn", 1), weighted).train()

    def test_of_live_and_stored_teachers_is_that_of_live_ones(self):
        live = [FrozenTeacher(small(family, 2)) for family in ("mlp", "wide", "vit")]
        parts: tuple[FeaturePart, ...] = ("logits", "pooled")
        # Slots need not follow the order of the teachers.
        mixed = (
            live[0],
            stored_teacher(live[1], parts, slot=2),
            stored_teacher(live[2], parts, slot=0),
        )
        batch = with_stored(random_batch(8), live[2], None, live[1])
        expected = train_step(self.build(*live), batch)
        method = self.build(*mixed)
        with modules_that_run(live[1].model) as called:
            actual = train_step(method, batch)
        assert called == []
        for own, other in zip(actual, expected, strict=True):
            assert own.keys() == other.keys()
            assert not [key for key in other if not torch.equal(own[key], other[key])]
