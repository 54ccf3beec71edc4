"""Where to compute, and in which precision."""

import contextlib

import torch

__all__ = ["autocast", "choose_device", "choose_dtype"]


def choose_device(local_rank: int = 0) -> torch.device:
    """Take this rank's GPU where there is one, otherwise the processor."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Say which type autocast uses.

    Args:
        precision: ``auto``, ``float32`` or ``bf16``.
        device: Where the work is done.

    Returns:
        bfloat16, or None for plain float32. ``auto`` takes bfloat16 where it is faster: on GPUs
        since Ampere and on processors with AMX. AVX512-BF16 without AMX has the instructions, but
        was measured at 0.5 to 0.95 times float32's speed (docs/log.md).
    """
    if precision == "bf16" or (precision == "auto" and _is_faster_in_bf16(device)):
        return torch.bfloat16
    return None


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
