"""Training from a cache: the same as with the live teacher, or refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anykd.data import TrainLoader, open_data
from anykd.data.cache import Cache
from anykd.errors import AnykdError, CacheError, RecipeError
from anykd.experiment import make_plan
from anykd.experiment.assemble import Parts, assemble, train_views
from anykd.experiment.cache.use import adopt_views
from anykd.models import FrozenTeacher, create_staged
from anykd.recipe import Recipe, read_toml
from anykd.types import Batch, Stored
from tests.experiment.cache.making import CNN, VIT, cache, recipe, teacher, terms, train

CPU = torch.device("cpu")
EXACT: dict[str, Any] = {"dtype": "float32", "pooled": True}


@pytest.fixture(scope="module")
def cnn(tmp_path_factory) -> Path:
    return teacher(tmp_path_factory.mktemp("cnn"))


@pytest.fixture(scope="module")
def exact(cnn, tmp_path_factory) -> Path:
    """Two views of each image in float32, with vectors."""
    return cache(tmp_path_factory.mktemp("caches") / "exact", cnn, **EXACT)


@pytest.fixture(scope="module")
def mixed(cnn, tmp_path_factory) -> Path:
    """The same of the pipeline that mixes and erases."""
    path = tmp_path_factory.mktemp("caches") / "mixed"
    return cache(path, cnn, augment={"preset": "vit"}, **EXACT)


def parts(teacher: Path, path: Path | None, method: str = "kd", **tables: Any) -> Parts:
    table = {"name": str(teacher)} | ({} if path is None else {"cache": str(path)})
    asked = recipe(teacher=table, method={"name": method}, **tables)
    return assemble(adopt_views(asked), CPU)


def stored_of(batch: Batch) -> Stored:
    (stored,) = batch.stored
    assert stored is not None
    return stored


class TestEveryView:
    """A teacher's answer to one crop is not its answer to another (METHODS §5.8)."""

    @pytest.mark.parametrize("preset", ["cnn", "vit"])
    def test_brings_the_teachers_answer_to_it(self, cnn, exact, mixed, preset):
        path = {"cnn": exact, "vit": mixed}[preset]
        live = FrozenTeacher(create_staged(str(cnn)))
        made = parts(cnn, path, augment={"preset": preset}, seed=11)
        seen = set()
        for epoch in range(3):
            for batch in made.loader.batches(epoch):
                answer, stored = live(batch.images), stored_of(batch)
                assert stored.logits is not None
                torch.testing.assert_close(
                    stored.logits.log_softmax(1), answer.logits.log_softmax(1), rtol=0, atol=1e-5
                )
                torch.testing.assert_close(stored.pooled, answer.pooled, rtol=0, atol=1e-5)
                assert batch.indices is not None
                seen |= {(epoch % 2, int(index)) for index in batch.indices}
        assert len(seen) == 2 * 48

    @pytest.mark.parametrize("preset", ["cnn", "vit"])
    def test_brings_it_where_the_device_makes_the_views(self, cnn, exact, mixed, preset):
        path = {"cnn": exact, "vit": mixed}[preset]
        live = FrozenTeacher(create_staged(str(cnn)))
        made = parts(cnn, path, augment={"preset": preset}, data={"views_on": "device"})
        apart, swapped = [], []
        for batch in made.loader.batches(1):
            answer, stored = live(batch.images).logits.softmax(1), stored_of(batch).logits
            assert stored is not None
            apart.append((stored.softmax(1) - answer).abs().mean())
            swapped.append((stored.softmax(1) - answer.flip(0)).abs().mean())
        # Pixels may be a level off; another image's answer is much further away.
        assert torch.stack(apart).mean() < 0.05 * torch.stack(swapped).mean()

    def test_is_not_what_a_cache_by_index_alone_would_bring(self, cnn, exact):
        """Looked up without the view, as elsewhere, answers are of other crops and flips."""
        stored = Cache(exact)
        logits = [stored.read(view, range(48)).logits for view in (0, 1)]
        assert logits[0] is not None
        assert logits[1] is not None
        apart = (logits[0].softmax(1) - logits[1].softmax(1)).abs().amax(dim=1)
        assert (apart > 1e-3).float().mean() > 0.9
        live = FrozenTeacher(create_staged(str(cnn)))
        made = parts(cnn, exact)
        wrong = right = 0.0
        for batch in made.loader.batches(1):
            assert batch.indices is not None
            answer = live(batch.images).logits.softmax(1)
            by_index = stored.read(0, batch.indices.tolist()).logits
            own = stored_of(batch).logits
            assert by_index is not None
            assert own is not None
            wrong = max(wrong, (by_index.softmax(1) - answer).abs().max().item())
            right = max(right, (own.softmax(1) - answer).abs().max().item())
        assert right < 1e-5 < 1e-2 < wrong

    def test_is_a_flip_where_that_is_all_that_varies(self, cnn, tmp_path):
        """The answer to a mirrored image, not the image's own."""
        flips = {"preset": "none", "flip": 0.5}
        path = cache(tmp_path / "flips", cnn, views=3, augment=flips, **EXACT)
        live = FrozenTeacher(create_staged(str(cnn)))
        made = parts(cnn, path, augment=flips)
        plain = parts(cnn, None, augment={"preset": "none"})
        by_index = {}
        for batch in plain.loader.batches(0):
            assert batch.indices is not None
            by_index |= dict(zip(batch.indices.tolist(), live(batch.images).logits, strict=True))
        mirrored = 0
        for epoch in range(3):
            for batch in made.loader.batches(epoch):
                assert batch.indices is not None
                own = stored_of(batch).logits
                assert own is not None
                for index, logits in zip(batch.indices.tolist(), own, strict=True):
                    apart = (logits.softmax(0) - by_index[index].softmax(0)).abs().max()
                    mirrored += int(apart > 1e-4)
        assert 0.3 < mirrored / (3 * 48) < 0.7


class TestTraining:
    @pytest.mark.parametrize(
        ("method", "preset"),
        [
            *((name, "cnn") for name in ("kd", "dkd", "dist", "ofa", "cc", "rkd", "rsd", "crd")),
            ("kd", "vit"),
            ("rsd", "vit"),
        ],
    )
    def test_goes_as_with_the_live_teacher(self, method, preset, cnn, exact, mixed, tmp_path):
        path = {"cnn": exact, "vit": mixed}[preset]
        options = {"num_negatives": 8} if method == "crd" else {}
        augment = {"preset": preset, "num_views": 2, "view_seed": 3}
        live, stored = (
            train(tmp_path / name, cnn, given, {"name": method} | options, augment=augment)
            for name, given in (("live", None), ("stored", path))
        )
        for ours, theirs in zip(terms(stored), terms(live), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
        assert terms(live)[0] != terms(live)[-1]

    @pytest.mark.parametrize("method", ["kd", "dkd", "dist", "ofa"])
    def test_in_float16_differs_by_its_rounding(self, method, cnn, tmp_path):
        path = cache(tmp_path / "half", cnn)
        live, stored = (
            train(tmp_path / name, cnn, given, method, augment={"num_views": 2, "view_seed": 3})
            for name, given in (("live", None), ("stored", path))
        )
        first = terms(stored)[0], terms(live)[0]
        assert first[0] == pytest.approx(first[1], rel=2e-3, abs=1e-5)
        for ours, theirs in zip(terms(stored), terms(live), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)

    def test_learns_the_wrong_thing_from_another_teachers_answers(self, cnn, exact, tmp_path):
        """What the two tests above would show if the answers were not looked up at all."""
        other = teacher(tmp_path, seed=5)
        live = train(tmp_path / "live", other, None, "kd", augment={"num_views": 2, "view_seed": 3})
        stored = train(tmp_path / "stored", cnn, exact, "kd")
        assert terms(stored)[0]["kd"] != pytest.approx(terms(live)[0]["kd"], rel=1e-2)

    def test_serves_other_students_and_seeds(self, cnn, exact, tmp_path):
        for number, (student, seed) in enumerate([(VIT, 0), (VIT, 1), (CNN, 0)]):
            live, stored = (
                train(
                    tmp_path / f"{name}{number}",
                    cnn,
                    given,
                    "kd",
                    student=student,
                    seed=seed,
                    augment={"num_views": 2, "view_seed": 3},
                )
                for name, given in (("live", None), ("stored", exact))
            )
            for ours, theirs in zip(terms(stored), terms(live), strict=True):
                assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)

    def test_does_not_run_the_teacher(self, cnn, exact):
        made = parts(cnn, exact)
        calls = counted(made.teachers[0].model.model)
        made.method.train()
        for batch in made.loader.batches(0):
            made.method(batch).loss.backward()
        assert calls == []

    def test_runs_its_tail_alone_for_fbt_behind_a_student(self, tmp_path):
        vit = teacher(tmp_path, VIT)
        path = cache(tmp_path / "cache", vit, **EXACT)
        made = parts(vit, path, "fbt", student=CNN)
        blocks = list(made.teachers[0].model.model.blocks)  # pyright: ignore[reportArgumentType]
        calls = counted(made.teachers[0].model.model)
        made.method.train()
        batch = next(made.loader.batches(0))
        made.method(batch).loss.backward()
        ran = [block in calls for block in blocks]
        assert ran == [False, False, False, True]  # each of four blocks is a stage

    def test_records_the_views_that_it_took_over(self, cnn, exact, tmp_path):
        path = train(tmp_path / "run", cnn, exact, "kd")
        kept = Recipe.from_dict(read_toml(path / "recipe.toml"))
        assert (kept.augment.num_views, kept.augment.view_seed) == (2, 3)
        assert kept.teachers[0].cache == str(exact)

    @pytest.mark.parametrize("first", [2, 3])
    def test_takes_the_views_that_all_of_several_caches_have(self, first, cnn, tmp_path):
        counts = (first, 5 - first)
        tables = [
            {"name": str(cnn), "cache": str(cache(tmp_path / str(count), cnn, views=count))}
            for count in counts
        ]
        made = assemble(adopt_views(recipe(teacher=tables, method={"name": "kd"})), CPU)
        assert made.recipe.augment.num_views == 2
        assert len(next(made.loader.batches(1)).stored) == 2

    def test_gives_the_control_arm_the_same_views(self, cnn, exact):
        views = [
            next(parts(cnn, exact, method).loader.batches(0)).images for method in ("kd", "control")
        ]
        assert torch.equal(*views)


class TestRanks:
    @pytest.mark.parametrize("preset", ["cnn", "vit"])
    def test_have_the_answers_to_their_shares(self, cnn, exact, mixed, preset):
        path = {"cnn": exact, "vit": mixed}[preset]
        views = train_views(
            recipe(augment={"preset": preset, "view_seed": 3, "num_views": 2}),
            open_data(recipe().data),
            (32, 32),
        )

        def batches(rank: int, world_size: int) -> list[Batch]:
            loader = TrainLoader(
                views,
                batch_size=8 // world_size,
                seed=0,
                rank=rank,
                world_size=world_size,
                stored=[Cache(path)],
                workers=0,
            )
            return list(loader.batches(1))

        one = batches(0, 1)
        for whole, *halves in zip(one, batches(0, 2), batches(1, 2), strict=True):
            both = Batch.joined(halves)
            assert torch.equal(both.images, whole.images)
            ours, theirs = stored_of(both), stored_of(whole)
            assert torch.equal(ours.logits, theirs.logits)  # pyright: ignore[reportArgumentType]
            assert torch.equal(ours.pooled, theirs.pooled)  # pyright: ignore[reportArgumentType]

    def test_and_workers_read_the_same(self, cnn, exact):
        found = []
        for workers in (0, 2):
            made = parts(cnn, exact, data={"workers": workers})
            found.append([stored_of(batch).logits for batch in made.loader.batches(1)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class TestPlan:
    def test_measures_steps_from_the_cache(self, cnn, exact):
        table = {"name": str(cnn), "cache": str(exact)}
        plan = make_plan(recipe(teacher=table, method={"name": "kd"}), steps=2)
        assert not plan.errors
        assert plan.cost is not None
        assert plan.cost.teacher_share == 0
        live = make_plan(recipe(teacher={"name": str(cnn)}, method={"name": "kd"}), steps=2)
        assert live.cost is not None
        assert live.cost.teacher_share > 0

    def test_says_what_does_not_fit(self, cnn, exact):
        table = {"name": str(cnn), "cache": str(exact)}
        asked = recipe(teacher=table, method={"name": "kd"}, augment={"flip": 0.1})
        (error,) = make_plan(asked, steps=0).errors
        assert "views.augment.flip: 0.5 in the cache, 0.1 here" in error.message


def counted(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that have run, from now on."""
    calls: list[nn.Module] = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, given: calls.append(module))
    return calls


class TestRefused:
    @pytest.mark.parametrize(
        ("tables", "part"),
        [
            ({"augment": {"view_seed": 4}}, "views.seed: 3 in the cache, 4 here"),
            ({"augment": {"num_views": 5}}, "views.num_views: 2 in the cache, 5 here"),
            ({"augment": {"flip": 0.25}}, "views.augment.flip: 0.5 in the cache, 0.25 here"),
            ({"augment": {"mixup": 0.8}}, "views.augment.mixup: 0"),
            ({"augment": {"interpolation": "bilinear"}}, "views.augment.interpolation"),
            ({"data": {"source": "synthetic:4x13"}}, "data.fingerprint"),
            ({"data": {"limit": 40}}, "data.fingerprint"),
            ({"data": {"max_pixels": 5000}}, "views.augment.max_pixels"),
            ({"student": VIT | {"image_size": 48}}, "views.image_size: 32 in the cache, 48 here"),
        ],
        ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
    )
    def test_what_does_not_fit_is_named(self, cnn, exact, tables, part):
        with pytest.raises(CacheError, match="does not fit this run") as caught:
            parts(cnn, exact, **tables)
        assert part in str(caught.value)
        assert caught.value.hint

    def test_other_weights(self, cnn, exact, tmp_path):
        other = teacher(tmp_path, seed=5)
        with pytest.raises(CacheError, match=r"teacher\.weights: \w{8}… in the cache, \w{8}… here"):
            parts(other, exact)

    def test_the_same_weights_in_a_model_that_computes_something_else(self, tmp_path):
        vit = teacher(tmp_path, VIT)
        path = cache(tmp_path / "cache", vit)
        table = {"name": str(vit), "cache": str(path), "options": {"act_layer": "relu"}}
        asked = recipe(teacher=table, method={"name": "kd"})
        with pytest.raises(CacheError, match="the teacher says something else now") as caught:
            assemble(adopt_views(asked), CPU)
        assert "options that the cache was built with" in caught.value.hint

    def test_the_same_weights_elsewhere_fit(self, cnn, exact, tmp_path):
        moved = tmp_path / "moved"
        shutil.copytree(cnn, moved)
        assert parts(moved, exact).stored

    def test_fewer_of_its_views_fit(self, cnn, exact):
        made = parts(cnn, exact, augment={"num_views": 1})
        assert stored_of(next(made.loader.batches(1))).logits is not None

    def test_mixing_that_is_not_in_the_cache(self, cnn, exact):
        """A teacher's answer to a mixture is not the mixture of its answers."""
        with pytest.raises(CacheError, match=r"views\.augment\.cutmix: 0"):
            parts(cnn, exact, augment={"cutmix": 1.0})

    @pytest.mark.parametrize(
        ("method", "words"),
        [
            ("fitnet", "stages"),
            ("pat", "PAT"),
            ("fbt", "FBT puts the teacher first in this pair"),
        ],
    )
    def test_methods_that_need_the_live_teacher(self, cnn, exact, method, words):
        with pytest.raises(RecipeError, match=words) as caught:
            parts(cnn, exact, method)
        assert "leave teacher.cache out" in caught.value.hint

    def test_methods_whose_part_is_not_stored(self, cnn, tmp_path):
        path = cache(tmp_path / "scores", cnn)
        with pytest.raises(RecipeError, match="holds no pooled vectors, which RSD reads") as caught:
            parts(cnn, path, "rsd")
        assert caught.value.hint == "build it with --pooled"

    def test_a_folder_that_is_not_there(self, cnn, tmp_path):
        with pytest.raises(CacheError, match=r"there is no cache at .*nowhere") as caught:
            parts(cnn, tmp_path / "nowhere")
        assert "anykd cache build" in caught.value.hint

    def test_a_run_is_not_begun(self, cnn, exact, tmp_path):
        with pytest.raises(AnykdError, match="does not fit"):
            train(tmp_path / "run", cnn, exact, "kd", augment={"flip": 0.25})
        assert not (tmp_path / "run").exists()


def test_the_fingerprint_is_of_the_training_images_alone(exact):
    train_images = open_data(recipe().data).train
    assert Cache(exact).manifest.data.fingerprint == train_images.fingerprint


class TestBrokenImages:
    """A stand-in's answer belongs to the place of the image that it stands for."""

    @pytest.mark.parametrize(
        ("policy", "preset"), [("replace", "cnn"), ("replace", "vit"), ("drop", "cnn")]
    )
    def test_bring_the_answers_to_what_is_shown_instead(
        self, policy, preset, cnn, tmp_path, write_images
    ):
        write_images("data/val", **{f"pattern {number}": 2 for number in range(4)})
        write_images("data/train", **{f"pattern {number}": 6 for number in range(4)})
        folder = tmp_path / "data"
        for name in ("pattern 0/2.png", "pattern 2/0.png", "pattern 2/1.png"):
            (folder / "train" / name).write_bytes(b"no image")
        tables: dict[str, Any] = {
            "data": {"source": str(folder), "bad_images": policy, "max_bad_fraction": 0.5},
            "augment": {"preset": preset},
        }
        path = cache(tmp_path / "cache", cnn, dtype="float32", **tables)
        table = {"name": str(cnn), "cache": str(path)}
        live = FrozenTeacher(create_staged(str(cnn)))
        asked = recipe(teacher=table, method={"name": "kd"}, train={"batch_size": 6}, **tables)
        made = assemble(adopt_views(asked), CPU)
        for epoch in range(3):
            for batch in made.loader.batches(epoch):
                logits = stored_of(batch).logits
                assert logits is not None
                expected = live(batch.images).logits.softmax(1)
                torch.testing.assert_close(logits.softmax(1), expected, rtol=0, atol=1e-5)
        assert len(made.loader.bad_images) == 3
