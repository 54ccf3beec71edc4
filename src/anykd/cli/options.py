"""What the commands share: their options, and how a result is printed."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "BatchSize",
    "Data",
    "Epochs",
    "Force",
    "ImageSize",
    "MethodNames",
    "Out",
    "RecipeArgument",
    "Resume",
    "Seed",
    "Set",
    "Student",
    "Teacher",
    "TeacherCache",
    "TeacherHead",
    "common_flags",
    "distill_flags",
    "is_first",
    "print_once",
]

RecipeArgument = Annotated[Path | None, typer.Argument(help="Recipe (TOML); flags replace parts.")]
Data = Annotated[
    str | None,
    typer.Option(
        # A backslash keeps a bracket from being taken for markup.
        help="Folder of class folders, digits, synthetic:CLASSESxN, cifar100\\[:ROOT] or another "
        "set of torchvision, hf:NAME\\[@SPLIT], parquet:PATH, or wds:URL (docs/guides/data.md)."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Replace one value of the recipe, e.g. train.peak_lr=5e-4."),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run in --out; begin it where nothing is there."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Train in spite of errors that the plan finds.")
]
Teacher = Annotated[
    list[str] | None,
    typer.Option(help="Run directory, or a model by name with weights. Several may be given."),
]
TeacherHead = Annotated[
    str | None,
    typer.Option(
        help="Where the teacher's classes are not the data's: probe fits a linear head on its "
        "features, finetune trains it first."
    ),
]
TeacherCache = Annotated[
    str | None,
    typer.Option(
        "--cache", help="Folder of the teacher's outputs (anykd cache build): it need not run."
    ),
]
Student = Annotated[
    str | None, typer.Option(help="A model by name (docs/guides/models.md), or a run directory.")
]
MethodNames = Annotated[
    list[str] | None,
    typer.Option("--method", help="See `anykd methods`. Several: ofa+fitnet.", show_default="ofa"),
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training set.")]
BatchSize = Annotated[int | None, typer.Option(help="Images per optimiser step.")]
ImageSize = Annotated[int | None, typer.Option(help="Pixels that the models see.")]
Seed = Annotated[int | None, typer.Option(help="Of every random choice but the data's split.")]


def distill_flags(
    teacher: list[str] | None,
    student: str | None,
    teacher_head: str | None,
    method: list[str] | None,
    cache: str | None = None,
) -> dict[str, Any]:
    """What the flags of models and methods set in a recipe."""
    return {
        "teacher.name": teacher or None,
        "teacher.cache": cache,
        "teacher.head": teacher_head,
        "student.name": student,
        "method.name": [name for names in method for name in names.split("+")] if method else None,
    }


def common_flags(
    data: str | None,
    epochs: int | None,
    batch_size: int | None,
    image_size: int | None,
    seed: int | None,
) -> dict[str, Any]:
    """What the flags of data and training set in a recipe."""
    return {
        "data.source": data,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "image_size": image_size,
        "seed": seed,
    }


def print_once(text: str) -> None:
    """Print a result; under torchrun on the first rank alone."""
    if is_first():
        typer.echo(text)


def is_first() -> bool:
    """Whether this process speaks for all ranks."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"
