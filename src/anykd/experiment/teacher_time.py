"""How long the teachers of a run take."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from anykd.engine import Stopwatch, Watch
from anykd.models import FrozenTeacher

__all__ = ["watch_teachers"]


def watch_teachers(teachers: Sequence[FrozenTeacher]) -> Watch:
    """Time the forward passes of teachers while something else goes on.

    Their tails, which some methods run with gradients, count as the method's own. A teacher whose
    outputs come from a cache does not run, and takes no time.
    """

    @contextmanager
    def watch(stopwatch: Stopwatch) -> Iterator[None]:
        hooks = []
        for teacher in teachers:
            hooks += [
                teacher.model.register_forward_pre_hook(lambda *_: stopwatch.start()),
                teacher.model.register_forward_hook(lambda *_: stopwatch.stop()),
            ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    return watch
