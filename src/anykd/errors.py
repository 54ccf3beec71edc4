"""The errors that a user can mend.

::

    AnykdError
    ├── RecipeError      (also ValueError)  a recipe, a flag or an option is wrong
    ├── ModelError       (also ValueError)  a model cannot be had, or cannot do what is asked
    ├── DataError        (also ValueError)  a data set cannot be had, or is not what is needed
    ├── CheckpointError                     a run directory or checkpoint is missing or broken
    └── CacheError                          a cache of teacher outputs is missing or broken
    StoppedError         (BaseException)    a signal ended the run; it can be resumed

The command line prints one as ``error: MESSAGE`` and ``hint: HINT`` and exits with 2;
`StoppedError` is one line, and the status that shells give a process that a signal ended.
"""

import difflib
import signal
from collections.abc import Iterable

__all__ = [
    "AnykdError",
    "CacheError",
    "CheckpointError",
    "DataError",
    "ModelError",
    "RecipeError",
    "StoppedError",
    "first_line",
    "nearest",
]


class AnykdError(Exception):
    """Something that the user can mend.

    Args:
        message: What was given and what would do, on one line.
        hint: What to type or change next; empty where the message says it all.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class RecipeError(AnykdError, ValueError):
    """A recipe, a flag or an option is wrong."""


class ModelError(AnykdError, ValueError):
    """A model cannot be had, or cannot do what is asked of it."""


class DataError(AnykdError, ValueError):
    """A data set cannot be had, or is not what is needed."""


class CheckpointError(AnykdError):
    """A run directory or a checkpoint is missing, not the right one, or broken."""


class CacheError(AnykdError):
    """A cache of a teacher's outputs is missing, not the right one, or broken."""


class StoppedError(BaseException):
    """Ctrl-C or SIGTERM ended a run before its end.

    It is no ``Exception``: it may come at any point, and nothing there is to take it for a failure
    of its own.

    Args:
        number: Of the signal.
        message: What became of the run.

    Attributes:
        status: The exit status that says so: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.number, self.status = number, 128 + number


def first_line(error: Exception) -> str:
    r"""What an error of somebody else's says, in its first two lines, or its name.

    Example:
        >>> first_line(ValueError("a\n b\nc")), first_line(EOFError())
        ('a b', 'EOFError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def nearest(name: str, known: Iterable[str], *, or_list: bool = True) -> str:
    """Say which known names are closest to a misspelt one.

    Args:
        name: What was given.
        known: What would do.
        or_list: Whether to list the known names, up to 40, where none is near.

    Returns:
        A hint such as ``did you mean kd, dkd?``, or an empty string.

    Example:
        >>> nearest("fbtt", ["kd", "ofa", "fbt"])
        'did you mean fbt?'
    """
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    if close:
        return f"did you mean {', '.join(close)}?"
    few = or_list and 0 < len(choices) <= 40
    return f"known: {', '.join(choices)}" if few else ""
