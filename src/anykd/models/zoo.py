"""Models by name, whatever library they come from, and how they are saved."""

import copy
import fnmatch
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from anykd.errors import ModelError, first_line, nearest

from .checkpoints import LoadedWeights, load_weights, require_file
from .hidden_states import HiddenStatesBackbone
from .origin import ModelOrigin
from .sources import from_code, from_timm, from_torchvision, from_transformers
from .sources.request import ModelRequest, pixels
from .staged import StagedModel
from .traced import TracedBackbone

__all__ = [
    "create_staged",
    "has_weights",
    "model_names",
    "require_known",
    "save_model",
]

_SAVED = "anykd"
"""Key of ``config.json`` behind which stands what timm's layout has no place for."""

_PREFIXED = {"torchvision": from_torchvision, "transformers": from_transformers}

_OF_OTHER_WEIGHTS = {
    *("url", "file", "source", "hf_hub_id", "hf_hub_filename", "tag"),
    *("license", "description", "notes", "origin_url", "paper_name", "paper_ids"),
}
"""What timm's configs tell of the weights that its authors offer, also where a model has others."""


def model_names(pattern: str = "*") -> list[str]:
    """List the architectures whose name matches a shell pattern: timm's, unless it names a source.

    Args:
        pattern: Such as ``*vit*tiny*``, ``torchvision:resnet*`` or ``transformers:*``.
    """
    source, colon, rest = pattern.partition(":")
    if colon and source in _PREFIXED:
        return [f"{source}:{name}" for name in fnmatch.filter(_PREFIXED[source].names(), rest)]
    return timm.list_models(pattern)


def create_staged(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    new_head: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    interpolation: str | None = None,
    **options: Any,
) -> StagedModel:
    """Build a model by name and wrap it.

    Args:
        name: A timm architecture, with or without a tag; ``hf-hub:NAME``; ``torchvision:NAME``;
            ``transformers:NAME`` or ``transformers:FOLDER``; ``path/to/file.py:factory`` or
            ``package.module:factory``, which is executed; ``local-dir:FOLDER``; or a run directory,
            whose student it loads with its weights.
        num_classes: Length of the logits. None keeps the model's own; with pretrained weights
            another number gives a new, random head, and 0 none.
        image_size: Pixels, one number or (height, width). Reaches the model where it takes one.
            None takes the model's own.
        pretrained: Load the weights that belong to the name.
        weights: Load these instead: a safetensors file, or a checkpoint of a training script.
        new_head: Whether weights with a head for other classes, or none, may be loaded without it.
        mean: Of R, G and B in [0, 1]; None takes the model's own.
        std: Likewise.
        interpolation: nearest, bilinear or bicubic; None takes the model's own.
        **options: Of the model's own constructor, such as ``patch_size=4``. For CNNs of timm also
            ``stem="small"``: see `anykd.models.stem.use_small_stem`.

    Returns:
        The model. Its ``loaded`` says where its weights come from, and what was left out.

    Raises:
        ModelError: If the name is unknown, an option does not fit, weights cannot be had or do not
            fit, or the model cannot take images of this size.
    """
    require_known(name)
    if weights is not None:
        require_file(Path(weights))
    if "stem" in options and _source_of(name) is not from_timm:
        raise ModelError(f"{name} takes no stem", hint="a small stem is for CNNs of timm")
    folder, is_run = _saved_folder(name), _is_run(Path(name))
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if is_run:
        size = size or _saved_image_size(Path(name) / "student")
    with_own = (pretrained or is_run) and weights is None
    request = ModelRequest(name, num_classes, size, with_own, options)
    if folder is None:
        module, origin = _build(request), ModelOrigin(name, options)
    else:
        module, origin = _build_saved(request, folder)
    staged = _stage(name, module, size, mean=mean, std=std, interpolation=interpolation)
    staged.origin = origin
    if _source_of(origin.name) is from_code and num_classes not in (None, staged.num_classes):
        raise ModelError(
            f"{name} makes a model of {staged.num_classes} classes, {num_classes} are asked for",
            hint="let the function take num_classes",
        )
    if weights is not None:
        staged.loaded = _load(staged, Path(weights), new_head=new_head or num_classes == 0)
    elif with_own and folder is not None and not _is_timms(staged):
        # Asking for other classes asks for a new head, as it does by every other name.
        file = folder / "model.safetensors"
        staged.loaded = _load(staged, file, new_head=num_classes is not None)
    elif with_own:
        staged.loaded = _of_name(request, module)
    return staged


def _stage(name: str, module: nn.Module, size: tuple[int, int] | None, **view: Any) -> StagedModel:
    try:
        return StagedModel(module, image_size=size, **view)
    except ModelError:
        raise
    except Exception as error:
        # Whatever a model raises on images that do not fit it: an assertion, a shape, a division.
        raise ModelError(
            f"{name} cannot take images of {pixels(size)}: {first_line(error)}",
            hint="choose another image_size, or a patch_size that divides it",
        ) from error


def _load(staged: StagedModel, path: Path, *, new_head: bool) -> LoadedWeights:
    return load_weights(
        _plain(staged.model),
        path,
        num_classes=staged.num_classes,
        classifiers=_classifiers(staged),
        new_head=new_head,
    )


def _plain(module: nn.Module) -> nn.Module:
    """The model as its own library makes it."""
    return module.model if isinstance(module, TracedBackbone | HiddenStatesBackbone) else module


def _classifiers(staged: StagedModel) -> tuple[str, ...]:
    """Paths of the layers that score the classes, or stand where they were."""
    module = staged.model
    if isinstance(module, TracedBackbone | HiddenStatesBackbone):
        return module.classifiers
    named = (getattr(module, "pretrained_cfg", None) or {}).get("classifier")
    if named:
        return (named,) if isinstance(named, str) else tuple(named)
    linear = {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear)}
    scoring = [path for path, part in linear.items() if part.out_features == staged.num_classes]
    return tuple(scoring[-1:])


def save_model(
    staged: StagedModel, folder: Path, *, class_names: tuple[str, ...] = (), crop_pct: float = 1.0
) -> None:
    """Write a model as ``model.safetensors`` and ``config.json``, so that `create_staged` loads it.

    Without anykd, a timm model is loaded by ``timm.create_model("local-dir:FOLDER",
    pretrained=True)``; one of transformers by ``AutoModelForImageClassification.from_pretrained(
    FOLDER)``; the weights of any other by its own ``load_state_dict``. The config says how the
    model sees images, but nothing of licence and origin: it cannot know them of these weights.

    Args:
        staged: The model.
        folder: Made if it is missing.
        class_names: What each logit stands for.
        crop_pct: Share of the resized short side that evaluation kept.
    """
    # safetensors wants plain layout on the CPU; the student may be elsewhere, in channels_last.
    model = copy.deepcopy(staged.model).cpu().to(memory_format=torch.contiguous_format)
    kept = dict(getattr(model, "pretrained_cfg", None) or {})
    kept = {key: value for key, value in kept.items() if key not in _OF_OTHER_WEIGHTS}
    data = {
        "input_size": (3, *staged.image_size),
        "mean": staged.view.mean,
        "std": staged.view.std,
        "interpolation": staged.view.interpolation,
        "crop_pct": crop_pct,
    }
    if _is_timms(staged):
        own = {"label_names": list(class_names)} if class_names else {}
        model.pretrained_cfg = kept
        save_for_hf(model, str(folder), model_config=own, data_config=data, safe_serialization=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Tensors that share memory are written twice, and each under its own name.
    state = {key: value.contiguous().clone() for key, value in _plain(model).state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = kept | data
    config.pop("label_names", None)
    config |= {"label_names": list(class_names)} if class_names else {}
    origin = staged.origin
    saved = {
        "model": None if origin is None else _recorded_name(origin.name),
        "options": {} if origin is None else origin.options,
        "num_classes": staged.num_classes,
        "pretrained_cfg": config,
    }
    found: dict[str, Any] = {}
    if isinstance(model, HiddenStatesBackbone):
        found = from_transformers.saved_config(model.model, class_names)
        processor = from_transformers.saved_processor(config)
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    (folder / "config.json").write_text(json.dumps(found | {_SAVED: saved}, indent=2))


def _recorded_name(name: str) -> str:
    """A name as a run keeps it: that of a user's own code by its file, wherever one stands."""
    if _source_of(name) is not from_code:
        return name
    return f"{from_code.source_file(name)}:{name.rpartition(':')[2]}"


def _is_timms(staged: StagedModel) -> bool:
    """Whether timm alone makes the model again: not with another stem, nor out of own code."""
    origin = staged.origin
    if origin is None:
        return staged.is_timm
    return _source_of(origin.name) is from_timm and "stem" not in origin.options


def require_known(name: str) -> None:
    """Refuse a name that no source of models knows, without loading anything.

    Names of the hub are not looked up. A file of the user's own is executed, to see whether its
    function is there.

    Raises:
        ModelError: With the nearest names.
    """
    if _is_run(Path(name)):
        return
    source, colon, rest = name.partition(":")
    if colon:
        _source_of(name).require_known(rest if source in _PREFIXED else name)
    elif Path(name).is_dir():
        raise ModelError(
            f"{name} is no finished run: it has no student/config.json",
            hint="give the folder above it"
            if Path(name).name == "student"
            else "give a run directory that `anykd train` or `anykd distill` has finished",
        )
    elif Path(name).suffix == ".py":
        raise ModelError(
            f"{name} does not say which function makes the model", hint=f"such as {name}:make_model"
        )
    else:
        folder = Path(name).parent
        near = [str(path) for path in folder.iterdir()] if folder.is_dir() and "/" in name else []
        if hint := nearest(name, near, or_list=False):
            raise ModelError(f"no run directory is at {name}", hint=hint)
        from_timm.require_known(name)


def has_weights(name: str) -> bool:
    """Whether weights belong to a known name, so that it can teach by itself.

    Of names of the hub, and of a user's own code, this is taken for granted; building the model
    shows it.
    """
    if _is_run(Path(name)):
        return True
    source, _, rest = name.partition(":")
    home = _source_of(name)
    return home is from_code or home.has_weights(rest if source in _PREFIXED else name)


def _source_of(name: str) -> Any:
    """The module that makes the models of a name."""
    source, colon, _ = name.partition(":")
    if not colon or source in ("hf-hub", "local-dir"):
        return from_timm
    return _PREFIXED.get(source, from_code)


def _build(request: ModelRequest) -> nn.Module:
    source, _, rest = request.name.partition(":")
    home = _source_of(request.name)
    return home.build(replace(request, name=rest) if source in _PREFIXED else request)


def _of_name(request: ModelRequest, module: Any) -> LoadedWeights:
    """What is known of weights that came with a name."""
    saved = (getattr(module, "pretrained_cfg", None) or {}).get("num_classes")
    new_head = saved is not None and request.num_classes not in (None, 0, saved)
    return LoadedWeights(request.name, new_head=new_head, saved_classes=saved if new_head else None)


def _is_run(folder: Path) -> bool:
    return (folder / "student" / "config.json").is_file()


def _saved_folder(name: str) -> Path | None:
    """The folder of a model that was saved: a run's student, or one named outright."""
    source, _, rest = name.partition(":")
    if _is_run(Path(name)):
        return Path(name) / "student"
    return Path(rest) if source == "local-dir" else None


def _saved_image_size(folder: Path) -> tuple[int, int]:
    saved = _read_config(folder)
    _, height, width = saved.get(_SAVED, saved)["pretrained_cfg"]["input_size"]
    return height, width


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(
            f"{path} cannot be read: {first_line(error)}", hint="the saved model is broken"
        ) from error


def _build_saved(request: ModelRequest, folder: Path) -> tuple[nn.Module, ModelOrigin]:
    """Make a model that was saved; what is not timm's has random weights still."""
    saved = _read_config(folder).get(_SAVED)
    if saved is None:
        name = f"local-dir:{folder}"
        return from_timm.build(replace(request, name=name)), ModelOrigin(name, request.options)
    name, config = saved["model"], saved["pretrained_cfg"]
    if name is None:
        raise ModelError(
            f"the model in {folder} was not made by a name, so it cannot be made again",
            hint="make it yourself, and load its model.safetensors",
        )
    home = _source_of(name)
    classes = saved["num_classes"] if request.num_classes is None else request.num_classes
    options = saved["options"] | request.options
    again = replace(request, num_classes=classes, pretrained=False, options=options)
    if home is from_transformers:
        module = from_transformers.rebuild(replace(again, name=str(folder)), config)
    elif home is from_torchvision:
        again = replace(again, name=name.partition(":")[2])
        module = from_torchvision.rebuild(again, config)
    elif home is from_timm:
        module = from_timm.build(replace(again, name=name))
        module.pretrained_cfg = config
    else:
        name = from_code.recorded(name, folder.parent)
        module: Any = from_code.build(replace(again, name=name))
        module.pretrained_cfg = config
    return module, ModelOrigin(name, options)
