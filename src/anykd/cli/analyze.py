"""``anykd analyze``: how alike two models' features are."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Data, ImageSize, Set, is_first, print_once

__all__ = ["analyze"]

_MODEL = "Run directory, or a model by name with weights."


def analyze(
    first: Annotated[str, typer.Argument(metavar="A", help=_MODEL)],
    second: Annotated[str, typer.Argument(metavar="B", help=f"{_MODEL} It may be A.")],
    data: Data = None,
    layers: Annotated[
        str, typer.Option(help="What is compared: stages, or blocks, which are many.")
    ] = "stages",
    num_samples: Annotated[int, typer.Option(min=4, help="Images, at most.")] = 2000,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for cka.json, cka.csv, cka.svg and cka.png."),
    ] = None,
    image_size: ImageSize = None,
    overrides: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Compare every stage of one model with every stage of another, by CKA, on held-out images."""
    from anykd.experiment.analysis.two_models import analyze_models
    from anykd.files import json_text

    found = analyze_models(
        first,
        second,
        data,
        layers=layers,
        num_samples=num_samples,
        image_size=image_size,
        overrides=overrides or [],
    )
    print_once(json_text(found.to_dict()) if as_json else found.text())
    if out is not None and is_first():
        found.write(out)
