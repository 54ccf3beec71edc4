"""Let a teacher look at every view once, and keep what it says."""

import itertools
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from anykd.data import ReplayLoader
from anykd.data.cache import Codec, Manifest
from anykd.data.cache.layout import ShardKey
from anykd.data.cache.writer import CacheWriter
from anykd.distributed import rank, wait_for_all, world_size
from anykd.engine import StopSignals, launched
from anykd.environment import describe_environment
from anykd.errors import CacheError, RecipeError, StoppedError
from anykd.experiment.apart import require_apart
from anykd.experiment.teacher_head import save_head
from anykd.experiment.teachers import Heads
from anykd.files import expanded, write_atomically
from anykd.progress import Progress
from anykd.recipe import Recipe
from anykd.rundir import RunDir
from anykd.types import Batch
from anykd.units import duration, size

from .source import CacheSource, open_source

__all__ = ["BuiltCache", "build_cache"]

_BATCH = 256
"""Images that the teacher sees at once, at most."""
_FILE_BYTES = 4096
"""What a file takes beside its records: its header, and the rest of its last block."""
_TRIED = 3
"""Batches of which the time is measured beforehand; the first one warms up."""


@dataclass(frozen=True)
class BuiltCache:
    """A cache that is finished.

    Attributes:
        path: Its folder.
        manifest: What it was made of.
        bytes: Of its records.
        images: Views that the teacher looked at now; 0 where all were there.
        seconds: What that took, with loading and writing.
    """

    path: Path
    manifest: Manifest
    bytes: int
    images: int
    seconds: float

    @property
    def summary(self) -> str:
        """What was done, in a line."""
        if not self.images:
            return f"{size(self.bytes)}, complete already  {self.path}"
        speed = f"{self.images:,} views in {duration(self.seconds)}"
        return f"{size(self.bytes)}, {speed}  {self.path}"


def build_cache(
    recipe: Recipe,
    out: str | Path,
    *,
    number: int = 1,
    top_k: int | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    pooled: bool | None = None,
) -> BuiltCache:
    """Store what a teacher says of every view of the training images.

    Called again with the same recipe it goes on where it was stopped, with any number of ranks.

    Args:
        recipe: The teacher, the data and how they are shown.
        out: The folder.
        number: Of the teacher in the recipe, counted from 1.
        top_k: Class scores to keep of each image, the best ones; None keeps all.
        dtype: Of what is stored.
        pooled: Whether to keep the vectors before the classifier; None keeps them where a method of
            the recipe reads them.

    Raises:
        AnykdError: If something given does not fit, or the folder holds something else.
    """
    path = expanded(out)
    require_apart(recipe, path, "cache")
    progress = Progress(visible=rank() == 0)
    with launched(device=recipe.train.device) as device, StopSignals() as signals:
        try:
            source = open_source(recipe, device, Heads(RunDir(path), resumed=True), number=number)
            codec = _codec(source, top_k, dtype, pooled)
            manifest = source.manifest(codec, {"environment": describe_environment(device)})
            return _build(source, manifest, path, progress, signals)
        except StoppedError as stopped:
            if not path.is_dir():
                raise
            told = f"stopped; the same command goes on with {path} where it was"
            raise StoppedError(stopped.number, told) from None


def _build(
    source: CacheSource, manifest: Manifest, path: Path, progress: Progress, signals: StopSignals
) -> BuiltCache:
    writer = CacheWriter(path, manifest, rank=rank())
    if rank() > 0:
        wait_for_all()  # until the first rank has entered
    with writer:
        if rank() == 0:
            wait_for_all()
        shards = writer.todo()
        if rank() == 0:
            _write_beginning(source, path)
            _introduce(source, manifest, shards, path, progress)
        mine = shards[rank() :: world_size()]
        wait_for_all()  # until the first rank has measured, alone
        begun = time.perf_counter()
        ranks = f"views on each of {world_size()} ranks" if world_size() > 1 else "views"
        with progress.counting(ranks, sum(len(shard.slots) for shard in mine)):
            _fill(source, writer, mine, progress, signals)
        wait_for_all()
        seconds = time.perf_counter() - begun
        if rank() == 0:
            manifest = writer.finish(seconds=round(seconds, 1), ranks=world_size())
        wait_for_all()
    images = sum(len(shard.slots) for shard in shards)
    return BuiltCache(path, manifest, manifest.layout.bytes, images, seconds)


def _fill(
    source: CacheSource,
    writer: CacheWriter,
    shards: list[ShardKey],
    progress: Progress,
    signals: StopSignals,
) -> None:
    """Make the records of some files, and write each when it is complete."""
    loader = _loader(source, progress)
    wanted = [(shard.view, piece) for shard in shards for piece in _pieces(shard)]
    batches = loader.batches(wanted)
    for shard in shards:
        records = []
        for batch in itertools.islice(batches, len(_pieces(shard))):
            records.append(_encoded(source, batch, writer.manifest.codec))
            progress.advance(len(batch))
        with signals.deferred():  # until the file is whole
            writer.write(shard, np.concatenate(records))
        signals.check()


def _encoded(source: CacheSource, batch: Batch, codec: Codec) -> np.ndarray:
    answer = source.answer(batch)
    logits = answer.logits if codec.num_classes else None
    return codec.encode(logits, answer.pooled if codec.pooled_width else None)


def _pieces(shard: ShardKey) -> list[list[int]]:
    """The slots of a file in batches; pairs stay together."""
    slots = list(shard.slots)
    return [slots[first : first + _BATCH] for first in range(0, len(slots), _BATCH)]


def _loader(
    source: CacheSource, progress: Progress | None, workers: int | None = None
) -> ReplayLoader:
    loading = dict(source.recipe.data.loading)
    loading.pop("bad_images")
    if workers is not None:
        loading["workers"] = workers
    say = None if progress is None else progress.say
    return ReplayLoader(source.views, on_bad_image=say, **loading)


def _codec(
    source: CacheSource,
    top_k: int | None,
    dtype: Literal["float16", "float32"],
    pooled: bool | None,
) -> Codec:
    teacher = source.built.model
    keeps_logits = source.built.classes.kind != "none needed"
    keeps_pooled = "pooled" in source.reads if pooled is None else pooled
    num_classes = teacher.num_classes if keeps_logits else 0
    if not num_classes and not keeps_pooled:
        raise CacheError(
            "nothing would be stored: no method compares the class scores, and no vectors are kept",
            hint="keep the vectors before the classifier: --pooled",
        )
    if top_k is not None and not 1 <= top_k < num_classes:
        raise RecipeError(
            f"--top-k {top_k} is no number of best class scores: there are {num_classes}",
            hint=f"give 1 to {num_classes - 1}, or leave it out to keep all",
        )
    width = teacher.width if keeps_pooled else 0
    return Codec(num_classes=num_classes, top_k=top_k, dtype=dtype, pooled_width=width)


def _write_beginning(source: CacheSource, path: Path) -> None:
    """Keep what verifying needs: the recipe, and a head that was fitted."""
    directory = RunDir(path)
    directory.write_text(directory.recipe, source.recipe.to_toml())
    head = source.built.head
    if head is not None and not directory.teacher_head(1).is_file():
        write_atomically(directory.teacher_head(1), partial(save_head, head))


def _introduce(
    source: CacheSource,
    manifest: Manifest,
    shards: list[ShardKey],
    path: Path,
    progress: Progress,
) -> None:
    """Say what there is to do, and refuse it where the disk is too small.

    Raises:
        CacheError: If there is no room.
    """
    layout, views = manifest.layout, manifest.views.num_views
    progress.say(
        f"{manifest.teacher.source} looks at {layout.num_slots:,} images, {views} "
        f"view{'s' if views > 1 else ''} of each; stored are {manifest.codec.summary}: "
        f"{layout.record_bytes:,} bytes for each view, {size(layout.bytes)} in all"
    )
    left = sum(len(shard.slots) for shard in shards)
    if not left:
        progress.say(f"{path} is complete already")
        return
    needed = left * layout.record_bytes + len(shards) * _FILE_BYTES
    free = shutil.disk_usage(path).free
    if needed > free:
        raise CacheError(
            f"{path} needs {size(needed)} more, and its disk has {size(free)} left",
            hint="keep fewer scores (--top-k) or views (--views), or give another disk",
        )
    done = layout.num_views * layout.num_slots - left
    goes_on = f", {done:,} of them are there already" if done else ""
    seconds = _seconds_per_image(source, shards[0], manifest.codec) * left / world_size()
    progress.say(f"{done + left:,} views{goes_on}; about {duration(seconds)}")


def _seconds_per_image(source: CacheSource, shard: ShardKey, codec: Codec) -> float:
    """What an image takes: loading or the teacher, or both where they share cores."""
    pieces = [(shard.view, piece) for piece in _pieces(shard)[:_TRIED]]
    loading = teaching = 0.0
    images = 0
    batches = iter(_loader(source, None, workers=0).batches(pieces))
    for turn in range(len(pieces)):
        begun = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        _encoded(source, batch, codec)
        if turn or len(pieces) == 1:
            loading += loaded - begun
            teaching += time.perf_counter() - loaded
            images += len(batch)
    if source.device.type == "cpu":
        return (loading / torch.get_num_threads() + teaching) / images
    return max(loading, teaching) / images
