"""``anykd cache``: a teacher's outputs, stored once for many students."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Data,
    ImageSize,
    MethodNames,
    RecipeArgument,
    Seed,
    Set,
    TeacherHead,
    common_flags,
    distill_flags,
    print_once,
)

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Store a teacher's outputs once, for many students, methods and seeds.",
)

CachePath = Annotated[Path, typer.Argument(help="Folder of the cache.")]


class StoredType(StrEnum):
    """Type of what is stored."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


@app.command()
def build(
    recipe: RecipeArgument = None,
    teacher: Annotated[
        str | None, typer.Option(help="Run directory, or a model by name with weights.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="Who it is for, where that one sees larger images than the teacher."),
    ] = None,
    data: Data = None,
    teacher_head: TeacherHead = None,
    method: MethodNames = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Its folder.", show_default="teacher.cache"),
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Different views of each image; epochs show them in turn.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep the best K class scores.", show_default="all")
    ] = None,
    dtype: Annotated[StoredType, typer.Option(help="Type of what is stored.")] = StoredType.FLOAT16,
    pooled: Annotated[
        bool | None,
        typer.Option(
            "--pooled/--no-pooled",
            help="Keep the vectors before the classifier.",
            show_default="where a method reads them",
        ),
    ] = None,
    number: Annotated[int, typer.Option(help="Which of several teachers, from 1.")] = 1,
    image_size: ImageSize = None,
    seed: Seed = None,
    overrides: Set = None,
) -> None:
    """Run the teacher over every view that training will show, and store what it says.

    The same command goes on where it was stopped. Several ranks share the work under torchrun.
    """
    from anykd.experiment import build_cache, cache_recipe

    flags = distill_flags([teacher] if teacher else None, student, teacher_head, method)
    common = common_flags(data, None, None, image_size, seed) | {"augment.num_views": views}
    loaded, folder = cache_recipe(recipe, flags | common, overrides or [], out=out, number=number)
    built = build_cache(
        loaded, folder, number=number, top_k=top_k, dtype=dtype.value, pooled=pooled
    )
    print_once(built.summary)


@app.command()
def verify(
    path: CachePath,
    samples: Annotated[int, typer.Option(min=1, help="Views to look at again.")] = 256,
    seed: Annotated[int, typer.Option(help="Decides which views.")] = 0,
) -> None:
    """Read every file again, and ask the live teacher about a random sample.

    The exit status is 2 where a file is damaged or an answer differs by more than rounding.
    """
    from anykd.experiment import verify_cache

    found = verify_cache(path, samples=samples, seed=seed)
    typer.echo(found.text)
    if not found.holds:
        raise typer.Exit(2)


@app.command()
def info(
    path: CachePath,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show what a cache was made of, and what it can serve."""
    from anykd.experiment import describe_cache, open_cache
    from anykd.files import json_text

    cache = open_cache(path)
    if as_json:
        manifest = cache.manifest.model_dump(mode="json")
        typer.echo(json_text(manifest))
        return
    typer.echo(describe_cache(cache))
