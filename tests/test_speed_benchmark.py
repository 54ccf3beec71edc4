"""The benchmark of speed: its arithmetic, a tiny run of it, and pages that follow from results."""

import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.speed.clock import interleave, resident, rise
from benchmarks.speed.measure import CACHE, Bench
from benchmarks.speed.page import PAGE, README, about, render, with_table
from benchmarks.speed.pairs import Pair, Setting
from benchmarks.speed.results import (
    BARS,
    Row,
    every_device,
    keep,
    memory_to_floor,
    read,
    spread,
)
from tests.methods.small import FAMILIES

CPU = torch.device("cpu")
RESULTS = every_device()


class TestPages:
    def test_the_page_is_what_the_results_say(self):
        assert PAGE.read_text() == render(RESULTS)

    def test_so_is_the_table_of_the_readme(self):
        text = README.read_text()
        assert "<!-- speed -->" in text
        assert with_table(text, RESULTS) == text


class TestTime:
    def test_each_round_begins_with_the_next_arm(self):
        order: list[str] = []
        arms = {name: (lambda name=name: (order.append(name), 1.0)[1]) for name in "abc"}
        assert interleave(arms, 3) == dict.fromkeys("abc", [1.0] * 3)
        assert "".join(order) == "abcbcacab"

    def test_ratios_are_taken_within_rounds(self):
        # The machine was half as fast in the second round, which tells nothing of the two.
        found = spread([1.1, 2.2, 1.1], [1.0, 2.0, 1.0])
        assert (found.median, found.low, found.high) == pytest.approx((1.1, 1.1, 1.1))


class TestMemory:
    def test_of_some_work_is_the_most_that_it_holds_at_once(self):
        held = torch.zeros(1_000)

        def work() -> None:
            first = torch.zeros(100_000) + 1  # 400 kB, and another 400 kB for a moment
            del first
            second = torch.zeros(150_000)  # 600 kB
            third = torch.zeros(75_000)  # 300 kB, beside the second
            del second, third
            held.add_(1)

        work()
        assert rise(work, CPU) == pytest.approx(900_000, abs=1_000)

    def test_that_is_held_counts_each_memory_once(self):
        model = nn.Linear(100, 100, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
        assert resident(model) == 40_000
        model(torch.ones(1, 100)).sum().backward()
        optimizer.step()
        # The weights, their gradient and its average, whoever holds them; a view holds the whole.
        assert resident(model, optimizer, {"again": [model.weight[0]]}) == 120_000

    def test_of_the_floor_is_of_the_teacher_or_of_student_and_modules(self):
        row: Row = {
            "memory": {
                "floor_held": 100,
                "held": 110,
                "rises": {"teacher": 40, "student": 30, "modules": 20, "step": 65},
            }
        }
        assert memory_to_floor(row) == pytest.approx((110 + 65) / (100 + 30 + 20))
        row["memory"]["rises"]["teacher"] = 60
        assert memory_to_floor(row) == pytest.approx((110 + 65) / (100 + 60))


ROW: Row = {
    "pair": "a → b",
    "method": "ofa",
    "precision": "float32",
    "compile": False,
    "batch": 8,
    "rounds": 1,
    "seconds": {
        "teacher": [1.0],
        "student": [2.0],
        "modules": [1.0],
        "step": [4.28],
        "loop": [4.6],
        "published": [9.0],
    },
}


class TestBars:
    @staticmethod
    def found(row: Row, device: str = "cpu") -> dict[str, bool]:
        met = {bar.name: bar.is_met(row, device) for bar in BARS}
        return {name: one for name, one in met.items() if one is not None}

    def test_are_those_of_the_row(self):
        assert self.found(ROW) == {
            "step ÷ floor, with stages": True,  # 1.07
            "loop ÷ step": False,  # 1.075
            "as published ÷ step": False,  # 2.1
        }

    def test_are_stricter_for_methods_of_scores(self):
        assert self.found(ROW | {"method": "kd"})["step ÷ floor"] is False

    def test_depend_on_the_device(self):
        fast = ROW | {"seconds": ROW["seconds"] | {"published": [12.0]}}
        assert self.found(fast)["as published ÷ step"]
        assert not self.found(fast, "nvidia-any")["as published ÷ step"]


def test_a_row_takes_the_place_of_its_older_self(tmp_path):
    path = tmp_path / "speed-cpu.json"
    for row in (ROW, ROW | {"method": "kd"}, ROW | {"batch": 16}, ROW | {"precision": "bf16"}):
        keep(path, row)
    found = Counter((row["method"], row["precision"], row["batch"]) for row in read(path))
    assert found == {("ofa", "float32", 16): 1, ("kd", "float32", 8): 1, ("ofa", "bf16", 8): 1}


@pytest.fixture(scope="module")
def measured() -> dict[str, Row]:
    """A tiny pair of the real thing, by method."""
    (cnn, narrow), (vit, small) = FAMILIES["cnn"], FAMILIES["vit"]
    teacher, student = ({"name": cnn, "options": narrow}, {"name": vit, "options": small})
    pair = Pair(teacher, student, {"preset": "cnn"}, image_size=32)
    with Bench.temporary(pair, Setting(CPU, batch=4, window=0.05)) as bench:
        rows = {method: bench.measure(method, 2) for method in ("control", "ofa", CACHE)}
    return {method: {"pair": "tiny"} | row for method, row in rows.items()}


class TestATinyRun:
    def test_measures_every_arm_in_every_round(self, measured):
        arms: dict[str, Any] = {method: row["seconds"].keys() for method, row in measured.items()}
        assert arms["control"] == {"student", "step", "published", "loop"}
        assert arms["ofa"] == arms["control"] | {"teacher", "modules"}
        assert arms[CACHE] == {"control", "cached"}
        for row in measured.values():
            assert all(len(times) == 2 and min(times) > 0 for times in row["seconds"].values())

    def test_counts_the_same_work_for_the_step_as_for_its_parts(self, measured):
        flops = measured["ofa"]["flops"]
        parts = flops["teacher"] + flops["student"] + flops["modules"]
        assert flops["step"] == pytest.approx(parts, rel=0.05)
        assert measured["control"]["flops"]["step"] == measured["control"]["flops"]["student"]

    def test_finds_memory_and_waiting(self, measured):
        ratio = memory_to_floor(measured["ofa"])
        assert ratio is not None
        assert 0.8 < ratio < 2
        assert all(0 <= share < 1 for share in measured["ofa"]["waits"])

    def test_makes_a_page_and_a_line(self, measured):
        rows = json.loads(json.dumps(list(measured.values())))
        text = render({"cpu": rows})
        assert "| tiny, 4 | ofa |" in text
        assert "KD from cache ÷ control" in text
        table = with_table("<!-- speed -->\n<!-- end of speed -->", {"cpu": rows})
        assert table.count("| tiny | ofa |") == 1
        assert "images/s" in about(rows[1], "cpu")
