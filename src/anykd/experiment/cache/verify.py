"""Ask the live teacher again about some of what is stored."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anykd.data import ReplayLoader
from anykd.data.cache import Cache
from anykd.distributed import world_size
from anykd.engine import launched
from anykd.errors import CacheError
from anykd.experiment.teachers import Heads
from anykd.recipe import Recipe, read_toml
from anykd.rundir import RunDir
from anykd.types import Stored

from .compare import Differences, compare, tolerated
from .source import CacheSource, open_source
from .use import open_cache

__all__ = ["Verification", "verify_cache"]

_BATCH = 64


@dataclass(frozen=True)
class Verification:
    """How what is stored compares with what the teacher says now.

    Attributes:
        samples: Views that were looked at again; 0 where files are damaged.
        damaged: Files that are missing, or are not as they were written.
        logits: Largest difference of a class score, both measured from the row's best; None where
            none are stored.
        mass: Largest difference of the probability that the classes beyond the stored ones have
            together; None where all are stored.
        pooled: Largest difference of a pooled value; None where none are stored.
        agreement: Percent of the samples with the same best class; None without class scores.
        tolerated: What rounding and the order of sums may explain of ``logits``, and of ``pooled``.
        worst: The image with the largest difference, by its key in the data, and its view.
    """

    samples: int
    damaged: tuple[str, ...]
    logits: float | None
    mass: float | None
    pooled: float | None
    agreement: float | None
    tolerated: tuple[float, float]
    worst: str

    @property
    def text(self) -> str:
        """What was found, for a terminal."""
        most_logits, most_pooled = self.tolerated
        lines = [
            f"{len(self.damaged)} damaged files: {', '.join(self.damaged[:20])}"
            + (", ..." if len(self.damaged) > 20 else "")
            + "; remove them and run the same `anykd cache build` again"
            if self.damaged
            else "all files are as they were written"
        ]
        if self.samples:
            lines.append(f"{self.samples} views were looked at again")
        if self.logits is not None:
            lines.append(
                f"class scores differ by at most {self.logits:.3g} (rounding explains "
                f"{most_logits:.3g}); the best class is the same for {self.agreement:.2f} %"
            )
        if self.mass is not None:
            lines.append(f"the mass of the other classes differs by at most {self.mass:.3g}")
        if self.pooled is not None:
            lines.append(
                f"pooled values differ by at most {self.pooled:.3g} (rounding explains "
                f"{most_pooled:.3g})"
            )
        if self.samples:
            lines.append(f"the largest difference is at {self.worst}")
        lines.append("the cache holds" if self.holds else "THE CACHE DOES NOT HOLD")
        return "\n".join(lines)

    @property
    def holds(self) -> bool:
        """Whether the files are whole, and nothing differs by more than is to be expected."""
        most_logits, most_pooled = self.tolerated
        return (
            not self.damaged
            and (self.logits or 0.0) <= most_logits
            and (self.pooled or 0.0) <= most_pooled
        )


def verify_cache(path: str | Path, *, samples: int = 256, seed: int = 0) -> Verification:
    """Read every file again, and let the teacher answer for a random sample once more.

    Args:
        path: The cache; its recipe names the teacher and the data.
        samples: Views to look at.
        seed: Decides which.

    Raises:
        AnykdError: If teacher or data cannot be had, or are not those that the cache was made of.
    """
    cache = open_cache(path)
    recipe_path = RunDir(cache.path).recipe
    recipe = Recipe.from_dict(read_toml(recipe_path), source=str(recipe_path))
    with launched(device=recipe.train.device) as device:
        if world_size() > 1:
            raise CacheError(
                f"a cache is verified by one process, and here are {world_size()}",
                hint="call it without torchrun",
            )
        heads = Heads(RunDir(cache.path), resumed=True)
        source = open_source(recipe, device, heads, number=1)
        _require_same(cache, source)
        return _compare(cache, source, samples, seed)


def _require_same(cache: Cache, source: CacheSource) -> None:
    """Refuse to compare with another teacher, or on other images."""
    misfits = cache.manifest.misfits(source.manifest(cache.manifest.codec, {}))
    if misfits:
        raise CacheError(
            f"{cache.path} is not of what its recipe names now: {'; '.join(misfits)}",
            hint="bring back the teacher and the images that it was built from, or build it anew",
        )


def _compare(cache: Cache, source: CacheSource, samples: int, seed: int) -> Verification:
    codec = cache.manifest.codec
    damaged = tuple(cache.verify_checksums())
    if damaged:  # what is in the other files is not worth asking about
        return Verification(0, damaged, None, None, None, None, (0.0, 0.0), "")
    rng = np.random.default_rng((seed, cache.manifest.num_slots))
    chosen = _choose(cache, samples, rng)
    loading = dict(source.recipe.data.loading)
    loading.pop("bad_images")
    batches = ReplayLoader(source.views, **loading).batches(chosen)
    found: list[Differences] = []
    for (view, slots), batch in zip(chosen, batches, strict=True):
        answer = source.answer(batch)
        live = Stored(answer.logits.float().cpu(), answer.pooled.float().cpu())
        found.append(compare(codec, cache.records(view, slots), live))
    return _verdict(cache, source, Differences.joined(found), chosen, damaged)


def _choose(cache: Cache, samples: int, rng: np.random.Generator) -> list[tuple[int, list[int]]]:
    """Views and slots at random, in batches of one view; whole pairs, which may be mixed."""
    manifest = cache.manifest
    views, slots = manifest.views.num_views, manifest.num_slots
    pairs = -(-slots // 2)  # the last may be one by itself
    chosen = rng.choice(views * pairs, min(max(1, samples // 2), views * pairs), replace=False)
    found = []
    for view in range(views):
        firsts = 2 * np.sort(chosen[chosen // pairs == view] % pairs)
        own = [int(slot) for first in firsts for slot in (first, first + 1) if slot < slots]
        found += [(view, own[at : at + _BATCH]) for at in range(0, len(own), _BATCH)]
    return found


def _verdict(
    cache: Cache,
    source: CacheSource,
    found: Differences,
    chosen: list[tuple[int, list[int]]],
    damaged: tuple[str, ...],
) -> Verification:
    codec = cache.manifest.codec
    places = [(view, slot) for view, slots in chosen for slot in slots]
    view, slot = places[int((found.logits + found.pooled).argmax())]
    key = source.views.reader.key(int(source.views.layout(view)[slot]))
    has_logits = bool(codec.num_classes)
    return Verification(
        samples=len(places),
        damaged=damaged,
        logits=float(found.logits.max()) if has_logits else None,
        mass=float(found.mass.max()) if codec.top_k is not None else None,
        pooled=float(found.pooled.max()) if codec.pooled_width else None,
        agreement=100 * float(found.agrees.mean()) if has_logits else None,
        tolerated=tolerated(cache.manifest, found),
        worst=f"{key}, view {view}",
    )
