"""How batches come by worker processes, and what becomes of these."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from anykd.data import AugmentConfig
from anykd.data.bundled import SyntheticReader
from anykd.data.reader import UnlabelledReader
from anykd.data.workers import choose_workers
from anykd.errors import RecipeError
from tests.data.loading import READER, eval_loader, same, train_loader

AUGMENTS = [
    *({"preset": preset} for preset in ("cnn", "vit", "none")),
    {"preset": "none", "mixup": 0.8},
    {"preset": "none", "cutmix": 1.0},
    {"preset": "none", "erasing": 1.0},
    {"preset": "none", "crop_padding": 4, "flip": 0.5, "color_jitter": 0.4},
    {"preset": "none", "rand_augment": "rand-m9-mstd0.5-inc1"},
]


class TestNumber:
    @pytest.mark.parametrize(
        ("num_images", "in_memory", "cores", "expected"),
        [(24, True, 4, 0), (24, False, 4, 4), (24, False, 64, 8), (6_000, True, 4, 4)],
    )
    def test_is_chosen_by_what_reading_costs(
        self, monkeypatch, num_images, in_memory, cores, expected
    ):
        reader = SyntheticReader(num_classes=4, per_class=num_images // 4, split=0)
        monkeypatch.setattr(SyntheticReader, "in_memory", in_memory)
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
        assert choose_workers(None, reader) == expected
        assert choose_workers(3, reader) == 3

    @pytest.mark.parametrize(("in_memory", "expected"), [(True, 0), (False, 4)])
    def test_is_chosen_as_for_the_same_images_with_labels(self, monkeypatch, in_memory, expected):
        monkeypatch.setattr(SyntheticReader, "in_memory", in_memory)
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4)))
        assert choose_workers(None, UnlabelledReader(READER)) == expected


class TestNothingDependsOnThem:
    @pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
    @pytest.mark.parametrize(
        "augment", AUGMENTS, ids=lambda augment: "-".join(augment) + augment["preset"]
    )
    def test_in_any_augmentation(self, augment):
        config = AugmentConfig.model_validate(augment)
        alone, *helped = (
            list(train_loader(augment=config, workers=workers).batches(1)) for workers in (0, 1, 3)
        )
        assert all(same(alone, batches) for batches in helped)

    @pytest.mark.parametrize(
        "options", [{"prefetch": 1}, {"prefetch": 5}, {"persistent_workers": False}], ids=str
    )
    def test_nor_on_how_they_live(self, options):
        augment = AugmentConfig(preset="vit")
        plain = train_loader(augment=augment)
        other = train_loader(augment=augment, workers=2, **options)
        for epoch in (0, 1):
            assert same(list(plain.batches(epoch)), list(other.batches(epoch)))
        assert same(list(eval_loader()), list(eval_loader(workers=2, **options)))

    def test_pinned_memory_without_a_gpu_is_refused_in_words(self):
        with pytest.raises(RecipeError, match=r"data\.pin_memory is true, and there is no GPU"):
            train_loader(pin_memory=True)
        assert train_loader(pin_memory=False).steps_per_epoch == 6


_LOADS = """
import os, signal, sys, time
sys.path.insert(0, os.getcwd())
from multiprocessing import active_children
from tests.data.loading import train_loader

loader = train_loader(workers=2)
for batch in loader.batches(0):
    break
asked = set()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.add(number))
print(*(child.pid for child in active_children()), flush=True)
while len(asked) < 2:
    time.sleep(0.01)
time.sleep(0.2)  # for the workers to act on it too
count = sum(len(batch) for batch in loader.batches(1))
print(count, len(active_children()), flush=True)
kept = loader  # as a run does that is alive when the interpreter ends
"""


@contextlib.contextmanager
def loading() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process with a loader, and the numbers of its two workers."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LOADS],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        yield process, workers
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs Linux's /proc")
class TestLife:
    def test_signals_to_all_processes_of_a_run_leave_them_to_the_one_that_trains(self):
        with loading() as (process, workers):
            for number in (signal.SIGINT, signal.SIGTERM):
                os.killpg(process.pid, number)
            out, err = process.communicate(timeout=60)
            assert (out.split(), err) == (["24", "2"], "")
            assert process.returncode == 0
            assert not any(alive(worker) for worker in workers)

    def test_they_do_not_outlive_a_killed_parent_for_long(self):
        with loading() as (process, workers):
            process.kill()
            begun = time.monotonic()
            while any(alive(worker) for worker in workers):
                assert time.monotonic() - begun < 30  # torch looks for the parent every 5 seconds
                time.sleep(0.05)
