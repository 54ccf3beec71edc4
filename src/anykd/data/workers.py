"""The loader's processes: how many, and which signals they leave to the process that trains."""

import os
import signal
import threading

from .reader import Reader

__all__ = ["choose_workers", "leave_signals_to_parent"]

# Up to so many images in memory, starting worker processes costs more than they save.
_FEW_IMAGES = 5_000
_MAX_WORKERS = 8


def choose_workers(workers: int | None, reader: Reader) -> int:
    """Number of loader processes where none is given, as `DataConfig` says."""
    if workers is not None:
        return workers
    if reader.in_memory and len(reader) <= _FEW_IMAGES:
        return 0
    if hasattr(os, "sched_getaffinity"):  # cores of this process; macOS tells all cores only
        return min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
    return min(_MAX_WORKERS, os.cpu_count() or 1)


def leave_signals_to_parent(worker: int) -> None:
    """Let a loader process outlive Ctrl-C and a SIGTERM that is not its parent's.

    Terminals, Slurm and systemd send both to every process of a run. The one that trains ends its
    step and writes a checkpoint then; a loader process that died at once would break that off.

    Args:
        worker: Number of the process in its loader; all are alike.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS: nothing tells who has sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """End this process when its parent, which is done with it, says so."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # as torch's own handler does: anything else would be told as a crash
