"""Everything that a run needs to go on, in one file."""

from pathlib import Path
from typing import Any

import torch

from anykd.errors import CheckpointError, first_line

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: The file; the caller puts it in place whole.
        state: State dicts and numbers.
    """
    torch.save(state, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read: {first_line(error)}",
            hint="start the run anew in another folder",
        ) from error
