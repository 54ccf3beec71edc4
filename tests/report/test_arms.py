"""Runs sorted into arms."""

import random

from anykd.report.arms import sort_runs
from anykd.report.find import find_runs
from tests.report.small_runs import write_run


def experiment(folder):
    (found,) = sort_runs(find_runs([folder]))
    return found


def labels(found):
    return [arm.label for arm in found.arms]


def test_runs_that_differ_in_the_seed_are_one_arm(write_runs):
    found = experiment(write_runs(control=2, kd=3))
    assert [(arm.label, [run.seed for run in arm.runs]) for arm in found.arms] == [
        ("control", [0, 1]),
        ("kd", [0, 1, 2]),
    ]


def test_the_control_comes_first_and_then_the_best(write_runs):
    found = experiment(write_runs(ofa=2, kd=2, control=2))
    assert labels(found) == ["control", "kd", "ofa"]
    assert [arm.number for arm in found.arms] == [0, 1, 2]


def test_the_order_given_does_not_matter(write_runs):
    folder = write_runs(control=2, kd=2, ofa=2)
    paths = sorted(folder.iterdir())
    shuffled = random.Random(0).sample(paths, len(paths))
    assert shuffled != paths
    found = [sort_runs(find_runs(some)) for some in (paths, shuffled)]
    assert found[0] == found[1]


def test_a_run_that_is_named_twice_counts_once(write_runs):
    folder = write_runs(kd=2)
    (found,) = sort_runs(find_runs([folder, folder / "kd_seed0"]))
    assert len(found.runs) == 2


def test_arms_of_one_method_are_told_apart_by_what_differs(tmp_path):
    for epochs in (5, 10):
        write_run(tmp_path / f"kd{epochs}", epochs=epochs)
    assert sorted(labels(experiment(tmp_path))) == ["kd, epochs 10", "kd, epochs 5"]


def test_a_seed_that_was_run_again_is_no_further_seed(tmp_path):
    write_run(tmp_path / "first")
    write_run(tmp_path / "second")
    found = experiment(tmp_path)
    assert sorted(labels(found)) == ["kd, first", "kd, second"]
    assert [len(arm.runs) for arm in found.arms] == [1, 1]


def test_the_run_that_trained_the_teacher_is_no_arm(tmp_path):
    teacher = write_run(tmp_path / "teacher", method="control", student="vit")
    write_run(tmp_path / "kd", teacher=str(teacher))
    found = experiment(tmp_path)
    assert labels(found) == ["kd"]
    assert [run.path for run in found.teacher_runs] == [teacher]


def test_a_teacher_that_was_moved_with_its_students_is_found(tmp_path):
    write_run(tmp_path / "teacher", method="control", student="vit")
    write_run(tmp_path / "kd", teacher="somewhere/else/teacher")
    assert labels(experiment(tmp_path)) == ["kd"]


def test_students_are_compared_with_their_own_control(tmp_path):
    for student in ("resnet18", "vit"):
        for method in ("control", "kd"):
            write_run(tmp_path / f"{student}_{method}", method=method, student=student)
    found = sort_runs(find_runs([tmp_path]))
    assert [one.student for one in found] == ["resnet18", "vit"]
    assert all(labels(one) == ["control", "kd"] for one in found)


def test_a_control_that_was_trained_otherwise_is_said(tmp_path):
    write_run(tmp_path / "control", method="control", epochs=5)
    write_run(tmp_path / "kd", epochs=10)
    found = experiment(tmp_path)
    assert found.differs(found.arms[1]) == ["train.epochs"]


def test_how_a_run_was_watched_makes_no_other_arm(tmp_path):
    for seed in (0, 1):
        path = write_run(tmp_path / f"kd{seed}", seed=seed) / "recipe.toml"
        path.write_text(path.read_text() + f"\n[track]\nname = 'run {seed}'\n")
    assert labels(experiment(tmp_path)) == ["kd"]


def test_a_control_that_has_just_begun_is_scored_by_its_labels(tmp_path):
    write_run(tmp_path / "run", method="control", epochs=0, finished=False, analysed=False)
    assert experiment(tmp_path).score == "top1"


def test_a_method_looks_alike_in_every_comparison(tmp_path):
    for method, gain in (("control", 0.0), ("kd", 1.0), ("mine", 3.0)):
        write_run(tmp_path / "one" / method, method=method, gain=gain)
    for method, gain in (("control", 0.0), ("kd", 9.0), ("ofa", 5.0), ("mine", 3.0)):
        write_run(tmp_path / "two" / method, method=method, gain=gain)
    one, two = (
        {arm.label: arm.number for arm in experiment(tmp_path / folder).arms}
        for folder in ("one", "two")
    )
    assert (one["control"], one["kd"]) == (two["control"], two["kd"]) == (0, 1)
    assert len(set(two.values())) == 4
    assert 0 not in (one["mine"], two["mine"])
