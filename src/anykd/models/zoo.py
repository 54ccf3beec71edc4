"""Models by name: timm's, and the two small Swins of the papers' tables that timm lacks."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_checkpoint, register_model, save_for_hf
from torch import nn

from anykd.errors import ModelError, nearest

from .staged import StagedModel

__all__ = ["create_staged", "model_names", "require_known", "save_model"]


# Built from swin_tiny with other numbers, so that a saved student names an architecture which timm
# knows, and loads where anykd is not installed.
@register_model
def swin_pico_patch4_window7_224(pretrained: bool = False, **options: Any) -> nn.Module:
    """Swin-P(ico) of OFA-KD: embedding 48, depths 2-2-2-2."""
    return _small_swin("swin_pico_patch4_window7_224", 48, pretrained, options)


@register_model
def swin_nano_patch4_window7_224(pretrained: bool = False, **options: Any) -> nn.Module:
    """Swin-N(ano) of OFA-KD: embedding 64, depths 2-2-2-2."""
    return _small_swin("swin_nano_patch4_window7_224", 64, pretrained, options)


def _small_swin(name: str, embed_dim: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if pretrained:
        raise ModelError(f"{name} has no pretrained weights", hint="train it with `anykd train`")
    numbers = {"embed_dim": embed_dim, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)}
    return timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, **numbers | options)


def model_names(pattern: str = "*") -> list[str]:
    """List the architectures whose name matches a shell pattern.

    Args:
        pattern: Such as ``*vit*tiny*``.
    """
    return timm.list_models(pattern)


def create_staged(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    **timm_kwargs: Any,
) -> StagedModel:
    """Build a model by name and wrap it.

    Args:
        name: A timm architecture, with or without a tag; ``hf-hub:NAME``; or a run directory, whose
            student it loads with its weights.
        num_classes: Length of the logits. None keeps the model's own; with pretrained weights
            another number gives a new, random head.
        image_size: Pixels, one number or (height, width). Reaches timm as ``img_size`` where the
            model takes one. None takes the model's own.
        pretrained: Load the weights that belong to the name.
        weights: Load these instead: a safetensors file, or a checkpoint that timm reads.
        **timm_kwargs: Options of ``timm.create_model``, such as ``patch_size=4``.

    Raises:
        ModelError: If the name is unknown, an option does not fit, weights cannot be had or do not
            fit, or the model cannot take images of this size.
    """
    folder = Path(name)
    if _is_run(folder):
        name, pretrained = f"local-dir:{folder / 'student'}", True
        image_size = image_size or _saved_image_size(folder)
    elif ":" not in name:
        require_known(name)
    options = dict(timm_kwargs)
    if num_classes is not None:
        options["num_classes"] = num_classes
    module = _create(name, image_size, pretrained, options)
    if weights is not None:
        _load_weights(module, Path(weights))
    try:
        return StagedModel(module, image_size=image_size)
    except ModelError:
        raise
    except Exception as error:
        # Whatever a model raises on images that do not fit it: an assertion, a shape, a division.
        raise ModelError(
            f"{name} cannot take images of {_pixels(image_size)}: {_first_line(error)}",
            hint="choose another image_size, or a patch_size that divides it",
        ) from error


def save_model(
    staged: StagedModel, folder: Path, *, class_names: tuple[str, ...] = (), crop_pct: float = 1.0
) -> None:
    """Write a model in timm's hub layout: ``model.safetensors`` and ``config.json``.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it.

    Args:
        staged: The model.
        folder: Made if it is missing.
        class_names: What each logit stands for.
        crop_pct: Share of the resized short side that evaluation kept.
    """
    # safetensors wants plain layout on the CPU; the student may be elsewhere, in channels_last.
    model = copy.deepcopy(staged.model).cpu().to(memory_format=torch.contiguous_format)
    data = {
        "input_size": (3, *staged.image_size),
        "mean": tuple(staged.mean.flatten().tolist()),
        "std": tuple(staged.std.flatten().tolist()),
        "interpolation": staged.interpolation,
        "crop_pct": crop_pct,
    }
    config = {"label_names": list(class_names)} if class_names else {}
    save_for_hf(model, str(folder), model_config=config, data_config=data, safe_serialization=True)


def _is_run(folder: Path) -> bool:
    return (folder / "student" / "config.json").is_file()


def _saved_image_size(folder: Path) -> tuple[int, int]:
    config = json.loads((folder / "student" / "config.json").read_text())
    _, height, width = config["pretrained_cfg"]["input_size"]
    return height, width


def require_known(name: str) -> None:
    """Refuse a name that is neither a timm architecture nor a finished run.

    Raises:
        ModelError: With the nearest names.
    """
    if _is_run(Path(name)) or ":" in name:
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        if Path(name).is_dir():
            raise ModelError(
                f"{name} is no finished run: it has no student/config.json",
                hint="give the folder above it"
                if Path(name).name == "student"
                else "give a run directory that `anykd train` or `anykd distill` has finished",
            )
        folder = Path(name).parent
        near = [str(path) for path in folder.iterdir()] if folder.is_dir() and "/" in name else []
        raise ModelError(
            f"no model is called {name!r}, and no run directory is there",
            hint=nearest(name, near, or_list=False) if near else _nearest_model(architecture),
        )
    if tag and not timm.is_model_pretrained(name):
        known = [n for n in timm.list_pretrained(f"{architecture}.*")]
        raise ModelError(f"{architecture} has no weights {tag!r}", hint=nearest(name, known))


def _nearest_model(name: str) -> str:
    return nearest(name, timm.list_models()) or "`anykd models PATTERN` lists names"


def _create(
    name: str, image_size: int | tuple[int, int] | None, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    attempts = [options] if image_size is None else [{**options, "img_size": image_size}, options]
    for attempt in attempts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # timm's hints are for its own authors
                return timm.create_model(name, pretrained=pretrained, **attempt)
        except TypeError as error:
            if "img_size" in str(error) and attempt is not attempts[-1]:
                continue  # convolutional models take images of any size and no such option
            raise ModelError(
                f"{name} does not take these options: {_first_line(error)}",
                hint="options are those of timm.create_model for this model",
            ) from error
        except ModelError:
            raise
        except Exception as error:
            raise _creation_error(name, image_size, pretrained, error) from error
    raise AssertionError("one attempt returns or raises")


def _creation_error(
    name: str, image_size: int | tuple[int, int] | None, pretrained: bool, error: Exception
) -> ModelError:
    if pretrained or ":" in name:
        return ModelError(
            f"the pretrained weights of {name} could not be had: {_first_line(error)}",
            hint="check the network, or give a file, such as --set teacher.weights=FILE",
        )
    return ModelError(f"{name} cannot be built for {_pixels(image_size)}: {_first_line(error)}")


def _load_weights(module: nn.Module, path: Path) -> None:
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(
            f"no weights file at {path}", hint=nearest(path.name, siblings, or_list=False)
        )
    try:
        load_checkpoint(module, str(path))
    except Exception as error:
        raise ModelError(
            f"{path} does not fit the model: {_first_line(error)}",
            hint="name the architecture, options and number of classes that it was trained with",
        ) from error


def _pixels(size: int | tuple[int, int] | None) -> str:
    if size is None:
        return "its own image size"
    return f"{size} px" if isinstance(size, int) else f"{size[0]} x {size[1]} px"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
