"""What a cache was made of, and what is said where that differs."""

import json

import pytest
from pydantic import ValidationError

from anykd.data.cache import Codec, Manifest
from anykd.errors import CacheError
from tests.data.cache.small import manifest

OTHER = "3c4d" * 16


class TestMisfits:
    def test_are_none_with_itself(self):
        assert manifest().misfits(manifest()) == []
        assert manifest().unlike(manifest()) == []

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"teacher_weights": OTHER}, "teacher.weights: 1a2b1a2b… in the cache, 3c4d3c4d… here"),
            ({"teacher_name": "cnn"}, "teacher.name: vit in the cache, cnn here"),
            ({"teacher_num_classes": 11}, "teacher.num_classes: 10 in the cache, 11 here"),
            ({"teacher_width": 4}, "teacher.width: 3 in the cache, 4 here"),
            ({"teacher_classes": (3, 1)}, "teacher.classes: none in the cache, (3, 1) here"),
            ({"data_fingerprint": "a1" * 32}, "data.fingerprint: 5e5e5e5e… in the cache, a1a1a1a1"),
            ({"data_samples": 7}, "data.samples: 101 in the cache, 7 here"),
            ({"views_seed": 3}, "views.seed: 0 in the cache, 3 here"),
            ({"views_image_size": 32}, "views.image_size: 64 in the cache, 32 here"),
            ({"views_image_size": (64, 48)}, "views.image_size: 64 in the cache, 64x48 here"),
            ({"slots": 100, "data_samples": 101}, "num_slots: 101 in the cache, 100 here"),
            ({"views_num_views": 3}, "views.num_views: 2 in the cache, 3 here"),
            (
                {"views_augment": {"crop_scale": (0.2, 1.0), "flip": 0.5}},
                "views.augment.crop_scale: (0.08, 1.0) in the cache, (0.2, 1.0) here",
            ),
            (
                {"views_augment": {"crop_scale": [0.08, 1.0], "flip": 0.5, "mixup": 0.2}},
                "views.augment.mixup: nothing in the cache, 0.2 here",
            ),
            (
                {"views_augment": {"crop_scale": (0.08, 1.0)}},
                "views.augment.flip: 0.5 in the cache, nothing here",
            ),
        ],
    )
    def test_name_each_part_that_differs(self, changes, said):
        (actual,) = manifest().misfits(manifest(**changes))
        assert actual.startswith(said)

    def test_begin_with_the_teacher_and_leave_out_nothing(self):
        asked = manifest(
            slots=99,
            teacher_name="cnn",
            teacher_source="x",
            teacher_weights=OTHER,
            data_source="y",
            data_fingerprint="0",
            views_seed=1,
        )
        lines = manifest().misfits(asked)
        assert [line.partition(":")[0] for line in lines] == [
            *("teacher.name", "teacher.source", "teacher.weights"),
            *("data.source", "data.fingerprint", "data.samples", "views.seed", "num_slots"),
        ]

    def test_of_the_teachers_own_view(self):
        what = manifest()
        view = what.teacher.view.model_copy(update={"mean": (0.485, 0.456, 0.406)})
        asked = manifest(teacher_view=view)
        assert what.misfits(asked) == [
            "teacher.view.mean: (0.5, 0.5, 0.5) in the cache, (0.485, 0.456, 0.406) here"
        ]

    def test_of_long_lists_name_the_first_place(self):
        what = manifest(teacher_classes=tuple(range(100)))
        moved = (*range(50), 999, *range(51, 100))
        assert what.misfits(manifest(teacher_classes=moved)) == [
            "teacher.classes: at 50: 50 in the cache, 999 here"
        ]
        assert what.misfits(manifest(teacher_classes=tuple(range(90)))) == [
            "teacher.classes: its length: 100 in the cache, 90 here"
        ]

    def test_are_not_where_equal_things_came_from(self):
        moved = manifest(teacher_source="elsewhere/vit", data_source="cifar10:elsewhere")
        assert manifest().unlike(moved) == []

    def test_are_not_what_was_stored_nor_how_nor_when(self):
        asked = manifest(
            codec=Codec(num_classes=10), precision="bfloat16", shard_slots=6, built={"seconds": 3}
        )
        assert manifest().misfits(asked) == []

    def test_are_not_fewer_views(self):
        assert manifest(views=4).misfits(manifest(views=3)) == []

    def test_of_the_pixels_alone_say_why(self):
        (line,) = manifest().misfits(manifest(views_sample=OTHER))
        assert line.startswith("views.sample: 77777777… in the cache, 3c4d3c4d… here; the settings")
        assert manifest().misfits(manifest(views_sample=OTHER, views_seed=1)) == [
            "views.seed: 0 in the cache, 1 here"
        ]
        other_teacher = manifest(views_sample=OTHER, teacher_name="cnn")
        assert len(manifest().misfits(other_teacher)) == 2
        more_views = manifest(views_sample=OTHER, views=3)
        assert len(manifest().misfits(more_views)) == 2


def test_a_build_goes_on_only_with_what_is_stored_in_the_same_way():
    asked = manifest(
        codec=Codec(num_classes=10, top_k=5, pooled_width=3), precision="bfloat16", shard_slots=6
    )
    assert manifest().unlike(asked) == [
        "codec.top_k: 4 in the cache, 5 here",
        "precision: float32 in the cache, bfloat16 here",
        "shard_slots: 14 in the cache, 6 here",
    ]
    assert manifest(views=4, shard_slots=14).unlike(manifest()) == [
        "views.num_views: 4 in the cache, 2 here"
    ]
    assert manifest().unlike(manifest(views=4, shard_slots=14)) == [
        "views.num_views: 2 in the cache, 4 here"
    ]


class TestRead:
    def test_gives_back_what_was_written(self, tmp_path):
        path = tmp_path / "manifest.json"
        shards = {shard.name: OTHER for shard in manifest().layout.shards}
        what = manifest(
            teacher_classes=(4, 2), shards=shards, built={"when": "today", "seconds": 1.5}
        )
        path.write_text(what.to_json())
        assert Manifest.read(path) == what.model_copy(
            update={"views": what.views.model_copy(update={"augment": _json(what.views.augment)})}
        )
        assert what.misfits(Manifest.read(path)) == []

    def test_refuses_another_version(self, tmp_path):
        path = tmp_path / "manifest.json"
        path.write_text(json.dumps({"format": 2, "new": {}}))
        with pytest.raises(CacheError, match="has format 2, and this version of anykd reads 1"):
            Manifest.read(path)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "is broken: Expecting value"),
            ('{"format": 1, ', "is broken: Expecting"),
            ("[]", "is broken: list indices"),
            ("{}", "is broken: 'format'"),
            ('{"format": 1}', "is broken: teacher: Field required"),
        ],
    )
    def test_says_what_is_broken(self, tmp_path, text, said):
        path = tmp_path / "manifest.json"
        path.write_text(text)
        with pytest.raises(CacheError) as caught:
            Manifest.read(path)
        assert str(caught.value).startswith(f"{path} {said}")
        assert caught.value.hint

    def test_says_where_a_value_is_wrong(self, tmp_path):
        path = tmp_path / "manifest.json"
        path.write_text(manifest().to_json().replace('"seed": 0', '"seed": "x"'))
        with pytest.raises(CacheError, match=r"is broken: views\.seed: Input should be a valid"):
            Manifest.read(path)
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(CacheError, match="is broken: 'utf-8' codec"):
            Manifest.read(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_slots": 10**15}, "files are more than a cache has"),
        ({"views": {"num_views": 10**9}}, "files are more than a cache has"),
        ({"codec": {"pooled_width": 10**12}}, "pooled_width"),
        ({"shards": {"../../etc/passwd": OTHER}}, "shards are not the files"),
    ],
)
def test_refuses_what_somebody_has_changed(tmp_path, changes, said):
    values = _json(manifest().model_dump(mode="json"))
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(values))
    with pytest.raises(CacheError, match=said):
        Manifest.read(path)


def test_a_digest_is_one():
    with pytest.raises(ValidationError, match="weights"):
        manifest(teacher_weights="unknown")


def _json(values: dict) -> dict:
    return json.loads(json.dumps(values))
