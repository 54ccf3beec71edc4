"""What a method is: a student, a teacher, and the terms of a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from anykd.config import FrozenConfig
from anykd.distributed import gather_batch
from anykd.errors import DataError, RecipeError
from anykd.models import FrozenTeacher, StagedModel, Views
from anykd.models.stored import StoredTeacher
from anykd.types import Batch, FeaturePart, Features, StepOutput, Terms

from .joins import Join, Place, count_parameters, shape_at

__all__ = ["Classifier", "Method", "MethodConfig", "Paper", "no_labels"]

Classifier = Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch classes"]]


@dataclass(frozen=True)
class Paper:
    """What a publication gives for a field; stands in the field's ``Annotated`` type."""

    value: str


class MethodConfig(FrozenConfig):
    """Hyper-parameters that every method has."""

    task_weight: Annotated[NonNegativeFloat, Paper("1")] = 1.0
    """Factor on the cross-entropy with the labels; 0 trains without labels where the method can."""

    @property
    def reads(self) -> frozenset[FeaturePart]:
        """What of a teacher's features the terms read; everything, where a method does not say."""
        return frozenset(("stages", "pooled", "logits"))

    @property
    def reads_logits(self) -> bool:
        """Whether a term compares class scores: then both models must know the same classes."""
        return "logits" in self.reads

    @property
    def scores_student(self) -> bool:
        """Whether a term of the method's own reads the student's class scores."""
        return self.reads_logits

    @property
    def needs_labels(self) -> bool:
        """Whether a term reads labels."""
        return self.task_weight > 0

    @property
    def sensible_batch(self) -> int:
        """Images that a batch should have at least: more than 1 where a term compares them."""
        return 1


class Method(nn.Module, ABC):
    """One way to teach a student.

    A method owns the student and whatever it trains beside it, and turns a batch into named,
    weighted loss terms. It knows nothing of data, optimisers, devices or logging.

    Subclasses are final: tune one through its ``Config``, extend one by wrapping it.

    Args:
        student: The model that is trained and kept.
        teacher: The model that teaches. None will do for a method that needs none.
        config: An instance of the class's ``Config``.
    """

    Config: ClassVar[type[MethodConfig]]
    needs_teacher: ClassVar[bool] = True
    rank_identical: ClassVar[tuple[str, ...]] = ()
    """Buffers that every rank computes alike, and that are too large to broadcast."""

    def __init__(self, student: StagedModel, teacher: FrozenTeacher | None, config: Any) -> None:
        super().__init__()
        if not isinstance(student, StagedModel):
            raise RecipeError(
                f"the student is a {type(student).__name__}, not a StagedModel",
                hint="wrap it: StagedModel(model)",
            )
        if not isinstance(teacher, FrozenTeacher | None):
            raise RecipeError(
                f"the teacher is a {type(teacher).__name__}, not a FrozenTeacher",
                hint="wrap it, so that nothing can train it: FrozenTeacher(StagedModel(model))",
            )
        self.student = student
        self._teacher = teacher
        self.config = config
        if config.task_weight and not student.num_classes:
            raise RecipeError(
                f"the student {student.name} has no classes, so that labels cannot train it",
                hint="give it num_classes, or set method.task_weight = 0",
            )
        if not self.needs_teacher:
            return
        if teacher is None:
            raise RecipeError(
                f"the method {type(self).__name__} needs a teacher", hint="give --teacher MODEL"
            )
        same = teacher.num_classes == student.num_classes > 0
        if config.reads_logits and not same:
            raise RecipeError(
                f"{type(self).__name__} compares class scores, but the teacher {teacher.name} "
                f"knows {teacher.num_classes} classes, the student {student.name} "
                f"{student.num_classes}",
                hint="both must score the same classes; methods that compare features alone, such "
                "as rsd, take any teacher",
            )
        if isinstance(teacher, StoredTeacher):
            self._require_held(teacher.holds)

    def _require_held(self, holds: frozenset[FeaturePart]) -> None:
        """Refuse a teacher whose stored answers lack what the terms read."""
        missing, name = self.reads - holds, type(self).__name__
        if "stages" in missing:
            why, advice = self.why_stages()
            raise RecipeError(why, hint=advice)
        for part, words, advice in (
            ("logits", "class scores", "build one that holds them"),
            ("pooled", "pooled vectors", "build it with --pooled"),
        ):
            if part in missing:
                raise RecipeError(f"the cache holds no {words}, which {name} reads", hint=advice)

    @property
    def teacher(self) -> FrozenTeacher:
        """The teacher; only for methods that need one."""
        assert self._teacher is not None
        return self._teacher

    @property
    def needs_labels(self) -> bool:
        """Whether a term reads labels."""
        return self.config.needs_labels

    @property
    def sensible_batch(self) -> int:
        """Images that a batch should have at least, so that its terms mean something."""
        return self.config.sensible_batch

    @property
    def reads(self) -> frozenset[FeaturePart]:
        """What of the teacher's features the terms read, on some batch at least.

        It follows from student, teacher and config, so that it is known before anything is built.
        """
        return self.config.reads

    @property
    def runs_tail(self) -> bool:
        """Whether a term runs the teacher's own stage 4 and head, which nothing stored replaces."""
        return False

    def why_stages(self) -> tuple[str, str]:
        """Why a term reads the teacher's stages, and what to do where they cannot be had."""
        name = type(self).__name__
        return (
            f"{name} reads the teacher's stages, which no cache holds",
            f"leave teacher.cache out: {name} needs the live teacher",
        )

    def taught_by(self, teacher: FrozenTeacher) -> "tuple[Method, ...]":
        """The methods that learn from a teacher: this one, or those of a combination."""
        return (self,) if teacher is self._teacher else ()

    def reads_of(self, teacher: FrozenTeacher) -> frozenset[FeaturePart]:
        """What is read of one teacher's features, by whichever method."""
        return frozenset().union(*(method.reads for method in self.taught_by(teacher)))

    @property
    def trains_logits(self) -> bool:
        """Whether any term reads the student's class scores.

        Where none does, its classifier stays as it was, and the logits carry no gradient.
        """
        return self.config.task_weight > 0 or self.config.scores_student

    def forward(self, batch: Batch) -> StepOutput:
        """Run student and teacher once and compute the loss terms of one batch on this rank."""
        views = Views(batch.images, batch.stored)
        # The teacher first: what it computes on the way is gone before the student needs memory.
        teacher = self.taught(views)
        student = self.student(views)
        terms = self.task_terms(student.logits, batch) | self.terms(batch, student, teacher)
        # DistributedDataParallel waits for gradients of all that leads to an output.
        logits = student.logits if self.trains_logits else student.logits.detach()
        return StepOutput(logits, terms)

    def taught(self, views: Views) -> Any:
        """Run what teaches: the teacher, or nothing for a method that needs none."""
        return self.teacher(views, self.reads) if self.needs_teacher else None

    @abstractmethod
    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute the method's own weighted terms from what both models saw in a batch."""

    def task_terms(self, logits: Float[Tensor, "batch classes"], batch: Batch) -> Terms:
        """Compute the weighted cross-entropy with the labels; nothing where its weight is 0."""
        if self.config.task_weight == 0:
            return {}
        loss = F.cross_entropy(logits.float(), self.labels(batch))
        return {"task": self.config.task_weight * loss}

    def labels(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        """The labels of a batch, for a term that reads them.

        Raises:
            DataError: If the batch has none.
        """
        if batch.labels is None:
            raise DataError(*no_labels(self))
        return batch.labels

    def target_labels(
        self, batch: Batch, teacher: Features
    ) -> Float[Tensor, "batch classes"] | Int[Tensor, " batch"]:
        """Labels for `ofa_loss`; where it does not read them, the teacher's classes stand in."""
        if batch.labels is None and not self.needs_labels:
            return teacher.logits.argmax(dim=1)
        return self.labels(batch)

    def whole_batch(self, vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "everyone width"]:
        """Gather the student's vectors over all ranks, for a term that compares images.

        Raises:
            RecipeError: If there is one image alone.
        """
        gathered = gather_batch(vectors)
        if len(gathered) < 2:
            raise RecipeError(
                f"{type(self).__name__} compares the images of a batch, got a batch of 1",
                hint="raise train.batch_size",
            )
        return gathered

    def know_labels(self, labels: Int[Tensor, " samples"]) -> None:
        """Take the classes of the whole training set before training; most have no use for them.

        Args:
            labels: Class index of each image, in the order of ``Batch.indices``.
        """

    def companions(self) -> dict[str, Classifier]:
        """Classifiers beside the student whose accuracy is worth knowing, by name."""
        return {}

    def joins(self) -> tuple[Join, ...]:
        """Where student and teacher meet, for a plan; most methods say so.

        The parameters of all joins are those that the method holds beside the student's.
        """
        return ()

    def join(
        self,
        place: Place,
        how: str,
        *parts: nn.Module | nn.Parameter | None,
        target: Place | None = None,
    ) -> Join:
        """Describe one of the joins.

        Args:
            place: Of the student.
            how: What stands between the two, in a few words.
            *parts: What is held for this join alone.
            target: Where the teacher is met; None is the same place.
        """
        target = place if target is None else target
        shapes = (shape_at(self.student, place), shape_at(self.teacher, target))
        return Join(place, how, *shapes, target, count_parameters(parts))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone, the student's own included."""
        names: set[str] = set()
        for path, module in self.named_modules():
            own = getattr(module, "no_weight_decay", None)
            # Inside the student only its wrapper is asked: it passes timm's list on.
            if own is not None and module is not self and not path.startswith("student."):
                names |= {f"{path}.{name}" for name in own()}
        return names

    def lend_student(self) -> None:
        """Leave the student to a combination: owned twice, it would be saved twice."""
        student = self._modules.pop("student")
        object.__setattr__(self, "student", student)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Read by DistributedDataParallel: what it neither broadcasts nor reduces."""
        return [
            f"{path}.{name}" if path else name
            for path, module in self.named_modules()
            if isinstance(module, Method)
            for name in module.rank_identical
        ]


def no_labels(method: Method) -> tuple[str, str]:
    """What to say, and to advise, where a method needs labels and there are none."""
    parts = getattr(method, "parts", ())
    reader = next((part.method for part in parts if part.method.needs_labels), method)
    name = type(reader).__name__
    if method.config.task_weight == 0:
        advice = "choose a method that needs none, such as kd"
    else:
        advice = "set method.task_weight = 0 with a method that needs none, such as kd"
    return f"{name} needs labels and the data has none", advice
