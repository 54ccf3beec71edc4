"""Image classifiers and backbones of Hugging Face transformers, from the hub or a folder."""

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from anykd.errors import ModelError, first_line, nearest
from anykd.models.hidden_states import HiddenStatesBackbone

from .request import ModelRequest, pixels

__all__ = [
    "build",
    "has_weights",
    "names",
    "rebuild",
    "require_known",
    "saved_config",
    "saved_processor",
]

_SIZE = 224
"""Pixels of models whose config does not say any."""

_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, in which image processors write their interpolation."""


def require_known(name: str) -> None:
    """Refuse a name that is neither a folder, nor a model type, nor might be one of the hub's.

    Args:
        name: A folder with ``config.json``; ``OWNER/NAME`` of the hub; or a model type such as
            ``convnext``, which has no weights.

    Raises:
        ModelError: With the nearest names; also if transformers is not installed.
    """
    if name in names() or _is_folder(name):
        return
    if Path(name).is_dir():
        raise ModelError(
            f"no model of transformers lies in {name}: it has no config.json",
            hint="give a folder as save_pretrained writes it",
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"transformers has no image classifier {name!r}, and no such folder is there",
            hint=nearest(name, names(), or_list=False)
            or "give a folder, OWNER/NAME of the hub, or a model type such as convnext",
        )


def has_weights(name: str) -> bool:
    """Whether weights belong to a known name; of a hub's name this is taken for granted."""
    if _is_folder(name):
        return any(Path(name).glob("*.safetensors"))
    return name not in names()


def _is_folder(name: str) -> bool:
    return (Path(name) / "config.json").is_file()


def names() -> list[str]:
    """List the model types that classify images."""
    _require_transformers()
    from transformers.models.auto import modeling_auto

    return list(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(
            "models of transformers need the package transformers, which is not installed",
            hint="pip install 'anykd[hf]'",
        ) from error


def build(request: ModelRequest) -> HiddenStatesBackbone:
    """Make a classifier and take it apart.

    A model that was not trained to classify, such as a backbone, has no classifier, unless a number
    of classes is asked for, which gives it a new one.

    Raises:
        ModelError: If the name is unknown, an option does not fit, weights cannot be had, or the
            model cannot take images of this size.
    """
    require_known(request.name)
    config = _read_config(request)
    if request.pretrained and not has_weights(request.name):
        raise ModelError(
            f"transformers:{request.name} has no pretrained weights",
            hint="give OWNER/NAME of the hub, or a folder with model.safetensors",
        )
    saved = int(config.num_labels)
    classifies = any("ImageClassification" in one for one in config.architectures)
    is_type = request.name in names()
    if request.num_classes is not None and request.num_classes != saved:
        config.num_labels = request.num_classes
    elif request.num_classes is None and not (classifies or is_type):
        config.num_labels = 0
    own_head = classifies and config.num_labels == saved
    return _make(config, request, own_head=own_head, saved_classes=saved if classifies else 0)


def rebuild(request: ModelRequest, config: dict[str, Any]) -> nn.Module:
    """Make a saved model again, with random weights.

    Args:
        request: Its name is the folder where ``config.json`` lies.
        config: What timm calls ``pretrained_cfg``, as the model was saved with.
    """
    _require_transformers()
    from transformers import AutoModelForImageClassification

    own = _read_config(replace(request, options={}))
    own.num_labels = request.num_classes
    with _quiet():
        model = AutoModelForImageClassification.from_config(own)
    _, *own_size = config["input_size"]
    size = request.image_size or (own_size[0], own_size[1])
    config = config | {"input_size": (3, *size)}
    return HiddenStatesBackbone(model, image_size=size, pretrained_cfg=config)


def saved_config(model: Any, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What transformers itself reads from ``config.json`` to make the model again."""
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    config.pop("_name_or_path", None)  # where other weights lie
    if class_names:
        config["id2label"] = dict(enumerate(class_names))
        config["label2id"] = {name: i for i, name in enumerate(class_names)}
    return config


def saved_processor(config: dict[str, Any]) -> dict[str, Any]:
    """How images are to be prepared, as an image processor of transformers reads it.

    Args:
        config: What timm calls ``pretrained_cfg``.
    """
    _, height, width = config["input_size"]
    numbers = {name: number for number, name in _RESAMPLING.items()}
    return {
        "image_processor_type": "ViTImageProcessor",  # resizes, rescales and normalises, no more
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": numbers[config["interpolation"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config["mean"]),
        "image_std": list(config["std"]),
    }


def _make(
    config: Any, request: ModelRequest, *, own_head: bool, saved_classes: int
) -> HiddenStatesBackbone:
    from transformers import AutoModelForImageClassification

    view = _view(request.name, config)
    _, *own_size = view["input_size"]
    size = request.image_size or (own_size[0], own_size[1])
    try:
        with _quiet():
            if request.pretrained:
                # Never code from the hub, never a pickle.
                model = AutoModelForImageClassification.from_pretrained(
                    request.name,
                    config=config,
                    trust_remote_code=False,
                    use_safetensors=True,
                    ignore_mismatched_sizes=not own_head,
                )
            else:
                _set_image_size(config, size)
                model = AutoModelForImageClassification.from_config(config)
    except Exception as error:
        what = "the pretrained weights of transformers:{} could not be had: {}"
        if not request.pretrained:
            what = f"transformers:{{}} cannot be built for {pixels(size)}: {{}}"
        raise ModelError(what.format(request.name, first_line(error))) from error
    view |= {"input_size": (3, *size), "num_classes": saved_classes}
    if own_head and config.num_labels and request.name not in names():
        view["label_names"] = [config.id2label[i] for i in range(config.num_labels)]
    return HiddenStatesBackbone(model, image_size=size, pretrained_cfg=view)


def _read_config(request: ModelRequest) -> Any:
    """The config of a name, with the options written into it."""
    from transformers import AutoConfig

    name = request.name
    try:
        with _quiet():
            if name in names() and not _is_folder(name):
                config = AutoConfig.for_model(name)
            else:
                config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"the config of transformers:{name} could not be had: {first_line(error)}",
            hint="check the network, or give a folder that save_pretrained has written",
        ) from error
    unknown = [key for key in request.options if not hasattr(config, key)]
    if unknown:
        known = [key for key in config.to_dict() if not key.startswith("_")]
        raise ModelError(
            f"transformers:{name} does not take these options: {', '.join(unknown)}",
            hint=nearest(unknown[0], known, or_list=False) or "options are those of its config",
        )
    # Made anew, so that what the config derives from its values fits the options.
    config = type(config).from_dict(config.to_dict() | request.options)
    config.architectures = config.architectures or []
    return config


def _set_image_size(config: Any, size: tuple[int, int]) -> None:
    """Build a model without weights for the images that it is to see."""
    for part in (config, getattr(config, "vision_config", None)):
        own = getattr(part, "image_size", None)
        if own is not None:
            square = isinstance(own, int) and size[0] == size[1]
            part.image_size = size[0] if square else list(size)  # type: ignore[union-attr]


def _view(name: str, config: Any) -> dict[str, Any]:
    """How the model sees images, in timm's words, from its image processor where there is one."""
    own = getattr(config, "image_size", None)
    own = own or getattr(getattr(config, "vision_config", None), "image_size", None) or _SIZE
    size = (own, own) if isinstance(own, int) else tuple(own)
    view: dict[str, Any] = {
        "architecture": f"transformers:{name}",
        "input_size": (3, *size),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "interpolation": "bilinear",
        "license": _license(name),
    }
    processor = _processor(name)
    if processor is None:
        return view
    known = processor.get("image_mean") and processor.get("image_std")
    if processor.get("do_normalize", True) and known:
        view |= {"mean": tuple(processor["image_mean"]), "std": tuple(processor["image_std"])}
    else:
        view |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    view["interpolation"] = _RESAMPLING.get(processor.get("resample", 2), "bilinear")
    view["flips_channels"] = processor.get("do_flip_channel_order", False)
    resized = _side(processor.get("size"))
    cropped = _side(processor.get("crop_size")) if processor.get("do_center_crop") else None
    if cropped or resized:
        view["input_size"] = (3, *(cropped or resized or size))
    if cropped and resized:
        view["crop_pct"] = min(cropped[0] / resized[0], 1.0)
    elif processor.get("crop_pct"):  # ConvNeXt: below 384 px
        view["crop_pct"] = processor["crop_pct"] if (resized or size)[0] < 384 else 1.0
    return view


def _side(size: Any) -> tuple[int, int] | None:
    """Height and width out of any form in which an image processor writes a size."""
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, dict) and "height" in size:
        return (int(size["height"]), int(size["width"]))
    if isinstance(size, dict) and "shortest_edge" in size:
        return (int(size["shortest_edge"]), int(size["shortest_edge"]))
    return None


def _processor(name: str) -> dict[str, Any] | None:
    path = _side_file(name, "preprocessor_config.json")
    if path is None:
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{path} does not say how images are prepared: {first_line(error)}",
            hint="mend it, or remove it and give mean, std and image_size yourself",
        ) from error


def _license(name: str) -> str | None:
    from huggingface_hub import ModelCard

    path = _side_file(name, "README.md")
    try:
        return None if path is None else ModelCard.load(path).data.get("license")
    except Exception:
        return None  # a card that cannot be read names no licence; the model works without


def _side_file(name: str, file: str) -> Path | None:
    """A file that may lie beside the config; on the hub, where the network is there."""
    if name in names() or _is_folder(name):
        path = Path(name) / file
        return path if path.is_file() else None
    from transformers.utils import cached_file

    with _quiet():
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return None if found is None else Path(found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what transformers prints of new heads, progress and deprecations."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
