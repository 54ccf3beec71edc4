import pytest
from pydantic import ValidationError

from anykd.engine import TrainConfig


@pytest.mark.parametrize("warmup", [2, 3.5])
def test_warm_up_must_end_before_training(warmup):
    with pytest.raises(
        ValidationError, match=f"warmup_epochs must be below epochs = 2, got {warmup}"
    ):
        TrainConfig(epochs=2, warmup_epochs=warmup)


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0.1), (20, 2.0), (300, 5.0)])
def test_default_warm_up_is_a_tenth_and_five_epochs_at_most(epochs, warmup):
    assert TrainConfig(epochs=epochs).warmup == pytest.approx(warmup)


def test_no_warm_up_can_be_asked_for():
    assert TrainConfig(epochs=20, warmup_epochs=0).warmup == 0
