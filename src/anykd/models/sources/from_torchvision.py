"""Classifiers of torchvision, by the names that torchvision lists."""

import warnings
from collections import OrderedDict
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision import models
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from anykd.errors import ModelError, first_line, nearest
from anykd.models.traced import TracedBackbone, drop_classifier, new_classifier

from .request import ModelRequest, pixels

__all__ = ["build", "has_weights", "names", "rebuild", "require_known"]

_SIZE = 224
"""Pixels of models without weights, whose own size torchvision does not say."""


def names() -> list[str]:
    """List the classifiers."""
    return models.list_models(module=models)


def require_known(name: str) -> None:
    """Refuse a name, or weights, that torchvision does not have.

    Args:
        name: Such as ``resnet18`` or ``resnet18.IMAGENET1K_V1``.

    Raises:
        ModelError: With the nearest names.
    """
    architecture, _, tag = name.partition(".")
    if architecture not in names():
        raise ModelError(
            f"torchvision has no classifier {architecture!r}",
            hint=nearest(architecture, names(), or_list=False)
            or "torchvision.models.list_models() lists them",
        )
    known = [weights.name for weights in models.get_model_weights(architecture)]
    if tag and tag not in known:
        raise ModelError(
            f"torchvision's {architecture} has no weights {tag!r}", hint=nearest(tag, known)
        )


def has_weights(name: str) -> bool:
    """Whether weights belong to a known name."""
    return len(models.get_model_weights(name.partition(".")[0])) > 0


def build(request: ModelRequest) -> TracedBackbone:
    """Make a classifier and take it apart.

    Raises:
        ModelError: If the name is unknown, an option does not fit, weights cannot be had, or the
            model cannot take images of this size.
    """
    require_known(request.name)
    architecture, _, tag = request.name.partition(".")
    known = models.get_model_weights(architecture)
    weights = known[tag or "DEFAULT"] if request.pretrained else None
    config = _config(architecture, weights)
    height, width = request.image_size or config["input_size"][1:]
    if weights is None:
        classes = {} if not request.num_classes else {"num_classes": request.num_classes}
        model = _make(architecture, (height, width), request.options | classes)
    else:
        model = _make(architecture, (height, width), request.options)
        _load(model, weights, (height, width), request.name)
        # GoogLeNet and Inception were trained elsewhere, with another normalisation.
        config["transform_input"] = hasattr(model, "transform_input")
    if request.num_classes == 0:
        drop_classifier(model)
    elif weights is not None and request.num_classes not in (None, len(config["label_names"])):
        new_classifier(model, request.num_classes)
        del config["label_names"]
    return _finished(model, (height, width), config)


def rebuild(request: ModelRequest, config: dict[str, Any]) -> TracedBackbone:
    """Make a saved model again, with random weights.

    Args:
        request: As `build` once had it.
        config: What the model was saved with.
    """
    height, width = request.image_size or config["input_size"][1:]
    architecture = request.name.partition(".")[0]
    classes = {} if not request.num_classes else {"num_classes": request.num_classes}
    model = _make(architecture, (height, width), request.options | classes)
    if request.num_classes == 0:
        drop_classifier(model)
    return _finished(model, (height, width), config)


def _finished(model: Any, size: tuple[int, int], config: dict[str, Any]) -> TracedBackbone:
    if config.get("transform_input"):
        model.transform_input = True
    config["input_size"] = (3, *size)
    return TracedBackbone(model, image_size=size, pretrained_cfg=config)


def _make(architecture: str, size: tuple[int, int], options: dict[str, Any]) -> nn.Module:
    """Build a model with random weights, and tell it the image size where it asks for one."""
    # Transformers want a size beforehand, each by another word; convolutional models want none.
    square = {"image_size": size[0]} if size[0] == size[1] else {}
    attempts = [options | square, options | {"input_size": size}, options]
    for attempt in attempts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of slow initial weights, which are to change
                model = models.get_model(architecture, weights=None, **attempt)
        except TypeError as error:
            asked = set(attempt) - set(options)
            if any(f"'{key}'" in str(error) for key in asked):
                continue
            raise ModelError(
                f"torchvision:{architecture} does not take these options: {first_line(error)}",
                hint=f"options are those of torchvision.models.{architecture}",
            ) from error
        except Exception as error:
            raise ModelError(
                f"torchvision:{architecture} cannot be built for {pixels(size)}: "
                f"{first_line(error)}"
            ) from error
        return _without_auxiliary_classifiers(model)
    raise AssertionError("the last attempt asks for nothing")


def _without_auxiliary_classifiers(model: Any) -> nn.Module:
    """Leave out the scores that GoogLeNet and Inception give halfway, in training alone."""
    if getattr(model, "aux_logits", False):
        model.aux_logits = False
        for name in [name for name, _ in model.named_children() if name.lower().startswith("aux")]:
            setattr(model, name, None)
    return model


def _load(model: nn.Module, weights: models.WeightsEnum, size: tuple[int, int], name: str) -> None:
    try:
        state = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:
        raise ModelError(
            f"the pretrained weights of torchvision:{name} could not be had: {first_line(error)}",
            hint="check the network, or give a file, such as --set teacher.weights=FILE",
        ) from error
    state = {key: value for key, value in state.items() if not key.lower().startswith("aux")}
    if isinstance(model, VisionTransformer):
        state = interpolate_embeddings(size[0], model.patch_size, OrderedDict(state))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"the pretrained weights of torchvision:{name} do not fit images of {pixels(size)} and "
            f"these options: {first_line(error)}"
        ) from error


def _config(architecture: str, weights: models.WeightsEnum | None) -> dict[str, Any]:
    """What the weights say about images and classes, in timm's words; ImageNet's without any."""
    config: dict[str, Any] = {
        "architecture": f"torchvision:{architecture}",
        "input_size": (3, _SIZE, _SIZE),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "interpolation": "bilinear",
        "crop_pct": 0.875,
    }
    if weights is None:
        return config
    view: Any = weights.transforms()
    crop, resized = int(view.crop_size[0]), int(view.resize_size[0])
    return config | {
        "input_size": (3, crop, crop),
        "mean": tuple(view.mean),
        "std": tuple(view.std),
        "interpolation": view.interpolation.value,
        "crop_pct": crop / resized,
        "label_names": list(weights.meta["categories"]),
        "num_classes": len(weights.meta["categories"]),
    }
