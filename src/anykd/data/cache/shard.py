"""One file of a cache: an array of records in NumPy's own format, that ``numpy.load`` reads too."""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from anykd.errors import CacheError, first_line
from anykd.files import write_atomically

__all__ = ["map_shard", "require_whole", "sha256", "write_shard"]

_START = 10
"""Bytes that begin every file: NumPy's name, the format's version, and the length of the header."""


def write_shard(path: Path, records: np.ndarray) -> str:
    """Write a file whole, and wait until it is on the disk.

    Args:
        path: Where it goes.
        records: One for each slot of the file.

    Returns:
        Its sha256.

    Raises:
        CheckpointError: If it cannot be written; there is no file then.
    """
    digest = hashlib.sha256()

    def write(new: Path) -> None:
        with new.open("wb") as file:
            # numpy.save does not say what keeps it from writing, such as a full disk.
            content = np.ascontiguousarray(records).view(np.uint8).data
            for part in (_header(records.dtype, len(records)), content):
                digest.update(part)
                file.write(part)

    write_atomically(path, write)
    return digest.hexdigest()


def require_whole(path: Path, record: np.dtype, count: int) -> int:
    """Look whether a file is one of so many records, without reading them.

    Returns:
        Where in the file they begin.

    Raises:
        CacheError: If it is not there, cut off, or something else.
    """
    expected = _header(record, count)
    try:
        with path.open("rb") as file:
            start = file.read(_START)
            begin = _START + int.from_bytes(start[-2:], "little")
            text = file.read(begin - _START)
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise CacheError(f"{path} is missing") from error
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {first_line(error)}") from error
    # Versions of NumPy differ in the spaces that fill a header up.
    if (start[:-2], text.split()) != (expected[: _START - 2], expected[_START:].split()):
        raise CacheError(f"{path} is damaged: it holds other records than were written")
    if size != begin + count * record.itemsize:
        raise CacheError(
            f"{path} is damaged: it has {size:,} bytes, "
            f"and {begin + count * record.itemsize:,} were written"
        )
    return begin


def map_shard(path: Path, record: np.dtype, count: int) -> UInt8[np.ndarray, "records bytes"]:
    """Map the records of a file into memory, byte by byte.

    Raises:
        CacheError: If it is not there, cut off, or something else.
    """
    begin = require_whole(path, record, count)
    # numpy.memmap keeps a file open for as long as it is mapped, and a cache may have more files
    # than a process may open. torch closes it.
    size = begin + count * record.itemsize
    try:
        mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise CacheError(f"{path} cannot be read: {first_line(error)}") from error
    return mapped.numpy()[begin:].reshape(count, record.itemsize)


def _header(record: np.dtype, count: int) -> bytes:
    """How a file of so many records begins."""
    start = io.BytesIO()
    described = np.lib.format.dtype_to_descr(record)
    values = {"descr": described, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(start, values)
    return start.getvalue()


def sha256(path: Path) -> str:
    """Read a file from its beginning to its end."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
