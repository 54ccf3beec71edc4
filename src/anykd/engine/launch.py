"""Join the other processes where torchrun started several."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from .precision import choose_device

__all__ = ["launched"]


@contextmanager
def launched() -> Iterator[torch.device]:
    """Set up this process, alone or as a rank of torchrun, and give its device."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = choose_device(local_rank)
    if "RANK" not in os.environ or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
