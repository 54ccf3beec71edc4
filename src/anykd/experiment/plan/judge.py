"""What models get right on a sample of the held-out images."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anykd.data import EvalLoader
from anykd.data.reader import SubsetReader
from anykd.engine import autocast
from anykd.experiment.assemble import Parts
from anykd.models import FrozenTeacher, StagedModel
from anykd.models.probe import evaluating

from .normalisation import Normalisation

__all__ = ["Judge", "sample_size"]

Hits = Bool[Tensor, " images"]
Images = Float[Tensor, "batch 3 height width"]

_MOST, _FEWEST = 128, 16
_FLOPS = 2e11
"""Operations that scoring a sample may cost on a CPU, which takes a few seconds."""


def sample_size(flops: int, device: torch.device) -> int:
    """Images that a model is judged by: fewer where it is slow, the same every time.

    Args:
        flops: Operations of one image.
        device: Where it runs.
    """
    if device.type != "cpu":
        return _MOST
    return max(_FEWEST, min(_MOST, int(_FLOPS / max(flops, 1))))


class Judge:
    """Scores models on a sample of a run's held-out images; nothing of the run changes.

    Args:
        parts: The run.
        positions: Held-out images that can be read.

    Attributes:
        num_broken: Images of the last call whose class scores were no finite numbers.
    """

    def __init__(self, parts: Parts, positions: tuple[int, ...]) -> None:
        self._parts = parts
        self._reader = SubsetReader(parts.data.val, positions)
        self.num_broken = 0

    def hits(
        self,
        model: StagedModel | FrozenTeacher,
        *,
        crop_pct: float | None = None,
        seen_as: Normalisation | None = None,
    ) -> Hits:
        """Find out which images a model gets right; scores that are not finite are wrong.

        Args:
            model: It sees images of its own size.
            crop_pct: Share of the short side that is kept; None takes the recipe's.
            seen_as: Normalised this way in place of the model's own.
        """
        module = model.model if isinstance(model, FrozenTeacher) else model
        view = _identity if seen_as is None else _renormalised(module, seen_as)
        found, broken = [], 0
        with torch.no_grad(), evaluating(module):
            for images, labels in self._batches(module.image_size, crop_pct):
                with autocast(self._parts.device, self._parts.dtype):
                    logits = model(view(images)).logits
                finite = logits.isfinite().all(dim=1)
                broken += int((~finite).sum())
                found.append((logits.argmax(dim=1) == labels) & finite)
        self.num_broken = broken
        return torch.cat(found).cpu()

    def _batches(
        self, image_size: tuple[int, int], crop_pct: float | None
    ) -> Iterator[tuple[Images, Tensor]]:
        augment = self._parts.recipe.augment
        if crop_pct is not None:
            augment = augment.model_copy(update={"crop_pct": crop_pct})
        # In this process, and all images on this rank: the others wait for what it finds.
        loader = EvalLoader(
            self._reader,
            num_classes=self._parts.data.num_classes,
            image_size=image_size,
            batch_size=16,
            augment=augment,
            workers=0,
        )
        for batch in loader:
            batch = batch.to(self._parts.device)
            assert batch.labels is not None
            yield batch.images, batch.labels.argmax(dim=1)


def _identity(images: Images) -> Images:
    return images


def _renormalised(model: StagedModel, other: Normalisation) -> Callable[[Images], Images]:
    """What to show a model so that, normalised its way, it sees images normalised another way."""
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1).to(model.mean) for values in (other.mean, other.std)
    )
    return lambda images: (images - mean) / std * model.std + model.mean
