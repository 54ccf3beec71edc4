"""Take a Hugging Face classifier apart by the hidden states that it gives by itself."""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anykd.errors import ModelError, first_line

from .geometry import SAME_RESOLUTION, Geometry, Grid, read_map, read_tokens
from .probe import evaluating, probe_images

__all__ = ["HiddenStatesBackbone"]

_BEFORE_DOWNSAMPLING = "output_hidden_states_before_downsampling"
_MOST_PREFIX_TOKENS = 8


class HiddenStatesBackbone(nn.Module):
    """A `Backbone` made of an image classifier of Hugging Face transformers.

    The levels are the hidden states that transformers itself returns. The state dict is the
    classifier's own, behind ``model.``.

    Args:
        model: Such as ``AutoModelForImageClassification`` makes. It is used, not copied, and its
            last layers give their input beside their scores from then on.
        image_size: (height, width) in pixels, by which tokens are folded to maps.
        pretrained_cfg: What timm keeps under this name: input size, normalisation, class names. Of
            its own it has ``flips_channels``, for a model that takes BGR, as MobileViT does.

    Attributes:
        model: The classifier.
        pretrained_cfg: As given.
        classifiers: Paths of the layers that score the classes, or stand where they were.

    Raises:
        ModelError: If the model does not classify images alone, or gives no hidden states that
            can be read as maps.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: Grid,
        pretrained_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.pretrained_cfg = dict(pretrained_cfg or {})
        self._flips_channels = bool(self.pretrained_cfg.get("flips_channels"))
        self._num_classes = int(self.model.config.num_labels)
        parameters = inspect.signature(self.model.forward).parameters
        interpolates = "interpolate_pos_encoding" in parameters
        self._options = {"interpolate_pos_encoding": True} if interpolates else {}
        images = probe_images(image_size, like=next(model.parameters()))
        with torch.no_grad(), evaluating(model):
            try:
                scores, states = self._first_run(images)
            except Exception as error:
                # Whatever a model raises that wants text, or images of another size.
                raise ModelError(
                    f"{type(model).__name__} does not classify images of {image_size[0]} x "
                    f"{image_size[1]} px by themselves: {first_line(error)}"
                ) from error
            if not states:
                raise ModelError(f"{type(model).__name__} gives no hidden states")
            self._levels = _find_levels([tuple(s.shape) for s in states], image_size, self._depth)
            self._split_heads(images, scores)

    def _first_run(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the model, and let encoders such as Swin's give their stages before they downsample.

        By itself Swin gives what is behind the downsampling, where the next stage begins already;
        not every classifier passes on to its encoder what it is told.
        """
        parts = [
            part
            for part in self.model.modules()
            if _BEFORE_DOWNSAMPLING in inspect.signature(part.forward).parameters
        ]
        for part in parts:
            part.forward = partial(part.forward, **{_BEFORE_DOWNSAMPLING: True})
        try:
            return self._run(images)
        except RuntimeError:
            for part in parts:
                del part.forward  # FocalNet's does not fold these
            return self._run(images)

    @property
    def _depth(self) -> int | None:
        return getattr(self.model.config, "num_hidden_layers", None)

    def _split_heads(self, images: Tensor, scores: Tensor) -> None:
        """Make the last layers give their input, too, and prove that scores stay what they are."""
        outside = {
            path: part
            for name, child in self.model.named_children()
            if not hasattr(child, "config")  # what the head stands on is a model by itself
            for path, part in child.named_modules(prefix=name)
        }
        if not self._num_classes:
            self.classifiers = tuple(p for p, part in outside.items() if type(part) is nn.Identity)
            return
        heads = {
            path: part
            for path, part in outside.items()
            if isinstance(part, nn.Linear) and part.out_features == self._num_classes
        }
        # Of several that score the classes, such as DeiT's two, the model takes the mean.
        width = list(heads.values())[-1].in_features if heads else 0
        heads = {path: part for path, part in heads.items() if part.in_features == width}
        self.classifiers = tuple(heads)
        for part in heads.values():
            part.__class__ = _Head
        both, _ = self._run(images)
        exact = torch.equal(both[:, : self._num_classes], scores)
        if not heads or both.shape[1] != self._num_classes + width or not exact:
            raise ModelError(
                f"{type(self.model).__name__} does not end in a linear layer of its "
                f"{self._num_classes} classes"
            )

    def _run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self._flips_channels:
            x = x.flip(1)
        outputs = self.model(
            pixel_values=x, output_hidden_states=True, return_dict=True, **self._options
        )
        reshaped = getattr(outputs, "reshaped_hidden_states", None)
        return outputs.logits, outputs.hidden_states if reshaped is None else reshaped

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        return self.forward_head(self.forward_stages(x)[1])

    def forward_stages(self, x: Tensor) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
        """Run the model and keep every level; see `Backbone`.

        The final feature is what the model's head made: logits, and behind them the pooled vector.
        """
        final, states = self._run(x)
        return [geometry.to_map(states[i]) for i, geometry in self._levels], final

    def forward_head(self, final: Tensor, pre_logits: bool = False) -> Tensor:
        """Take the logits, or the pooled vector that the classifier reads; see `Backbone`."""
        if not self._num_classes:
            return final
        return final[:, self._num_classes :] if pre_logits else final[:, : self._num_classes]


class _Head(nn.Linear):
    """A last layer that gives scores and, behind them, the vector that they are made of.

    Only the class of the model's own layer changes: its weights keep their names. What the model
    does with its scores behind it, such as taking the mean of two heads, it does with both.
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([super().forward(input), input], dim=-1)


def _find_levels(
    shapes: list[tuple[int, ...]], image_size: Grid, depth: int | None
) -> tuple[tuple[int, Geometry], ...]:
    """Index and geometry of each level: the last state of each resolution, or of each block."""
    read = [(i, _read(shape, image_size)) for i, shape in enumerate(shapes)]
    states = [(i, geometry) for i, geometry in read if geometry is not None]
    if len({geometry.grid for _, geometry in states}) <= 1:
        # The first of one state more than there are blocks is what the first block takes.
        return tuple(states[1:] if len(states) == (depth or len(states) - 1) + 1 else states)
    levels: list[tuple[int, Geometry]] = []
    begun = 0
    for i, geometry in states:
        if not levels or begun >= SAME_RESOLUTION * geometry.grid[0]:
            levels.append((i, geometry))
            begun = geometry.grid[0]
        else:
            levels[-1] = (i, geometry)
    return tuple(levels)


def _read(shape: tuple[int, ...], image_size: Grid) -> Geometry | None:
    """Read a state; the grid of tokens is the largest that they fill, of all whole strides."""
    if len(shape) != 3:
        return read_map(shape, image_size)
    height, width = image_size
    for stride in range(1, min(image_size) + 1):
        if height % stride or width % stride:
            continue
        tokens = read_tokens(shape, (height // stride, width // stride))
        if tokens is not None and tokens.num_prefix_tokens <= _MOST_PREFIX_TOKENS:
            return tokens
    return None
