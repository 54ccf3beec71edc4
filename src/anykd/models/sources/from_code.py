"""A user's own models: a function in a file or an installed package that makes one.

Naming a file executes it. anykd does so only with what the caller names, and for a run of one's own
(`recorded`) only with a file outside the run directory.
"""

import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from anykd.errors import ModelError, first_line, nearest
from anykd.models.protocol import Backbone
from anykd.models.traced import TracedBackbone, drop_classifier

from .request import ModelRequest

__all__ = ["build", "recorded", "require_known", "source_file"]

_SIZE = 224
"""Pixels of modules that name no ``pretrained_cfg``."""


def require_known(name: str) -> None:
    """Refuse a name whose file, module or function is not there. This executes the file.

    Args:
        name: ``path/to/file.py:factory`` or ``package.module:factory``.

    Raises:
        ModelError: With what is there instead.
    """
    _factory(name)


def source_file(name: str) -> Path:
    """The file that a factory is read from."""
    location = name.rpartition(":")[0]
    # Of the module that was named: what it holds there may be written elsewhere, or no function.
    path = location if location.endswith(".py") else _import(location).__file__
    return Path(path).resolve()


def recorded(name: str, run: Path) -> str:
    """Check a name that a run directory gives, before anything is executed.

    A run may come from somebody else, so its word alone executes nothing that lies in the run, and
    no installed package.

    Raises:
        ModelError: If the file is gone, or not such that a run's word is enough.
    """
    location, _, factory = name.rpartition(":")
    path = Path(location)
    folders = [Path(p) for p in sysconfig.get_paths().values()] + [run.resolve()]
    if path.is_absolute() and path.suffix == ".py" and path.is_file():
        if not any(path.resolve().is_relative_to(folder) for folder in folders):
            return f"{path}:{factory}"
        problem = "which a run directory may not have executed"
    else:
        problem = "which is not there"
    raise ModelError(
        f"the model of {run} is made by {name}, {problem}",
        hint=f"name the code yourself: FILE.py:{factory or 'factory'}, with weights "
        f"{run / 'student' / 'model.safetensors'}",
    )


def build(request: ModelRequest) -> nn.Module:
    """Call a factory, and take apart what it makes where that is no backbone by itself.

    It is given what it takes of ``num_classes``, ``image_size`` (one number where it is square) and
    ``pretrained``, and all options.

    Raises:
        ModelError: If there is no such factory, it does not take the options, or what it makes is
            no image classifier that can be taken apart.
    """
    factory = _factory(request.name)
    given = dict(request.options)
    size = request.image_size
    asked = {
        "num_classes": request.num_classes,
        "image_size": size[0] if size and size[0] == size[1] else size,
    }
    for key, value in asked.items():
        if value is not None and key not in given and _takes(factory, key):
            given[key] = value
    if request.pretrained:
        if not _takes(factory, "pretrained"):
            raise ModelError(
                f"{request.name} takes no pretrained, so its weights would be random",
                hint="let it take pretrained=True, or give a file, such as --set "
                "teacher.weights=FILE",
            )
        given["pretrained"] = True
    headless = request.num_classes == 0 and "num_classes" not in request.options
    if headless:
        given.pop("num_classes", None)
    module = _call(factory, given, request.name)
    if isinstance(module, Backbone) or hasattr(module, "forward_intermediates"):
        takes = headless and _takes(factory, "num_classes")
        return _call(factory, given | {"num_classes": 0}, request.name) if takes else module
    if headless:
        drop_classifier(module)
    config = dict(getattr(module, "pretrained_cfg", None) or {})
    config.setdefault("architecture", type(module).__name__)
    height, width = request.image_size or tuple(config.get("input_size", (3, _SIZE, _SIZE)))[1:]
    return TracedBackbone(module, image_size=(height, width), pretrained_cfg=config)


def _call(factory: Callable[..., Any], given: dict[str, Any], name: str) -> nn.Module:
    try:
        module = factory(**given)
    except Exception as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in given.items()) or "no arguments"
        raise ModelError(
            f"{name} fails with {shown}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name} makes a {type(module).__name__}, not an nn.Module")
    return module


def _takes(factory: Callable[..., Any], key: str) -> bool:
    """Whether a factory names an argument, or passes on whatever it gets, such as a class count."""
    parameters = inspect.signature(factory).parameters
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return key in parameters or (passes_on and key == "num_classes")


def _factory(name: str) -> Callable[..., Any]:
    location, _, attribute = name.rpartition(":")
    module = _load_file(Path(location)) if location.endswith(".py") else _import(location)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        own = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        raise ModelError(
            f"{location} has no function {attribute!r} that makes a model",
            hint=nearest(attribute, own),
        )
    return factory


def _load_file(path: Path) -> Any:
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ModelError(f"no file at {path}", hint=nearest(path.name, siblings, or_list=False))
    # The same file is executed once, so that classes stay what they are.
    key = f"anykd_own_{path.resolve().as_posix()}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise ModelError(
            f"{path} cannot be read: {type(error).__name__}: {first_line(error)}"
        ) from error
    return module


def _import(location: str) -> Any:
    try:
        return importlib.import_module(location)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and "." not in location:
            raise ModelError(
                f"no source of models and no module is called {location!r}",
                hint=nearest(location, ["torchvision", "transformers", "hf-hub", "local-dir"]),
            ) from error
        raise ModelError(
            f"the module {location} cannot be imported: {first_line(error)}",
            hint="give a file instead: path/to/file.py:factory",
        ) from error
