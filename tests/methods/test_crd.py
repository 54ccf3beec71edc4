"""CRD: a whole step against NumPy, the draw of negatives, and what is remembered."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from anykd.errors import DataError, RecipeError
from anykd.methods import build_methods, read_tables
from anykd.methods.crd import CRD, _draw
from anykd.models import FrozenTeacher, StagedModel
from anykd.types import Batch, Features
from tests.methods.small import NUM_CLASSES, NUM_SAMPLES, build_small, random_batch, small

MEMORIES = ["student_memory", "teacher_memory", "seen_labels"]


@pytest.fixture(scope="module")
def models() -> tuple[StagedModel, FrozenTeacher]:
    """Only their widths count where `terms` is given what they saw."""
    return small("cnn", 1), FrozenTeacher(small("vit", 2))


@pytest.fixture
def build(models) -> Callable[..., CRD]:
    def build(**options: Any) -> CRD:
        method = build_small("crd", *models, **options)
        assert isinstance(method, CRD)
        return method.train()

    return build


def seen(vectors: Tensor) -> Features:
    return Features((), (), vectors, vectors[:, :NUM_CLASSES])


def batch_of(indices: list[int], labels: list[int] | None = None) -> Batch:
    """Images that nobody looks at, with hard labels."""
    hard = None if labels is None else torch.eye(NUM_CLASSES)[labels]
    return Batch(torch.zeros(len(indices), 3, 2, 2), hard, torch.tensor(indices))


def random_sides(method: CRD, count: int) -> tuple[Tensor, Tensor]:
    student = torch.randn(count, method.student.width, requires_grad=True)
    return student, torch.randn(count, method.teacher.width)


def step(method: CRD, batch: Batch) -> Tensor:
    """The loss of one step, from random vectors."""
    student, teacher = random_sides(method, len(batch))
    return method.terms(batch, seen(student), seen(teacher))["crd"]


def buffers(method: CRD) -> dict[str, Tensor]:
    return {key: x.clone() for key, x in method.named_buffers() if not key.startswith("student.")}


# SplitMix64 on Python's integers of any size.
def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def drawn(step: int, index: int, count: int) -> list[int]:
    row = mix((mix(step + 1) + index) % 2**64)
    return [mix((row + k * 0x9E3779B97F4A7C15) % 2**64) % 2**62 for k in range(count)]


class NumpyCRD:
    """The method in float64, one image and one negative after another."""

    def __init__(self, method: CRD) -> None:
        self.config, self.labels = method.config, method.seen_labels.tolist()
        self.memory = [
            x.double().numpy().copy() for x in (method.student_memory, method.teacher_memory)
        ]
        self.maps = [
            (embed.weight.detach().double().numpy(), embed.bias.detach().double().numpy())
            for embed in (method.student_embed, method.teacher_embed)
        ]
        self.steps, self.z = 0, None

    def step(
        self, own: list[int], classes: list[int], vectors: list[np.ndarray]
    ) -> tuple[float, list, list]:
        """The loss, its gradients by both sides' vectors, and those by both maps' weights.

        A class is -1 where the labels do not tell it.
        """
        config, size = self.config, len(own)
        for index, label in zip(own, classes, strict=True):
            if self.labels[index] == -1:
                self.labels[index] = label
        mapped = [f @ w.T + b for f, (w, b) in zip(vectors, self.maps, strict=True)]
        lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in mapped]
        units = [x / length for x, length in zip(mapped, lengths, strict=True)]
        picked = [[i, *self.negatives(i)] for i in own]
        scores = [
            np.array([memory[rows] @ u for rows, u in zip(picked, unit, strict=True)])
            / config.temperature
            for unit, memory in zip(units, self.memory[::-1], strict=True)
        ]
        if self.z is None:
            self.z = [np.exp(side).mean() * NUM_SAMPLES for side in scores]
        noise, eps, loss = config.num_negatives / NUM_SAMPLES, 1e-7, 0.0
        by_vectors, by_weights = [], []
        sides = zip(
            scores, self.z, units, lengths, self.memory[::-1], self.maps, vectors, strict=True
        )
        for side, z, unit, length, memory, (weight, _), vector in sides:
            density = np.exp(side) / z
            positive, negative = density[:, 0], density[:, 1:]
            loss -= np.log(positive / (positive + noise + eps)).sum() / size
            loss -= np.log(noise / (negative + noise + eps)).sum() / size
            slope = density / (density + noise + eps)
            slope[:, 0] -= 1
            by_unit = np.array([s @ memory[rows] for s, rows in zip(slope, picked, strict=True)])
            by_unit *= config.crd_weight / size / config.temperature
            along = (by_unit * unit).sum(1, keepdims=True)
            by_mapped = (by_unit - along * unit) / length
            by_vectors.append(by_mapped @ weight)
            by_weights.append(by_mapped.T @ vector)
        for memory, unit in zip(self.memory, units, strict=True):
            for index, u in zip(own, unit, strict=True):
                moved = config.memory_momentum * memory[index] + (1 - config.memory_momentum) * u
                memory[index] = moved / np.linalg.norm(moved)
        self.steps += 1
        return config.crd_weight * loss, by_vectors, by_weights

    def negatives(self, index: int) -> list[int]:
        own = self.labels[index]
        everyone = sorted(range(NUM_SAMPLES), key=lambda i: self.labels[i])
        others = [i for i in everyone if i != index and (own == -1 or self.labels[i] != own)]
        numbers = drawn(self.steps, index, self.config.num_negatives)
        return [others[number % len(others)] for number in numbers]


class TestStep:
    @pytest.mark.parametrize("labels", ["hard", "mixed", "none"])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"temperature": 0.2, "memory_momentum": 0.9, "crd_weight": 3.0},
            {"num_negatives": 500, "embed_dim": 5, "memory_momentum": 0.0},
        ],
        ids=str,
    )
    def test_matches_numpy_in_value_gradient_and_memory(self, build, options, labels):
        method = build(**options)
        reference = NumpyCRD(method)
        for number in range(4):
            indices = torch.randperm(NUM_SAMPLES)[:8].tolist()
            classes = [-1] * 8 if labels == "none" else torch.randint(NUM_CLASSES, (8,)).tolist()
            batch = batch_of(indices, None if labels == "none" else classes)
            if labels == "mixed":
                assert batch.labels is not None
                batch.labels[::2] = torch.rand(4, NUM_CLASSES).softmax(1)
                classes[::2] = [-1] * 4
            student, teacher = random_sides(method, 8)
            method.zero_grad()
            loss = method.terms(batch, seen(student), seen(teacher))["crd"]
            loss.backward()
            both = [student.detach().double().numpy(), teacher.double().numpy()]
            expected, by_vectors, by_weights = reference.step(indices, classes, both)
            assert loss.item() == pytest.approx(expected, rel=1e-5), number
            for actual, exact in (
                (student.grad, by_vectors[0]),
                (method.student_embed.weight.grad, by_weights[0]),
                (method.teacher_embed.weight.grad, by_weights[1]),
            ):
                assert actual is not None
                scale = np.abs(exact).max()
                np.testing.assert_allclose(actual.numpy(), exact, rtol=1e-3, atol=1e-5 * scale)
            for actual, exact in zip(
                (method.student_memory, method.teacher_memory), reference.memory, strict=True
            ):
                np.testing.assert_allclose(actual.numpy(), exact, atol=1e-6)
            assert reference.z is not None
            np.testing.assert_allclose(method.log_normalizers.exp().numpy(), reference.z, rtol=1e-4)
            assert method.seen_labels.tolist() == reference.labels
            assert method.steps == reference.steps

    def test_runs_on_the_models_own_vectors(self, build):
        method, batch = build().eval(), random_batch()
        own, other = method.student(batch.images), method.teacher(batch.images)
        torch.testing.assert_close(
            method(batch).terms["crd"], method.terms(batch, own, other)["crd"]
        )

    def test_takes_a_batch_of_one(self, build):
        loss = step(build(), batch_of([7], [2]))
        loss.backward()
        assert loss.isfinite()


class TestDraw:
    def test_is_splitmix64_of_step_index_and_place(self):
        indices = torch.tensor([0, 1, 63, 1_281_166])
        for number in (0, 1, 12345):
            actual = _draw(torch.tensor(number), indices, 50).tolist()
            assert actual == [drawn(number, index, 50) for index in indices.tolist()]

    @pytest.mark.parametrize("modulus", [2, 7, 64, 1000])
    def test_is_uniform(self, modulus):
        numbers = torch.cat([_draw(torch.tensor(n), torch.arange(64), 256) for n in range(8)])
        assert numbers.min() >= 0
        for view in (numbers % modulus, numbers // (2**62 // modulus + 1)):
            counts = torch.bincount(view.flatten(), minlength=modulus)
            assert chisquare(counts.numpy()).pvalue > 1e-3

    def test_never_repeats_itself_between_steps_images_and_places(self):
        numbers = torch.stack([_draw(torch.tensor(n), torch.arange(64), 64) for n in range(16)])
        assert len(numbers.unique()) == numbers.numel()

    def test_does_not_depend_on_how_rows_are_shared_among_ranks(self):
        indices = torch.randperm(NUM_SAMPLES)
        whole = _draw(torch.tensor(5), indices, 32)
        parts = [_draw(torch.tensor(5), part, 32) for part in indices.split([1, 30, 33])]
        assert torch.equal(torch.cat(parts), whole)


# Unbalanced: 34 images of class 0, then 20, 7, 2 and 1.
CLASSES = torch.tensor([0] * 34 + [1] * 20 + [2] * 7 + [3] * 2 + [4])


class TestNegatives:
    @pytest.fixture
    def method(self, build) -> CRD:
        """Has seen every label, in an order that mixes the classes."""
        method = build(num_negatives=500)
        method.seen_labels.copy_(CLASSES[torch.randperm(NUM_SAMPLES)])
        return method

    @staticmethod
    def counts(method: CRD, steps: int = 10) -> Tensor:
        """How often each image (column) was another's (row's) negative."""
        counts = torch.zeros(NUM_SAMPLES, NUM_SAMPLES, dtype=torch.long)
        for number in range(steps):
            method.steps.fill_(number)
            drawn = method._negatives(torch.arange(NUM_SAMPLES))
            counts.scatter_add_(1, drawn, torch.ones_like(drawn))
        return counts

    def test_are_never_of_the_same_class_and_each_other_image_equally_likely(self, method):
        labels = method.seen_labels.clone()
        counts = self.counts(method)
        same = labels[:, None] == labels
        assert counts[same].sum() == 0
        for c in range(NUM_CLASSES):
            rows = counts[labels == c][:, labels != c]
            assert chisquare(rows.sum(0).numpy()).pvalue > 1e-3
        row = counts[0][labels != labels[0]]
        assert chisquare(row.numpy()).pvalue > 1e-3

    def test_are_never_of_the_same_class_in_a_training_step(self, method, monkeypatch):
        # The labels at hand count at once, those of the images that were never seen before too.
        method.seen_labels.fill_(-1)
        labels = CLASSES[torch.randperm(NUM_SAMPLES)]
        found = []
        negatives = CRD._negatives
        monkeypatch.setattr(
            CRD, "_negatives", lambda *args: found.append(negatives(*args)) or found[-1]
        )
        for _ in range(3):
            step(method, batch_of([*range(NUM_SAMPLES)], labels.tolist()))
        assert len(found) == 3
        for drawn in found:
            assert (labels[drawn] != labels[:, None]).all()

    def test_without_labels_are_all_images_but_itself(self, method):
        method.seen_labels.fill_(-1)
        counts = self.counts(method)
        assert counts.diagonal().sum() == 0
        others = counts[~torch.eye(NUM_SAMPLES, dtype=torch.bool)].view(NUM_SAMPLES, -1)
        assert chisquare(others[5].numpy()).pvalue > 1e-3
        assert chisquare(counts.sum(0).numpy()).pvalue > 1e-3

    def test_of_images_not_seen_yet_are_all_but_the_class_at_hand(self, method):
        method.seen_labels[32:] = -1
        labels = method.seen_labels.clone()
        counts = self.counts(method)[:32]
        same = labels[:32, None] == labels
        assert counts[same].sum() == 0
        assert (counts[~same] > 0).all()

    def test_are_of_other_classes_under_mixup_where_classes_are_known(self, method, monkeypatch):
        labels = CLASSES[torch.randperm(NUM_SAMPLES)]
        method.know_labels(labels)
        found = []
        negatives = CRD._negatives
        monkeypatch.setattr(
            CRD, "_negatives", lambda *args: found.append(negatives(*args)) or found[-1]
        )
        hard = torch.eye(NUM_CLASSES)[labels]
        mixed = 0.3 * hard + 0.7 * hard.flip(0)
        for _ in range(2):
            batch = Batch(torch.zeros(NUM_SAMPLES, 3, 2, 2), mixed, torch.arange(NUM_SAMPLES))
            step(method, batch)
        assert torch.equal(method.seen_labels, labels)
        for drawn in found:
            assert (labels[drawn] != labels[:, None]).all()

    def test_classes_are_learnt_from_images_that_are_not_mixed(self, build):
        method = build()
        labels = torch.tensor([[0.92, 0.02, 0.02, 0.02, 0.02], [0.5, 0.48, 0.0, 0.0, 0.02]])
        step(method, Batch(torch.zeros(2, 3, 2, 2), labels, torch.tensor([3, 8])))
        assert method.seen_labels[3] == 0
        assert method.seen_labels[8] == -1

    def test_exist_even_where_all_images_are_of_one_class(self, build):
        loss = step(build(), batch_of([*range(NUM_SAMPLES)], [1] * NUM_SAMPLES))
        assert loss.isfinite()

    def test_are_drawn_anew_each_step_and_alike_after_resuming(self, build):
        method, batch = build(), batch_of([1, 2, 3], [0, 1, 2])
        indices = torch.tensor([1, 2, 3])
        for _ in range(2):
            step(method, batch)
        resumed = build()
        resumed.load_state_dict(copy.deepcopy(method.state_dict()))
        assert resumed.steps == 2
        upcoming = method._negatives(indices)
        assert torch.equal(resumed._negatives(indices), upcoming)
        step(method, batch)
        assert not torch.equal(method._negatives(indices), upcoming)


class TestMemory:
    def test_starts_as_the_same_unit_vectors_everywhere(self, build):
        methods = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            methods.append(build())
        first, second = (buffers(method) for method in methods)
        for key in MEMORIES:
            assert torch.equal(first[key], second[key])
        for key in MEMORIES[:2]:
            torch.testing.assert_close(first[key].norm(dim=1), torch.ones(NUM_SAMPLES))
        assert not torch.allclose(first["student_memory"], first["teacher_memory"])

    def test_moves_the_batchs_vectors_alone(self, build):
        method, indices = build(), [9, 4, 60]
        before = buffers(method)
        step(method, batch_of(indices, [0, 1, 2]))
        for key in MEMORIES:
            changed = (buffers(method)[key] != before[key]).view(NUM_SAMPLES, -1).any(1)
            assert changed.nonzero().flatten().tolist() == sorted(indices)

    def test_of_an_image_is_what_was_seen_last_without_momentum(self, build):
        method, batch = build(memory_momentum=0.0), batch_of([9, 4], [0, 1])
        student, teacher = random_sides(method, 2)
        method.terms(batch, seen(student), seen(teacher))
        for memory, embed, vectors in (
            (method.student_memory, method.student_embed, student),
            (method.teacher_memory, method.teacher_embed, teacher),
        ):
            mapped = embed(vectors)
            torch.testing.assert_close(memory[[9, 4]], mapped / mapped.norm(dim=1, keepdim=True))

    @pytest.mark.parametrize("trained", [True, False])
    def test_does_not_change_in_evaluation(self, build, trained):
        method = build()
        if trained:
            step(method, batch_of([1, 2], [0, 1]))
        before = buffers(method)
        step(method.eval(), batch_of([2, 3], [1, 2]))
        assert all(torch.equal(x, before[key]) for key, x in buffers(method).items())

    def test_holds_no_graph(self, build):
        method = build()
        student, teacher = random_sides(method, 2)
        loss = method.terms(batch_of([1, 2], [0, 1]), seen(student), seen(teacher))["crd"]
        loss.backward()
        for buffer in method.buffers():
            assert buffer.grad_fn is None
            assert not buffer.requires_grad
        vectors = weakref.ref(student)  # the graph of the step holds it
        del student, loss
        assert vectors() is None

    def test_stays_the_same_tensor_of_the_same_size(self, build):
        method = build()
        places = {key: (x.data_ptr(), x.shape) for key, x in method.named_buffers()}
        for number in range(3):
            step(method, batch_of([number, 5], [0, 1])).backward()
        assert {key: (x.data_ptr(), x.shape) for key, x in method.named_buffers()} == places

    def test_can_change_before_the_backward_pass(self, build):
        # As in every step; the graph keeps what it saw.
        method, batch = build(memory_momentum=0.0), batch_of([1, 2], [0, 1])
        student, teacher = random_sides(method, 2)
        frozen = copy.deepcopy(method)
        frozen._remember = lambda everyone: None
        gradients = []
        for each in (method, frozen):
            loss = each.terms(batch, seen(student), seen(teacher))["crd"]
            gradients.append(torch.autograd.grad(loss, student)[0])
        assert torch.equal(*gradients)


class TestNormalizers:
    def test_are_those_of_the_first_batch_for_good(self, build):
        method = build()
        assert method.log_normalizers.isinf().all()
        step(method, batch_of([1, 2], [0, 1]))
        first = method.log_normalizers.clone()
        assert first.isfinite().all()
        step(method, batch_of([3, 4], [0, 1]))
        assert torch.equal(method.log_normalizers, first)
        resumed = build()
        resumed.load_state_dict(method.state_dict())
        step(resumed, batch_of([5, 6], [0, 1]))
        assert torch.equal(resumed.log_normalizers, first)

    def test_are_those_of_the_batch_at_hand_in_evaluation_before_training(self, build):
        method = build()
        trained = copy.deepcopy(method)
        student, teacher = random_sides(method, 2)
        # Without labels training and evaluation draw alike.
        batch = batch_of([1, 2])
        evaluated = method.eval().terms(batch, seen(student), seen(teacher))["crd"]
        expected = trained.terms(batch, seen(student), seen(teacher))["crd"]
        torch.testing.assert_close(evaluated, expected)


class TestManyRanks:
    def test_are_not_sent_the_memories_and_nothing_else_is_kept_back(self, build):
        method = build()
        assert sorted(method._ddp_params_and_buffers_to_ignore) == sorted(MEMORIES)
        assert set(MEMORIES) <= dict(method.named_buffers()).keys()

    def test_are_not_sent_them_in_a_combination_either(self, models):
        _, teacher = models
        tables = read_tables(
            [
                {"name": "kd"},
                {"name": "crd", "num_samples": 10},
                {"name": "crd", "num_samples": 20, "teachers": [1]},
            ]
        )
        method = build_methods(tables, small("cnn"), [(teacher, 1.0)])
        expected = {f"methods.{part}.{name}" for part in (1, 2) for name in MEMORIES}
        assert set(method._ddp_params_and_buffers_to_ignore) == expected
        assert expected <= dict(method.named_buffers()).keys()


class TestRefuses:
    def test_a_batch_without_indices_in_words(self, build):
        batch = random_batch()
        with pytest.raises(DataError, match="CRD remembers images and needs to know") as caught:
            build()(Batch(batch.images, batch.labels))
        assert "0 to num_samples - 1" in caught.value.hint

    @pytest.mark.parametrize("index", [NUM_SAMPLES, 1000, -1])
    def test_an_index_that_has_no_place_in_words(self, build, index):
        method = build()
        before = buffers(method)
        with pytest.raises(DataError, match=rf"a memory of 64 images, got index {index}"):
            step(method, batch_of([0, index], [0, 1]))
        assert all(torch.equal(x, before[key]) for key, x in buffers(method).items())

    def test_to_guess_the_number_of_images(self, build):
        with pytest.raises(RecipeError, match="crd needs num_samples"):
            build(num_samples=None)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("num_samples", 0),
            ("num_negatives", 0),
            ("temperature", 0),
            ("memory_momentum", 1),
            ("memory_momentum", -0.1),
            ("embed_dim", 0),
            ("crd_weight", -1),
        ],
    )
    def test_a_value_out_of_range(self, build, option, value):
        with pytest.raises(RecipeError, match=rf"method.{option}: .*, got {value}"):
            build(**{option: value})
