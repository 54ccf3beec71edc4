"""``torch.export``: a program that torch runs without the code of the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anykd.errors import ModelError, first_line

from .program import Program
from .quiet import quiet
from .signature import Signature, prepare

__all__ = ["load_pt2", "trace", "write_pt2"]

_METADATA = "anykd.json"
"""Name of the metadata among the extra files of a .pt2."""


def trace(program: Program, signature: Signature) -> torch.export.ExportedProgram:
    """Make one graph of a student, for batches of any size.

    Raises:
        ModelError: If torch cannot, as where the model's code depends on values or on the batch.
    """
    blank = torch.zeros(2, 3, *signature.image_size, dtype=torch.uint8)
    example = prepare(blank, signature.to_dict()["input"])
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(program, (example,), dynamic_shapes=shapes)
    except Exception as error:
        raise ModelError(
            f"torch.export makes no graph of {type(program.model).__name__} for batches of any "
            f"size: {first_line(error)}",
            hint="--format timm needs no graph",
        ) from error


def write_pt2(program: torch.export.ExportedProgram, metadata: dict[str, Any], path: Path) -> None:
    """Write a traced student with its metadata.

    Args:
        program: From `trace`.
        metadata: Plain values; they stand in the file as ``anykd.json``.
        path: The file, whose name ends in ``.pt2``.
    """
    with quiet():
        extra = {_METADATA: json.dumps(metadata, indent=2)}
        torch.export.save(program, path, extra_files=extra)


def load_pt2(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """Load a .pt2 as somebody without anykd does.

    Returns:
        A function from a batch of inputs to outputs, and the metadata of the file.
    """
    extra = {_METADATA: ""}
    with quiet():
        module = torch.export.load(path, extra_files=extra).module()

    @torch.inference_mode()
    def run(inputs: Tensor) -> Tensor:
        return module(inputs)

    return run, json.loads(extra[_METADATA])
