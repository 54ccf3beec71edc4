"""The command line: reads arguments, calls one function, prints its result.

Results go to standard output, progress and errors to standard error. Exit status: 0 done, 1 a bug,
2 something that the user can mend. torch and timm take seconds to import, so commands import them.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from anykd import __version__
from anykd.errors import AnykdError, StoppedError

from .analyze import analyze
from .cache import app as cache_app
from .export import export
from .options import (
    BatchSize,
    Data,
    Epochs,
    Force,
    ImageSize,
    MethodNames,
    Out,
    RecipeArgument,
    Resume,
    Seed,
    Set,
    Student,
    Teacher,
    TeacherCache,
    TeacherHead,
    common_flags,
    distill_flags,
    is_first,
    print_once,
)
from .report import report

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil any vision teacher into any vision student: CNN, transformer, MLP or hybrid.",
)
app.add_typer(cache_app, name="cache")
app.command()(export)
app.command()(report)
app.command()(analyze)


def _version(value: bool) -> bool:
    if value:
        typer.echo(f"anykd {__version__}")
        raise typer.Exit
    return value


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the runs.")] = Path(
        "runs/demo"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="How often each arm is trained.")] = 3,
) -> None:
    """Run the main job on bundled images: a ViT teaches a small CNN by control, KD, OFA and FBT."""
    from anykd.demo import run_demo

    typer.echo(run_demo(out, num_seeds=seeds))


@app.command()
def distill(
    recipe: RecipeArgument = None,
    teacher: Teacher = None,
    student: Student = None,
    data: Data = None,
    teacher_head: TeacherHead = None,
    cache: TeacherCache = None,
    method: MethodNames = None,
    out: Out = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    seed: Seed = None,
    overrides: Set = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train a student from a teacher and write the run to --out."""
    if not method and recipe is None and not _goes_on(resume, out):
        method = ["ofa"]
    flags = distill_flags(teacher, student, teacher_head, method, cache)
    common = common_flags(data, epochs, batch_size, image_size, seed)
    _train(recipe, flags | common, overrides, out, resume, force)


@app.command()
def plan(
    recipe: RecipeArgument = None,
    teacher: Teacher = None,
    student: Student = None,
    data: Data = None,
    teacher_head: TeacherHead = None,
    cache: TeacherCache = None,
    method: MethodNames = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    seed: Seed = None,
    overrides: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    steps: Annotated[
        int, typer.Option(min=0, help="Training steps to measure; 0 measures nothing.")
    ] = 5,
) -> None:
    """Show what distilling would do and cost, and every misfit found; nothing is written.

    The exit status is 2 where something is wrong that would stop it.
    """
    from anykd.experiment import load_recipe, make_plan
    from anykd.files import json_text

    if not method and recipe is None:
        method = ["ofa"]
    flags = distill_flags(teacher, student, teacher_head, method, cache)
    common = common_flags(data, epochs, batch_size, image_size, seed)
    made = make_plan(load_recipe(recipe, flags | common, overrides or []), steps=steps)
    if as_json:
        typer.echo(json_text(made.to_dict()))
    else:
        width = min(shutil.get_terminal_size().columns, 100)
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        typer.echo(made.text(width=width, color=color))
    if made.errors:
        raise typer.Exit(2)


@app.command()
def train(
    recipe: RecipeArgument = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model by name (docs/guides/models.md), or a run directory."),
    ] = None,
    data: Data = None,
    out: Out = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    seed: Seed = None,
    overrides: Set = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train one model with labels alone, a teacher or a baseline, and write the run to --out."""
    goes_on = _goes_on(resume, out)
    flags = {"student.name": model, "method.name": None if goes_on else "control"}
    common = common_flags(data, epochs, batch_size, image_size, seed)
    _train(recipe, flags | common, overrides, out, resume, force)


def _goes_on(resume: bool, out: Path | None) -> bool:
    """Whether a run's own recipe says what to do, or nothing does."""
    return resume and (out is None or (out / "recipe.toml").is_file())


def _train(
    recipe: Path | None,
    flags: dict[str, Any],
    overrides: list[str] | None,
    out: Path | None,
    resume: bool,
    force: bool,
) -> None:
    from anykd.experiment import load_recipe, run

    if resume and recipe is None and out is None:
        raise AnykdError("--resume does not say which run", hint="give its folder: --out DIR")
    loaded = load_recipe(recipe, flags, overrides or [], resume_from=out if resume else None)
    result = run(loaded, out, resume=resume, force=force)
    found = result.summary
    if "top1" in found:
        said = f"top-1 {found['top1']:.2f} %"
    elif "agreement" in found:
        said = f"agreement with the teacher {found['agreement']:.2f} %"
    else:
        said = "trained, and not scored: there is nothing to score it by"
    print_once(f"{said}  {result.path}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Run directory, or a model by name with weights.")],
    data: Data = None,
    weights: Annotated[str | None, typer.Option(help="File of weights for that name.")] = None,
    split: Annotated[
        str, typer.Option(help="Which images: val (held out), train, or all of them.")
    ] = "val",
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Model to be compared with.", show_default="a run's teacher, if it is a run"
        ),
    ] = None,
    image_size: ImageSize = None,
    overrides: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Score a model or a finished run on held-out images, or others by --split.

    --set changes the run's recipe, in which the model is the student: --set student.mean=0.5.
    """
    from anykd.experiment import evaluate_model
    from anykd.files import json_text

    found = evaluate_model(
        model,
        data,
        teacher=teacher,
        image_size=image_size,
        weights=weights,
        split=split,
        overrides=overrides or [],
    )
    print_once(json_text(found.to_dict()) if as_json else found.text())


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as '*vit*tiny*'.")] = "*",
    image_size: Annotated[
        int | None, typer.Option(help="Show the four stages at so many pixels.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the models: patch_size=4.")
    ] = None,
) -> None:
    """List the models that can be built by name, or show what they are like at an image size."""
    from anykd.models import describe_model, describe_models, model_names, require_known

    names = model_names(pattern)
    if not names and any(sign in pattern for sign in "*?["):
        raise AnykdError(f"no model matches {pattern!r}", hint="patterns are like '*mobilenet*'")
    if not names:
        require_known(pattern)  # such as FILE.py:FACTORY, which no pattern finds
        names = [pattern]
    if image_size is None and not options:
        typer.echo("\n".join(names))
        return
    from anykd.recipe import apply_overrides

    given = apply_overrides({}, options or [])
    if len(names) == 1:
        typer.echo(describe_model(names[0], image_size, **given))
        return
    for line in describe_models(names, image_size, **given):
        typer.echo(line)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show the fields of this method.")] = None,
) -> None:
    """List the methods, or the fields of one."""
    from anykd.methods import METHODS, describe_method

    if name is not None:
        typer.echo(describe_method(name))
        return
    for key, method in METHODS.items():
        typer.echo(f"{key:8} {(method.__doc__ or '').splitlines()[0]}")


def main() -> None:
    """Run the command line; an error that the user can mend is one line, a hint and status 2."""
    # Idle OpenMP threads spin for long by default. Beside any other work on the same cores that
    # made small models train 9 times slower, and a short spin costs nothing on idle ones
    # (docs/log.md). It must be set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except StoppedError as stopped:
        if is_first():
            typer.echo(str(stopped), err=True)
        sys.exit(stopped.status)
    except AnykdError as error:
        typer.echo(f"error: {error}", err=True)
        if error.hint:
            typer.echo(f"hint: {error.hint}", err=True)
        sys.exit(2)
