"""A stem for small images: a CNN built for 224 px keeps the resolution of 32 px at its stage 1."""

from typing import Any

import torch
from torch import nn

from anykd.errors import ModelError

from .probe import evaluating, probe_images
from .staged import StagedModel

__all__ = ["use_small_stem"]

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


def use_small_stem(staged: StagedModel) -> None:
    """Take away, in place, all that a CNN does to the resolution before its first stage.

    Of the layers that run before that stage, convolutions with a stride get stride 1, and those
    with a kernel above 3x3, or that cut patches, become new 3x3 convolutions with random weights;
    pooling layers become the identity. So ResNet, whose stem is a 7x7 convolution of stride 2 and a
    pool of stride 2, begins with a 3x3 convolution at full resolution, as the CIFAR tables of the
    literature have it. Stages keep their own strides.

    Args:
        staged: A CNN. Its module is changed, so that it has to be wrapped anew.

    Raises:
        ModelError: If it is no CNN, or none of its layers before the first stage shrinks the image.
    """
    module: Any = staged.model
    shrinking = [
        (path, layer)
        for path, layer in _layers_before_stage_1(staged)
        if max(_both(layer.stride)) > 1
    ]
    if staged.kind in ("attention", "mlp") or not shrinking:
        raise ModelError(
            f"{staged.name} has no convolutional stem that shrinks the image",
            hint="a small stem is for CNNs; models of patches take options = { patch_size = 4 }",
        )
    for path, layer in shrinking:
        parent, _, own = path.rpartition(".")
        replacement = _at_full_resolution(layer)
        if replacement is not layer:
            setattr(module.get_submodule(parent), own, replacement)


def _layers_before_stage_1(staged: StagedModel) -> list[tuple[str, Any]]:
    """Convolutions and pools in the order in which they run, up to the first stage."""
    stage_1 = staged.stage_modules[0] if staged.stage_modules else ""
    called: list[tuple[str, Any]] = []
    over = False

    def note(path: str, layer: nn.Module) -> Any:
        def hook(*given: Any) -> None:
            nonlocal over
            over = over or path == stage_1
            if not over and isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                called.append((path, layer))

        return hook

    parts = [(path, layer) for path, layer in staged.model.named_modules() if path]
    handles = [layer.register_forward_pre_hook(note(path, layer)) for path, layer in parts]
    try:
        with torch.no_grad(), evaluating(staged.model):
            staged.intermediates(probe_images(staged.image_size, like=staged.mean), None)
    finally:
        for handle in handles:
            handle.remove()
    return called


def _at_full_resolution(layer: Any) -> nn.Module:
    if isinstance(layer, _POOLS):
        return nn.Identity()
    kernel = max(_both(layer.kernel_size))
    if kernel in (1, 3):
        layer.stride = (1, 1)
        return layer
    new = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        kernel_size=3,
        padding=1,
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new.to(layer.weight)


def _both(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value or (1,))
