"""The images that models are compared on: each model sees them its own way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anykd.data import DataSplits, EvalLoader, SubsetReader
from anykd.recipe import Recipe
from anykd.types import Batch

__all__ = ["ModelView", "Shown"]

_ORDER = 0
"""Seed of the order, so that all runs on the same data are analysed on the same images."""
_BATCH = 128
"""Images of a batch, at most."""
_LEAST = 8
"""Images of a batch, at least: CKA needs some."""


@dataclass(frozen=True)
class ModelView:
    """How a model is shown an image in evaluation.

    Attributes:
        image_size: (height, width) in pixels.
        crop_pct: Share of the short side that is kept; None takes that of the recipe.
    """

    image_size: tuple[int, int]
    crop_pct: float | None = None


class Shown:
    """Some of a data set's held-out images, in an order that mixes the classes.

    Args:
        data: Where they are.
        recipe: How they are cropped and loaded.
        num_samples: How many, at most.

    Attributes:
        positions: Which they are, in their order.
    """

    def __init__(self, data: DataSplits, recipe: Recipe, num_samples: int) -> None:
        self.data, self.recipe = data, recipe
        order = np.random.default_rng(_ORDER).permutation(len(data.val))
        self.positions: list[int] = order[:num_samples].tolist()

    def batches(self, views: Sequence[ModelView], *, batch_size: int) -> Iterator[list[Batch]]:
        """Yield the same images again and again, once for each view.

        Images that cannot be read are left out of all.

        Args:
            views: Models of one view share its batches.
            batch_size: Images per batch.
        """
        loaders = {view: self._loader(view, batch_size) for view in dict.fromkeys(views)}
        for batches in zip(*loaders.values(), strict=True):
            of_view = dict(zip(loaders, batches, strict=True))
            yield [of_view[view] for view in views]

    def batch_size(self, num_ranks: int) -> int:
        """Images that are not too many for the memory: training, which keeps more, says of what.

        Args:
            num_ranks: Processes that share the images of a training step.
        """
        train = self.recipe.train
        return max(_LEAST, min(_BATCH, 4 * train.batch_size // (train.grad_accum * num_ranks)))

    def _loader(self, view: ModelView, batch_size: int) -> EvalLoader:
        augment = self.recipe.augment
        if view.crop_pct is not None:
            augment = augment.model_copy(update={"crop_pct": view.crop_pct})
        # Whether too many cannot be read has been decided where the images were scored by.
        lenient = {"bad_images": "replace", "max_bad_fraction": 0.999}
        return EvalLoader(
            SubsetReader(self.data.val, self.positions),
            num_classes=self.data.num_classes,
            image_size=view.image_size,
            batch_size=batch_size,
            augment=augment,
            **self.recipe.data.loading | lenient,
        )
