"""Models of timm, and the two small Swins of the papers' tables that timm lacks."""

import warnings
from pathlib import Path
from typing import Any

import timm
from timm.models import register_model
from torch import nn

from anykd.errors import ModelError, first_line, nearest
from anykd.models.staged import StagedModel
from anykd.models.stem import use_small_stem

from .request import ModelRequest, pixels

__all__ = ["build", "has_weights", "require_known"]


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


def require_known(name: str) -> None:
    """Refuse what timm does not call a model; a folder or a hub's name is only looked for.

    Args:
        name: An architecture, with or without a tag; ``hf-hub:NAME`` or ``local-dir:FOLDER``.

    Raises:
        ModelError: With the nearest names.
    """
    source, _, rest = name.partition(":")
    if source == "local-dir":
        if not (Path(rest) / "config.json").is_file():
            raise ModelError(
                f"no model lies in {rest}: it has no config.json",
                hint="give a folder as `anykd train` writes at RUN/student, or as timm saves one",
            )
        return
    if rest:
        if not rest.partition("/")[2]:
            raise ModelError(f"{name} names no model of the hub", hint="such as hf-hub:timm/NAME")
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise ModelError(
            f"no model is called {name!r}, and no run directory is there",
            hint=nearest(architecture, known) or "`anykd models PATTERN` lists names",
        )
    if tag and not timm.is_model_pretrained(name):
        known = timm.list_pretrained(f"{architecture}.*")
        raise ModelError(f"{architecture} has no weights {tag!r}", hint=nearest(name, known))


def has_weights(name: str) -> bool:
    """Whether weights belong to a known name; of a hub's name this is taken for granted."""
    return ":" in name or timm.is_model_pretrained(name)


def build(request: ModelRequest) -> nn.Module:
    """Make a model.

    Raises:
        ModelError: If an option does not fit, or its weights cannot be had.
    """
    name, size = request.name, request.image_size
    options = dict(request.options)
    stem = options.pop("stem", None)
    if stem not in (None, "small"):
        raise ModelError(f"no stem is called {stem!r}", hint='there is stem = "small"')
    if request.num_classes is not None:
        options["num_classes"] = request.num_classes
    attempts = [options] if size is None else [{**options, "img_size": size}, options]
    for attempt in attempts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # timm's hints are for its own authors
                module = timm.create_model(name, pretrained=request.pretrained, **attempt)
        except TypeError as error:
            if "img_size" in str(error) and attempt is not attempts[-1]:
                continue  # convolutional models take images of any size and no such option
            raise ModelError(
                f"{name} does not take these options: {first_line(error)}",
                hint="options are those of timm.create_model for this model",
            ) from error
        except ModelError:
            raise
        except Exception as error:
            raise _creation_error(request, error) from error
        if stem is not None:
            use_small_stem(StagedModel(module, image_size=size))
        return module
    raise AssertionError("one attempt returns or raises")


def _creation_error(request: ModelRequest, error: Exception) -> ModelError:
    name = request.name
    if name.startswith("local-dir:"):
        return ModelError(
            f"the model saved in {name.partition(':')[2]} cannot be loaded: {first_line(error)}",
            hint="its files are broken, or do not belong together",
        )
    if ":" in name and not request.pretrained:
        return ModelError(
            f"the model {name} could not be had: {first_line(error)}",
            hint="check the name and the network",
        )
    if request.pretrained:
        return ModelError(
            f"the pretrained weights of {name} could not be had: {first_line(error)}",
            hint="check the network, or give a file, such as --set teacher.weights=FILE",
        )
    return ModelError(
        f"{name} cannot be built for {pixels(request.image_size)}: {first_line(error)}"
    )
