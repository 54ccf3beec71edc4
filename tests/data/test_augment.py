import pytest
from pydantic import ValidationError

from anykd.data import AugmentConfig

NOTHING = {"color_jitter": 0, "rand_augment": "", "mixup": 0, "cutmix": 0, "erasing": 0}


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("cnn", NOTHING | {"crop_scale": (0.08, 1), "crop_padding": 0, "flip": 0.5}),
        ("none", NOTHING | {"crop_scale": (1, 1), "crop_padding": 0, "flip": 0}),
        (
            "vit",
            {
                "crop_scale": (0.08, 1),
                "crop_padding": 0,
                "flip": 0.5,
                "color_jitter": 0,
                "rand_augment": "rand-m9-mstd0.5-inc1",
                "mixup": 0.8,
                "cutmix": 1,
                "erasing": 0.25,
            },
        ),
    ],
)
def test_preset_is_the_published_pipeline(preset, published):
    settings = AugmentConfig(preset=preset).view_settings()
    assert (settings.pop("crop_pct", None) == 1) == (preset == "none")
    assert settings.pop("interpolation") == "bicubic"
    assert settings | {"crop_scale": tuple(settings["crop_scale"])} == published


@pytest.mark.parametrize(
    ("settings", "varies", "mixes"),
    [
        ({"preset": "cnn"}, True, False),
        ({"preset": "vit"}, True, True),
        ({"preset": "none"}, False, False),
        *(
            ({"preset": "none", key: value}, True, key in ("mixup", "cutmix"))
            for key, value in [
                ("crop_padding", 2),
                ("crop_scale", (0.5, 1)),
                ("flip", 0.5),
                ("color_jitter", 0.4),
                ("rand_augment", "rand-m9"),
                ("mixup", 0.8),
                ("cutmix", 1),
                ("erasing", 0.25),
            ]
        ),
    ],
)
def test_knows_whether_views_differ_and_are_mixed(settings, varies, mixes):
    augment = AugmentConfig.model_validate(settings)
    assert (augment.varies, augment.mixes) == (varies, mixes)


def test_a_field_overrides_the_preset_also_with_nothing():
    resolved = AugmentConfig(preset="vit", rand_augment="", mixup=0, flip=0.1).resolved()
    assert (resolved.rand_augment, resolved.mixup, resolved.flip) == ("", 0, 0.1)
    assert resolved.cutmix == 1


def test_padding_takes_the_place_of_the_resized_crop():
    assert AugmentConfig(preset="cnn", crop_padding=4).resolved().crop_scale == (1, 1)


@pytest.mark.parametrize("preset", ["cnn", "vit", "none"])
@pytest.mark.parametrize("padding", [None, 4])
def test_what_is_resolved_is_a_config_that_resolves_to_itself(preset, padding):
    resolved = AugmentConfig(preset=preset, crop_padding=padding).resolved()
    again = AugmentConfig(**resolved.model_dump(mode="json"))
    assert again == resolved == again.resolved()
    assert None not in resolved.model_dump(exclude={"num_views", "view_seed"}).values()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop_scale": (0, 1)}, "0 < smallest"),
        ({"crop_scale": (0.5, 0.2)}, "0 < smallest"),
        ({"crop_scale": (0.5, 1.2)}, "0 < smallest"),
        ({"crop_scale": (0.5, 1), "crop_padding": 4}, "two kinds of crop"),
        ({"rand_augment": "m9"}, "rand-m9-mstd0.5-inc1"),
        ({"rand_augment": "rand-m9-x3"}, "rand-m9-mstd0.5-inc1"),
        ({"rand_augment": "rand-m9.5"}, "rand-m9-mstd0.5-inc1"),
        ({"flip": 1.5}, "flip"),
        ({"erasing": -0.1}, "erasing"),
        ({"mixup": -1}, "mixup"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"preset": "resnet"}, "preset"),
        ({"crop": 1}, "crop"),
    ],
)
def test_config_refuses(wrong, message):
    with pytest.raises(ValidationError, match=message):
        AugmentConfig(**wrong)


@pytest.mark.parametrize("policy", [{"preset": "vit"}, {"rand_augment": "rand-m9"}])
def test_what_pillow_cannot_rotate_by_is_refused(policy):
    with pytest.raises(ValidationError, match='"lanczos" needs rand_augment = ""'):
        AugmentConfig(**policy, interpolation="lanczos")
    assert AugmentConfig(preset="vit", rand_augment="", interpolation="lanczos").resolved()
