"""What makes a step fast, in counts and not in seconds: nothing runs twice, nothing waits."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from anykd.engine import Listener
from anykd.engine.config import TrainConfig
from anykd.engine.optim import build_optimizer
from anykd.engine.parallel import Parallel
from anykd.engine.scaling import LossScale
from anykd.engine.step import Stepper
from anykd.experiment.assemble import Parts, assemble
from anykd.methods import METHODS, Method
from anykd.models import FrozenTeacher, create_staged
from anykd.models.views import View, Views
from anykd.recipe import Recipe
from benchmarks.speed.arms import OurStep, OwnModules, Student, Teacher, random_batch
from tests.engine.tiny import trainer
from tests.methods.small import (
    FAMILIES,
    NUM_CLASSES,
    NUM_SAMPLES,
    SIZE,
    build_small,
    small,
    small_options,
)
from tests.methods.small import random_batch as small_batch

PAIRS = {"cnn": "vit", "vit": "cnn"}
"""The teacher of each student."""

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")


class Reads(TorchFunctionMode):
    """Counts what Python asks of tensors that the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS and isinstance(args[0], Tensor):
            self.asked[name] += 1
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Counts the operations that compute something; views of tensors do not."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not func.is_view:
            self.ran[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def reads(self) -> int:
        """Operations that give the host a number."""
        names = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")
        return sum(
            n for name, n in self.ran.items() if name.replace(".", "::", 1).startswith(names)
        )


def operations(work: Callable[[], object]) -> Counter[str]:
    """What a piece of work runs, after it has run once."""
    work()
    with Operations() as counted:
        work()
    return counted.ran


@pytest.fixture(params=PAIRS)
def family(request) -> str:
    """Of the student."""
    return request.param


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


@pytest.fixture
def method(name, family) -> Method:
    made = build_small(name, small(family, 1), FrozenTeacher(small(PAIRS[family], 2)))
    made.know_labels(torch.arange(NUM_SAMPLES) % NUM_CLASSES)
    return made.train()


def stepper(method: Method, optimizer: torch.optim.Optimizer) -> Stepper:
    """Of one process, with everything on that costs a step something."""
    parallel = Parallel(method, method.student)
    options = {"precision": nullcontext, "scale": LossScale(), "clip_grad": 1.0}
    return Stepper(parallel, method, optimizer, **options)


class TestAStepRunsNothingTwice:
    def test_neither_model(self, name, method):
        calls = _count_calls(method)
        method(small_batch()).loss.backward()
        expected = {"student": 1}
        if method.needs_teacher:
            expected["teacher"] = 1
        assert {key: n for key, n in calls.items() if " " not in key} == expected

    def test_no_stage_but_that_of_a_tail(self, name, method):
        calls = _count_calls(method)
        method(small_batch()).loss.backward()
        parties = ("student", "teacher") if method.needs_teacher else ("student",)
        expected = {f"{party} {stage}": 1 for party in parties for stage in (1, 2, 3, 4)}
        if method.runs_tail:
            expected["teacher 4"] = 2
        elif name == "fbt":  # the teacher stands in front of the fusion
            expected["student 4"] = 2
        assert {key: n for key, n in calls.items() if " " in key} == expected

    @pytest.mark.parametrize("teacher", ["vit", "cnn"])
    def test_no_view_of_the_images(self, name, teacher, monkeypatch):
        student, taught_by = small("wide", 1), small(teacher, 2)
        method = build_small(name, student, FrozenTeacher(taught_by))
        seen: list[Tensor] = []
        for staged in (student, taught_by):
            first = staged.model.get_submodule("conv1" if staged.kind == "conv" else "patch_embed")
            first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        resized: list[View] = []
        resize = View.resize
        monkeypatch.setattr(View, "resize", lambda v, x: (resized.append(v), resize(v, x))[1])
        method(small_batch(image_size=48)).loss.backward()
        distinct = {student.view, taught_by.view} if method.needs_teacher else {student.view}
        assert (
            len({id(images) for images in seen})
            == len(distinct)
            == (2 if teacher == "cnn" and method.needs_teacher else 1)
        )
        assert len(resized) == len({(view.image_size, view.interpolation) for view in distinct})


def _count_calls(method: Method) -> Counter[str]:
    """Count the calls of both models and of the modules that end their stages."""
    calls: Counter[str] = Counter()
    models = {"student": method.student}
    if method._teacher is not None:
        models["teacher"] = method._teacher.model

    def count(key: str) -> Callable[..., None]:
        return lambda *_: calls.update([key])

    for party, staged in models.items():
        staged.register_forward_pre_hook(count(party))
        for number, path in enumerate(staged.stage_modules, start=1):
            module = staged.model.get_submodule(path)
            module.register_forward_pre_hook(count(f"{party} {number}"))
    return calls


class TestAStepWaitsForNothing:
    def test_on_a_device_that_gives_no_numbers(self, method, monkeypatch):
        # A meta tensor has no values: whatever asks for one fails, and so does a copy to the host.
        _put_on_meta(method, monkeypatch)
        optimizer = _AsFused(method.parameters(), foreach=True)
        taken = stepper(method, optimizer).take(small_batch().to("meta"), key=(0, 0, 0))
        assert taken.report.is_meta
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            taken.report.tolist()

    def test_with_the_real_optimizer(self, family):
        # Of kd: on processors alone, others look whether labels and indices are in range.
        method = build_small("kd", small(family, 1), FrozenTeacher(small(PAIRS[family], 2)))
        taking = stepper(method, build_optimizer(method, TrainConfig()))
        batch = small_batch()
        taking.take(batch, key=(0, 0, 0))
        with Reads() as reads, Operations() as ran:
            taking.take(batch, key=(0, 0, 1))
        assert not reads.asked
        assert ran.reads == 0
        assert sum("_fused_adamw" in key for key in ran.ran) == 1

    def test_the_loop_reads_what_came_of_each_step_and_beyond_it_what_it_logs(self):
        student, teacher = small("cnn", 1, num_classes=4), small("vit", 2, num_classes=4)
        method = build_small("kd", student, FrozenTeacher(teacher))
        training = trainer(method, epochs=1, log_every=10, ema_decay=0.99, clip_grad=1.0)
        training.loader = _Longer(20)
        logged: list[dict[str, Any]] = []
        with Reads() as reads, Operations() as ran:
            training.fit(Listener(log=logged.append))
        assert [line["step"] for line in logged] == [0, 10, 19]
        # Its report, for each step; the terms and the norm of the gradient, for each line.
        assert reads.asked == {"tolist": 20 + 3, "__float__": 3}
        assert ran.reads == 3


class _Longer:
    """An epoch of so many batches, which need not differ here."""

    def __init__(self, steps: int) -> None:
        self.steps_per_epoch = steps

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Any]:
        batch = small_batch(num_classes=4)
        yield from [batch] * (self.steps_per_epoch - skip)

    def is_even(self, step: int) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _AsFused(torch.optim.AdamW):
    """Stands for the fused AdamW, which knows no meta device: it, too, is told to skip a step."""

    _step_supports_amp_scaling = True
    found_inf: Tensor | None

    def step(self, closure: Any = None) -> Any:
        assert self.found_inf is not None
        self.found_inf = None
        return super().step(closure)


def _put_on_meta(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    method.to("meta")
    if method._teacher is not None:
        method._teacher.to("meta")
    autocast = torch.autocast
    # There is no autocast on meta. Where losses stand outside of it, they do so here anyway.
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, **o: nullcontext() if kind == "meta" else autocast(kind, **o),
    )


COMPILE = """
import sys
import torch
from anykd.models import FrozenTeacher
from tests.methods.small import build_small, random_batch, small

for name in sys.argv[1:]:
    for student, teacher in (("cnn", "vit"), ("vit", "cnn")):
        torch.compiler.reset()
        method = build_small(name, small(student, 1), FrozenTeacher(small(teacher, 2))).train()
        torch.compile(method, fullgraph=True, backend="eager")(random_batch()).loss.backward()
        print(name, student)
"""


def test_student_teacher_and_method_are_one_graph_for_cnn_and_vit():
    # Every method, with an MLP for a student: tests/methods/test_contract.py.
    root, names = Path(__file__).parents[1], ["kd", "rsd", "ofa", "fbt"]
    command = [sys.executable, "-c", COMPILE, *names]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{n} {student}" for n in names for student in PAIRS]


def table(family: str, depth: int) -> dict[str, Any]:
    """A small model of a recipe, of so many blocks in each stage."""
    name, options = FAMILIES[family]
    key, blocks = ("layers", (depth,) * 4) if family == "cnn" else ("depth", 4 * depth)
    return {"name": name, "options": options | {key: blocks}}


def assembled(name: str, family: str, folder: Path, depth: int = 1) -> Parts:
    """A run as the benchmark times it, on small models."""
    student, teacher = table(family, depth), table(PAIRS[family], depth)
    size: dict[str, Any] = {"num_classes": 4, "image_size": SIZE}
    staged = create_staged(teacher["name"], **size, **teacher["options"])
    weights = folder / f"teacher-{depth}.safetensors"
    save_file(staged.model.state_dict(), weights)
    recipe = {
        "student": student,
        "teacher": teacher | {"weights": str(weights)},
        "method": {"name": name, **small_options(name)},
        "image_size": SIZE,
        "data": {"source": "synthetic:4x16"},
        "train": {"batch_size": 16, "precision": "float32", "clip_grad": 1.0},
    }
    parts = assemble(Recipe.from_dict(recipe), torch.device("cpu"))
    parts.method.train()
    return parts


def surplus(parts: Parts) -> int:
    """How many operations a step runs beyond those of its bare parts."""
    batch = random_batch(parts, 16)
    assert batch.labels is not None
    views = Views(batch.images)
    works = (Teacher(parts, views), Student(parts, views, batch.labels), OwnModules(parts, batch))
    least = sum(operations(work).total() for work in works)
    return operations(OurStep(parts, batch)).total() - least


class TestAStepRunsLittleMoreThanItsParts:
    """Both models' views, stages as maps, the look whether all is finite, and clipping."""

    @pytest.mark.parametrize("name", ["kd", "dkd", "dist", "rsd", "ofa", "fbt"])
    def test_whatever_the_method(self, name, family, tmp_path):
        assert surplus(assembled(name, family, tmp_path)) <= 75

    def test_and_no_more_for_larger_models(self, family, tmp_path):
        found = [surplus(assembled("kd", family, tmp_path, depth=depth)) for depth in (1, 3)]
        assert found[1] - found[0] <= 5
