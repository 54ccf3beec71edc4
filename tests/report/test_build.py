"""The page as text: what stands in it, and what keeps it from being written."""

import json
import re
import shlex
from pathlib import Path

import pytest

from anykd.errors import CheckpointError
from anykd.report import build_report
from tests.report.reading import read_page
from tests.report.small_runs import EVIL, write_run

LARGEST = 3_000_000


def page(folder, tmp_path):
    return read_page(build_report([folder], tmp_path / "report.html"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The page of three arms of three seeds, with everything that runs write."""
    folder = tmp_path_factory.mktemp("runs")
    for method, gain in (("control", 0.0), ("kd", 1.2), ("ofa", 0.05)):
        for seed in range(3):
            write_run(folder / f"{method}{seed}", method=method, seed=seed, gain=gain)
    return page(folder, folder)


def test_the_headline_tells_gain_spread_and_n(full):
    assert re.search(
        r"resnet18 on digits, taught with kd, the best of 2 ways, reaches [\d.]+ ± [\d.]+ % "
        r"top-1 \(n = 3\): [\d.]+ ± [\d.]+ points above the control over 3 paired seeds, "
        r"more than the noise of the seeds\.",
        full.text,
    )
    assert "within noise, n = 3" in full.text  # ofa's


def test_what_was_saved_stands_in_factors(full):
    for factor, said in (
        ("2.81", "fewer parameters 2.81 × 326 k against the teacher's 916 k"),
        ("2.5", "fewer FLOPs 2.5 × 12 M against the teacher's 30 M"),
        ("2.42", "shorter latency 2.42 × 1.2 ms against the teacher's 2.9 ms"),
    ):
        assert said in full.text, factor


SECTIONS = (
    *("found", "plan", "training", "features", "calibration", "classes"),
    *("examples", "asked", "runs"),
)


def test_every_section_is_there(full):
    assert [name for name in SECTIONS if f"e1-{name}" not in full.ids()] == []


def test_a_run_without_control_says_how_to_get_one(tmp_path):
    run = write_run(tmp_path / "a run")
    found = page(run, tmp_path)
    given = re.search(r"This trains one: (anykd distill .*? --out \S+ ?\S*_control')", found.text)
    assert given
    words = shlex.split(given[1])
    assert words == [
        *("anykd", "distill", f"{run}/recipe.toml", "--method", "control"),
        *("--out", f"{run}_control"),
    ]


def test_the_command_that_repeats_a_run_stands_in_the_page(tmp_path):
    run = write_run(tmp_path / "it's a run")
    assert shlex.join(["anykd", "distill", f"{run}/recipe.toml"]) in page(run, tmp_path).text


def test_an_unfinished_run_is_shown_as_such(tmp_path):
    run = write_run(tmp_path / "kd", finished=False, analysed=False)
    found = page(run, tmp_path)
    assert "no run has come to its end" in found.text
    assert "1 of 1 runs unfinished" in found.text
    assert "after 10 epochs" in found.text
    assert "Held-out top-1" in found.text  # its curve


def test_an_unfinished_run_is_not_averaged(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"kd{seed}", seed=seed, finished=seed == 0)
    found = page(tmp_path, tmp_path)
    assert "top-1 (n = 1)" in found.text
    assert "1 of 2 runs unfinished" in found.text


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    run = write_run(tmp_path / "kd", finished=False, analysed=False)
    for name in ("metrics.jsonl", "plan.json", "environment.json"):
        (run / name).unlink()
    assert "unfinished" in page(run, tmp_path).text


def test_what_was_not_analysed_leaves_no_hole(tmp_path):
    run = write_run(tmp_path / "kd", analysed=False)
    found = page(run, tmp_path)
    for name in ("features", "calibration", "classes", "examples"):
        assert f"e1-{name}" not in found.ids()
    assert not re.search(r"\b(None|nan|Undefined)\b", found.text)


def test_numbers_that_a_run_lacks_are_left_out(tmp_path):
    """As without labels, and with classes that are not compared."""
    run = write_run(tmp_path / "kd")
    path = run / "analysis" / "analysis.json"
    analysis = json.loads(path.read_text())
    for model in (analysis["student"], *analysis["teachers"]):
        for key in ("top1", "ece", "nll", "per_class", "agreement"):
            model[key] = None
        del model["reliability"]
    analysis |= {"classes": None, "confusion": None, "examples": None, "cost": None}
    analysis["cka"][0]["before"] = None
    path.write_text(json.dumps(analysis))
    found = page(run, tmp_path)
    assert "e1-features" in found.ids()
    assert "kd, after training" in found.text
    assert "before training" not in found.text.replace("Seen before training", "")
    for name in ("calibration", "classes", "examples"):
        assert f"e1-{name}" not in found.ids()
    assert not re.search(r"\b(None|nan|Undefined)\b", found.text)


def test_a_student_without_labels_is_scored_by_agreement(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path / f"kd{seed}", seed=seed, analysed=False)
        for name in ("summary.json", "metrics.jsonl"):
            path = run / name
            path.write_text(re.sub(r'"(best_)?top[15]": [\d.]+, ', "", path.read_text()))
            path.write_text(re.sub(r', "top1": [\d.]+', "", path.read_text()))
    found = page(tmp_path, tmp_path)
    assert "% agreement with the teacher (n = 2)" in found.text
    assert "This trains one" in found.text


def test_names_stay_text(tmp_path):
    """Wherever a name may stand: in tables, pictures, attributes and titles."""
    for method in ("control", "kd"):
        write_run(
            tmp_path / f"{method}{EVIL.replace('/', '')}",
            method=method,
            classes=[EVIL, *"abcdefghi"],
            student=EVIL,
            teacher=EVIL,
            data=EVIL,
        )
    found = page(tmp_path, tmp_path)
    assert not found.has("script")
    assert "alert(1)</script>" not in found.source
    assert EVIL in found.text
    assert any(EVIL in (given.get("alt") or "") for name, given in found.elements if name == "img")


def test_a_method_with_an_evil_name_stays_text_in_pictures(tmp_path):
    for method in ("control", EVIL):
        write_run(tmp_path / f"run{len(method)}", method=method)
    found = page(tmp_path, tmp_path)
    assert not found.has("script")
    assert any(EVIL in (given.get("aria-label") or "") for _, given in found.elements)
    pictures = re.findall(r"<svg viewBox.*?</svg>", found.source, re.DOTALL)
    assert any("&lt;script&gt;alert(1)" in picture for picture in pictures)


def test_no_id_is_given_twice(full):
    ids = full.ids()
    assert len(ids) == len(set(ids))


def test_every_link_leads_somewhere(full):
    links = [given["href"] or "" for name, given in full.elements if name == "a"]
    assert links
    assert {link[1:] for link in links if link.startswith("#")} <= set(full.ids())


def test_the_page_needs_nothing_else(full):
    for name, given in full.elements:
        for key in ("src", "href", "xlink:href"):
            assert (given.get(key) or "#").startswith(("#", "data:")), (name, given)
    assert not re.search(r"url\((?!#)", full.source)


def test_a_large_comparison_stays_small(tmp_path):
    names = [f"a class with a rather long name, {number}" for number in range(1000)]
    for method in ("control", "kd", "ofa", "fbt", "dkd", "dist"):
        for seed in range(5):
            write_run(
                *(tmp_path / f"{method}{seed}",),
                method=method,
                seed=seed,
                classes=names,
                num_examples=24,
            )
    path = build_report([tmp_path], tmp_path / "report.html")
    assert path.stat().st_size < LARGEST


def test_an_example_cannot_lead_out_of_its_run(tmp_path):
    run = write_run(tmp_path / "kd")
    (tmp_path / "secret.png").write_bytes(b"secret")
    path = run / "analysis" / "analysis.json"
    path.write_text(path.read_text().replace("examples/000.png", "../../secret.png"))
    assert "c2VjcmV0" not in page(run, tmp_path).source


@pytest.mark.parametrize(
    ("given", "message"),
    [("missing", "there is no"), ("empty", "is no run and contains none")],
)
def test_what_is_no_run_is_refused(given, message, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=message):
        build_report([tmp_path / given], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_folder_in_its_place_is_refused(tmp_path):
    run = write_run(tmp_path / "kd")
    with pytest.raises(CheckpointError, match="is a folder") as error:
        build_report([run], tmp_path)
    assert error.value.hint == f"name a file: --out {tmp_path}/report.html"


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    run = write_run(tmp_path / "kd")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        build_report([run], tmp_path / "file" / "report.html")


def test_a_broken_run_leaves_the_old_page(tmp_path):
    run = write_run(tmp_path / "kd")
    path = build_report([run], tmp_path / "report.html")
    before = path.read_text()
    (run / "summary.json").write_text("{")
    with pytest.raises(CheckpointError, match="broken"):
        build_report([run], path)
    assert path.read_text() == before


def test_a_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "kd")
    assert build_report(["~/kd"], "~/report.html") == Path(tmp_path, "report.html")
