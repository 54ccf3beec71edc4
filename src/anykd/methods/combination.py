"""Several methods and several teachers for one student."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from jaxtyping import Int
from torch import Tensor, nn

from anykd.models import FrozenTeacher, StagedModel, Views
from anykd.types import Batch, FeaturePart, Features, Terms

from .base import Classifier, Method, MethodConfig
from .joins import Join

__all__ = ["Combination", "Part"]


@dataclass(frozen=True)
class Part:
    """A method within a combination.

    Attributes:
        method: Built with the combination's student.
        weight: Factor on each of its terms.
        suffix: What its terms' names end in, to tell them from another part's.
    """

    method: Method
    weight: float
    suffix: str = ""

    @property
    def name(self) -> str:
        """What a person calls it, such as ``KD from teacher 2``."""
        suffix = self.suffix.replace("_teacher", " from teacher ").replace("_", " ")
        return f"{type(self.method).__name__}{suffix}"


@final
class Combination(Method):
    """The sum of several methods' terms, with one task term.

    Student and teachers run once per step, however many parts read what they saw.

    Args:
        student: The model that is trained and kept; every part was built with it.
        parts: Methods with their weights. They lose the student to the combination.
        task_weight: Factor on the cross-entropy with the labels.
    """

    Config = MethodConfig
    needs_teacher: ClassVar[bool] = False

    def __init__(
        self, student: StagedModel, parts: Sequence[Part], *, task_weight: float = 1.0
    ) -> None:
        super().__init__(student, None, MethodConfig(task_weight=task_weight))
        self.parts = parts
        self.teachers: list[FrozenTeacher] = []
        for part in parts:
            assert part.method.student is student
            part.method.lend_student()
            if part.method.teacher not in self.teachers:
                self.teachers.append(part.method.teacher)
        self.methods = nn.ModuleList(part.method for part in parts)

    @property
    def needs_labels(self) -> bool:
        """Whether the task term or any part reads labels."""
        return self.config.needs_labels or any(part.method.needs_labels for part in self.parts)

    @property
    def sensible_batch(self) -> int:
        """The largest that any part asks for."""
        return max(part.method.sensible_batch for part in self.parts)

    @property
    def reads(self) -> frozenset[FeaturePart]:
        """What any part reads of its teacher."""
        return frozenset().union(*(part.method.reads for part in self.parts))

    @property
    def runs_tail(self) -> bool:
        """Whether any part does."""
        return any(part.method.runs_tail for part in self.parts)

    def taught_by(self, teacher: FrozenTeacher) -> tuple[Method, ...]:
        """The methods of the parts that learn from a teacher."""
        return tuple(part.method for part in self.parts if part.method.teacher is teacher)

    @property
    def trains_logits(self) -> bool:
        """Whether the task term or any part reads the student's class scores."""
        return self.config.task_weight > 0 or any(
            part.method.config.scores_student for part in self.parts
        )

    def joins(self) -> tuple[Join, ...]:
        """The joins of every part, each with the name of its method."""
        return tuple(join.of_part(part.name) for part in self.parts for join in part.method.joins())

    def taught(self, views: Views) -> list[Features]:
        """Run each teacher once, however many parts learn from it."""
        return [teacher(views, self.reads_of(teacher)) for teacher in self.teachers]

    def terms(self, batch: Batch, student: Features, teacher: Any) -> Terms:
        """Compute the terms of every part; those of one name, such as two ``kd``, are added."""
        terms: Terms = {}
        for part in self.parts:
            taught = teacher[self.teachers.index(part.method.teacher)]
            for name, term in part.method.terms(batch, student, taught).items():
                key, weighted = f"{name}{part.suffix}", part.weight * term
                terms[key] = terms[key] + weighted if key in terms else weighted
        return terms

    def know_labels(self, labels: Int[Tensor, " samples"]) -> None:
        """Tell every part."""
        for part in self.parts:
            part.method.know_labels(labels)

    def companions(self) -> dict[str, Classifier]:
        """The companions of every part."""
        return {
            f"{name}{part.suffix}": classify
            for part in self.parts
            for name, classify in part.method.companions().items()
        }
