"""The layouts in which timm's modules hand a feature to each other, and the ways between them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Layout", "as_map", "find_layout"]


@dataclass(frozen=True)
class Layout:
    """A way from one layout to another.

    Maps are (batch, chan, height, width) or channels last, tokens are (batch, tokens, chan).

    Attributes:
        steps: Of ``channels_last``, ``channels_first``, ``flatten`` (the grid), ``fold`` (to the
            grid) and ``swap`` (tokens and channels), in their order.
        grid: (height, width) to fold tokens to a map by.
        prefix: Whether the prefix tokens that come along are put in front.
        own_token: Path of a parameter (1, tokens, chan) of the model that is put in front.
    """

    steps: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None
    prefix: bool = False
    own_token: str | None = None

    def __call__(self, model: nn.Module, x: Tensor, prefix: Tensor | None) -> Tensor:
        """Bring a feature to the other layout."""
        for step in self.steps:
            match step:
                case "channels_last":
                    x = x.permute(0, 2, 3, 1)
                case "channels_first":
                    x = x.permute(0, 3, 1, 2)
                case "flatten":  # the grid of a map with channels last
                    x = x.flatten(1, 2)
                case "fold":
                    x = x.unflatten(1, self.grid or (-1,))
                case "swap":  # tokens with channels first
                    x = x.transpose(1, 2)
        if self.prefix and prefix is not None:
            x = torch.cat([prefix.to(x), x], dim=1)
        if self.own_token is not None:
            token = model.get_parameter(self.own_token).to(x)
            x = torch.cat([token.expand(len(x), -1, -1), x], dim=1)
        return x


def find_layout(model: nn.Module, x: Tensor, prefix: Tensor | None, given: Any) -> Layout | None:
    """Find the way from a feature to what a module was given, if there is one.

    Args:
        model: Whose parameters may stand in front of the tokens.
        x: The feature: a map or tokens.
        prefix: The prefix tokens beside it.
        given: Anything; only the very values of the feature count, in another layout.
    """
    if not isinstance(given, Tensor) or given.dtype != x.dtype or given.ndim not in (3, 4):
        return None
    if given.numel() < x.numel() or given.shape[0] != x.shape[0]:
        return None
    for layout in _ways(model, x, prefix, given):
        try:
            made = layout(model, x, prefix)
        except RuntimeError:
            continue  # tokens of another width
        if made.shape == given.shape and torch.equal(made, given):
            return layout
    return None


def _ways(model: nn.Module, x: Tensor, prefix: Tensor | None, given: Tensor) -> Iterator[Layout]:
    if prefix is None:
        yield Layout()
    if x.ndim == 4:
        to_tokens = (("channels_last", "flatten"), ("flatten",))
        yield Layout(("channels_last",))
        yield Layout(("channels_first",))
        for steps in to_tokens:
            yield Layout(steps, prefix=prefix is not None)
            yield Layout((*steps, "swap"))
    elif x.ndim == 3:
        to_tokens = ((),)
        yield Layout(("swap",))
        if given.ndim == 4:
            _, one, two, three = given.shape
            for height, width in ((one, two), (two, three)):
                if height * width == x.shape[1]:
                    yield Layout(("fold",), grid=(height, width))
                    yield Layout(("fold", "channels_first"), grid=(height, width))
    else:
        return
    if prefix is not None or given.ndim != 3:
        return
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and parameter.shape[0] == 1 and parameter.shape[2] == given.shape[2]:
            for steps in to_tokens:
                yield Layout(steps, own_token=name)


def as_map(x: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Bring maps in either layout, or tokens, to (batch, chan, height, width).

    Args:
        x: A feature whose grid has the proportions of the image.
        image_size: (height, width) of the image.
    """
    height, width = image_size
    if x.ndim == 3:
        rows = round((x.shape[1] * height / width) ** 0.5)
        return x.transpose(1, 2).unflatten(2, (rows, -1))
    if _like(x.shape[2:], image_size) or not _like(x.shape[1:3], image_size):
        return x
    return x.permute(0, 3, 1, 2)


def _like(grid: tuple[int, ...], image_size: tuple[int, int]) -> bool:
    """Whether a grid has the proportions of an image, to a row or column."""
    return abs(grid[0] * image_size[1] / image_size[0] - grid[1]) <= 1
