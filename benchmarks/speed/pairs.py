"""What is measured: pairs of models, the images that they are trained on, and their recipes."""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from anykd.models import create_staged
from anykd.recipe import Recipe

__all__ = ["METHODS", "PAIRS", "Pair", "Setting", "recipe_of", "write_images", "write_teacher"]

METHODS = ("control", "kd", "dkd", "dist", "rsd", "ofa", "fbt")
CLASSES = 100
STEPS = 80
"""Steps of an epoch, at least: those that are timed, those before, and what workers do ahead."""
CACHED_STEPS = 16
"""Steps of an epoch from a cache on a processor, which takes long to build one."""
PHOTOS = 16
"""Files that differ; the others are links to them."""
PHOTO = (500, 375)
"""(width, height) of the files, about what ImageNet's have."""


@dataclass(frozen=True)
class Pair:
    """A teacher and a student.

    Attributes:
        teacher: The ``[teacher]`` table, without weights.
        student: The ``[student]`` table.
        augment: The ``[augment]`` table.
        image_size: Pixels that both models see.
        batch: Images per step, by type of device.
        data: Files of JPEG, or CIFAR-100's arrays.
    """

    teacher: dict[str, Any]
    student: dict[str, Any]
    augment: dict[str, Any]
    image_size: int = 224
    batch: dict[str, int] = field(default_factory=lambda: {"cpu": 8, "cuda": 128})
    data: Literal["files", "arrays"] = "files"


@dataclass(frozen=True)
class Setting:
    """How a pair is run.

    Attributes:
        device: Where.
        batch: Images per step.
        precision: As recipes name it.
        compile: Whether models and method are compiled, as ``train.compile`` has it.
        window: Seconds of work that are timed at once, about.
    """

    device: torch.device
    batch: int
    precision: str = "float32"
    compile: bool | str = False
    window: float = 2.0


_CNN, _VIT = {"preset": "cnn"}, {"preset": "vit"}

PAIRS = {  # teacher_student
    "swin-t_resnet18": Pair({"name": "swin_tiny_patch4_window7_224"}, {"name": "resnet18"}, _CNN),
    "convnext-t_deit-t": Pair({"name": "convnext_tiny"}, {"name": "deit_tiny_patch16_224"}, _VIT),
    "vit-s_mobilenetv2": Pair({"name": "vit_small_patch16_224"}, {"name": "mobilenetv2_100"}, _CNN),
    "mixer-b16_resmlp-s12": Pair({"name": "mixer_b16_224"}, {"name": "resmlp_12_224"}, _VIT),
    "cifar_resnet18_vit": Pair(
        {"name": "resnet18", "stem": "small"},
        {"name": "vit_tiny_patch16_224", "options": {"patch_size": 4, "depth": 6}},
        {"preset": "cnn", "crop_padding": 4},
        image_size=32,
        batch={"cpu": 64, "cuda": 512},
        data="arrays",
    ),
}


def write_teacher(pair: Pair, path: Path) -> None:
    """Write random weights of a teacher of 100 classes: its speed counts."""
    torch.manual_seed(0)
    table: dict[str, Any] = dict(pair.teacher)
    name, options = table.pop("name"), table.pop("options", {})
    size = {"num_classes": CLASSES, "image_size": pair.image_size}
    staged = create_staged(name, **size, **table, **options)
    state = {name: value.contiguous() for name, value in staged.model.state_dict().items()}
    save_file(state, path)


def write_images(pair: Pair, batch: int, folder: Path) -> str:
    """Write images of random pixels.

    Returns:
        The data spec.
    """
    return _WRITERS[pair.data](batch, folder)


def _write_files(batch: int, folder: Path) -> str:
    """Class folders of JPEGs, most of them links to a few."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    photos = [folder / f"{number}.jpg" for number in range(PHOTOS)]
    for path in photos:
        _photo(rng).save(path, quality=90)
    each, again = -(-STEPS * batch // CLASSES), itertools.cycle(photos)
    for label in range(CLASSES):
        for split, count in (("train", each), ("val", 1)):
            inside = folder / "classes" / split / f"class {label:03}"
            inside.mkdir(parents=True)
            for number in range(count):
                os.link(next(again), inside / f"{number}.jpg")
    return str(folder / "classes")


def _photo(rng: np.random.Generator) -> Image.Image:
    """Large smooth shapes and a little noise: about as many bytes a pixel as photos take."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(PHOTO, Image.Resampling.BICUBIC), dtype=np.float32)
    noisy = smooth + rng.normal(0, 9, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _write_arrays(batch: int, folder: Path) -> str:
    """CIFAR-100's tiles; each image has one colour, so that the files are quickly written."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in (*(f"train-{i}" for i in range(5)), "test-0"):
        colours = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
        tiles = Image.fromarray(colours.repeat(32, axis=0).repeat(32, axis=1))
        tiles.save(folder / f"{name}.webp", lossless=True, method=0)
    train, test = (np.arange(count) % CLASSES for count in (50_000, 10_000))
    np.savez(folder / "labels.npz", train_fine=train, test_fine=test)
    names = ", ".join(f'"class {label:03}"' for label in range(CLASSES))
    (folder / "class_names.json").write_text(f'{{"fine_label_names": [{names}]}}')
    return f"cifar100:{folder}"


_WRITERS: dict[str, Callable[[int, Path], str]] = {"files": _write_files, "arrays": _write_arrays}


def recipe_of(
    pair: Pair,
    method: str,
    setting: Setting,
    *,
    weights: Path,
    source: str,
    cache: Path | None = None,
    cached_views: bool = False,
    **train: Any,
) -> Recipe:
    """A recipe with everything on that a real run has.

    Args:
        pair: Who teaches whom.
        method: By its name.
        setting: How.
        weights: Of the teacher.
        source: The data spec.
        cache: The teacher's stored outputs.
        cached_views: Show the images and views of a cache, with it or without.
        **train: Of the ``[train]`` table, over what is set here.
    """
    teacher = pair.teacher | {"weights": str(weights)}
    data: dict[str, Any] = {"source": source}
    augment = dict(pair.augment)
    if cache is not None:
        teacher["cache"] = str(cache)
    if cached_views:
        steps = CACHED_STEPS if setting.device.type == "cpu" else STEPS
        data["limit"] = max(CLASSES, steps * setting.batch)
        augment["num_views"] = 1
    return Recipe.from_dict(
        {
            "image_size": pair.image_size,
            "student": pair.student,
            "teacher": teacher,
            "method": {"name": method},
            "data": data,
            "augment": augment,
            "train": {
                "epochs": 10_000,
                "batch_size": setting.batch,
                "precision": setting.precision,
                "compile": setting.compile,
                "device": setting.device.type,
                "ema_decay": 0.999,
            }
            | train,
        }
    )
