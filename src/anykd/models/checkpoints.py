"""Weights from a file, whoever wrote it: found, brought to the model's names, and accounted for."""

import argparse
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anykd.errors import ModelError, first_line, nearest

__all__ = ["LoadedWeights", "load_weights", "require_file"]

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
"""Keys behind which training scripts keep a state dict; an average is what they evaluate."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and wrapping modules put in front of names."""

_COUNTER = "num_batches_tracked"
"""Batch norm's count of its batches, which nothing reads but a momentum of None."""


@dataclass(frozen=True)
class LoadedWeights:
    """Where a model's weights come from, and what of them was not taken.

    Attributes:
        source: The file, or the name that the weights belong to.
        part: Key of the file behind which they stood, such as ``model_ema``; empty where the file
            is the state dict itself.
        new_head: Whether the classifier is new, and random.
        saved_classes: Classes of the classifier that was left out; None where there was none.
        missing: Names of the head's tensors that kept their random values.
        unused: Names of the file's tensors that were left out.
    """

    source: str
    part: str = ""
    new_head: bool = False
    saved_classes: int | None = None
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in one line, as the plan prints it."""
        origin = f"{self.source} ({self.part})" if self.part else self.source
        if self.saved_classes is not None:
            return f"weights of {origin} without its head of {self.saved_classes} classes"
        if self.new_head:
            return f"weights of {origin}, which has no head"
        return f"weights of {origin}"


def require_file(path: Path) -> None:
    """Refuse a file of weights that is not there.

    Raises:
        ModelError: With the nearest file's name.
    """
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(
            f"no weights file at {path}", hint=nearest(path.name, siblings, or_list=False)
        )


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    num_classes: int,
    classifiers: Sequence[str],
    new_head: bool = False,
) -> LoadedWeights:
    """Fill a model with the weights of a file.

    Takes safetensors and pickled checkpoints, of which nothing but tensors, numbers and
    ``argparse.Namespace`` is unpickled. Names lose the prefixes of wrappers, layouts of older timm
    go through timm's own filters, and float16 becomes the model's type.

    Args:
        module: The model; it is changed.
        path: The file.
        num_classes: Length of the model's logits; 0 for a model without a classifier.
        classifiers: Paths of the layers that score the classes, or would.
        new_head: Whether a classifier of other classes, or none, may be left out of the file. The
            model then keeps its own, random one.

    Raises:
        ModelError: If the file cannot be read, or lacks something, or has something too much.
    """
    require_file(path)
    state, part = _unwrap(_read(path), path)
    own = module.state_dict()
    state = _without_prefixes(state, own)
    state = _filtered(state, module, own)
    missing = [key for key in own if key not in state and not key.endswith(_COUNTER)]
    unused = [key for key in state if key not in own and not key.endswith(_COUNTER)]
    other = [key for key in state if key in own and state[key].shape != own[key].shape]
    head_differs = [key for key in [*missing, *unused, *other] if _in(key, classifiers)]
    saved = _saved_classes(state, classifiers)
    if head_differs and not new_head:
        raise ModelError(
            f"{path} has {_head_of(saved)}, the model {_head_of(num_classes)}",
            hint=(f"say so by options.num_classes = {saved}; or " if saved else "")
            + "take it without: --teacher-head probe or finetune for a teacher, new_head=True in "
            "Python",
        )
    _require_fit(path, missing, unused, other, own, state, but=head_differs)
    taken = {k: v for k, v in state.items() if k in own and k not in head_differs}
    module.load_state_dict(taken, strict=False)
    return LoadedWeights(
        str(path),
        part,
        new_head=bool(head_differs) and num_classes > 0,
        saved_classes=saved if head_differs else None,
        missing=tuple(key for key in head_differs if key in own),
        unused=tuple(key for key in head_differs if key in state),
    )


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            raise ModelError(f"{path} is no safetensors file: {error}") from error
    try:
        # Training scripts keep their arguments beside the weights: names and values, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own words advise to read it unsafely.
        pickled = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors and plain values" if pickled else first_line(error)
        raise ModelError(
            f"{path} cannot be read as weights alone: {reason}",
            hint="save the model's state_dict() with torch.save or safetensors; whole pickled "
            "models can execute code and are not read",
        ) from error


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """Find the state dict in a checkpoint, and say where it stood."""
    if isinstance(content, dict):
        for key in _WRAPPERS:
            inner = content.get(key)
            if isinstance(inner, dict) and any(isinstance(v, Tensor) for v in inner.values()):
                return {k: v for k, v in inner.items() if isinstance(v, Tensor)}, key
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors, ""
        found = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise ModelError(
            f"{path} holds no state dict; it holds {found}",
            hint=f"it may stand by itself, or behind {', '.join(_WRAPPERS)}",
        )
    raise ModelError(f"{path} holds a {type(content).__name__}, not a state dict")


def _without_prefixes(state: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Take away prefixes that all names of the file have and the model's names have not."""
    own = set(own)
    while True:
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None or any(key in own for key in state):
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def _filtered(
    state: dict[str, Tensor], module: nn.Module, own: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Bring an older layout to the model's own, by the filter of the model's file in timm."""
    fits = {k for k in own if not k.endswith(_COUNTER)} <= state.keys() and all(
        key in own and value.shape == own[key].shape for key, value in state.items()
    )
    home = type(module).__module__
    if fits or not home.startswith("timm.models."):
        return state
    rename: Callable[..., Any] | None = getattr(sys.modules[home], "checkpoint_filter_fn", None)
    if rename is None:
        return state
    try:
        found = rename(dict(state), module)
    except Exception:
        return state  # the filter knows other layouts; what does not fit is told by name
    return {key: value for key, value in dict(found).items() if isinstance(value, Tensor)}


def _in(key: str, paths: Iterable[str]) -> bool:
    return any(key.startswith(f"{path}.") for path in paths)


def _saved_classes(state: dict[str, Tensor], head: Iterable[str]) -> int | None:
    """Length of the logits of the file's own classifier, where it has one."""
    for path in head:
        for key in (f"{path}.weight", f"{path}.bias"):
            if key in state:
                return len(state[key])
    return None


def _head_of(num_classes: int | None) -> str:
    return f"a head of {num_classes} classes" if num_classes else "no head"


def _require_fit(
    path: Path,
    missing: list[str],
    unused: list[str],
    other: list[str],
    own: dict[str, Tensor],
    state: dict[str, Tensor],
    *,
    but: list[str],
) -> None:
    """Refuse what differs outside the head, in words."""
    complaints = []
    if lacks := [key for key in missing if key not in but]:
        complaints.append(f"it lacks {_some(lacks)}")
    if extra := [key for key in unused if key not in but]:
        complaints.append(f"it has {_some(extra)} too much")
    if sizes := [key for key in other if key not in but]:
        key = sizes[0]
        shapes = f"{tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        complaints.append(f"it has {_some(sizes)} of another size ({shapes})")
    if complaints:
        raise ModelError(
            f"{path} does not fit the model: {'; '.join(complaints)}",
            hint="name the architecture, options and number of classes that it was trained with",
        )


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"
