"""Building a cache: by whom, from what, in how many starts."""

import hashlib
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from anykd.data.cache import Cache
from anykd.errors import CacheError, RecipeError
from anykd.experiment import build_cache, describe_cache, run, verify_cache
from anykd.experiment.assemble import assemble
from anykd.experiment.cache.use import adopt_views
from anykd.experiment.teachers import Heads
from anykd.rundir import RunDir
from tests.experiment.cache.making import CNN, DATA, VIT, cache, recipe, teacher, terms, train
from tests.experiment.runs import anykd
from tests.faults.processes import command, started, torchrun

CPU = torch.device("cpu")
FLAGS = ["--data", DATA, "--image-size", "32", "--set", "data.workers=0"]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory) -> Path:
    return teacher(tmp_path_factory.mktemp("cnn"))


def records(path: Path) -> dict[str, bytes]:
    """Every file of records, to the byte."""
    return {file.name: file.read_bytes() for file in sorted(path.glob("view-*.npy"))}


class TestCommands:
    def test_build_show_and_verify(self, cnn, tmp_path):
        path = tmp_path / "cache"
        built = anykd("cache", "build", "--teacher", cnn, *FLAGS, "--views", 2, "--out", path)
        assert (built.code, built.out.count("\n")) == (0, 1)
        assert "96 views in" in built.out
        assert "768 B" in built.out  # 96 views of 4 scores in 2 bytes
        assert "8 bytes for each view, 768 B in all" in built.err
        assert "about" in built.err
        again = anykd("cache", "build", "--teacher", cnn, *FLAGS, "--views", 2, "--out", path)
        assert (again.code, "complete already" in again.out) == (0, True)
        shown = anykd("cache", "info", path)
        assert shown.code == 0
        for words in ("resnet18", "synthetic:4x12", "2 of each image", "kd, dkd, dist, ofa"):
            assert words in shown.out
        assert "rsd" not in shown.out
        verified = anykd("cache", "verify", path, "--samples", 20)
        assert verified.code == 0
        assert "20 views were looked at again" in verified.out
        assert "the cache holds" in verified.out

    def test_a_recipe_says_where_it_goes_and_what_is_read(self, cnn, tmp_path):
        path = tmp_path / "cache"
        of = recipe(
            teacher={"name": str(cnn), "cache": str(path)},
            method={"name": "rsd"},
            augment={"num_views": 2},
        )
        (tmp_path / "recipe.toml").write_text(of.to_toml())
        built = anykd("cache", "build", tmp_path / "recipe.toml")
        assert built.code == 0
        assert Cache(path).manifest.codec.parts == {"pooled"}
        run = anykd("distill", tmp_path / "recipe.toml", "--out", tmp_path / "run")
        assert run.code == 0
        assert f"its outputs come from {path}" in run.err

    @pytest.mark.parametrize(
        ("flags", "words", "hint"),
        [
            (["--views", "2"], "no teacher is given", "--teacher"),
            (["--teacher", "CNN"], "new views, which no cache can hold", "--views 10"),
            (["--teacher", "CNN", "--views", "2", "--top-k", "4"], "there are 4", "give 1 to 3"),
            (
                ["--teacher", "CNN", "--views", "2", "--method", "rsd", "--no-pooled"],
                "nothing would be stored",
                "--pooled",
            ),
            (
                ["--teacher", "CNN", "--views", "2", "--teacher-head", "finetune"],
                "has no outputs yet",
                "anykd train",
            ),
            (
                ["--teacher", "CNN", "--views", "2", "--number", "2"],
                "the recipe has 1",
                "counted from 1",
            ),
        ],
    )
    def test_what_is_wrong_is_told_and_nothing_is_left(self, cnn, tmp_path, flags, words, hint):
        flags = [str(cnn) if flag == "CNN" else flag for flag in flags]
        done = anykd("cache", "build", *flags, *FLAGS, "--out", tmp_path / "cache")
        assert done.code == 2
        assert words in done.err.splitlines()[0]
        assert hint in done.err.splitlines()[1]
        assert not (tmp_path / "cache").exists()

    def test_not_inside_the_images(self, cnn, tmp_path, write_images):
        write_images("data", cat=3, dog=3)
        flags = ["--teacher", cnn, "--data", tmp_path / "data", "--views", 1]
        done = anykd("cache", "build", *flags, "--out", tmp_path / "data" / "cache")
        assert (done.code, "would lie inside its own data" in done.err) == (2, True)

    def test_no_folder_is_given(self, cnn):
        done = anykd("cache", "build", "--teacher", cnn, *FLAGS, "--views", 2)
        assert (done.code, "no folder is given" in done.err) == (2, True)

    @pytest.mark.parametrize("what", ["info", "verify"])
    def test_a_folder_that_is_no_cache(self, what, tmp_path):
        done = anykd("cache", what, tmp_path)
        assert (done.code, "holds no cache" in done.err) == (2, True)

    def test_a_build_does_not_go_on_with_other_options_of_the_teacher(self, cnn, tmp_path):
        path = cache(tmp_path / "cache", cnn)
        of = recipe(
            teacher={"name": str(cnn), "options": {"act_layer": "gelu"}},
            student={"name": str(cnn), "pretrained": True, "options": {"act_layer": "gelu"}},
            augment={"num_views": 2, "view_seed": 3},
        )
        with pytest.raises(CacheError, match=r"holds another cache: teacher\.options\.act_layer"):
            build_cache(of, path)

    def test_another_cache_is_not_overwritten(self, cnn, tmp_path):
        path = cache(tmp_path / "cache", cnn)
        before = records(path)
        with pytest.raises(CacheError, match=r"holds another cache: views\.seed"):
            cache(path, cnn, seed=4)
        assert records(path) == before


class TestWhatIsStored:
    def test_is_laid_out_as_the_manifest_says(self, cnn, tmp_path):
        path = cache(tmp_path / "cache", cnn, pooled=True)
        manifest = Cache(path).manifest
        assert manifest.codec.record_bytes == 2 * (4 + 32)
        files = [np.load(file) for file in sorted(path.glob("view-*.npy"))]
        assert sum(len(file) for file in files) == 2 * 48
        assert sum(file.nbytes for file in files) == manifest.layout.bytes

    def test_is_the_best_scores_and_the_mass_of_the_others(self, cnn, tmp_path):
        whole, best = cache(tmp_path / "all", cnn), cache(tmp_path / "best", cnn, top_k=2)
        exact, kept = (Cache(path).read(1, range(48)).logits for path in (whole, best))
        assert exact is not None
        assert kept is not None
        p, q = exact.softmax(1), kept.softmax(1)
        top = p.topk(2, dim=1).indices
        torch.testing.assert_close(q.gather(1, top), p.gather(1, top), rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(
            q.gather(1, top).sum(1), p.gather(1, top).sum(1), rtol=2e-3, atol=1e-4
        )

    def test_one_image_is_left_over_where_pairs_are_mixed(self, cnn, tmp_path):
        options = {"augment": {"preset": "vit"}, "data": {"limit": 47}}
        path = cache(tmp_path / "cache", cnn, **options)
        assert Cache(path).manifest.num_slots == 46
        run = train(tmp_path / "run", cnn, path, "kd", **options)
        assert len(terms(run)) == 2 * 2

    @pytest.mark.parametrize("images", [1, 5])
    def test_an_odd_number_of_images_will_do(self, images, cnn, tmp_path):
        path = cache(tmp_path / "cache", cnn, data={"limit": images}, views=1)
        found = verify_cache(path)
        assert (found.holds, found.samples) == (True, images)

    def test_of_a_teacher_with_another_head_is_what_that_head_says(self, tmp_path):
        of = {"source": "synthetic:6x12"}
        other = teacher(tmp_path, data=of)  # six classes
        head = {"name": str(other), "head": "probe"}
        augment = {"num_views": 1, "view_seed": 3}
        path = tmp_path / "cache"
        of = recipe(teacher=head, method={"name": "kd"}, augment=augment)
        build_cache(of, path, pooled=True)
        assert (path / "teacher_head.safetensors").is_file()
        # With another seed the probe that is fitted anew would be another one.
        asked = recipe(teacher=head | {"cache": str(path)}, method={"name": "kd"}, seed=9)
        made = assemble(adopt_views(asked), CPU, Heads(RunDir(tmp_path / "run"), resumed=False))
        batch = next(made.loader.batches(0))
        stored = batch.stored[0]
        assert stored is not None
        assert stored.logits is not None
        live = made.teachers[0](batch.images).logits
        torch.testing.assert_close(stored.logits.softmax(1), live.softmax(1), rtol=1e-2, atol=1e-3)
        assert verify_cache(path, samples=20).holds
        # A method that reads no class scores fits no head, and is served all the same.
        run(adopt_views(asked.model_copy(update={"methods": ({"name": "rkd"},)})), tmp_path / "rkd")
        assert terms(tmp_path / "rkd")

    def test_of_one_of_several_teachers(self, cnn, tmp_path):
        vit = teacher(tmp_path, VIT)
        tables = [{"name": str(cnn)}, {"name": str(vit)}]
        augment = {"num_views": 2, "view_seed": 3}
        of = recipe(teacher=tables, method={"name": "kd"}, augment=augment, student=CNN)
        build_cache(of, tmp_path / "cache", number=2)
        assert Cache(tmp_path / "cache").manifest.teacher.name == VIT["name"]
        stored = [tables[0], tables[1] | {"cache": str(tmp_path / "cache")}]
        both = []
        for teachers in (tables, stored):
            asked = recipe(teacher=teachers, method={"name": "kd"}, augment=augment, student=CNN)
            made = assemble(asked, CPU)
            made.method.train()
            output = made.method(next(made.loader.batches(1)))
            both.append({name: term.item() for name, term in output.terms.items()})
        assert both[1] == pytest.approx(both[0], rel=2e-3)
        assert verify_cache(tmp_path / "cache", samples=20).holds

    def test_at_the_students_size_where_that_is_larger(self, cnn, tmp_path):
        student = VIT | {"image_size": 48}
        augment = {"num_views": 1, "view_seed": 3}
        of = recipe(teacher={"name": str(cnn)}, student=student, method={"name": "kd"})
        of = of.model_copy(update={"augment": of.augment.model_copy(update=augment)})
        build_cache(of, tmp_path / "cache")
        assert Cache(tmp_path / "cache").manifest.views.image_size == (48, 48)
        run = train(tmp_path / "run", cnn, tmp_path / "cache", "kd", student=student)
        assert terms(run)
        assert verify_cache(tmp_path / "cache", samples=20).holds


class TestSeveralStarts:
    def test_ranks_build_what_one_process_builds(self, cnn, tmp_path):
        alone = cache(tmp_path / "alone", cnn, seed=0)
        flags = ["cache", "build", "--teacher", cnn, *FLAGS, "--set", "train.precision=float32"]
        flags += ["--views", 2, "--set", "augment.view_seed=0", "--out", tmp_path / "ranks"]
        options = ("--standalone", "--nproc-per-node", "2")
        log = tmp_path / "log"
        with started(torchrun(*options, arguments=flags), log) as process:
            assert process.wait(120) == 0, log.read_text()
        assert records(tmp_path / "ranks") == records(alone)
        assert not list((tmp_path / "ranks").glob("written-*"))

    def test_a_killed_build_goes_on_and_is_the_same(self, cnn, tmp_path):
        flags = ["cache", "build", "--teacher", cnn, "--data", "synthetic:4x400", "--image-size"]
        flags += [32, "--set", "data.workers=0", "--views", 4]
        whole = tmp_path / "whole"
        assert anykd(*flags, "--out", whole).code == 0
        path, kills = tmp_path / "killed", 0
        rng = np.random.default_rng(0)
        while not (path / "manifest.json").is_file():
            done = len(records(path))
            with started(command(*flags, "--out", path), tmp_path / "log") as process:
                end = time.monotonic() + 120
                while process.poll() is None and time.monotonic() < end:
                    if len(records(path)) > done + rng.integers(0, 6):
                        process.kill()
                        kills += process.wait() == -signal.SIGKILL
                    time.sleep(0.002)
            assert kills < 20
        assert kills >= 2
        assert records(path) == records(whole)
        assert Cache(path).verify_checksums() == []

    def test_ctrl_c_ends_it_in_a_sentence_that_says_how_to_go_on(self, cnn, tmp_path):
        flags = ["cache", "build", "--teacher", cnn, "--data", "synthetic:4x3000", "--image-size"]
        flags += [32, "--set", "data.workers=0", "--views", 4, "--out", tmp_path / "cache"]
        log = tmp_path / "log"
        with started(command(*flags), log) as process:
            end = time.monotonic() + 120
            while not records(tmp_path / "cache") and time.monotonic() < end:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        said = log.read_text()
        assert "Traceback" not in said
        assert "the same command goes on" in said
        assert not (tmp_path / "cache" / "manifest.json").exists()


class TestVerify:
    def test_names_every_file_that_is_missing_or_cut_off_and_a_build_mends_them(
        self, cnn, tmp_path
    ):
        path = cache(tmp_path / "cache", cnn)
        before = records(path)
        first, second, *_ = sorted(path.glob("view-*.npy"))
        first.unlink()
        second.write_bytes(second.read_bytes()[:-3])
        done = anykd("cache", "verify", path)
        assert done.code == 2
        assert f"2 damaged files: {first.name}, {second.name}; remove them" in done.out
        cache(path, cnn)
        assert records(path) == before
        assert verify_cache(path).holds

    def test_names_a_damaged_file(self, cnn, tmp_path):
        path = cache(tmp_path / "cache", cnn)
        file = sorted(path.glob("view-*.npy"))[1]
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        done = anykd("cache", "verify", path, "--samples", 8)
        assert done.code == 2
        assert f"1 damaged files: {file.name}" in done.out
        assert "DOES NOT HOLD" in done.out

    def test_finds_answers_that_are_not_the_teachers(self, cnn, tmp_path):
        """Whole files, right checksums, wrong answers: as of a build that went wrong."""
        path = cache(tmp_path / "cache", cnn)
        exact = verify_cache(path, samples=96)
        assert exact.holds
        assert exact.logits is not None
        assert exact.logits < 2e-3 * 20
        opened = Cache(path)
        shards = dict(opened.manifest.shards)
        for name in shards:
            stored = np.load(path / name)
            stored["scores"] = stored["scores"][:, ::-1]
            np.save(path / name, stored)
            shards[name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
        manifest = opened.manifest.model_copy(update={"shards": shards})
        (path / "manifest.json").write_text(manifest.to_json())
        wrong = verify_cache(path, samples=96)
        assert not wrong.damaged
        assert not wrong.holds
        assert wrong.agreement is not None
        assert wrong.agreement < 90

    def test_refuses_another_teacher_in_the_old_ones_place(self, tmp_path):
        first = teacher(tmp_path)
        path = cache(tmp_path / "cache", first)
        shutil.rmtree(first)
        teacher(tmp_path, seed=8)
        with pytest.raises(CacheError, match=r"not of what its recipe names now: teacher\.weights"):
            verify_cache(path)

    @pytest.mark.parametrize("options", [{"top_k": 2}, {"pooled": True}, {"dtype": "float32"}])
    def test_compares_whatever_is_stored(self, cnn, tmp_path, options):
        path = cache(tmp_path / "cache", cnn, augment={"preset": "vit"}, **options)
        found = verify_cache(path, samples=30)
        assert found.holds
        assert (found.mass is not None) == ("top_k" in options)
        assert (found.pooled is not None) == ("pooled" in options)


def test_info_says_what_a_cache_can_serve(cnn, tmp_path):
    both = describe_cache(Cache(cache(tmp_path / "both", cnn, pooled=True)))
    line = next(line for line in both.splitlines() if line.startswith("serves"))
    assert line.split(maxsplit=1)[1].startswith("kd, dkd, dist, cc, rkd, crd, ofa, fbt (where")


def test_a_recipe_without_anything_to_read_is_refused(cnn, tmp_path):
    of = recipe(teacher={"name": str(cnn)}, method={"name": "fitnet"}, augment={"num_views": 1})
    with pytest.raises(CacheError, match="reads the teacher's stages"):
        build_cache(of, tmp_path / "cache")
    with pytest.raises(RecipeError, match="new views"):
        build_cache(recipe(teacher={"name": str(cnn)}, method={"name": "kd"}), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
