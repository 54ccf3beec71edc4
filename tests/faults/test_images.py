"""Files that cannot be read as images, through the command line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anykd.data.seeded import Stream
from tests.data.image_files import bomb
from tests.experiment.runs import CNN, Outcome, anykd, short, train_vit
from tests.faults.processes import started, torchrun

TRAIN, VAL = 600, 100
"""Images of two classes. The plan looks at 256 of the first and at all of the others."""
SEEN = set(np.random.default_rng(0).permutation(TRAIN)[:256].tolist())
UNSEEN = [position for position in range(TRAIN) if position not in SEEN]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Class folders whose images come in the order of their names, cat after cat, then dog."""
    rng = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", VAL)):
        for number in range(count):
            path = photo(tmp_path / "photos", part, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def photo(root: Path, part: str, position: int) -> Path:
    half = {"train": TRAIN, "val": VAL}[part] // 2
    return root / part / ("cat", "dog")[position // half] / f"{position:04}.png"


def spoil(root: Path, part: str, *positions: int) -> None:
    """Cut files short."""
    for position in positions:
        path = photo(root, part, position)
        path.write_bytes(path.read_bytes()[:60])


def train(root: Path, out: Path, *sets: str, epochs: int = 1) -> Outcome:
    flags = short(CNN, "augment.preset=none", "train.batch_size=50", *sets, epochs=epochs)
    return anykd("train", "--model", "resnet18", "--data", root, "--out", out, *flags)


def named(done: Outcome, outcome: str) -> list[str]:
    """The lines that name an image, apart from those of the plan."""
    return [line for line in done.err.splitlines() if line.endswith(f"; {outcome}")]


REPLACED, DROPPED = "another of its class takes its place", "its batches go without it"
UNSCORED = "no score counts it"


class TestAFew:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_replaced_and_left_out_of_scores_and_named_once(self, photos, tmp_path, workers):
        spoil(photos, "train", min(SEEN), UNSEEN[0])
        photo(photos, "train", UNSEEN[1]).write_bytes(bomb(20_000))
        photo(photos, "train", UNSEEN[2]).write_text("no image")
        spoil(photos, "val", 3)

        done = train(photos, tmp_path / "run", f"data.workers={workers}", epochs=2)

        assert done.code == 0, done.err
        replaced = named(done, REPLACED)
        assert len(replaced) == len(set(replaced)) == 4
        assert any("400000000 pixels" in line and "data.max_pixels" in line for line in replaced)
        (unscored,) = named(done, UNSCORED)
        assert "val/cat/0003.png cannot be read as an image" in unscored
        assert re.search(r"warning: \d of \d+ images that were tried cannot be read", done.err)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["num_samples"] == 99
        assert summary["bad_images"] == 5

    def test_give_the_same_run_for_any_number_of_workers(self, photos, tmp_path):
        spoil(photos, "train", *UNSEEN[:4])
        weights = []
        for workers in (0, 1):
            out = tmp_path / f"run{workers}"
            assert train(photos, out, f"data.workers={workers}").code == 0
            weights.append((out / "student" / "model.safetensors").read_bytes())
        assert weights[0] == weights[1]

    def test_are_dropped_where_that_is_asked_for(self, photos, tmp_path):
        spoil(photos, "train", *UNSEEN[:3])
        done = train(photos, tmp_path / "run", "data.bad_images=drop")
        assert done.code == 0, done.err
        assert len(named(done, DROPPED)) == 3

    def test_are_left_out_by_evaluate(self, photos, tmp_path):
        assert train(photos, tmp_path / "run").code == 0
        spoil(photos, "val", 99)
        done = anykd("evaluate", tmp_path / "run")
        assert done.code == 0, done.err
        assert "99 images" in done.out
        assert len(named(done, UNSCORED)) == 1

    def test_have_no_part_in_the_head_of_a_teacher(self, photos, tmp_path):
        teacher = train_vit(tmp_path / "teacher")
        heads = []
        spoil(photos, "train", *UNSEEN[:3])
        for name in ("spoilt", "removed"):
            out = tmp_path / name
            done = anykd(
                *("distill", "--student", "resnet18", "--data", photos, "--out", out),
                *("--teacher", teacher, "--teacher-head", "probe"),
                *short(CNN, "augment.preset=none"),
            )
            assert done.code == 0, done.err
            heads.append((out / "teacher_head.safetensors").read_bytes())
            for position in UNSEEN[:3]:
                photo(photos, "train", position).unlink(missing_ok=True)
        assert heads[0] == heads[1]

    def test_with_more_pixels_than_the_recipe_allows_count(self, photos, tmp_path):
        Image.new("RGB", (9, 8)).save(photo(photos, "train", UNSEEN[0]))
        done = train(photos, tmp_path / "run", "data.max_pixels=64")
        assert done.code == 0, done.err
        (line,) = named(done, REPLACED)
        assert "it has 9 x 8 pixels, more than data.max_pixels = 64" in line


class TestTooMany:
    def test_in_the_sample_of_the_plan_stop_before_anything_is_written(self, photos, tmp_path):
        spoil(photos, "val", 3, 70)
        done = train(photos, tmp_path / "run")
        assert done.code == 2
        assert re.search(r"error: 2 of \d+ images that were tried cannot be read", done.err)
        assert "or raise data.max_bad_fraction, which is 0.01" in done.err
        assert not (tmp_path / "run").exists()

        done = train(photos, tmp_path / "run", "data.max_bad_fraction=0.02")
        assert done.code == 0, done.err

    @pytest.mark.parametrize("workers", [0, 2])
    def test_met_in_training_stop_it(self, photos, tmp_path, workers):
        spoil(photos, "train", *UNSEEN[:7])
        done = train(photos, tmp_path / "run", f"data.workers={workers}")
        assert done.code == 2
        (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        words = "error: 7 of 600 training images cannot be read so far, more than data.max_bad"
        assert error.startswith(words)
        assert sum(str(photo(photos, "train", position)) in error for position in UNSEEN[:7]) == 5
        assert "Traceback" not in done.err
        assert len(named(done, REPLACED)) == 7
        assert not (tmp_path / "run" / "summary.json").exists()

    def test_stop_evaluate(self, photos, tmp_path):
        assert train(photos, tmp_path / "run").code == 0
        spoil(photos, "val", 3, 70)
        done = anykd("evaluate", tmp_path / "run")
        assert done.code == 2
        assert "error: 2 of 100 images cannot be read so far" in done.err
        assert done.out == ""

    @pytest.mark.distributed
    def test_are_those_of_all_ranks(self, photos, tmp_path):
        # Four for each of two ranks, which see 25 images in turn.
        order = np.random.default_rng((0, Stream.ORDER, 0)).permutation(TRAIN)
        shares = [order.reshape(-1, 2, 25)[:, rank].ravel().tolist() for rank in (0, 1)]
        for share in shares:
            spoil(photos, "train", *[p for p in share if p in UNSEEN][:4])
        log, out = tmp_path / "log", tmp_path / "run"
        flags = short(CNN, "augment.preset=none", "train.batch_size=50", "data.workers=0")
        arguments = ["train", "--model", "resnet18", "--data", photos, "--out", out, *flags]
        options = ("--standalone", "--nproc-per-node", "2")
        with started(torchrun(*options, arguments=arguments), log) as process:
            assert process.wait(120) != 0
        said = log.read_text()
        assert "error: 8 of 600 training images cannot be read so far" in said
        assert said.count(REPLACED) == 8


class TestStop:
    def test_is_said_by_the_plan(self, photos, tmp_path):
        spoil(photos, "train", min(SEEN))
        done = train(photos, tmp_path / "run", "data.bad_images=stop")
        assert done.code == 2
        assert "hint: mend or remove them, or set data.bad_images = 'replace'" in done.err
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("workers", [0, 1])
    def test_at_the_first_that_training_meets(self, photos, tmp_path, workers):
        spoil(photos, "train", UNSEEN[0])
        done = train(photos, tmp_path / "run", "data.bad_images=stop", f"data.workers={workers}")
        assert done.code == 2
        path = photo(photos, "train", UNSEEN[0])
        assert f"error: {path} cannot be read as an image: " in done.err
        assert "hint: mend or remove the file" in done.err
