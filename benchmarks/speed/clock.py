"""Time, memory and arithmetic of a piece of work."""

import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "Measurement",
    "Work",
    "count_flops",
    "interleave",
    "matmul_flops",
    "repeated",
    "resident",
    "rise",
    "synchronise",
]

_MOST = 50
_FOREIGN = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch._guards")
"""What compiling leaves behind; it holds no tensors of its own that a model does not hold."""

Work = Callable[[], object]
Measurement = Callable[[], float]


def synchronise(device: torch.device) -> None:
    """Wait for a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(work: Work, device: torch.device, *, times: int = 1) -> float:
    """Seconds that some work takes: by the GPU's own events where it has them.

    Args:
        work: What is done.
        device: Where.
        times: How often, back to back, so that a GPU's queue does not run empty in between.

    Returns:
        Seconds of one time.
    """
    synchronise(device)
    if device.type == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(times):
            work()
        last.record()
        synchronise(device)
        return first.elapsed_time(last) / 1000 / times
    begun = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - begun) / times


def repeated(
    work: Work, device: torch.device, *, enough: float = 0.3, warm: int = 2
) -> Measurement:
    """Warm up, and say how some work is to be timed: often enough to be worth a look.

    Args:
        work: What is done.
        device: Where.
        enough: Seconds that a measurement should take; shorter work is done several times.
        warm: Times to do it first.
    """
    seconds = [timed(work, device) for _ in range(warm)]
    times = min(_MOST, max(1, round(enough / seconds[-1])))
    return lambda: timed(work, device, times=times)


def interleave(arms: Mapping[str, Measurement], rounds: int) -> dict[str, list[float]]:
    """Measure each arm once a round; each round begins with the next arm.

    Args:
        arms: How each is measured.
        rounds: How often.

    Returns:
        What each arm gave, by round.
    """
    names = list(arms)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            found[name].append(arms[name]())
    return found


def rise(work: Work, device: torch.device) -> int:
    """Most bytes that some work holds at once beyond what was there before.

    On a GPU the allocator counts them; elsewhere each allocation of one run is recorded.
    """
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None
    results: Any = recorded.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def resident(*owners: object) -> int:
    """Bytes of all tensors that some objects hold, each memory counted once."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting: list[Any] = list(owners)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | types.ModuleType | str | bytes):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            waiting.append(one.grad if one.is_leaf else None)
        elif isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
        elif not type(one).__module__.startswith(_FOREIGN):
            # What a method is bound to, and what a partial holds.
            waiting += [getattr(one, name, None) for name in ("__self__", "func", "args")]
            waiting.append(getattr(one, "keywords", None))
            waiting.append(getattr(one, "__dict__", None))
    return sum(found.values())


def count_flops(work: Work) -> int:
    """Floating-point operations of the matrix products and convolutions of some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matmul_flops(device: torch.device, size: int = 8192) -> float | None:
    """Operations a second of a large bf16 matrix product; None where there is no GPU."""
    if device.type != "cuda":
        return None
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    work = repeated(lambda: left @ right, device)
    return 2 * size**3 / min(work() for _ in range(5))
