"""What is stored of a teacher's answer to one image: a record of fixed size, there and back."""

import math
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from anykd.config import FrozenConfig
from anykd.errors import CacheError
from anykd.types import FeaturePart, Stored

__all__ = ["Codec"]

_TORCH = {"float16": torch.float16, "float32": torch.float32}
_NUMPY = {"float16": "<f2", "float32": "<f4"}
_MOST_VALUES = 2**24
_MOST_SHORT = 2**16
"""Classes that 16 bits can tell apart."""


class Codec(FrozenConfig):
    """How a teacher's answer to an image becomes a record of a cache.

    A class score is stored as its distance to the best one. No softmax sees the difference, and
    where the scores that matter are, near 0, float16 is finest.

    Of the k best scores alone, the record also keeps how much probability all other classes have
    together. Read back, each of them has an equal share of it: so the stored classes have their
    probabilities, and the others their sum.
    """

    num_classes: Annotated[int, Field(ge=0, le=_MOST_VALUES)]
    """Class scores that the teacher gives; 0 stores none."""
    top_k: PositiveInt | None = None
    """How many of the best are stored, fewer than num_classes; None stores all."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of what is stored."""
    pooled_width: Annotated[int, Field(ge=0, le=_MOST_VALUES)] = 0
    """Width of the vector that the teacher's classifier reads; 0 stores none."""

    @model_validator(mode="after")
    def _stores_something(self) -> "Codec":
        if not self.num_classes and not self.pooled_width:
            raise ValueError("one of num_classes and pooled_width must be above 0")
        return self

    @model_validator(mode="after")
    def _top_k_leaves_some_out(self) -> "Codec":
        if self.top_k is not None and self.top_k >= self.num_classes:
            raise ValueError(
                f"top_k must be below num_classes {self.num_classes}, or be left out to store all "
                f"scores, got {self.top_k}"
            )
        return self

    @property
    def parts(self) -> frozenset[FeaturePart]:
        """What can be read back."""
        logits: set[FeaturePart] = {"logits"} if self.num_classes else set()
        pooled: set[FeaturePart] = {"pooled"} if self.pooled_width else set()
        return frozenset(logits | pooled)

    @property
    def record(self) -> np.dtype:
        """A record: packed, with a name for each of its fields.

        Of all scores: ``scores``, by class. Of the best: ``classes`` and their ``scores``, the
        best first, and ``rest``, the logarithm of what the exponentials of all other scores add up
        to. And ``pooled``.
        """
        number = _NUMPY[self.dtype]
        fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
        if self.top_k is not None:
            classes = "<u2" if self.num_classes <= _MOST_SHORT else "<u4"
            fields += [("classes", classes, (self.top_k,)), ("scores", number, (self.top_k,))]
            fields += [("rest", "<f4")]
        elif self.num_classes:
            fields += [("scores", number, (self.num_classes,))]
        if self.pooled_width:
            fields += [("pooled", number, (self.pooled_width,))]
        return np.dtype(fields)

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return self.record.itemsize

    @property
    def summary(self) -> str:
        """What a record holds, as a person reads it.

        Example:
            >>> Codec(num_classes=1000, top_k=20, pooled_width=768).summary
            'the 20 best of 1,000 class scores and the mass of the rest, 768 pooled values, float16'
        """
        parts = []
        if self.top_k is not None:
            best = f"the {self.top_k} best of {self.num_classes:,} class scores"
            parts.append(f"{best} and the mass of the rest")
        elif self.num_classes:
            parts.append(f"all {self.num_classes:,} class scores")
        if self.pooled_width:
            parts.append(f"{self.pooled_width:,} pooled values")
        return ", ".join([*parts, self.dtype])

    def encode(
        self,
        logits: Float[Tensor, "batch classes"] | None,
        pooled: Float[Tensor, "batch width"] | None = None,
    ) -> np.ndarray:
        """Make the records of a batch. They are the same for the same rows in any batch.

        Where the k-th best score is that of several classes, those of the smaller index are stored.
        A score too far behind the best one for the type is stored as far behind as can be.

        Args:
            logits: The teacher's class scores; needed where scores are stored.
            pooled: The vectors before its classifier; needed where they are stored.

        Returns:
            Records of the type `record`, one for each row.

        Raises:
            CacheError: If a part is missing or of another width, or a value is not finite or
                larger than the type can hold.
        """
        scores = _checked(logits, self.num_classes, "class scores") if self.num_classes else None
        vectors = (
            _checked(pooled, self.pooled_width, "pooled values") if self.pooled_width else None
        )
        rows = len(next(part for part in (scores, vectors) if part is not None))
        records = np.empty(rows, self.record)
        if scores is not None:
            scores = scores - scores.amax(dim=1, keepdim=True)
            if self.top_k is None:
                records["scores"] = self._stored(scores)
            else:
                best, classes, rest = _best(scores, self.top_k)
                records["classes"], records["scores"] = classes.cpu(), self._stored(best)
                records["rest"] = _narrowed(rest, torch.float32).cpu()
        if vectors is not None:
            stored = vectors.to(_TORCH[self.dtype])
            row = _first(stored.isinf())
            if row is not None:
                raise CacheError(
                    f"row {row}: a pooled value of {vectors[row].abs().max():.3g} is larger than "
                    f"{self.dtype} can hold, {torch.finfo(stored.dtype).max:,.0f}",
                    hint="store float32",
                )
            records["pooled"] = stored.cpu()
        return records

    def decode(self, records: np.ndarray) -> Stored:
        """Read records back.

        Args:
            records: Of the type `record`, one for each row.

        Returns:
            float32, on the CPU. The best score of a row is 0.

        Raises:
            CacheError: If a record cannot have been written so.
        """
        pooled = _whole(records["pooled"]) if self.pooled_width else None
        if not self.num_classes:
            return Stored(None, pooled)
        scores = _whole(records["scores"])
        if self.top_k is None:
            return Stored(scores, pooled)
        share = _whole(records["rest"]) - math.log(self.num_classes - self.top_k)
        logits = share[:, None].repeat(1, self.num_classes)
        classes = torch.from_numpy(records["classes"].astype(np.int64))
        if classes.numel() and classes.amax() >= self.num_classes:
            raise _damaged()
        return Stored(logits.scatter_(1, classes, scores), pooled)

    def _stored(self, scores: Tensor) -> Tensor:
        return _narrowed(scores, _TORCH[self.dtype]).cpu()


def _checked(values: Tensor | None, width: int, name: str) -> Tensor:
    """Rows as they were given, in float32 at least."""
    given = None if values is None else values.shape[1]
    if values is None or given != width:
        raise CacheError(f"{width} {name} are to be stored for each image, got {given or 'none'}")
    # A sum shows in a tenth of the time that something is not finite, but not where.
    row = None if values.sum(dim=1).isfinite().all() else _first(~values.isfinite())
    if row is not None:
        raise CacheError(
            f"row {row}: {name} are not finite",
            hint="the teacher fails on this image; try another precision",
        )
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def _first(wrong: Tensor) -> int | None:
    """The first row with something wrong in it."""
    rows = wrong.any(dim=1).nonzero()
    return int(rows[0]) if len(rows) else None


def _narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values up to 0 in a type that may not reach as far down."""
    return values.clamp(min=torch.finfo(dtype).min).to(dtype)


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best scores of each row, their classes, and log-sum-exp of all others."""
    found = scores.topk(k + 1, dim=1)
    classes = found.indices[:, :k]
    tied = (found.values[:, k - 1] == found.values[:, k]).nonzero()[:, 0]
    if len(tied):
        # torch leaves open which of equal scores topk takes, and bfloat16 has many equal ones.
        classes[tied] = _first_of_equal(scores[tied], found.values[tied, k - 1 : k], k)
    classes = classes.sort(dim=1).values
    best, order = scores.gather(1, classes).sort(dim=1, descending=True, stable=True)
    rest = scores.scatter(1, classes, -math.inf).logsumexp(dim=1)
    return best, classes.gather(1, order), rest


def _first_of_equal(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """Classes of the k best scores of each row, of which the k-th is ``last``."""
    above, equal = scores > last, scores == last
    room = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1) <= room))
    return chosen.nonzero()[:, 1].view(-1, k)


def _whole(field: np.ndarray) -> Tensor:
    """Values as they were written: finite ones."""
    # A copy: torch warns of memory that may not be written to, such as a mapped file's.
    values = torch.from_numpy(np.array(field)).float()
    if not values.sum().isfinite() and not values.isfinite().all():
        raise _damaged()
    return values


def _damaged() -> CacheError:
    return CacheError(
        "a record of the cache is damaged",
        hint="`anykd cache verify CACHE` names the file; remove it and run the same `anykd cache "
        "build` again",
    )
