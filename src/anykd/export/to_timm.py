"""The layout of timm and the Hugging Face Hub: weights, config and a model card."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor

from anykd.models import create_staged

from .program import Program
from .signature import Signature

__all__ = ["Library", "library_of", "load_folder", "write_folder"]

Library = Literal["timm", "transformers", "anykd"]

_WEIGHTS = "model.safetensors"


def library_of(folder: Path) -> Library:
    """Which library makes a saved student again by itself.

    Args:
        folder: Of its ``config.json``.
    """
    saved = json.loads((folder / "config.json").read_text()).get("anykd")
    if saved is None:
        return "timm"
    is_transformers = str(saved["model"]).startswith("transformers:")
    return "transformers" if is_transformers else "anykd"


def write_folder(student: Path, recipe: Path, card: str, folder: Path) -> None:
    """Write a folder that timm loads, or whoever made the student.

    Args:
        student: The run's own, which is copied.
        recipe: The run's recipe, which is copied.
        card: Text of its README.md.
        folder: Made; it must not be there.
    """
    shutil.copytree(student, folder)
    shutil.copy2(recipe, folder / "recipe.toml")
    (folder / "README.md").write_text(card, encoding="utf-8")


def load_folder(
    folder: Path, signature: Signature
) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """Load such a folder as somebody else does: by timm alone where it can.

    Args:
        folder: From `write_folder`.
        signature: Of the student; how others prepare images, timm reads from the folder.

    Returns:
        A function from a batch of inputs to outputs, and how inputs are prepared.
    """
    told = signature.to_dict()
    if library_of(folder) == "timm":
        program: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = resolve_data_config(model=program)
        told["input"] |= {key: list(config[key]) for key in ("mean", "std")}
    else:
        program = Program(create_staged(f"local-dir:{folder}", pretrained=True), signature)

    @torch.inference_mode()
    def run(inputs: Tensor) -> Tensor:
        return program(inputs)

    return run, told
