"""Join the other processes where torchrun started several."""

import itertools
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from .precision import choose_device

__all__ = ["IS_RANK", "begun_before_restart", "launched", "note_begun"]

IS_RANK = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
"""Whether torchrun, or who takes its place, started this process; schedulers set some of these."""

_joined = itertools.count()
_torchruns: dist.TCPStore | None = None
"""What outlives a restart; None without torchrun."""
_start = 1
"""Which start of the ranks this is, from 1: torchrun starts them again where one has ended."""


@contextmanager
def launched(*, device: str = "auto") -> Iterator[torch.device]:
    """Set up this process, alone or as a rank of torchrun, and give its device.

    Args:
        device: What is asked for, as in ``train.device``.

    Raises:
        RecipeError: If there is no such device.
    """
    found = choose_device(int(os.environ.get("LOCAL_RANK", 0)), device)
    if not IS_RANK or dist.is_initialized():
        yield found
        return
    if found.type == "cuda":
        torch.cuda.set_device(found)
    _join("nccl" if found.type == "cuda" else "gloo")
    try:
        yield found
    finally:
        dist.destroy_process_group()


def note_begun(folder: Path) -> None:
    """Remember over restarts that these ranks were let into a folder."""
    if _torchruns is not None and dist.get_rank() == 0:
        # The first start's number stays: what a later one was let into, it began already.
        _torchruns.compare_set(_key(folder), "", str(_start))


def begun_before_restart(folder: Path) -> bool:
    """Whether these ranks were let into a folder before torchrun started them again."""
    if _torchruns is None or not _torchruns.check([_key(folder)]):
        return False
    return int(_torchruns.get(_key(folder))) < _start


def _key(folder: Path) -> str:
    return f"anykd/begun/{folder.resolve()}"


def _join(backend: str) -> None:
    """Form the group of all ranks.

    torchrun keeps one store over all its restarts, and torch looks up there where the other ranks
    listen: behind a restart it finds, and tries in vain, what the ended ones had written
    (https://github.com/pytorch/pytorch/issues/135712). So each start gets keys of its own.
    """
    global _start, _torchruns
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend)
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    _torchruns = dist.TCPStore(address, port, is_master=False)
    store = dist.PrefixStore(f"anykd/{next(_joined)}", _torchruns)
    _start = _agree_on_start(store, rank, world_size)
    own = dist.PrefixStore(str(_start), store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world_size)


def _agree_on_start(store: dist.Store, rank: int, world_size: int) -> int:
    """Count the starts of the ranks; the environment's count is of one machine alone.

    The first rank counts. The others may see the last start's number before it has: they know the
    present one by its answer to a word that nobody has said before.
    """
    if rank == 0:
        start = store.add("starts", 1)
        store.set("start", str(start))
        for other in range(1, world_size):
            word = store.get(f"{start}/word/{other}").decode()
            store.set(f"{start}/answer/{other}", word)
        return start
    word = uuid.uuid4().hex
    while True:
        start = int(store.get("start"))
        answer = f"{start}/answer/{rank}"
        store.set(f"{start}/word/{rank}", word)
        if store.check([answer]) and store.get(answer).decode() == word:
            return start
        time.sleep(0.02)
