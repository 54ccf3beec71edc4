"""Find the part of a model that runs from its stage-3 map to its final feature, and prove it.

A tail is a sequence of calls of the model's own modules. It is found by watching: while the model
sees a probe image, every module that is given the stage-3 map, or what such a module made of it, in
one of a few layouts, extends a path; a path that arrives at the final feature is a candidate. What
else a module is given (a grid, rotary positions) is kept, where it depends on nothing but the
image's size. Nothing counts that does not reproduce the model's own final feature with other
weights and other images; and no watching remains: the tail calls modules, plainly.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from anykd.errors import ModelError

from .layouts import Layout, find_layout
from .probe import disturb, probe_images

if TYPE_CHECKING:
    from .staged import StagedModel

__all__ = ["ModuleTail", "OwnTail", "Tail", "find_tail"]

_TOLERANCE = 1e-5
"""Largest difference to the model's own final feature, relative to that feature's largest value."""


@dataclass(frozen=True)
class _Call:
    """One call of a module.

    Attributes:
        path: Of the module.
        layout: From what the last call gave to what this one takes.
        leaves: All that it takes, positional and by name.
        place: Which of the leaves is the feature; nothing is kept there.
        spec: How the leaves make up the arguments.
        picks: Whether the module gives several things, the first of which goes on.
    """

    path: str
    layout: Layout
    leaves: tuple[Any, ...]
    place: int
    spec: Any
    picks: bool

    def run(self, model: nn.Module, x: Tensor, prefix: Tensor | None) -> Tensor:
        x = self.layout(model, x, prefix)
        leaves = [*self.leaves]
        leaves[self.place] = x
        args, kwargs = tree_unflatten(leaves, self.spec)
        made = model.get_submodule(self.path)(*args, **kwargs)
        return made[0] if self.picks else made


@dataclass(frozen=True)
class ModuleTail:
    """Calls of the model's own modules, one after another.

    Not an ``nn.Module``: the modules are the model's own and are registered there.
    """

    calls: tuple[_Call, ...]
    last: Layout

    def run(self, model: nn.Module, stage: Tensor, prefix: Tensor | None) -> Tensor:
        """Compute the final feature from a stage-3 map and its prefix tokens."""
        x = stage
        for call in self.calls:
            x, prefix = call.run(model, x, prefix), None
        return self.last(model, x, None)

    def moved(self, move: Callable[[Tensor], Tensor]) -> "ModuleTail":
        """The same tail where its model went; what its calls are given goes as buffers do."""
        calls = [
            replace(
                call, leaves=tuple(move(v) if isinstance(v, Tensor) else v for v in call.leaves)
            )
            for call in self.calls
        ]
        return replace(self, calls=tuple(calls))

    def modules(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The modules that it runs."""
        return tuple(model.get_submodule(call.path) for call in self.calls)


@dataclass(frozen=True)
class OwnTail:
    """The ``forward_tail`` that a model brings."""

    def run(self, model: nn.Module, stage: Tensor, prefix: Tensor | None) -> Any:
        """Compute the final feature from a stage-3 map and its prefix tokens."""
        forward: Callable[..., Any] = model.forward_tail  # type: ignore[assignment]
        return forward(stage, prefix)

    def moved(self, move: Callable[[Tensor], Tensor]) -> "OwnTail":
        """The same: it holds nothing."""
        return self

    def modules(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The model itself: which of its parts it runs is not known."""
        return (model,)


Tail = ModuleTail | OwnTail


@dataclass
class _Point:
    """Where a path stands: what its calls made of the stage-3 map."""

    x: Tensor
    prefix: Tensor | None
    calls: tuple[_Call, ...] = ()


@dataclass
class _Watch:
    """Follows the stage-3 map through the modules of a model while it sees an image."""

    model: nn.Module
    points: list[_Point]
    final: Tensor
    found: ModuleTail | None = None
    inside: tuple[nn.Module, _Point, _Call] | None = None
    handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> "_Watch":
        for path, module in self.model.named_modules():
            if path:
                before, after = self._before(path), self._after
                self.handles += [
                    module.register_forward_pre_hook(before, with_kwargs=True),
                    module.register_forward_hook(after),
                ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self.inside is not None or self.found is not None:
                return  # the parts of a module that is on the path are its own affair
            leaves, spec = tree_flatten((args, kwargs))
            for point in reversed(self.points):
                for place, leaf in enumerate(leaves):
                    layout = find_layout(self.model, point.x, point.prefix, leaf)
                    if layout is not None:
                        kept = tuple(None if i == place else _keep(v) for i, v in enumerate(leaves))
                        call = _Call(path, layout, kept, place, spec, picks=False)
                        self.inside = (module, point, call)
                        return

        return hook

    def _after(self, module: nn.Module, args: Any, made: Any) -> None:
        if self.found is not None or (self.inside is not None and self.inside[0] is not module):
            return
        picks = isinstance(made, tuple | list)
        x = made[0] if picks and made else made
        start = self.points[0]
        if find_layout(self.model, start.x, start.prefix, x) is not None:
            # Stage 3 ends here, so what its last parts did with it leads nowhere. An outer module
            # that ends on the same map says so again.
            self.points, self.inside = [start], None
            return
        if self.inside is None:
            return
        _, point, call = self.inside
        self.inside = None
        if not isinstance(x, Tensor):
            return
        call = replace(call, picks=picks)
        calls = (*point.calls, call)
        self.points.append(_Point(x, None, calls))
        last = find_layout(self.model, x, None, self.final)
        if last is not None:
            self.found = ModuleTail(calls, last)


def _keep(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def find_tail(staged: "StagedModel") -> Tail:
    """Find a model's tail by structure and prove it on a probe image.

    Args:
        staged: The model.

    Raises:
        ModelError: If no sequence of modules reproduces the model's final feature.
    """
    if hasattr(staged.model, "forward_tail"):
        return OwnTail()
    # Fresh weights hide mistakes: a block whose last norm is zero changes nothing, a layer scale of
    # 1e-6 could be left out unseen. So a copy with disturbed weights is watched.
    copied = copy.deepcopy(staged).eval()
    with torch.no_grad():
        disturb(copied.model, seed=1)
        found = _watch(copied)
        if found is None:
            raise _no_tail(staged, "no sequence of its modules leads from stage 3 to the end")
        # Other weights and other images: what depends on either is no constant of a call.
        disturb(copied.model, seed=2)
        images = probe_images(staged.image_size, like=staged.mean, seed=1)
        final, levels = copied.intermediates(images, indices=list(staged.taps))
        own = found.run(copied.model, *levels[2])
        if own.shape != final.shape or not _close(own, final):
            raise _no_tail(staged, "its stage 4 is given more than its stage 3")
    return found


def _watch(staged: "StagedModel") -> ModuleTail | None:
    images = probe_images(staged.image_size, like=staged.mean)
    final, levels = staged.intermediates(images, indices=list(staged.taps))
    if not isinstance(final, Tensor):
        raise _no_tail(staged, "it ends in several features at once")
    with _Watch(staged.model, [_Point(*levels[2])], final) as watch:
        staged.intermediates(images, indices=list(staged.taps))
    return watch.found


def _close(x: Tensor, final: Tensor) -> bool:
    return bool((x - final).abs().max() <= _TOLERANCE * final.abs().max())


def _no_tail(staged: "StagedModel", reason: str) -> ModelError:
    return ModelError(
        f"{staged.name} has no tail: {reason}",
        hint="the table of models in docs/reference/models.md shows which families have one; every "
        "method but fbt does without",
    )
