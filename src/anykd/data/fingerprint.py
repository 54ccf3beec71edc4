"""One number for what a data set holds, by which to know it again."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

__all__ = ["fingerprint_of"]


def fingerprint_of(
    kind: str, *parts: str | Sequence[str] | np.ndarray, numbers: Sequence[int] | None
) -> str:
    """Hash what decides the images and labels of a reader.

    Args:
        kind: Which reader; two that hash alike parts differ by it.
        parts: Words, or arrays of whole numbers.
        numbers: Labels or positions; none and an empty list differ.

    Returns:
        SHA-256 in hex, the same in every process and on every machine.

    Example:
        >>> fingerprint_of("folder", ["a/0.png"], numbers=None)[:8]
        'cbda0a11'
        >>> fingerprint_of("folder", ["a/0.png"], numbers=[0])[:8]
        '1e4de87f'
    """
    digest = hashlib.sha256()
    counted = None if numbers is None else np.asarray(numbers, dtype="<i8")
    for part in (kind, *parts, counted):
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str} {part.shape}\n".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            # JSON frames its parts, and has an escape for names of files that are no UTF-8.
            digest.update(
                json.dumps(part if isinstance(part, str) else part and list(part)).encode()
            )
    return digest.hexdigest()
