"""``anykd export``: a trained student as files for deployment."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import Data, print_once

__all__ = ["export"]


class Format(StrEnum):
    """What a student is written as."""

    TIMM = "timm"
    ONNX = "onnx"
    TORCH = "torch"


def export(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            help="timm (the hub's layout with a model card), onnx, or torch (torch.export). "
            "Several may be given.",
            show_default="onnx",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the files.", show_default="RUN/export"),
    ] = None,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="onnx and torch take 8-bit RGB (batch, height, width, 3) and normalise inside.",
        ),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Write an ONNX file of 8-bit integers too, and what it costs."),
    ] = False,
    data: Data = None,
    num_images: Annotated[
        int, typer.Option(min=1, help="Held-out images to compare on, at most.")
    ] = 512,
    push: Annotated[
        str | None,
        typer.Option(help="Upload timm's folder to this repository of the Hugging Face Hub."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="A new repository is for all to see.")
    ] = False,
) -> None:
    """Write a run's student as files for deployment, run them on held-out images, and compare.

    A file that does not do what the student does is not kept, and the exit status is 2. --data is
    for other images of the same classes, where the run's own are not at hand.
    """
    from anykd.experiment.export import export_run
    from anykd.export import table

    done = export_run(
        run,
        [name.value for name in formats or [Format.ONNX]],
        out=out,
        data=data,
        num_images=num_images,
        with_preprocessing=with_preprocessing,
        int8=int8,
        push=push,
        public=public,
    )
    print_once(table(done))
    if push is not None:
        print_once(f"{'public' if public else 'private'}: https://huggingface.co/{push}")
