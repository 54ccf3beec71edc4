import random

import numpy as np
import pytest
import torch

from anykd.data.seeded import seeded


def draw() -> tuple[float, float, float]:
    """One number from each of the global generators."""
    return random.random(), np.random.rand(), torch.rand(()).item()


def draw_with(*key: int) -> tuple[float, float, float]:
    with seeded(*key):
        return draw()


def test_the_same_key_gives_the_same_numbers_whatever_was_drawn_before():
    first = draw_with(1, 2, 3)
    for _ in range(5):
        draw()
    assert draw_with(1, 2, 3) == first


def test_each_part_of_the_key_changes_all_three_generators():
    draws = np.array([draw_with(*key) for key in [(1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0)]])
    assert [len(set(column)) for column in draws.T] == [4, 4, 4]


def test_neighbouring_keys_give_uniform_numbers():
    numbers = np.array([draw_with(0, 4, 0, index) for index in range(400)])
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 4 * (1 / 12 / 400) ** 0.5
    assert np.abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.2


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_generators_go_on_as_if_nothing_had_been(fails):
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = draw()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)

    try:
        with seeded(1):
            draw()
            if fails:
                raise KeyError
    except KeyError:
        pass

    assert draw() == expected


def test_accelerators_are_not_seeded(monkeypatch):
    def fail(seed: int) -> None:
        raise AssertionError("training draws dropout from here")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)
    with seeded(1):
        draw()
