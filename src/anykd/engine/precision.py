"""Where to compute, and in which precision."""

import contextlib

import torch

from anykd.errors import RecipeError

__all__ = ["autocast", "choose_device", "choose_dtype", "precision_name"]

_ON_CPU = "train on processors: train.device = 'cpu'"
_ANY_DEVICE = "take what there is: train.device = 'auto'"


def choose_device(local_rank: int = 0, asked: str = "auto") -> torch.device:
    """Say where this process computes.

    Args:
        local_rank: Its number among those on this machine, from 0.
        asked: ``auto``, ``cpu``, ``cuda`` or ``mps``. ``auto`` takes this rank's GPU where torch
            sees any, otherwise the processor.

    Raises:
        RecipeError: If there is no such device, or none for this rank.
    """
    if asked == "mps":
        if not torch.backends.mps.is_available() or local_rank:
            missing = "there is one for all processes" if local_rank else "torch sees none"
            raise RecipeError(f"train.device is mps, and {missing}", hint=_ANY_DEVICE)
        return torch.device("mps")
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        raise RecipeError(
            "train.device is cuda, and torch sees no GPU",
            hint=(
                "see whether nvidia-smi lists one and CUDA_VISIBLE_DEVICES hides none"
                if built
                else "this torch is built without CUDA: install one that is built with it"
            )
            + f", or {_ANY_DEVICE}",
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise RecipeError(
            f"local rank {local_rank} has no GPU: torch sees {count}, and each process takes one",
            hint=f"start {count} processes here: torchrun --nproc-per-node {count}; or {_ON_CPU}",
        )
    return torch.device("cuda", local_rank)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Say which type autocast uses.

    Args:
        precision: ``auto``, ``float32``, ``bf16`` or ``fp16``.
        device: Where the work is done.

    Returns:
        bfloat16, float16, or None for plain float32. ``auto`` takes bfloat16 where it is faster:
        on GPUs since Ampere and on processors with AMX. AVX512-BF16 without AMX has the
        instructions, but was measured at 0.5 to 0.95 times float32's speed (docs/log.md).
    """
    if precision == "fp16":
        return torch.float16
    if precision == "bf16" or (precision == "auto" and _is_faster_in_bf16(device)):
        return torch.bfloat16
    return None


def precision_name(dtype: torch.dtype | None) -> str:
    """What a recipe calls the type that autocast uses."""
    return {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def _is_faster_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def autocast(
    device: torch.device, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """Compute in a lower precision for a while; None changes nothing."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
