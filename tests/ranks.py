"""Runs a function on several ranks: real processes that talk through gloo on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def _run(
    rank: int, num_ranks: int, folder: Path, function: Callable[..., Any], args: tuple
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=num_ranks
    )
    try:
        torch.save(function(*args), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_on_ranks(
    function: Callable[..., Any], *args: Any, folder: Path, num_ranks: int = 2
) -> list[Any]:
    """Call a function once on each rank.

    Args:
        function: Stands at the top of a module. Returns tensors, or lists and dicts of them.
        args: Its arguments, the same on every rank.
        folder: Empty; where the ranks meet and leave what they return.
        num_ranks: Number of processes.

    Returns:
        What each rank returned, in rank order.
    """
    spawn(_run, (num_ranks, folder, function, args), nprocs=num_ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(num_ranks)]
