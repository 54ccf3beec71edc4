"""What every method promises, for every pair of families."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anykd.distributed import rank, world_size
from anykd.engine.config import TrainConfig
from anykd.engine.optim import build_optimizer
from anykd.errors import DataError, RecipeError
from anykd.methods import METHODS, Method, build_methods, read_tables
from anykd.models import FrozenTeacher, StagedModel
from anykd.types import Batch
from tests.methods.for_ranks import NAMES, STUDENTS, build_for_ranks, build_stored_for_ranks
from tests.methods.small import (
    NUM_CLASSES,
    PAIRS,
    accepted,
    build_small,
    fingerprint,
    random_batch,
    small,
    small_pair,
    with_stored,
)
from tests.ranks import run_on_ranks

TAUGHT = [name for name, cls in METHODS.items() if cls.needs_teacher]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request) -> tuple[str, str]:
    """Families of student and teacher."""
    return request.param


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


@pytest.fixture
def method(name, pair) -> Method:
    return build_small(name, *small_pair(*pair))


def step(method: Method, optimizer: torch.optim.Optimizer, batch: Batch) -> dict[str, Tensor]:
    """Train one step and give its terms."""
    optimizer.zero_grad()
    output = method.train()(batch)
    output.loss.backward()
    optimizer.step()
    return output.terms


def train(method: Method, steps: int = 3) -> None:
    optimizer = build_optimizer(method, TrainConfig(optimizer="sgd", peak_lr=0.01))
    for _ in range(steps):
        step(method, optimizer, random_batch())


class TestEveryPair:
    def test_gradient_reaches_every_trainable_parameter(self, method):
        method.train()
        method(random_batch()).loss.backward()
        trained = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
        assert trained
        assert not [name for name, gradient in trained.items() if gradient is None]
        assert all(g is not None and g.isfinite().all() for g in trained.values())

    def test_training_leaves_every_bit_of_the_teacher_and_moves_the_student(self, method):
        teacher = method._teacher
        assert teacher is not None
        before, student = (fingerprint(m.state_dict()) for m in (teacher.model, method.student))
        train(method)
        assert fingerprint(teacher.model.state_dict()) == before
        assert fingerprint(method.student.state_dict()) != student
        assert all(p.grad is None for p in teacher.model.parameters())

    def test_teacher_is_neither_trained_nor_saved(self, method):
        teacher = method._teacher
        assert teacher is not None
        method.requires_grad_(True)
        method.train()
        optimizer = build_optimizer(method, TrainConfig())
        own = {id(p) for p in teacher.model.parameters()}
        assert not own & {id(p) for p in method.parameters()}
        assert not own & {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert not any(
            "teacher." in key or "_teacher" in key.split(".")[0] for key in method.state_dict()
        )
        assert not any(part.training for part in teacher.model.modules())

    def test_saved_state_gives_the_same_loss_in_a_fresh_method(self, name, pair):
        teacher = FrozenTeacher(small(pair[1], 2))
        method = build_small(name, small(pair[0], 1), teacher)
        train(method)
        torch.manual_seed(5)
        fresh = build_small(name, small(pair[0], 3), teacher)
        batch = random_batch()
        with torch.no_grad():
            expected = method.eval()(batch).terms
            assert fresh.eval()(batch).terms != expected
            fresh.load_state_dict(method.state_dict(), strict=True)
            actual = fresh(batch).terms
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)

    def test_terms_are_finite_and_sum_to_the_loss(self, method):
        output = method(random_batch())
        assert all(term.shape == () and term.isfinite() for term in output.terms.values())
        total = sum(term.item() for term in output.terms.values())
        assert output.loss.item() == pytest.approx(total, rel=1e-5)

    def test_inference_uses_the_student_alone(self, method):
        batch = random_batch()
        with torch.no_grad():
            assert torch.equal(method.eval()(batch).logits, method.student(batch.images).logits)

    def test_stays_finite_under_bfloat16_autocast(self, method):
        with torch.autocast("cpu", torch.bfloat16):
            output = method(random_batch())
        assert all(term.dtype == torch.float32 for term in output.terms.values())
        output.loss.backward()
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        assert output.loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


class TestEveryMethod:
    @pytest.fixture
    def pair(self) -> tuple[str, str]:
        return "cnn", "vit"

    def test_labels_are_asked_for(self, method):
        images = random_batch().images
        with pytest.raises(DataError, match="needs labels and the data has none") as caught:
            method(Batch(images))
        assert "task_weight = 0" in caught.value.hint

    def test_task_weight_scales_the_cross_entropy_with_the_distributions(self, name, method):
        batch = random_batch()
        assert batch.labels is not None
        heavy = build_small(name, method.student, method._teacher, task_weight=2.5).eval()
        with torch.no_grad():
            log_p = method.eval()(batch).logits.log_softmax(dim=1)
            expected = -(batch.labels * log_p).sum(1).mean()
            torch.testing.assert_close(method(batch).terms["task"], expected)
            torch.testing.assert_close(heavy(batch).terms["task"], 2.5 * expected)

    def test_a_teacher_of_another_image_size_is_taken(self, name):
        teacher = FrozenTeacher(small("vit", 2, image_size=48))
        method = build_small(name, small("cnn", 1), teacher)
        assert method(random_batch()).loss.isfinite()

    def test_a_distilled_student_is_taught(self, name):
        method = build_small(name, *small_pair("distilled", "cnn"))
        method.train()(random_batch()).loss.backward()
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)

    @pytest.mark.parametrize(
        ("family", "names"),
        [
            ("vit", {"pos_embed", "cls_token"}),
            ("distilled", {"pos_embed", "cls_token", "dist_token"}),
            (
                "swin",
                {f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)},
            ),
        ],
    )
    def test_what_the_student_keeps_from_weight_decay_is_kept_from_it(self, name, family, names):
        method = build_small(name, *small_pair(family, "cnn"))
        optimizer = build_optimizer(method, TrainConfig(weight_decay=0.05))
        free = {
            id(p)
            for group in optimizer.param_groups
            if group["weight_decay"] == 0
            for p in group["params"]
        }
        parameters = dict(method.named_parameters())
        wanted = {f"student.model.{name}" for name in names}
        assert wanted <= method.no_weight_decay() & parameters.keys()
        for key, parameter in parameters.items():
            if parameter.requires_grad:
                expected = parameter.ndim <= 1 or key in method.no_weight_decay()
                assert (id(parameter) in free) == expected, key

    def test_everything_that_trains_is_in_the_optimizer_once(self, method):
        optimizer = build_optimizer(method, TrainConfig())
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in method.parameters() if p.requires_grad)


class TestResuming:
    @pytest.fixture
    def pair(self) -> tuple[str, str]:
        return "cnn", "vit"

    def test_goes_on_as_if_nothing_had_happened(self, name, pair):
        teacher = FrozenTeacher(small(pair[1], 2))
        torch.manual_seed(3)
        method = build_small(name, small(pair[0], 1), teacher)
        resumed = build_small(name, small(pair[0], 3), teacher)
        config = TrainConfig(peak_lr=0.01)
        optimizers = [build_optimizer(each, config) for each in (method, resumed)]
        batches = [random_batch() for _ in range(4)]
        for batch in batches[:2]:
            step(method, optimizers[0], batch)
        resumed.load_state_dict(copy.deepcopy(method.state_dict()))
        optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        for batch in batches[2:]:
            expected = step(method, optimizers[0], batch)
            actual = step(resumed, optimizers[1], batch)
            assert actual.keys() == expected.keys()
            assert all(torch.equal(actual[key], expected[key]) for key in expected)
        assert fingerprint(resumed.state_dict()) == fingerprint(method.state_dict())


@torch.no_grad()
def make_sure_of_itself(model: StagedModel, gap: float = 1000.0) -> None:
    """Scale a model's classifier until its largest and smallest score are a gap apart."""
    images = random_batch().images
    logits = model.eval()(images).logits
    for parameter in model.model.get_classifier().parameters():
        parameter.mul_(gap / (logits.amax(1) - logits.amin(1)).min())
    logits = model(images).logits
    assert (logits.amax(1) - logits.amin(1)).min() > 0.99 * gap


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sure", ["student", "teacher", "both"])
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradient_are_finite_at_gaps_of_1000_between_scores(name, sure, precision):
    student, teacher = small_pair("cnn", "vit")
    for party, model in (("student", student), ("teacher", teacher.model)):
        if sure in (party, "both"):
            make_sure_of_itself(model)
    method = build_small(name, student, teacher).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss = method(random_batch()).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


class TestTeacherOfOtherClasses:
    @pytest.mark.parametrize(
        ("name", "options"),
        accepted(TAUGHT, {}, {"kd_weight": 0}, {"ofa_weight": 0}, {"task_weight": 0}),
    )
    def test_is_refused_exactly_where_class_scores_are_compared(self, name, options):
        student, teacher = small("vit", 1), FrozenTeacher(small("cnn", 2, num_classes=9))
        if METHODS[name].Config(**options).reads_logits:
            with pytest.raises(RecipeError, match=r"knows 9 classes, the student .* 5"):
                build_small(name, student, teacher, **options)
        else:
            method = build_small(name, student, teacher, **options)
            assert_trains(method, random_batch())
            assert method.companions() == {}

    def test_teaches_by_the_methods_that_compare_features(self):
        reads = {name for name in TAUGHT if METHODS[name].Config().reads_logits}
        assert {"kd", "dkd", "dist", "ofa", "fbt", "fitnet"} <= reads
        assert not {"cc", "rkd", "crd", "rsd"} & reads


def assert_trains(method: Method, batch: Batch) -> None:
    """Every gradient is finite, and that of the student's first layers is not zero."""
    loss = method.train()(batch).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
    first = next(method.student.parameters()).grad
    assert first is not None
    assert first.abs().sum() > 0


class TestWithoutLabels:
    @pytest.mark.parametrize(
        ("name", "options"),
        accepted(
            [*METHODS],
            {"task_weight": 0},
            {"task_weight": 0, "gamma": 1.4},
            {"task_weight": 0, "form": "paper"},
            {"task_weight": 0, "ofa_weight": 0, "gamma": 1.4},
            {"task_weight": 0, "kd_weight": 0, "stages": (2, 3)},
        ),
    )
    def test_trains_or_asks_for_them_just_as_needs_labels_says(self, name, options):
        method = build_small(name, *small_pair("cnn", "vit"), **options)
        batch = random_batch()
        images, indices = batch.images, batch.indices
        if method.needs_labels:
            with pytest.raises(DataError, match=rf"^{type(method).__name__} needs labels and"):
                method(Batch(images, None, indices))
        else:
            output = method(Batch(images, None, indices))
            assert "task" not in output.terms
            assert_trains(method, Batch(images, None, indices))
            classifier = method.student.model.get_classifier().weight
            assert (classifier.grad is not None) == method.trains_logits
            assert output.logits.requires_grad == method.trains_logits

    def test_most_methods_train(self):
        options = [(name, cls.Config) for name, cls in METHODS.items() if name != "control"]
        asking = {name for name, config in options if config(task_weight=0).needs_labels}
        assert asking == {"dkd"}

    @pytest.mark.parametrize("name", METHODS)
    def test_no_method_trains_by_default(self, name):
        assert METHODS[name].Config().needs_labels


WITHOUT_LABELS = [
    *(name for name in TAUGHT if not METHODS[name].Config(task_weight=0).needs_labels),
    "combination",
]


STORED = ["kd", "dist", "rsd", "crd"]
"""Methods of class scores and of vectors; of each kind one that compares images of all ranks."""


def parallel(method: Method) -> nn.Module:
    """Wrap as the trainer wraps."""
    unused = not method.trains_logits
    return DistributedDataParallel(method, find_unused_parameters=unused)


def train_for_ranks(
    name: str, family: str, batches: list[Batch], task_weight: float = 1.0
) -> dict[str, dict[str, Tensor]]:
    """Train some steps on this rank's share."""
    stored = any(batch.stored for batch in batches)
    if stored:
        method = build_stored_for_ranks(name, family)
    else:
        method = build_for_ranks(name, family, task_weight)
    module = parallel(method) if world_size() > 1 else method
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9)
    gradients: dict[str, Tensor] = {}
    for batch in batches:
        optimizer.zero_grad()
        module(share(batch)).loss.backward()
        if not gradients:
            gradients = {
                key: p.grad.clone() for key, p in method.named_parameters() if p.grad is not None
            }
        optimizer.step()
    state = method.state_dict()
    buffers = {key: state[key] for key, _ in method.named_buffers() if key in state}
    return {
        "gradients": gradients,
        "parameters": {key: p.detach() for key, p in method.named_parameters()},
        "buffers": buffers,
    }


def share(batch: Batch) -> Batch:
    """This rank's half of a batch; all of it in one process."""
    return batch.split(world_size())[rank()]


def without_labels(batches: list[Batch]) -> list[Batch]:
    return [Batch(batch.images, None, batch.indices) for batch in batches]


def train_with_other_buffers(name: str, batches: list[Batch]) -> dict[str, dict[str, Tensor]]:
    """Let rank 1 begin with other buffers than rank 0, and see which are made alike."""
    method = build_for_ranks(name, "vit")
    if rank() == 1:
        for key, buffer in method.named_buffers():
            if not key.startswith("student."):
                buffer += 3
    module = parallel(method)
    for batch in batches[:2]:
        module(share(batch)).loss.backward()
    parts = [part for part in method.modules() if isinstance(part, Method)]
    alike = {id(getattr(part, key, None)) for part in parts for key in part.rank_identical}
    found: dict[str, dict[str, Tensor]] = {"kept": {}, "sent": {}}
    for key, buffer in method.named_buffers():
        found["kept" if id(buffer) in alike else "sent"][key] = buffer
    return found


def with_answers(name: str, family: str, batches: list[Batch]) -> list[Batch]:
    """What the live teacher says of each batch, stored."""
    teacher = build_for_ranks(name, family).teacher
    return [with_stored(batch, teacher) for batch in batches]


def everything_on_a_rank(tensors: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any]:
    batches = [Batch(*each) for each in tensors]
    trained = {
        f"{name} {family}": train_for_ranks(name, family, batches)
        for family in STUDENTS
        for name in NAMES
    }
    for name in WITHOUT_LABELS:
        trained[f"{name} unlabelled"] = train_for_ranks(name, "vit", without_labels(batches), 0)
    for name in STORED:
        answered = with_answers(name, "cnn", batches)
        trained[f"{name} stored"] = train_for_ranks(name, "cnn", answered)
    return {
        "trained": trained,
        "other": {name: train_with_other_buffers(name, batches) for name in NAMES},
    }


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    torch.manual_seed(6)
    made = []
    for _ in range(3):
        batch = random_batch(8)
        images, labels, indices = batch.images, batch.labels, batch.indices
        assert labels is not None
        labels[::2] = torch.eye(NUM_CLASSES)[labels[::2].argmax(1)]  # every other one is not mixed
        made.append(Batch(images.double(), labels, indices))
    return made


@pytest.fixture(scope="module")
def on_ranks(batches, tmp_path_factory) -> list[dict[str, Any]]:
    tensors = [(each.images, each.labels, each.indices) for each in batches]
    return run_on_ranks(everything_on_a_rank, tensors, folder=tmp_path_factory.mktemp("ranks"))


def assert_trained_alike(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Both ranks have every bit of each other, and the whole batch's to rounding."""
    assert expected["gradients"]
    largest = max(gradient.abs().max().item() for gradient in expected["gradients"].values())
    for own in found:
        torch.testing.assert_close(
            own["gradients"], expected["gradients"], rtol=1e-5, atol=1e-6 * largest
        )
        torch.testing.assert_close(own["parameters"], expected["parameters"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own["buffers"], expected["buffers"], rtol=0, atol=1e-6)
    for part in ("buffers", "parameters"):
        assert fingerprint(found[0][part]) == fingerprint(found[1][part])


@pytest.mark.distributed
class TestTwoRanks:
    @pytest.mark.parametrize("family", STUDENTS)
    @pytest.mark.parametrize("name", NAMES)
    def test_train_as_one_process_with_the_whole_batch(self, name, family, on_ranks, batches):
        expected = train_for_ranks(name, family, batches)
        assert expected["gradients"].keys() == {
            key for key, p in build_for_ranks(name, family).named_parameters() if p.requires_grad
        }
        found = [each["trained"][f"{name} {family}"] for each in on_ranks]
        assert_trained_alike(found, expected)

    @pytest.mark.parametrize("name", WITHOUT_LABELS)
    def test_train_so_without_labels(self, name, on_ranks, batches):
        # Where no term reads the scores, the classifier has no gradient, and no rank waits for it.
        expected = train_for_ranks(name, "vit", without_labels(batches), 0)
        assert_trained_alike([each["trained"][f"{name} unlabelled"] for each in on_ranks], expected)

    @pytest.mark.parametrize("name", STORED)
    def test_train_so_from_stored_answers_as_one_process_with_the_live_teacher(
        self, name, on_ranks, batches
    ):
        expected = train_for_ranks(name, "cnn", batches)
        assert_trained_alike([each["trained"][f"{name} stored"] for each in on_ranks], expected)

    @pytest.mark.parametrize("name", NAMES)
    def test_are_sent_all_buffers_but_those_computed_alike(self, name, on_ranks):
        first, second = (found["other"][name] for found in on_ranks)
        assert fingerprint(first["sent"]) == fingerprint(second["sent"])
        for key, own in second["kept"].items():
            assert not torch.allclose(own.double(), first["kept"][key].double(), atol=0.1), key


COMPILE = """
import copy
import torch
from anykd.errors import RecipeError
from anykd.models import FrozenTeacher
from tests.methods.for_ranks import NAMES, build_any
from tests.methods.small import random_batch, small, stored_teacher, with_stored

live = [FrozenTeacher(small("vit", 2)), FrozenTeacher(small("mlp", 3))]
stored = [stored_teacher(each, ("logits", "pooled"), slot=i) for i, each in enumerate(live)]
batch = with_stored(random_batch(), *live)
for name, teachers in [(name, teachers) for teachers in (live, stored) for name in NAMES]:
    torch.compiler.reset()  # so many classes share one forward that the compiler would give up
    try:
        method = build_any(name, small("mlp", 1), teachers)
    except RecipeError:
        continue
    eager = build_any(name, small("mlp", 1), live)
    eager.load_state_dict(method.state_dict())
    compiled = torch.compile(method, fullgraph=True, backend="eager")
    for _ in range(2):
        expected, actual = eager(batch).terms, compiled(batch).terms
        torch.testing.assert_close(actual, expected)
    assert method.state_dict().keys() == eager.state_dict().keys()
    torch.testing.assert_close(method.state_dict(), eager.state_dict())
    print(name)
"""


def test_training_step_is_one_graph_for_the_compiler():
    # In another process: the compiler cannot look through the shape checks of a test run.
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Methods that read stages take none that are stored.
    assert done.stdout.split() == NAMES + [n for n in NAMES if n not in ("fitnet", "pat")]


class TestJoins:
    """What a plan shows of where student and teacher meet."""

    @pytest.mark.parametrize(
        ("name", "options"),
        accepted(
            TAUGHT,
            *({}, {"kd_weight": 0}, {"stages": (3,)}, {"info_nce_weight": 0}),
            *({"ofa_weight": 0}, {"shared_temperature": True}, {"fusion": "no_tail"}),
            *({"fusion": "patch_embed"}, {"heads": "always"}, {"order": "teacher_first"}),
            *({"prompt_stages": (2,)}, {"feedback": "none"}, {"branch_design": "token"}),
            {"teacher_fusion_weight": 0, "fusion_student_weight": 0},
        ),
    )
    def test_hold_all_parameters_beside_the_students(self, name, options, pair):
        method = build_small(name, *small_pair(*pair), **options)
        own = sum(p.numel() for p in method.parameters())
        own -= sum(p.numel() for p in method.student.parameters())
        joins = method.joins()
        assert joins
        assert sum(join.parameters for join in joins) == own
        assert all(join.how for join in joins)

    def test_stand_where_the_shapes_are(self, name, pair):
        if name not in TAUGHT:
            pytest.skip("learns from labels alone")
        student, teacher = small_pair(*pair)
        joins = build_small(name, student, teacher).joins()
        # The fusion of FBT is a third model, with a vector of its own.
        for join in (j for j in joins if "fusion:" not in j.how and "fusion →" not in j.how):
            for place, shape, model in (
                (join.place, join.student, student),
                (join.target, join.teacher, teacher),
            ):
                at = {"stages": (), "pooled": (model.width,), "logits": (model.num_classes,)}
                at |= dict(enumerate(model.shapes, start=1))
                assert shape == at[place]

    def test_of_a_combination_are_those_of_its_parts_with_their_names(self):
        student, teacher = small_pair("cnn", "vit")
        tables = read_tables([{"name": "fitnet"}, {"name": "kd"}])
        second = FrozenTeacher(small("swin", 3))
        method = build_methods(tables, student, [(teacher, 1.0), (second, 1.0)])
        joins = method.joins()
        names = list(dict.fromkeys(join.part for join in joins))
        assert names == [f"{m} from teacher {t}" for m in ("FitNet", "KD") for t in (1, 2)]
        own = sum(p.numel() for p in method.get_submodule("methods").parameters())
        assert sum(join.parameters for join in joins) == own
