"""CRD: tell the teacher's vector of an image from those of thousands of other images."""

import math
from typing import Annotated, ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from anykd.distributed import gather_batch
from anykd.errors import DataError, RecipeError
from anykd.losses import crd_loss
from anykd.models import FrozenTeacher, StagedModel
from anykd.types import Batch, FeaturePart, Features, Terms

from .base import Method, MethodConfig, Paper
from .joins import Join

__all__ = ["CRD"]

_UNKNOWN = -1


class _Anchors(NamedTuple):
    """Unit vectors of a batch on both sides, and which images they are."""

    student: Float[Tensor, "batch width"]
    teacher: Float[Tensor, "batch width"]
    indices: Int[Tensor, " batch"]


@final
class CRD(Method):
    """Tell the other model's vector of an image from the vectors of images of other classes.

    loss = cross-entropy + crd_weight · (crd_loss(student) + crd_loss(teacher)), each side against
    a memory of the other's vectors, mapped linearly to one width and normalised. Both maps are
    trained, the teacher's too.

    A memory holds one vector for each training image, an average of what was seen of it. Both are
    computed alike on every rank, saved, and never broadcast: for ImageNet-1k they are
    2 · 1,281,167 · 128 float32: 1.3 GB on each device and in each checkpoint, and as much again
    for the time of a step.

    Which images are negatives is a function of the training step and the image alone. Classes are
    those of `know_labels`, which a recipe calls; in a loop of one's own they are learnt from the
    batches, from images that are not mixed with others. Negatives of an image of unknown class are
    all other images, and one of unknown class may be anybody's.

    Source:
        Tian et al., "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699.

    Departures: similarities to the whole memory are one product of matrices, from which those of
    the negatives are picked: the same numbers, in less memory than copies of the negatives.
    """

    class Config(MethodConfig):
        """Hyper-parameters of CRD."""

        num_samples: PositiveInt | None = None
        """Images in the training set; a recipe takes it from the data."""
        crd_weight: NonNegativeFloat = 0.8
        """Factor on the sum of both sides' terms."""
        num_negatives: Annotated[PositiveInt, Paper("16384")] = 16384
        """Negatives of each image."""
        temperature: Annotated[PositiveFloat, Paper("0.07")] = 0.07
        """τ: divides the similarities."""
        memory_momentum: Annotated[float, Paper("0.5")] = Field(default=0.5, ge=0, lt=1)
        """Share of the old vector when a memory takes in a new one."""
        embed_dim: Annotated[PositiveInt, Paper("128")] = 128
        """Width that both sides are mapped to."""

        @property
        def reads(self) -> frozenset[FeaturePart]:
            """The vectors."""
            return frozenset(("pooled",))

    config: Config
    rank_identical: ClassVar[tuple[str, ...]] = ("student_memory", "teacher_memory", "seen_labels")
    student_memory: Tensor
    teacher_memory: Tensor
    seen_labels: Tensor
    log_normalizers: Tensor
    steps: Tensor

    def __init__(self, student: StagedModel, teacher: FrozenTeacher | None, config: Config) -> None:
        super().__init__(student, teacher, config)
        if config.num_samples is None:
            raise RecipeError(
                "crd needs num_samples, the number of training images", hint="num_samples=50000"
            )
        self.num_samples = config.num_samples
        self.student_embed = nn.Linear(student.width, config.embed_dim)
        self.teacher_embed = nn.Linear(self.teacher.width, config.embed_dim)
        # One generator of its own: the first memory must be the same on every rank.
        generator = torch.Generator().manual_seed(0)
        for name in ("student_memory", "teacher_memory"):
            noise = torch.randn(self.num_samples, config.embed_dim, generator=generator)
            self.register_buffer(name, F.normalize(noise))
        self.register_buffer("seen_labels", torch.full((self.num_samples,), _UNKNOWN))
        # log Z of the student's and the teacher's scores; infinite until a batch was seen.
        self.register_buffer("log_normalizers", torch.full((2,), math.inf))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def joins(self) -> tuple[Join, ...]:
        """The embedded vectors and the memories."""
        how = (
            f"both to {self.config.embed_dim} by linear maps; {self.config.num_negatives} "
            f"negatives from a memory of {self.num_samples} images"
        )
        return (self.join("pooled", how, self.student_embed, self.teacher_embed),)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> Terms:
        """Compute both sides' terms of this rank's images, then take the whole batch in."""
        indices = self._indices(batch)
        anchors = _Anchors(
            _unit(self.student_embed(student.pooled)),
            _unit(self.teacher_embed(teacher.pooled)),
            indices,
        )
        everyone = _Anchors(*(gather_batch(part.detach()) for part in anchors))
        if self.training and batch.labels is not None:
            self._learn(everyone.indices, gather_batch(_pure_classes(batch.labels)))
        negatives = self._negatives(indices)
        scores = (
            self._scores(anchors.student, self.teacher_memory, indices, negatives),
            self._scores(anchors.teacher, self.student_memory, indices, negatives),
        )
        log_z = self._log_normalizers(scores)
        student_side, teacher_side = (
            crd_loss(side[:, 0] - own_z, side[:, 1:] - own_z, num_samples=self.num_samples)
            for side, own_z in zip(scores, log_z, strict=True)
        )
        if self.training:
            self._remember(everyone)
            self.steps += 1
        return {"crd": self.config.crd_weight * (student_side + teacher_side)}

    def _indices(self, batch: Batch) -> Int[Tensor, " batch"]:
        if batch.indices is None:
            raise DataError(
                "CRD remembers images and needs to know which ones a batch has",
                hint="give Batch(images, labels, indices): positions from 0 to num_samples - 1",
            )
        # Asking a GPU would make every step wait for it.
        if batch.indices.is_cpu and not torch.compiler.is_compiling():
            for index in (int(batch.indices.min()), int(batch.indices.max())):
                if not 0 <= index < self.num_samples:
                    raise DataError(
                        f"CRD has a memory of {self.num_samples} images, got index {index}",
                        hint="num_samples is the size of the whole training set",
                    )
        return batch.indices

    def know_labels(self, labels: Int[Tensor, " samples"]) -> None:
        """Take the classes of all training images, so that none has to be learnt from batches."""
        self.seen_labels.copy_(labels)

    def _learn(self, indices: Int[Tensor, " everyone"], classes: Int[Tensor, " everyone"]) -> None:
        """Take in the classes of images whose class was not known."""
        known = self.seen_labels[indices]
        self.seen_labels[indices] = torch.where(known == _UNKNOWN, classes, known)

    def _negatives(self, indices: Int[Tensor, " batch"]) -> Int[Tensor, "batch negatives"]:
        """Draw images of other classes, each of them equally likely.

        All images stand in the order of their classes, so that a row's own class is one range,
        and an image of no known class a range of one: a draw from as many numbers as there are
        others steps over it.
        """
        sorted_labels, order = self.seen_labels.sort(stable=True)
        place = order.argsort()
        labels = self.seen_labels[indices]
        unknown = labels == _UNKNOWN
        first = torch.where(unknown, place[indices], torch.searchsorted(sorted_labels, labels))
        behind = torch.searchsorted(sorted_labels, labels, right=True)
        own = torch.where(unknown, 1, behind - first)
        drawn = _draw(self.steps, indices, self.config.num_negatives)
        # Where no image of another class exists, there is nothing to draw from but one's own.
        chosen = drawn % (self.num_samples - own).clamp(min=1)[:, None]
        chosen = chosen + torch.where(chosen >= first[:, None], own[:, None], 0)
        return order[chosen.clamp(max=self.num_samples - 1)]

    def _scores(
        self,
        anchors: Float[Tensor, "batch width"],
        memory: Float[Tensor, "samples width"],
        indices: Int[Tensor, " batch"],
        negatives: Int[Tensor, "batch negatives"],
    ) -> Float[Tensor, "batch one_and_negatives"]:
        """Similarities over τ with the positive, which comes first, and the negatives."""
        # The memory changes below, so the graph gets a copy of what it saw. Autocast would
        # multiply in half precision, and 1/τ would enlarge the error.
        with torch.autocast(anchors.device.type, enabled=False):
            similarity = anchors @ memory.clone().T
        picked = torch.cat([indices[:, None], negatives], dim=1)
        return similarity.gather(1, picked) / self.config.temperature

    def _log_normalizers(
        self, scores: tuple[Float[Tensor, "batch one_and_negatives"], ...]
    ) -> Float[Tensor, "2"]:
        """Log Z of each side: as the first batch had it, which is the one at hand until then."""
        with torch.no_grad():
            rows = torch.stack([side.logsumexp(dim=1) for side in scores], dim=1)
            everyone = gather_batch(rows)
            count = len(everyone) * scores[0].shape[1]
            own = everyone.logsumexp(dim=0) - math.log(count) + math.log(self.num_samples)
            fixed = torch.where(self.log_normalizers.isinf(), own, self.log_normalizers)
            if self.training:
                self.log_normalizers.copy_(fixed)
        return fixed

    @torch.no_grad()
    def _remember(self, everyone: _Anchors) -> None:
        """Move the vectors of the whole batch's images in both memories."""
        share = self.config.memory_momentum
        for memory, new in (
            (self.student_memory, everyone.student),
            (self.teacher_memory, everyone.teacher),
        ):
            old = memory[everyone.indices]
            moved = F.normalize(share * old + (1 - share) * new)
            # A step that is not finite is skipped, but its memory would stay.
            fine = moved.isfinite().all(dim=1, keepdim=True)
            memory[everyone.indices] = torch.where(fine, moved, old)


def _unit(vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    return F.normalize(vectors.float())


def _pure_classes(
    labels: Float[Tensor, "batch classes"] | Int[Tensor, " batch"],
) -> Int[Tensor, " batch"]:
    """The class of each image, smoothed or not; unknown where it is mixed with another's."""
    if labels.ndim == 1:
        return labels
    above = labels > labels.min(dim=1, keepdim=True).values
    return torch.where(above.sum(dim=1) == 1, labels.argmax(dim=1), _UNKNOWN)


def _draw(
    step: Int[Tensor, ""], indices: Int[Tensor, " batch"], count: int
) -> Int[Tensor, "batch count"]:
    """Uniform numbers in [0, 2⁶²) that depend on (step, index, place in the row) alone.

    So a resumed run draws what it would have drawn, and each rank its rows of what one process
    would draw. The mixing is SplitMix64's (Steele et al., OOPSLA 2014), on torch's signed integers.
    """
    place = torch.arange(count, device=indices.device)
    row = _mix(_mix(step + 1) + indices)
    return _mix(row[:, None] + place * -7046029254386353131) & (2**62 - 1)


def _mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    x = (x ^ _shifted(x, 30)) * -4658895280553007687
    x = (x ^ _shifted(x, 27)) * -7723592293110705685
    return x ^ _shifted(x, 31)


def _shifted(x: Int[Tensor, "..."], places: int) -> Int[Tensor, "..."]:
    """Shift right and fill with zeros, where torch would fill with the sign."""
    return (x >> places) & (2 ** (64 - places) - 1)
