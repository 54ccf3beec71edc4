"""Find the part of a model that runs from its stage-3 map to its final feature, and prove it.

timm's models run their children one after another, with a few layouts between them: maps
(batch, chan, h, w), maps with channels last, or tokens. So the tail is looked for by structure: the
modules registered behind the one that ends stage 3, tried in each layout. A sequence counts only
when it reproduces the model's own final feature. What cannot be proved is refused.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anykd.errors import ModelError

from .probe import probe_images

if TYPE_CHECKING:
    from .staged import StagedModel

__all__ = ["Tail", "find_tail"]

_TOLERANCE = 1e-5
"""Largest difference to the model's own final feature, relative to that feature's largest value."""


def _as_map(stage: Tensor, prefix: Tensor | None) -> Tensor:
    return stage


def _as_map_channels_last(stage: Tensor, prefix: Tensor | None) -> Tensor:
    return stage.permute(0, 2, 3, 1)


def _as_tokens(stage: Tensor, prefix: Tensor | None) -> Tensor:
    tokens = stage.flatten(2).transpose(1, 2)
    return tokens if prefix is None else torch.cat([prefix.to(tokens), tokens], dim=1)


_LAYOUTS = (_as_map, _as_map_channels_last, _as_tokens)


@dataclass(frozen=True)
class Tail:
    """The modules behind stage 3, and the layout that the first of them takes.

    Not an ``nn.Module``: the modules are the model's own and are registered there.
    """

    modules: tuple[nn.Module, ...]
    layout: Callable[[Tensor, Tensor | None], Tensor]

    def run(self, stage: Tensor, prefix: Tensor | None) -> Tensor:
        """Compute the final feature from a stage-3 map and its prefix tokens."""
        x = self.layout(stage, prefix)
        for module in self.modules:
            x = module(x)
        return x


def find_tail(staged: "StagedModel") -> Tail:
    """Find a model's tail by structure and prove it on a probe image.

    Args:
        staged: The model.

    Raises:
        ModelError: If no sequence of modules reproduces the model's final feature.
    """
    # Fresh weights hide mistakes: an affine norm of ones and zeros, or a layer scale of 1e-6, could
    # be left out unseen. So the proof is made on a copy with disturbed weights.
    copied = copy.deepcopy(staged).eval()
    _disturb(copied.model)
    with torch.no_grad():
        images = probe_images(staged.image_size, like=staged.mean)
        final, levels = copied.intermediates(images, indices=list(staged.taps))
        following = list(_following(copied.model, staged.stage_modules[2]))
        for layout in _LAYOUTS:
            count = _count_to(final, layout(*levels[2]), [module for _, module in following])
            if count is not None:
                paths = [path for path, _ in following[:count]]
                return Tail(tuple(staged.model.get_submodule(path) for path in paths), layout)
    raise ModelError(
        f"{staged.name} has no tail: its stage 4 cannot be run from its stage 3",
        hint="ResNet, MobileNet, EfficientNet, ConvNeXt, Swin, ViT, DeiT, Mixer and ResMLP have "
        "one; every method but fbt does without",
    )


def _count_to(final: Tensor, x: Tensor, modules: list[nn.Module]) -> int | None:
    """How many modules, run one after another, lead from ``x`` to the final feature."""
    for count, module in enumerate(modules, start=1):
        try:
            x = module(x)
        except Exception:
            # A wrong layout may fail in any way that a module can; it is then no candidate.
            return None
        if not isinstance(x, Tensor):
            return None
        if x.shape == final.shape and _close(x, final):
            return count
    return None


def _close(x: Tensor, final: Tensor) -> bool:
    return bool((x - final).abs().max() <= _TOLERANCE * final.abs().max())


def _following(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules registered behind ``path``: first its later siblings, then its parent's."""
    while path:
        parent_path, _, own_name = path.rpartition(".")
        names = [name for name, _ in model.get_submodule(parent_path).named_children()]
        for name in names[names.index(own_name) + 1 :]:
            sibling = f"{parent_path}.{name}" if parent_path else name
            yield sibling, model.get_submodule(sibling)
        path = parent_path


@torch.no_grad()
def _disturb(model: nn.Module) -> None:
    """Move every weight and statistic away from values at which a module does nothing."""
    generator = torch.Generator().manual_seed(1)
    for tensor in [*model.parameters(), *model.buffers()]:
        if not tensor.is_floating_point():
            continue
        noise = torch.rand(tensor.shape, generator=generator).to(tensor)
        tensor.mul_(1 + 0.2 * noise)
        # Vectors (scales, shifts, running statistics; all stay positive where they must) also move.
        if max(tensor.shape, default=1) == tensor.numel():
            tensor.add_(0.1 * noise)
