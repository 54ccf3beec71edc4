"""Which part of a data set a file belongs to, by its name."""

import re
from collections.abc import Collection, Sequence

from anykd.errors import DataError

from .folder import VAL_NAMES

__all__ = ["divide_by_name", "part_of", "train_and_val"]

_WORDS = re.compile(rf"(?<![a-z])(train|training|{'|'.join(VAL_NAMES)})(?![a-z])")


def part_of(name: str) -> str | None:
    """Find the part that a file's name, or a folder above it, tells; the last word counts.

    Example:
        >>> part_of("imagenet-train-000.tar"), part_of("validation/7.tar"), part_of("trainee.tar")
        ('train', 'validation', None)
    """
    words = _WORDS.findall(name.lower())
    return words[-1].removesuffix("ing") if words else None


def divide_by_name(names: Sequence[str], where: str) -> dict[str, list[str]]:
    """Divide files into the parts that their names tell.

    Args:
        names: In the order that is kept.
        where: What errors call them together.

    Returns:
        Names by part; all under "train" where no name tells one.

    Raises:
        DataError: If some tell a part and others do not.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(part_of(name) or "", []).append(name)
    untold = parts.get("", [])
    if untold and len(parts) > 1:
        raise DataError(
            f"{where}: {untold[0]} does not tell whether it is to train or to evaluate on, and "
            f"others do, such as {next(part[0] for key, part in parts.items() if key)}",
            "name each file train-*, val-* or test-*, or none of them",
        )
    return {"train": untold} if untold else parts


def train_and_val(parts: Collection[str], where: str) -> tuple[str, str | None]:
    """Choose what to train and what to evaluate on.

    Args:
        parts: Names of all parts, one or more.
        where: What errors call the data.

    Returns:
        "train" and the first of those to evaluate on, or None; where there is only one part, that
        and None.

    Raises:
        DataError: If it is not clear which part is to train on.
    """
    if len(parts) == 1:
        return next(iter(parts)), None
    if "train" not in parts:
        raise DataError(
            f"{where} has the parts {', '.join(sorted(parts))}, and none is called train",
            "say which to divide, as in hf:NAME@SPLIT, or give the files of one part",
        )
    return "train", next((name for name in VAL_NAMES if name in parts), None)
