"""What a cache was made of: all that must be the same where it takes a teacher's place."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from anykd.config import FrozenConfig
from anykd.errors import CacheError, first_line

from .codec import Codec
from .layout import Layout

__all__ = ["DataPart", "Manifest", "TeacherPart", "TeacherView", "ViewsPart"]

FORMAT = 1
_MOST_FILES = 10_000_000

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


def _height_and_width(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size


ImageSize = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_height_and_width)]
"""Height and width in pixels; one number stands for both."""


class TeacherView(FrozenConfig):
    """How the teacher wants its images."""

    image_size: ImageSize
    """Height and width in pixels."""
    interpolation: str
    """How images of another size are resized."""
    mean: tuple[float, ...]
    """Subtracted from each of R, G and B, in [0, 1]."""
    std: tuple[float, ...]
    """What R, G and B are divided by after that."""


class TeacherPart(FrozenConfig):
    """Who answered."""

    name: str
    """Its architecture."""
    source: str
    """Where its weights came from, as a person reads it. Not compared where the weights are the
    same."""
    weights: Sha256
    """sha256 of its weights."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of its architecture, as they were given. Compared only where a build goes on: elsewhere the
    same model may be named otherwise."""
    classes: tuple[int, ...] | None = None
    """Which of its classes each of the data's is; None where they are the same."""
    num_classes: PositiveInt
    """Class scores that it gives, after ``classes``."""
    width: PositiveInt
    """Width of the vector that its classifier reads."""
    view: TeacherView
    """How it wants its images."""


class DataPart(FrozenConfig):
    """Which images it was asked about."""

    source: str
    """The data's spec. Not compared where the fingerprint is the same: images may move."""
    fingerprint: str
    """Of the images, their order and their labels."""
    samples: PositiveInt
    """Images of the training set."""


class ViewsPart(FrozenConfig):
    """How the images were shown."""

    num_views: PositiveInt
    """Views of each image. A cache also serves those who want fewer: they are its first ones."""
    seed: int
    """Decides every view."""
    image_size: ImageSize
    """Height and width of the views in pixels."""
    augment: dict[str, Any]
    """All else that decides how an image is shown."""
    sample: Sha256
    """sha256 of the pixels of some views, the same ones for any num_views: it differs where the
    libraries that make them do."""


class Manifest(FrozenConfig):
    """What a cache was made of, and what is in it."""

    format: Literal[1] = FORMAT
    """Of the cache's files."""
    teacher: TeacherPart
    """Who answered."""
    data: DataPart
    """Which images it was asked about."""
    views: ViewsPart
    """How they were shown."""
    codec: Codec
    """What was stored of the answers."""
    precision: str
    """What the teacher computed in."""
    built: dict[str, Any] = Field(default_factory=dict)
    """When, with what and how fast it was made; never compared."""
    num_slots: PositiveInt
    """Records of a view."""
    shard_slots: PositiveInt
    """Records of a file, at most."""
    shards: dict[str, Sha256] = Field(default_factory=dict, repr=False)
    """sha256 of each file; empty until the cache is finished."""

    @model_validator(mode="after")
    def _names_its_files(self) -> "Manifest":
        """Else one that somebody has changed may name files elsewhere, or fill the memory."""
        files = self.views.num_views * -(-self.num_slots // self.shard_slots)
        if files > _MOST_FILES:
            raise ValueError(f"{files:,} files are more than a cache has")
        if self.shards:
            names = {shard.name for shard in self.layout.shards}
            if self.shards.keys() != names:
                raise ValueError("shards are not the files that its views and slots have")
        return self

    @property
    def layout(self) -> Layout:
        """How the records lie in the files."""
        return Layout(
            self.views.num_views, self.num_slots, self.shard_slots, self.codec.record_bytes
        )

    def misfits(self, asked: "Manifest") -> list[str]:
        """Say what keeps this cache from taking the place of the teacher that is asked for.

        What is stored of the answers, in which precision they were computed and how the files are
        laid out is not compared, nor where equal weights and equal images came from.

        Args:
            asked: What would be written into the manifest of a cache that was made now.

        Returns:
            A sentence for each part that differs, the most telling first; empty where it fits.
        """
        compared = {"teacher", "data", "views", "num_slots"}
        ours, theirs = (each.model_dump(mode="json", include=compared) for each in (self, asked))
        found = {
            name: values
            for name, *values in _different(ours, theirs)
            if not name.startswith("teacher.options")
        }
        if self.teacher.weights == asked.teacher.weights:
            found.pop("teacher.source", None)
        if self.data.fingerprint == asked.data.fingerprint:
            found.pop("data.source", None)
        if self.views.num_views >= asked.views.num_views:
            found.pop("views.num_views", None)
        others = found.keys() - {"views.sample", "views.num_views"}
        if any(name.startswith(("data.", "views.")) for name in others):
            found.pop("views.sample", None)  # it says no more than they do
        return [_sentence(name, *values) for name, values in found.items()]

    def unlike(self, asked: "Manifest") -> list[str]:
        """Say why a build cannot go on with this one's files.

        Args:
            asked: The manifest of that build.

        Returns:
            What `misfits` says, and a sentence for each difference in what is stored and how.
        """
        misfits = self.misfits(asked)
        told = {line.partition(":")[0] for line in misfits}
        stored: dict[str, Any] = {"codec": True, "precision": True, "shard_slots": True}
        stored |= {"views": {"num_views"}, "teacher": {"options"}}
        ours, theirs = (each.model_dump(mode="json", include=stored) for each in (self, asked))
        differences = _different(ours, theirs)
        return misfits + [_sentence(*each) for each in differences if each[0] not in told]

    def to_json(self) -> str:
        """Write it as a person can read it."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read the manifest of a cache.

        Raises:
            CacheError: If it is broken, or another version of anykd wrote it.
        """
        try:
            values = json.loads(path.read_text())
            found = values["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _broken(path, first_line(error)) from error
        if found != FORMAT:
            raise CacheError(
                f"{path} has format {found!r}, and this version of anykd reads {FORMAT}",
                hint="read it with the version that wrote it, or build the cache again",
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _broken(path, f"{where}: {first['msg']}") from error


_HASH = re.compile("[0-9a-f]{32,}")
_NOTHING = "nothing"
_WHY = {
    "views.sample": "; the settings are the same and the pixels are not: other versions of the "
    "libraries make them, or an image could be read then and cannot be now",
}


def _broken(path: Path, why: str) -> CacheError:
    return CacheError(
        f"{path} is broken: {why}",
        hint="bring back a copy of it, or build the cache anew in another folder",
    )


def _different(ours: Any, theirs: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name and values of each part that two trees of tables have differently."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            below = f"{name}.{key}".lstrip(".")
            yield from _different(ours.get(key, _NOTHING), theirs.get(key, _NOTHING), below)
    elif ours != theirs:
        yield name, ours, theirs


def _sentence(name: str, ours: Any, theirs: Any) -> str:
    place = ""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) > 4:
        pairs = enumerate(zip(ours, theirs, strict=False))
        index = next((index for index, (mine, other) in pairs if mine != other), None)
        if index is None:
            place, ours, theirs = "its length: ", len(ours), len(theirs)
        else:
            place, ours, theirs = f"at {index}: ", ours[index], theirs[index]
    ours, theirs = _shown(name, ours), _shown(name, theirs)
    return f"{name}: {place}{ours} in the cache, {theirs} here{_WHY.get(name, '')}"


def _shown(name: str, value: Any) -> str:
    if isinstance(value, str):
        return f"{value[:8]}…" if _HASH.fullmatch(value) else value or "''"
    if name.endswith("image_size"):
        height, width = value
        return f"{height}" if height == width else f"{height}x{width}"
    if isinstance(value, list):
        return f"({', '.join(map(str, value))})"
    return "none" if value is None else str(value)
