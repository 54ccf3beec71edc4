"""Each rule is provoked, and stays silent where there is nothing to say."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from anykd.report.gain import measure_gain
from anykd.report.noise import interval_factor, noise_of_difference
from anykd.report.record import RunRecord
from anykd.report.working import Sign, judge, judge_group

NUM_SAMPLES = 1000


def record(
    *,
    terms: dict[str, list[float]] | None = None,
    norms: list[dict[str, float]] | None = None,
    epochs: list[dict[str, Any]] | None = None,
    seed: int = 0,
    diagnoses: list[dict[str, Any]] | None = None,
    bad_steps: int = 0,
    per_epoch: int = 5,
    **summary: Any,
) -> RunRecord:
    """A run with these numbers, by the files' contract."""
    curves = terms or {}
    length = max(map(len, curves.values()), default=0)
    steps = [
        {
            "event": "step",
            "epoch": i // per_epoch,
            "step": i % per_epoch,
            "lr": 0.1,
            "loss": 1.0,
            "bad_steps": 0,
        }
        | {"grad_norm": 5.0, "images_per_second": 100.0}
        | {name: values[i] for name, values in curves.items()}
        for i in range(length)
    ]
    looks = [
        {"grad_norms": one, "grad_shares": {k: v / sum(one.values()) for k, v in one.items()}}
        for one in norms or []
    ]
    return RunRecord(
        path=Path("run"),
        recipe={"seed": seed, "method": {"name": "kd"}},
        summary={"num_samples": NUM_SAMPLES, "bad_steps": bad_steps} | summary,
        steps=tuple(steps),
        epochs=tuple(
            {"event": "epoch", "epoch": number, "num_samples": NUM_SAMPLES} | one
            for number, one in enumerate(epochs or [])
        ),
        diagnoses=tuple(looks or diagnoses or []),
    )


def curve(key: str, *values: float) -> list[dict[str, Any]]:
    return [{key: value} for value in values]


FALLING, FLAT = [2.0 - 0.06 * i for i in range(20)], [2.0, 1.9, 2.1, 2.0] * 5
RISING = [50, 60, 70, 80, 85, 88, 90, 90.2, 90.1, 90.2]

PROVOKED: dict[str, tuple[RunRecord, str]] = {
    "term-did-not-fall": (record(terms={"kd": FLAT}), "kd from 1.95 to 2.05"),
    "terms-fell": (record(terms={"task": FLAT, "kd": FALLING}), "kd from 1.97 to 0.89"),
    "term-outweighs-task": (
        record(norms=[{"task": 1.0, "kd": 0.5, "hint": x} for x in (39.0, 40.0, 900.0)]),
        "the term hint weighs 40 times as much (median of 3 looks): the labels have 2.4 %",
    ),
    "term-weighs-little": (
        record(norms=[{"task": 1.0, "kd": 0.004}]),
        "the term kd 0.4 % (median of 1 look)",
    ),
    "agrees-less-with-teacher": (
        record(top1=80.0, agreement=70.0, teachers=[{"name": "t", "top1": 90.0}]),
        "for 70.0 % of the held-out images, the labels' for 80.0 %",
    ),
    "agrees-with-teacher": (record(top1=80.0, agreement=85.0), "85.0 %"),
    "agreement-did-not-rise": (
        record(epochs=curve("agreement", *[40.0] * 5, *[39.0] * 5)),
        "on 40.0 % of the held-out images in the first tenth of the epochs, on 39.0 % in the last",
    ),
    "fusion-is-worse": (
        record(top1=90.0, fusion_top1=80.0),
        "the fusion's top-1 is 80.0 %, the student's 90.0 %",
    ),
    "fusion-leads": (record(top1=90.0, fusion_top1=91.0), "91.0 %"),
    "bad-steps": (record(terms={"task": FLAT}, bad_steps=3), "3 of 20 steps"),
    "still-improving": (
        record(epochs=curve("top1", *range(10, 90, 8))),
        "top-1 still rose at the end: 78.0 % over the last 2 evaluations, 62.0 % over the 2 before",
    ),
    "got-worse": (
        record(epochs=curve("top1", 50, 90, 85, 80, 75, 70, 70, 70, 70, 70)),
        "after epoch 2 of 10 with 90.0 %, and is 70.0 %",
    ),
    "teacher-is-worse": (
        record(top1=80.0, teachers=[{"name": "vit", "top1": 70.0}, {"name": "x", "top1": 90.0}]),
        "the student's top-1 is 80.00 %, that of its teacher vit 70.00 %",
    ),
    "teacher-takes-the-time": (
        record(diagnoses=[{"teacher_share": s} for s in (0.5, 0.7, 0.8)]),
        "70 % of a step's time (median of 3 looks)",
    ),
    "waits-for-data": (
        record(terms={"task": FLAT}, per_epoch=20, diagnoses=[{"data_share": 0.6}] * 3),
        "60 % of its time (median of 3 looks)",
    ),
    "student-broken": (record(top1=25.0, loss=None), "its accuracy is that of always one class"),
}

SILENT: dict[str, RunRecord] = {
    "term-did-not-fall": record(terms={"task": FLAT, "kd": FALLING, "unused": [0.0] * 20}),
    "terms-fell": record(terms={"task": FALLING}),
    "term-outweighs-task": record(norms=[{"task": 1.0, "kd": 9.0}]),
    "term-weighs-little": record(norms=[{"task": 1.0, "kd": 0.02, "to_fusion": 0.0}]),
    "agrees-less-with-teacher": record(top1=80.0, agreement=78.0),
    "agrees-with-teacher": record(top1=80.0, agreement=79.0),
    "agreement-did-not-rise": record(epochs=curve("agreement", *RISING)),
    "fusion-is-worse": record(top1=90.0, fusion_top1=89.0),
    "fusion-leads": record(top1=90.0, fusion_top1=89.0),
    "bad-steps": record(terms={"task": FLAT}),
    "still-improving": record(epochs=curve("top1", *RISING)),
    "got-worse": record(epochs=curve("top1", *RISING, 89.0)),
    "teacher-is-worse": record(top1=80.0, teachers=[{"name": "x", "top1": 90.0}, {"name": "y"}]),
    "teacher-takes-the-time": record(diagnoses=[{"teacher_share": 0.4}, {"teacher_share": None}]),
    "waits-for-data": record(
        terms={"task": FLAT}, per_epoch=20, diagnoses=[{"data_share": 0.1}] * 3 + [{}]
    ),
    "student-broken": record(top1=25.0, loss=0.3),
}

QUIET = {
    "a term that did not fall in a few steps": record(terms={"kd": [2.0, 1.9, 2.1] * 3}),
    "a term of a student that follows": record(terms={"kd": FLAT}, agreement=99.0),
    "a term that fell by a tenth": record(terms={"kd": [2.0 - 0.01 * i for i in range(20)]}),
    "a term of the fusion": record(norms=[{"task": 1.0, "teacher_fusion_ofa": 0.001}]),
    "a teacher that is worse by chance": record(
        top1=80.0, teachers=[{"name": "vit", "top1": 79.0}]
    ),
    "the wait in short epochs": record(terms={"task": FLAT}, diagnoses=[{"data_share": 0.6}] * 3),
    "the wait at a single look": record(
        terms={"task": FLAT}, per_epoch=20, diagnoses=[{"data_share": 0.6}]
    ),
}


def codes(signs: tuple[Sign, ...]) -> list[str]:
    return [sign.code for sign in signs]


class TestRules:
    @pytest.mark.parametrize("code", PROVOKED)
    def test_each_speaks_with_its_numbers(self, code):
        run, said = PROVOKED[code]
        found = [sign for sign in judge(run) if sign.code == code]
        assert len(found) == 1
        assert said in found[0].message
        assert bool(found[0].remedy) == (found[0].severity != "good")
        assert "\n" not in found[0].message

    @pytest.mark.parametrize("code", PROVOKED)
    def test_each_keeps_silent(self, code):
        assert code not in codes(judge(SILENT[code]))

    @pytest.mark.parametrize("run", QUIET.values(), ids=QUIET)
    def test_none_makes_much_of(self, run):
        assert judge(run) == ()

    def test_of_a_run_that_has_measured_nothing_there_is_nothing_to_say(self):
        empty = RunRecord(path=Path("run"), recipe={"seed": 0, "method": {"name": "kd"}})
        assert judge(empty, controls=[empty]) == ()

    def test_warnings_come_first(self):
        run = record(
            terms={"kd": FLAT}, top1=80.0, agreement=85.0, diagnoses=[{"teacher_share": 0.9}]
        )
        severities = [sign.severity for sign in judge(run)]
        assert severities == ["warning", "note", "good"]

    def test_values_that_are_null_are_passed_over(self):
        curves: dict[str, Any] = {"kd": [None, *FALLING, None]}
        assert codes(judge(record(terms=curves))) == ["terms-fell"]

    def test_few_bad_steps_are_a_note(self):
        run = record(terms={"task": [1.0] * 1000}, bad_steps=3)
        assert [sign.severity for sign in judge(run)] == ["note"]

    def test_a_teacher_that_is_worse_need_not_be_followed(self):
        run = record(top1=80.0, agreement=50.0, teachers=[{"name": "t", "top1": 60.0}])
        assert codes(judge(run)) == ["teacher-is-worse"]


def runs(*tops: float, first: int = 0) -> list[RunRecord]:
    return [record(seed=seed, top1=top1) for seed, top1 in enumerate(tops, start=first)]


class TestGain:
    def test_of_one_run_proves_nothing(self):
        (sign,) = judge(runs(80)[0], controls=runs(70, 71, 72))
        assert (sign.severity, sign.code) == ("note", "gain-unproven")
        assert "+10.00 points against the control (n = 1): one seed proves nothing" in sign.message

    def test_of_two_runs_that_gain_alike_proves_nothing(self):
        (sign,) = judge_group(runs(80, 81), controls=runs(70, 71))
        assert (sign.severity, sign.code) == ("note", "gain-unproven")
        assert "(n = 2): too few seeds to say how sure that is" in sign.message

    def test_that_is_one_image_at_each_seed_is_within_the_noise(self):
        (sign,) = judge_group(runs(80.1, 81.1, 82.1), controls=runs(80, 81, 82))
        assert (sign.severity, sign.code) == ("note", "gain-within-noise")
        assert "95 % interval ± 0.10" in sign.message

    def test_of_several_seeds_is_paired_and_has_its_interval(self):
        (sign,) = judge_group(runs(80, 82, 81), runs(78, 79.5, 79, 90))
        assert (sign.severity, sign.code) == ("good", "gain")
        assert "+2.17 points against the control ± 0.29 (3 pairs of the same seed" in sign.message

    def test_within_the_noise_is_called_so(self):
        (sign,) = judge_group(runs(80, 75, 82), runs(78, 79, 80))
        assert (sign.severity, sign.code) == ("note", "gain-within-noise")

    def test_that_is_a_loss_is_a_warning(self):
        (sign,) = judge_group(runs(70, 70.5, 71), runs(78, 79, 80))
        assert (sign.severity, sign.code) == ("warning", "worse-than-control")

    def test_without_shared_seeds_says_so(self):
        (sign,) = judge_group(runs(90, 91, 92, first=5), runs(78, 79, 80))
        assert "n = 3, seeds not paired" in sign.message
        assert sign.code == "gain"

    def test_agrees_with_scipys_paired_test(self):
        ours, theirs = [80.0, 82.5, 81.0, 83.0], [78.0, 79.5, 80.5, 79.0]
        found = measure_gain(runs(*ours), runs(*theirs))
        assert found is not None
        assert found.half_width is not None
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert found.mean - found.half_width == pytest.approx(interval.low, abs=1e-3)
        assert found.mean + found.half_width == pytest.approx(interval.high, abs=1e-3)

    def test_is_not_known_without_a_top1(self):
        assert measure_gain([record()], runs(80)) is None
        assert judge_group([record(agreement=80.0)], []) == ()


class TestNoise:
    @pytest.mark.parametrize("degrees", range(1, 11))
    def test_interval_is_that_of_students_t(self, degrees):
        expected = stats.t.ppf(0.975, degrees)
        assert interval_factor(degrees) == pytest.approx(expected, abs=1e-3)

    def test_with_many_degrees_is_never_too_narrow(self):
        assert interval_factor(500) > stats.t.ppf(0.975, 500)

    def test_of_equal_classifiers_is_seldom_above(self):
        torch.manual_seed(0)
        tops = 100 * (torch.rand(2, 2000, NUM_SAMPLES) < 0.8).float().mean(dim=2)
        above = ((tops[0] - tops[1]).abs() > noise_of_difference(80.0, NUM_SAMPLES)).float().mean()
        assert 0.02 < above < 0.08

    def test_is_above_0_for_a_perfect_score_and_0_where_nothing_is_known(self):
        assert 0 < noise_of_difference(100.0, 100) < 5
        assert noise_of_difference(80.0, None) == 0
        assert not math.isnan(noise_of_difference(0.0, 1))
