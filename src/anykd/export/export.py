"""A trained student as files for deployment, each of which is run before it is kept."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from anykd.errors import CheckpointError, ModelError, RecipeError, first_line, nearest
from anykd.files import json_text, make_folder, write_atomically, written
from anykd.models import StagedModel

from .card import CardFacts, model_card
from .exported import Exported
from .latency import measure_latency
from .parity import compare, first, run_in_batches
from .program import Program
from .signature import Signature, prepare
from .to_onnx import load_onnx, quantise, require_onnx, write_onnx
from .to_timm import load_folder, write_folder
from .to_torch import load_pt2, trace, write_pt2

__all__ = ["ExportFormat", "Samples", "Source", "check_formats", "export_student"]

ExportFormat = Literal["timm", "onnx", "torch"]
"""What a student can be exported to."""

Run = Callable[[Tensor], Tensor]
Pixels = UInt8[Tensor, "images 3 height width_px"]

BATCHES = (1, 32)
"""Sizes of the batches that every file is run on and timed with."""
_CALIBRATION_BATCH = 16


@dataclass(frozen=True)
class Samples:
    """Real images of the student's size.

    Attributes:
        held_out: To compare on.
        labels: Class indices of the held-out images; None where they have none that are the
            student's classes.
        training: To calibrate integers with; only that.
    """

    held_out: Pixels
    labels: Int[Tensor, " images"] | None
    training: UInt8[Tensor, "training_images 3 height width_px"]


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        student: As the run keeps it, in eval mode on the CPU.
        folder: Of its weights and config.
        recipe: File of the run's recipe.
        signature: How it takes images; each format decides for itself whether as bytes.
        card: What the model card tells.
        origin: Plain values that go into the metadata of every file: method, teachers and so on.
    """

    student: StagedModel
    folder: Path
    recipe: Path
    signature: Signature
    card: CardFacts
    origin: dict[str, Any]


def check_formats(formats: Sequence[str], *, int8: bool) -> tuple[ExportFormat, ...]:
    """Refuse what cannot be exported to, before any work.

    Args:
        formats: Names; one that is named twice counts once.
        int8: Whether integers are asked for.

    Raises:
        RecipeError: If a format is unknown, or integers are asked for without ONNX.
        ModelError: If packages are missing.
    """
    known = get_args(ExportFormat)
    for name in formats:
        if name not in known:
            raise RecipeError(f"--format {name} is unknown", hint=nearest(name, known))
    if not formats:
        raise RecipeError("no format is given", hint=f"known: {', '.join(known)}")
    if int8 and "onnx" not in formats:
        raise RecipeError("--int8 is for ONNX files", hint="add --format onnx")
    if "onnx" in formats:
        require_onnx()
    return tuple(name for name in known if name in formats)


def export_student(
    source: Source,
    out: Path,
    formats: Sequence[ExportFormat],
    samples: Samples,
    *,
    takes_bytes: bool = False,
    int8: bool = False,
) -> tuple[Exported, ...]:
    """Write a student in several formats. Each is run on real images, and kept if it holds.

    What was exported there before is replaced in one step, and stays where the new one fails.

    Args:
        source: What is exported.
        out: Folder of the files.
        formats: From `check_formats`.
        samples: Real images.
        takes_bytes: Whether ``onnx`` and ``torch`` take 8-bit RGB and normalise for themselves.
        int8: Whether an ONNX file of integers is written as well.

    Raises:
        ModelError: If the student cannot be exported, its own scores are no finite numbers, or a
            file does not do what it does.
        CheckpointError: If a file cannot be written.
    """
    logits = _logits(source.student, samples.held_out)
    _require_finite(logits)
    found = []
    with written(out):
        folders = make_folder(out)
    try:
        targets = _targets(source, out, formats, samples, takes_bytes=takes_bytes, int8=int8)
        for target in targets:
            done = _write(target, out / target.file, source, samples, logits)
            text = json_text(done.to_dict()) + "\n"
            write_atomically(done.report, partial(_write_text, text))
            found.append(done)
    finally:
        for folder in reversed(folders):
            with suppress(OSError):  # it is not empty
                folder.rmdir()
    return tuple(found)


def _require_finite(logits: Float[Tensor, "images classes"]) -> None:
    """Refuse a student that is broken itself: no file of it could be right.

    Raises:
        ModelError: If an output on a real image is NaN or infinite.
    """
    broken = int((~logits.isfinite()).any(dim=1).sum())
    if broken:
        raise ModelError(
            f"the student itself is broken: its outputs are not finite numbers on {broken} of "
            f"{len(logits)} held-out images, so no file could be compared with it",
            hint="its training has diverged: train it again, with a lower train.peak_lr",
        )


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class _Target:
    """One file: its format and name, what it is in words, how it is written, and loaded again."""

    format: str
    file: str
    words: str
    write: Callable[[Path], None]
    load: Callable[[Path], tuple[Run, dict[str, Any]]]


def _targets(
    source: Source,
    out: Path,
    formats: Sequence[ExportFormat],
    samples: Samples,
    *,
    takes_bytes: bool,
    int8: bool,
) -> Iterator[_Target]:
    """What is to be written, in order."""
    if "timm" in formats:
        _require_replaceable(out / "timm")
        card = model_card(source.card)
        write = partial(write_folder, source.folder, source.recipe, card)
        load = partial(load_folder, signature=source.signature)
        yield _Target("timm", "timm", "the folder for timm", write, load)
    if {"onnx", "torch"}.isdisjoint(formats):
        return
    signature = replace(source.signature, takes_bytes=takes_bytes)
    graph = trace(Program(source.student, signature), signature)
    facts = signature.to_dict() | {"origin": source.origin}
    if "torch" in formats:
        write = partial(write_pt2, graph, facts)
        yield _Target("torch", "model.pt2", "the .pt2 file", write, load_pt2)
    if "onnx" in formats:
        write = partial(write_onnx, graph, signature, facts)
        yield _Target("onnx", "model.onnx", "the ONNX file", write, load_onnx)
    if int8:
        inputs = prepare(samples.training, facts["input"]).split(_CALIBRATION_BATCH)
        write = partial(quantise, out / "model.onnx", inputs)
        words = "the ONNX file of 8-bit integers"
        yield _Target("onnx-int8", "model_int8.onnx", words, write, load_onnx)


def _require_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that no export made.

    Raises:
        CheckpointError: If it is one.
    """
    if folder.exists() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is there, and is no exported student", hint="give another folder: --out DIR"
        )


def _write(
    target: _Target, path: Path, source: Source, samples: Samples, logits: Tensor
) -> Exported:
    """Write a file under another name, and put it in place once it has been checked."""
    made: list[Exported] = []

    def write(new: Path) -> None:
        target.write(new)
        made.append(_checked(target, new, source, samples, logits))

    write_atomically(path, write)
    return replace(made[0], path=path)


def _checked(
    target: _Target, path: Path, source: Source, samples: Samples, logits: Tensor
) -> Exported:
    """Run what was written as its own metadata have it, and refuse it where it is not the student.

    Raises:
        ModelError: If it does not run, or says something else.
    """
    run, told = target.load(path)
    inputs = prepare(samples.held_out, told["input"])
    try:
        given = run_in_batches(run, inputs, BATCHES)
    except Exception as error:
        raise ModelError(
            f"{target.words} does not run on batches of {BATCHES[0]} and {BATCHES[1]} images: "
            f"{first_line(error)}; it was not kept",
            hint="the model's code may depend on the size of the batch",
        ) from error
    parity = compare(
        logits,
        given,
        samples.labels,
        has_classes=source.signature.num_classes > 0,
        is_exact=target.format != "onnx-int8",
    )
    parity.require(target.words)
    signature = replace(source.signature, takes_bytes=told["input"]["normalisation"] == "inside")
    eager = torch.inference_mode()(Program(source.student, signature))
    latency = tuple(measure_latency(eager, run, first(inputs, size)) for size in BATCHES)
    weights = path / "model.safetensors" if path.is_dir() else path
    return Exported(
        format=target.format,
        path=path,
        bytes=sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()),
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        parity=parity,
        latency=latency,
        facts=told,
    )


@torch.inference_mode()
def _logits(student: StagedModel, images: Pixels) -> Float[Tensor, "images classes"]:
    """What the student itself says, by the way that training and evaluation took."""
    return torch.cat([student(batch.float() / 255).logits for batch in images.split(BATCHES[-1])])
