"""Hugging Face data sets, from the hub or a folder, and parquet files: rows of Arrow tables."""

import contextlib
import glob
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

import numpy as np

from anykd.errors import DataError, first_line, nearest
from anykd.files import expanded

from .classes import Values, number_classes
from .downloads import cache_folder
from .fingerprint import fingerprint_of
from .folder import missing_folder
from .images import MAX_PIXELS, decode_pixels, read_pixels
from .parts import divide_by_name, train_and_val
from .reader import Sample, Source

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["RowReader", "open_hub", "open_parquet"]

_LABELS = ("label", "labels", "fine_label", "class", "classes", "target", "category", "cls", "y")
"""Names of the column of labels; the first that exists is taken."""
_UNLABELLED = "images without labels take data.labels = false, and method.task_weight = 0"
_ROWS_AT_ONCE = 1000
_ROWS_READ = 64
"""Rows whose images are of a fingerprint with every byte; of the others it has the length."""


@final
class RowReader:
    """Rows of a table that lies on the disk, one image each, decoded when they are asked for.

    The fingerprint is of the lengths of the encoded images, their files' names, the labels, and
    every byte of 64 images: it does not notice another image that was exchanged for one of the same
    length and name.

    Args:
        rows: The column ``image`` holds bytes, or a struct with bytes and path.
        labels: Class index of each row; None where nothing is known.
        name: What errors call the data.
        part: What the data set calls these rows: the first half of their keys.
        root: The folder of the data set, from which on names of files count; None where images
            are in the table.
        max_pixels: Images of more are refused.
    """

    in_memory = False

    def __init__(
        self,
        rows: "Dataset",
        labels: list[int] | None,
        *,
        name: str,
        part: str,
        root: Path | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        assert labels is None or len(rows) == len(labels)
        self._rows = rows
        self._name, self._part, self._root = name, part, root
        self._max_pixels = max_pixels
        self.labels = labels

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of lengths, names and labels, and of all bytes of some images."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        sizes: list[int] = []
        names: list[str] = []
        for path, size in self._files():
            names.append(self._relative(path))
            sizes.append(_size(path) if size is None else size)
        read = sorted({position * len(self) // _ROWS_READ for position in range(_ROWS_READ)})
        read = read[: len(self)]
        digests = [hashlib.sha256(self._content(position)).hexdigest() for position in read]
        return fingerprint_of(
            "rows", names, np.array(sizes, dtype="<i8"), digests, numbers=self.labels
        )

    def key(self, position: int) -> str:
        """The part and the position, such as ``train/123``."""
        return f"{self._part}/{position}"

    def __getitem__(self, position: int) -> Sample:
        label = None if self.labels is None else self.labels[position]
        content, path = self._cell(position)
        if content is None:
            return Sample(read_pixels(Path(path), self._max_pixels), label, position)
        name = f"{self._name} {self.key(position)}" + (f" ({path})" if path else "")
        return Sample(decode_pixels(content, name, self._max_pixels), label, position)

    def _cell(self, position: int) -> tuple[bytes | None, str]:
        """Bytes of an image, or None, and the path of its file, which may be empty."""
        cell: Any = self._rows[position]["image"]
        if isinstance(cell, Mapping):
            content, path = cell["bytes"], cell["path"] or ""
            return (b"" if content is None and not path else content), path
        return cell or b"", ""

    def _content(self, position: int) -> bytes:
        content, path = self._cell(position)
        if content is not None:
            return content
        return Path(path).read_bytes() if Path(path).is_file() else b""

    def _files(self) -> Iterator[tuple[str, int | None]]:
        """Path and length of every image; None where its bytes are in a file."""
        import pyarrow as pa
        from pyarrow.compute import call_function

        for table in self._rows.with_format("arrow").iter(_ROWS_AT_ONCE):
            column: Any = cast(pa.Table, table)["image"].combine_chunks()
            paths: Sequence[str | None] = [""] * len(column)
            if pa.types.is_struct(column.type):
                fields = [column.type.field(i).name for i in range(column.type.num_fields)]
                halves = dict(zip(fields, column.flatten(), strict=True))
                column, paths = halves["bytes"], halves["path"].to_pylist()
            lengths = call_function("binary_length", [column]).to_pylist()
            yield from zip((path or "" for path in paths), lengths, strict=True)

    def _relative(self, path: str) -> str:
        """A file's name that does not tell where the data set lies."""
        if self._root is not None and Path(path).is_relative_to(self._root):
            return Path(path).relative_to(self._root).as_posix()
        return Path(path).name


def open_hub(argument: str, *, labels: bool = True, max_pixels: int = MAX_PIXELS) -> Source:
    """Open a data set of Hugging Face.

    Args:
        argument: ``NAME[@SPLIT]``. NAME is a folder that ``save_to_disk`` wrote, a folder that
            ``load_dataset`` understands, or a name on the hub. SPLIT is the part that is divided
            into images to train and to evaluate on; without it they are "train" and the first of
            "val", "valid", "validation" and "test" that is there.
        labels: Whether every image must have a label.
        max_pixels: Images of more count as unreadable.

    Raises:
        DataError: If it cannot be had, or no column holds images or labels.
    """
    name, _, split = argument.rpartition("@")
    if not name or expanded(argument).is_dir():
        name, split = argument, ""
    if not name:
        raise DataError("hf data is written hf:NAME[@SPLIT], got 'hf:'", "for example hf:cifar10")
    folder = expanded(name)
    if not folder.is_dir() and name.startswith((".", "~", "/")):
        raise missing_folder(folder)
    parts = _load(name, folder if folder.is_dir() else None)
    where = f"hf:{name}"
    if split:
        if split not in parts:
            raise DataError(f"{where} has no part {split!r}", nearest(split, parts))
        parts = {split: parts[split]}
    root = folder.resolve() if folder.is_dir() else None
    short = folder.resolve().name if root is not None else name
    return _open_rows(short, where, parts, root, labels=labels, max_pixels=max_pixels)


def open_parquet(argument: str, *, labels: bool = True, max_pixels: int = MAX_PIXELS) -> Source:
    """Open parquet files with a column of encoded images.

    They are unpacked once into the user's cache, since parquet's own compression leaves no way to
    one row.

    Args:
        argument: A file, or a folder that holds files at any depth. Those whose name, or a folder
            above them, says train, val, valid, validation or test are of that part.
        labels: Whether every image must have a label.
        max_pixels: Images of more count as unreadable.

    Raises:
        DataError: If there are no such files, or no column holds images or labels.
    """
    path = expanded(argument)
    if not argument or not path.exists():
        if argument and path.suffix != ".parquet":
            raise missing_folder(path)
        raise DataError(
            f"there is no parquet file {argument!r}",
            "write parquet:FILE, or parquet:FOLDER for all files in a folder",
        )
    root = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    names = [file.relative_to(root).as_posix() for file in files]
    names = [name for name in names if not any(part[0] == "." for part in name.split("/"))]
    if not names:
        raise DataError(f"{path} holds no files that end in .parquet")
    divided = divide_by_name(names, str(path))
    # Names of files are patterns to this library.
    files = {
        part: [glob.escape(str(root.resolve() / n)) for n in ns] for part, ns in divided.items()
    }
    library = _library("parquet:")
    with _in_words(f"{path} cannot be read as parquet", "mend or remove the files"):
        parts = library.load_dataset(
            "parquet", data_files=files, cache_dir=str(cache_folder() / "parquet")
        )
    where = f"parquet:{argument}"
    return _open_rows(
        path.resolve().stem, where, dict(parts), None, labels=labels, max_pixels=max_pixels
    )


def _load(name: str, folder: Path | None) -> dict[str, "Dataset"]:
    """Have all parts of a data set, each with rows that can be asked for by number."""
    library = _library("hf:")
    if folder is not None and (
        (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    ):
        with _in_words(f"{folder} cannot be read as save_to_disk wrote it", "write it again"):
            found = library.load_from_disk(str(folder))
    elif folder is not None:
        with _in_words(
            f"{folder} cannot be read as a data set of Hugging Face",
            "it must hold what save_to_disk wrote, parquet files, or folders of images",
        ):
            found = library.load_dataset(str(folder.resolve()))
    else:
        with _in_words(
            f"{name} cannot be had from Hugging Face",
            "check the name and the network; a local folder is written hf:./FOLDER; what was "
            "loaded once is found without a network if HF_HUB_OFFLINE=1 is set",
        ):
            found = library.load_dataset(name)
    return (
        {str(part): rows for part, rows in found.items()}
        if hasattr(found, "items")
        else {"train": found}
    )


def _library(kind: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{kind} needs the package datasets, which is not installed",
            "pip install 'anykd[data]'",
        ) from error
    return datasets


@contextlib.contextmanager
def _in_words(message: str, hint: str) -> Iterator[None]:
    """Say on one line what went wrong in somebody else's code, and keep its prints off stdout."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Exception as error:  # it raises what the libraries below it raise
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise DataError(f"{message}: {first_line(cause)}", hint) from None


def _open_rows(
    name: str,
    where: str,
    parts: Mapping[str, "Dataset"],
    root: Path | None,
    *,
    labels: bool,
    max_pixels: int,
) -> Source:
    """Find the columns of images and labels, and give a reader of each part."""
    train, val = train_and_val(parts, where)
    image = _image_column(parts[train], where)
    label = _label_column(parts[train], where, image, required=labels)
    values = {
        part: None if label is None else _values(parts[part], label, where, required=labels)
        for part in (train, val)
        if part is not None
    }
    if labels and values[train] is None:
        raise DataError(f"{where} has no labels in its part {train!r}", _UNLABELLED)
    if val is not None and labels and values[val] is None:
        val = None  # the test part of many a contest keeps its labels to itself
    known = None if label is None else getattr(parts[train].features[label], "names", None)
    names, *numbers = number_classes(
        values[train], None if val is None else values[val], where=where, names=known
    )
    readers = [
        RowReader(
            _only_images(parts[part], image, where),
            its_labels,
            name=where,
            part=part,
            root=root,
            max_pixels=max_pixels,
        )
        for part, its_labels in zip((train, val), numbers, strict=True)
        if part is not None
    ]
    return Source(name, names, readers[0], readers[1] if val is not None else None)


def _image_column(rows: "Dataset", where: str) -> str:
    """Find the column of images: of that type, else the one that holds bytes."""
    import datasets

    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    columns = images or [name for name, kind in rows.features.items() if _holds_bytes(kind)]
    preferred = [name for name in columns if name in ("image", "img")]
    if len(columns) == 1 or preferred:
        return (preferred or columns)[0]
    found = "several columns of images" if columns else "no column of images"
    raise DataError(
        f"{where} has {found}: its columns are {', '.join(rows.features)}",
        "call the column image, with the bytes of a file in each row",
    )


def _holds_bytes(kind: Any) -> bool:
    if isinstance(kind, Mapping):
        return "bytes" in kind and "path" in kind
    return getattr(kind, "dtype", "") in ("binary", "large_binary")


def _label_column(rows: "Dataset", where: str, image: str, *, required: bool) -> str | None:
    """Find the column of labels: of classes, else one with a name that says so."""
    import datasets

    classes = [
        name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)
    ]
    columns = classes or [name for name in rows.features if name in _LABELS]
    if columns:
        named = [name for name in _LABELS if name in columns]
        if named or len(columns) == 1:
            return (named or columns)[0]
    if not required:
        return None
    others = [name for name in rows.features if name != image]
    found = (
        f"several columns of labels: {', '.join(columns)}"
        if columns
        else (
            f"no column of labels beside {image!r}"
            + (f": its columns are {', '.join(others)}" if others else "")
        )
    )
    raise DataError(
        f"{where} has {found}",
        f"call the column label; {_UNLABELLED}",
    )


def _values(rows: "Dataset", column: str, where: str, *, required: bool) -> Values | None:
    """What a column says of each image; None where it says nothing of any."""
    if column not in rows.features:
        return None
    values: list[Any] = rows.with_format(None)[column][:]
    # A class of -1 is how parts without labels are published; a plain number may be below 0.
    none = (None, -1) if hasattr(rows.features[column], "names") else (None,)
    missing = sum(value in none for value in values)
    if missing == len(values) or (missing and not required):
        return None
    if missing:
        raise DataError(
            f"{where}: {missing} of {len(values)} rows have no value in the column {column!r}",
            "fill or remove these rows",
        )
    wrong = next((value for value in values if not isinstance(value, int | str)), None)
    if wrong is not None:
        raise DataError(
            f"{where}: the column {column!r} holds {type(wrong).__name__}s, such as {wrong!r}",
            "a label is a whole number or a name",
        )
    return values


def _only_images(rows: "Dataset", column: str, where: str) -> "Dataset":
    """Leave one column, called image, whose rows are not decoded."""
    import datasets

    if column not in rows.features:
        raise DataError(f"{where} has parts with other columns: one of them has no {column!r}")
    rows = rows.select_columns([column])
    if column != "image":
        rows = rows.rename_column(column, "image")
    if isinstance(rows.features["image"], datasets.Image):
        rows = rows.cast_column("image", datasets.Image(decode=False))
    return rows.with_format(None)


def _size(path: str) -> int:
    return Path(path).stat().st_size if Path(path).is_file() else 0
