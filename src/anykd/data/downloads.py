"""Where what is fetched goes, whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anykd.errors import CheckpointError, DataError
from anykd.files import make_folder, unfinished, written
from anykd.lock import held, is_lock

__all__ = ["cache_folder", "fetched_into"]


def cache_folder() -> Path:
    """The user's cache, where downloads and indices go; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anykd"


@contextmanager
def fetched_into(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fetch a data set into, which becomes ``folder`` when the body ends.

    What a killed process left there before is removed.

    Args:
        folder: It does not exist.

    Raises:
        DataError: If another process fetches it now, or nothing can be written there.
    """
    partial = unfinished(folder)
    try:
        with written(folder):
            make_folder(partial)
        with held(partial):
            for left in [path for path in partial.iterdir() if not is_lock(path)]:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield partial
        with written(folder):
            partial.rename(folder)
    except CheckpointError as error:
        raise DataError(
            str(error), "wait for the other process, or set XDG_CACHE_HOME to another folder"
        ) from None
