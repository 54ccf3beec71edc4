"""What all loaders share: batches by key through worker processes, and the images that failed."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils.data import DataLoader

from anykd.errors import AnykdError, RecipeError
from anykd.types import Batch, Stored

from .batches import BatchKey, EvalBatches, Images, Indices, Labels, TrainBatches
from .drawn import Drawn
from .faults import BadImages
from .on_device import DeviceViews
from .workers import choose_workers, leave_signals_to_parent

__all__ = ["Loader"]


class Loader:
    """Batches by key, made in worker processes.

    Args:
        batches: Makes one.
        bad_images: Counts the images that cannot be read.
        finish: Makes what the processes leave to the device; None where they leave nothing.
        workers: Loader processes; None as in `DataConfig`.
        prefetch: Batches that each worker prepares ahead.
        pin_memory: Whether batches lie in pinned memory; None where there is a GPU.
        persistent_workers: Whether workers live from one pass to the next.

    Raises:
        RecipeError: If memory is to be pinned without a GPU.
    """

    def __init__(
        self,
        batches: TrainBatches | EvalBatches,
        bad_images: BadImages,
        *,
        finish: DeviceViews | None = None,
        workers: int | None,
        prefetch: int = 2,
        pin_memory: bool | None = None,
        persistent_workers: bool = True,
    ) -> None:
        num_workers = choose_workers(workers, batches.reader)
        has_gpu = torch.cuda.is_available()
        if pin_memory and not has_gpu:
            raise RecipeError(
                "data.pin_memory is true, and there is no GPU that pinned memory would be copied "
                "to",
                "leave it out: memory is pinned where there is a GPU",
            )
        self._bad = bad_images
        self._finish = finish
        self._plan = _Plan()
        self._loader = DataLoader(
            batches,
            batch_size=None,  # a key is a whole batch already
            sampler=self._plan,
            num_workers=num_workers,
            prefetch_factor=prefetch if num_workers else None,
            persistent_workers=persistent_workers and num_workers > 0,
            pin_memory=has_gpu if pin_memory is None else pin_memory,
            worker_init_fn=leave_signals_to_parent,
            # Without a generator of its own, every epoch would draw from torch's global one.
            generator=torch.Generator(),
        )

    @property
    def bad_images(self) -> dict[int, str]:
        """What was wrong with each image that could not be read so far, by its index."""
        return self._bad.found

    def add_bad_images(self, found: Mapping[int, str]) -> None:
        """Count images that another rank could not read.

        Raises:
            DataError: If with them more have failed than may.
        """
        self._bad.add(found)

    def _load(self, keys: Sequence[BatchKey]) -> Iterator[Batch]:
        """Yield the batches of some keys: raise what was met, count what could not be read."""
        # The loader reads the plan when a pass begins: worker processes outlive passes.
        self._plan.keys = keys
        for result in self._loader:
            if isinstance(result, AnykdError):
                try:
                    raise result
                finally:
                    # Else the error holds this frame and the frame the error, until the garbage
                    # collector finds them, which takes torch 5 s per loader to end its workers.
                    del result
            batch, bad = result
            if bad:
                self._bad.add(bad)
            if batch is not None:
                yield self._batch(*batch)
            assert self._plan.keys is keys, "another pass was begun before this one was left"

    def _batch(
        self,
        images: Images | Drawn,
        labels: Labels | None,
        indices: Indices,
        known: Sequence[Sequence[torch.Tensor | None]],
    ) -> Batch:
        stored = tuple(_stored(one) for one in known)
        if not isinstance(images, Drawn):
            return Batch(images, labels, indices, stored)
        assert self._finish is not None
        images, labels = self._finish(images)
        return Batch(images, labels, indices, stored).to(self._finish.device)


class _Plan:
    """The sampler of a loader: keys that may be exchanged between passes."""

    def __init__(self) -> None:
        self.keys: Sequence[BatchKey] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.keys)


def _stored(known: Sequence[torch.Tensor | None]) -> Stored | None:
    logits, pooled = known
    return None if logits is None and pooled is None else Stored(logits, pooled)
