"""A long run takes no more at its end than at its beginning."""

import pytest

from tests.experiment.runs import CNN, short
from tests.faults.processes import Footprint, epochs_done, typed, wait_for


@pytest.mark.parametrize(("workers", "epochs"), [(0, 40), (1, 15)])
def test_memory_files_and_threads_do_not_grow_with_the_epochs(tmp_path, workers, epochs):
    run, footprints = tmp_path / "run", []
    flags = short(CNN, "train.log_every=1", f"data.workers={workers}", epochs=epochs)
    train = ("train", "--model", "resnet18", "--data", "synthetic:4x4", "-o", run, *flags)
    with typed(*train) as child:
        for epoch in range(1, epochs - 1):
            wait_for(lambda epoch=epoch: epochs_done(run) >= epoch, child.process.is_alive, 60)
            footprints.append(Footprint.of(child.process.pid))
        assert child.outcome().code == 0
    # The least of several looks: a file that is being written is open for a moment.
    third = epochs // 3
    before = Footprint.least(footprints[third : 2 * third])
    after = Footprint.least(footprints[2 * third :])
    assert (after.files, after.threads) == (before.files, before.threads)
    if not workers:  # the few epochs with workers are still settling
        assert after.megabytes < before.megabytes + 6
