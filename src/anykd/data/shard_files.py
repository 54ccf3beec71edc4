"""From a pattern of shards to files on this machine."""

import glob
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import final

from anykd.errors import CheckpointError, DataError, first_line
from anykd.files import expanded, write_atomically
from anykd.progress import Progress

from .downloads import cache_folder
from .folder import missing_folder

__all__ = ["ShardFile", "Shards", "expand_braces", "find_shards"]

_CLASSES = "classes.txt"
_MOST_SHARDS = 100_000
_SECONDS = 60.0
"""Without a byte from a server, until it counts as gone."""
_FORMS = "write wds:FOLDER, wds:'FOLDER/train-{000..009}.tar', or the same as an https URL"


@dataclass(frozen=True)
class ShardFile:
    """One shard.

    Attributes:
        name: From the folder on that all shards of the data set share, with forward slashes.
        path: Where it lies.
        size: Bytes.
    """

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Shards:
    """The shards of a data set.

    Attributes:
        name: Short name of the data set.
        shards: In the order of their names or, where a pattern is given, of the pattern.
        class_names: What ``classes.txt`` beside them says; None where there is none.
    """

    name: str
    shards: tuple[ShardFile, ...]
    class_names: tuple[str, ...] | None


def find_shards(pattern: str) -> Shards:
    """Find the shards that a pattern names, and fetch those that are remote.

    Args:
        pattern: As in `open_shards`.

    Raises:
        DataError: If there are none, a URL has a scheme that is not read here, or one cannot be
            fetched.
    """
    if not pattern:
        raise DataError("wds data is written wds:URL, got 'wds:'", _FORMS)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", pattern)
    if scheme is None:
        return _find_local(pattern)
    if scheme[1].lower() == "file":
        return _find_local(urllib.request.url2pathname(urllib.parse.urlsplit(pattern).path))
    if scheme[1].lower() in ("http", "https"):
        return _fetch(expand_braces(pattern))
    runs = (
        "would run a command, which data never may" if scheme[1] == "pipe" else "is not read here"
    )
    raise DataError(f"wds:{pattern}: {scheme[1]}: {runs}", _FORMS)


def expand_braces(pattern: str) -> list[str]:
    """List what a pattern with braces stands for, as a shell does.

    Example:
        >>> expand_braces("{train-{08..10},val}.tar")
        ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val.tar']

    Raises:
        DataError: If that is more than 100,000.
    """
    start = pattern.find("{")
    end, commas = _matching(pattern, start) if start >= 0 else (-1, [])
    if end < 0:
        return [pattern]
    head, body, tail = pattern[:start], pattern[start + 1 : end], pattern[end + 1 :]
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", body):
        first, last = int(found[1]), int(found[2])
        _require_few(abs(last - first) + 1, pattern)
        padded = any(len(one) > 1 and one.startswith("0") for one in found.groups())
        width = max(len(found[1]), len(found[2])) if padded else 0
        step = 1 if first <= last else -1
        middles = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    elif commas:
        cuts = [start, *commas, end]
        pieces = [pattern[a + 1 : b] for a, b in pairwise(cuts)]
        middles = [one for piece in pieces for one in expand_braces(piece)]
    else:
        middles = [f"{{{one}}}" for one in expand_braces(body)]
    tails = expand_braces(tail)
    _require_few(len(middles) * len(tails), pattern)
    return [head + middle + rest for middle in middles for rest in tails]


def _matching(pattern: str, start: int) -> tuple[int, list[int]]:
    """Where the brace that opens at a place closes, and the commas between, not deeper."""
    depth, commas = 0, []
    for place in range(start, len(pattern)):
        if pattern[place] == "{":
            depth += 1
        elif pattern[place] == "}":
            depth -= 1
            if not depth:
                return place, commas
        elif pattern[place] == "," and depth == 1:
            commas.append(place)
    return -1, []


def _require_few(count: int, pattern: str) -> None:
    if count > _MOST_SHARDS:
        raise DataError(f"{pattern} stands for more than {_MOST_SHARDS:,} shards", _FORMS)


def _find_local(pattern: str) -> Shards:
    path = expanded(pattern)
    if path.is_dir():
        # .tar.gz too: left out, they would be missed in silence
        paths = sorted(one for one in path.rglob("*") if re.search(r"\.(tar|tgz)(\.|$)", one.name))
        paths = [one for one in paths if one.is_file() and not _is_hidden(one, path)]
        if not paths:
            raise DataError(f"{path} holds no files that end in .tar", _FORMS)
        return _gather(path.resolve().name, paths, path)
    if path.is_file():
        return _gather(path.name.partition(".")[0], [path], path.parent)
    paths = []
    for one in expand_braces(str(path)):
        found = [one]
        if not Path(one).is_file():
            matches = sorted(glob.glob(one, recursive=True))  # noqa: PTH207  # it may be absolute
            found = [name for name in matches if Path(name).is_file()]
        if not found:
            if not Path(one).parent.is_dir() and not glob.has_magic(one):
                raise missing_folder(Path(one).parent)
            raise DataError(f"there is no shard {one}", _FORMS)
        paths += [Path(name) for name in found]
    root = Path(os.path.commonpath([one.parent for one in paths]))
    return _gather(root.resolve().name, list(dict.fromkeys(paths)), root)


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _gather(name: str, paths: Sequence[Path], root: Path) -> Shards:
    shards = tuple(
        ShardFile(path.relative_to(root).as_posix(), path, path.stat().st_size) for path in paths
    )
    file = root / _CLASSES
    names = None
    if file.is_file():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    return Shards(name, shards, names)


def _fetch(urls: Sequence[str]) -> Shards:
    """Bring remote shards to the user's cache, where those that are there already stay."""
    paths = [PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)) for url in urls]
    if any(".." in path.parts or not path.name for path in paths):
        raise DataError(f"{urls[0]} is no address of a file", _FORMS)
    top = PurePosixPath(os.path.commonpath([path.parent for path in paths]))
    base = urllib.parse.urljoin(urls[0], urllib.parse.quote(f"{top}/".replace("//", "/")))
    folder = cache_folder() / "shards" / hashlib.sha256(base.encode()).hexdigest()[:16]
    places = [folder / path.relative_to(top) for path in paths]
    missing = [(url, place) for url, place in zip(urls, places, strict=True) if not place.is_file()]
    if missing:
        say = Progress().say
        say(f"fetching {len(missing)} of {len(urls)} shards from {base} to {folder}")
        if not (folder / _CLASSES).is_file():
            _fetch_one(urllib.parse.urljoin(base, _CLASSES), folder / _CLASSES, optional=True)
        for url, place in missing:
            _fetch_one(url, place)
    return _gather(top.name or urllib.parse.urlsplit(base).hostname or "shards", places, folder)


def _fetch_one(url: str, place: Path, *, optional: bool = False) -> None:
    """Fetch one file, whole or not at all."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.writelines(_receive(url, place.parent))

    try:
        write_atomically(place, write)
    except _AbsentError:
        if not optional:
            raise
    except CheckpointError as error:
        raise DataError(str(error), "make room, or set XDG_CACHE_HOME to another folder") from None


@final
class _AbsentError(DataError):
    """A server has no such file."""


def _receive(url: str, folder: Path) -> Iterator[bytes]:
    """Yield what a server sends, piece by piece, and tell where that is not all."""
    hint = f"what was fetched so far stays in {folder}: run the same again to go on"
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            missing = int(answer.headers.get("Content-Length") or 0)
            while piece := answer.read(1 << 20):
                missing -= len(piece)
                yield piece
            if missing > 0:
                raise http.client.IncompleteRead(b"", missing)
    except urllib.error.HTTPError as error:
        with error:
            kind = _AbsentError if error.code in (403, 404, 410) else DataError
            said = f"the server says {error.code} {error.reason}"
        raise kind(f"{url} cannot be fetched: {said}", hint) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        said = first_line(cause) if isinstance(cause, Exception) else str(cause)
        raise DataError(f"{url} cannot be fetched: {said}", hint) from None
