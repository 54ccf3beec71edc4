"""Export a finished run's student: load the run, find real images to compare on, write files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from anykd.data import DataSplits, Reader, SubsetReader, open_data
from anykd.errors import CheckpointError, DataError, RecipeError
from anykd.export import (
    CardFacts,
    Exported,
    Maker,
    Samples,
    Signature,
    Source,
    check_formats,
    check_push,
    export_student,
    library_of,
    push_folder,
)
from anykd.files import expanded
from anykd.models import StagedModel, create_staged
from anykd.recipe import Recipe, read_toml
from anykd.report.record import RunRecord, read_run
from anykd.rundir import RunDir

from .apart import require_apart
from .assemble import eval_loader

__all__ = ["export_run"]

_CALIBRATION = 256
"""Training images that show the ranges of activations; more change the integers little."""


def export_run(
    run: str | Path,
    formats: Sequence[str] = ("onnx",),
    *,
    out: str | Path | None = None,
    data: str | None = None,
    num_images: int = 512,
    with_preprocessing: bool = False,
    int8: bool = False,
    push: str | None = None,
    public: bool = False,
) -> tuple[Exported, ...]:
    """Write the student of a finished run as files for deployment, and compare them with it.

    Every file is run on held-out images of the run's data before it is put in place; beside it
    lies ``NAME.json`` with what was found. The run's other files stay as they are.

    Args:
        run: A run directory.
        formats: Of ``timm``, ``onnx`` and ``torch``.
        out: Folder of the files; None takes ``RUN/export``. Files of their names are replaced.
        data: A data spec with the run's classes, where its own images are not at hand.
        num_images: Held-out images to compare on, at most; they are spread over all.
        with_preprocessing: Whether ``onnx`` and ``torch`` take 8-bit RGB, (batch, height, width,
            3), and normalise for themselves.
        int8: Whether an ONNX file of 8-bit integers is written too, calibrated on training images.
        push: Repository on the Hugging Face Hub to which timm's folder is uploaded.
        public: Whether that repository, where it is new, is for all to see.

    Raises:
        AnykdError: If something given does not fit, packages are missing, the run or its images
            cannot be had, or a file does not do what the student does.
    """
    chosen = check_formats(formats, int8=int8)
    if num_images < 1:
        raise RecipeError("at least one image is needed to compare on")
    if push is not None:
        check_push(push, chosen)
    directory = RunDir(run)
    if not directory.finished:
        raise CheckpointError(
            f"{run} is no finished run: it has no summary.json",
            hint="give the --out folder of a training that came to its end",
        )
    record = read_run(run)
    recipe = _recipe(directory, data)
    folder = directory.path / "export" if out is None else expanded(out)
    require_apart(recipe, folder, "export")
    student = create_staged(str(run)).eval()
    splits = _open(recipe)
    source = _source(directory, record, recipe, student)
    calibration = _CALIBRATION if int8 else 0
    samples = _samples(splits, recipe, student, num_images, calibration)
    done = export_student(
        source, folder, chosen, samples, takes_bytes=with_preprocessing, int8=int8
    )
    if push is not None:
        push_folder(folder / "timm", push, public=public)
    return done


def _recipe(directory: RunDir, data: str | None) -> Recipe:
    values = read_toml(directory.recipe)
    if data is not None:
        values["data"] = values["data"] | {"source": data}
    return Recipe.from_dict(values, source=str(directory.recipe))


def _open(recipe: Recipe) -> DataSplits:
    try:
        return open_data(recipe.data)
    except DataError as error:
        raise DataError(
            f"there are no images to compare on: {error}",
            hint="bring them back, or give others of the same classes: --data SPEC",
        ) from error


def _samples(
    splits: DataSplits, recipe: Recipe, student: StagedModel, num_images: int, calibration: int
) -> Samples:
    held_out, labels = _pixels(splits, splits.val, recipe, student, num_images)
    names = student.class_names
    same = names == splits.class_names or (not names and splits.num_classes == student.num_classes)
    training = held_out[:0]
    if calibration:
        training, _ = _pixels(splits, splits.train, recipe, student, calibration)
    return Samples(held_out, labels if same else None, training)


def _pixels(
    splits: DataSplits, reader: Reader, recipe: Recipe, student: StagedModel, count: int
) -> tuple[UInt8[Tensor, "images 3 height width_px"], Int[Tensor, " images"] | None]:
    """Some images of a reader as evaluation crops them, and their labels."""
    spread = np.linspace(0, len(reader) - 1, min(count, len(reader))).round().astype(int)
    chosen = replace(splits, val=SubsetReader(reader, spread.tolist()))
    batches = list(eval_loader(chosen, recipe, student.image_size, recipe.student.crop_pct))
    if not batches:
        raise DataError(
            f"no image of {splits.name} can be read", hint="mend them, or give others: --data SPEC"
        )
    # They were bytes before they were divided by 255, so that nothing is lost.
    images = torch.cat([(batch.images * 255).round().to(torch.uint8) for batch in batches])
    labels = [batch.labels.argmax(dim=1) for batch in batches if batch.labels is not None]
    return images, torch.cat(labels) if labels else None


def _source(directory: RunDir, record: RunRecord, recipe: Recipe, student: StagedModel) -> Source:
    crop_pct = recipe.student.crop_pct
    signature = Signature(
        image_size=student.image_size,
        mean=student.view.mean,
        std=student.view.std,
        interpolation=recipe.augment.interpolation,
        crop_pct=recipe.augment.crop_pct if crop_pct is None else crop_pct,
        class_names=student.class_names,
        num_classes=student.num_classes,
    )
    card = _card_facts(directory, record, recipe, student, signature)
    origin = {
        "student": card.name,
        "method": card.method,
        "teachers": [teacher.name for teacher in card.teachers],
        "data": card.data,
        "seed": card.seed,
        "versions": card.versions,
    }
    return Source(student, directory.student, directory.recipe, signature, card, origin)


def _card_facts(
    directory: RunDir,
    record: RunRecord,
    recipe: Recipe,
    student: StagedModel,
    signature: Signature,
) -> CardFacts:
    summary = record.summary
    models: list[dict[str, Any]] = record.plan.get("models", [])
    scored = {number: teacher.get("top1") for number, teacher in enumerate(summary["teachers"])}
    planned = [model for model in models if model["role"] != "student"]
    teachers = tuple(
        replace(_maker(model), top1=scored.get(number)) for number, model in enumerate(planned)
    )
    start = _started_from(directory)
    return CardFacts(
        name=summary["student"],
        method=summary["method"],
        data=_shared_name(record.recipe["data"]["source"]),
        start=start or Maker(summary["student"], "not known", None),
        teachers=teachers,
        parameters=sum(parameter.numel() for parameter in student.model.parameters()),
        signature=signature,
        library=library_of(directory.student),
        top1=summary.get("top1"),
        agreement=summary.get("agreement"),
        num_samples=summary.get("num_samples"),
        seed=record.seed,
        epochs=summary["epochs"],
        train_samples=summary["train_samples"],
        versions=record.environment.get("packages", {}),
    )


def _maker(model: dict[str, Any]) -> Maker:
    """A model of a plan, without the folders of this machine."""
    folder = expanded(model["source"])
    if not folder.is_dir():
        return Maker(model["name"], model["weights"], model["license"])
    before = _started_from(RunDir(folder))
    if before is None:
        return Maker(model["name"], "trained by anykd", model["license"])
    return Maker(model["name"], f"trained by anykd from: {before.weights}", before.license)


def _started_from(directory: RunDir) -> Maker | None:
    """What the student of another run was before training, where that run still tells."""
    plan = directory.read_json(directory.plan) if directory.plan.is_file() else {}
    models = plan.get("models", [])
    return next((_maker(model) for model in models if model["role"] == "student"), None)


def _shared_name(source: str) -> str:
    """A data spec without the folders above it, which say nothing to others."""
    kind, colon, rest = source.partition(":")
    path = expanded(rest if colon else source)
    if not path.is_dir():
        return source
    return f"{kind}:{path.name}" if colon else path.name
