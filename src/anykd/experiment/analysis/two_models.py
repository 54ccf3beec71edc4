"""Compare the features of any two models."""

import csv
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from anykd.analysis import MinibatchCKA
from anykd.data import AugmentConfig, open_split
from anykd.engine import autocast, choose_dtype, launched
from anykd.errors import DataError, RecipeError
from anykd.experiment.teachers import load_with_weights
from anykd.files import json_text, write_atomically
from anykd.models import StagedModel, require_known
from anykd.models.probe import evaluating
from anykd.recipe import Recipe, TeacherConfig, apply_overrides, read_toml
from anykd.rundir import RunDir

from .images import ModelView, Shown
from .layers import LayerKind, ModelLayers

__all__ = ["Likeness", "analyze_models"]

_NAMES = ("cka.json", "cka.csv", "cka.svg", "cka.png")


@dataclass(frozen=True)
class Likeness:
    """How alike the layers of two models are.

    Attributes:
        models: What the two are called.
        rows: Layers of the first.
        columns: Layers of the second.
        cka: Linear CKA of each pair of layers, HSIC without bias; in about [0, 1].
        before: The same before the first was trained, where it is a run that the second taught and
            its stages are compared; else None.
        num_samples: Images that they were compared on.
    """

    models: tuple[str, str]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cka: list[list[float]]
    before: list[list[float]] | None
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Everything, in values that JSON has."""
        return {
            "models": list(self.models),
            "num_samples": self.num_samples,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "cka": self.cka,
            "before": self.before,
        }

    def text(self) -> str:
        """The numbers as a table."""
        first, second = self.models
        said = f"CKA of {first} (rows) with {second} (columns), {self.num_samples} images"
        tables = [f"{said}\n\n{self._table(self.cka)}"]
        if self.before is not None:
            tables.append(f"before {first} was trained\n\n{self._table(self.before)}")
        return "\n\n".join(tables)

    def csv(self) -> str:
        """The numbers as a spreadsheet takes them: one line per layer of the first model."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *self.columns])
        writer.writerows([name, *row] for name, row in zip(self.rows, self.cka, strict=True))
        return file.getvalue()

    def write(self, folder: Path) -> None:
        """Write ``cka.json``, ``cka.csv`` and the heat map as ``cka.svg`` and ``cka.png``.

        Args:
            folder: It is made where it is missing; files of these names in it are replaced.

        Raises:
            CheckpointError: If it cannot be written to.
        """
        from anykd.report.figures.cka import cka_heat_map  # matplotlib takes a second to import

        first, second = (Path(model).name or model for model in self.models)
        title = f"CKA on {self.num_samples} images"
        figure = cka_heat_map(
            self.cka, self.rows, self.columns, title=title, row_model=first, column_model=second
        )
        writers: tuple[Any, ...] = (
            lambda path: path.write_text(json_text(self.to_dict()) + "\n"),
            lambda path: path.write_text(self.csv()),
            figure.savefig,
            partial(figure.savefig, dpi=150),
        )
        for name, write in zip(_NAMES, writers, strict=True):
            write_atomically(folder / name, write)

    def _table(self, matrix: list[list[float]]) -> str:
        lines = [["", *self.columns]]
        for name, row in zip(self.rows, matrix, strict=True):
            lines.append([name, *(f"{value:.3f}" for value in row)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                [line[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            ).rstrip()
            for line in lines
        )


def analyze_models(
    first: str,
    second: str,
    data: str | None,
    *,
    layers: str = "stages",
    num_samples: int = 2000,
    image_size: int | None = None,
    overrides: list[str],
) -> Likeness:
    """Compare the features of two models on held-out images, by linear CKA.

    Args:
        first: A run directory, a timm architecture with pretrained weights, or ``hf-hub:NAME``.
        second: Likewise; it may be the same.
        data: A data spec; None takes that of the first run among the two.
        layers: ``stages`` or ``blocks``.
        num_samples: Images, at most; 4 or more.
        image_size: Pixels that both see; None takes each model's own.
        overrides: Single values of the recipe of data and precision, such as
            ``data.val_fraction=0.4``.

    Raises:
        AnykdError: If models or data cannot be had, or they cannot be compared.
    """
    if layers not in get_args(LayerKind):
        raise RecipeError(f"--layers {layers} is none of {', '.join(get_args(LayerKind))}")
    for name in (first, second):
        require_known(name)
    recipe = _recipe((first, second), data, overrides)
    splits = open_split(recipe.data, "val")
    with launched(device=recipe.train.device) as device:
        models = [_load(name, image_size, splits.num_classes) for name in (first, second)]
        if first == second:
            models[1] = models[0]
        compared = [ModelLayers(model.to(device), cast("LayerKind", layers)) for model in models]
        views = [ModelView(model.image_size, model.crop_pct) for model in models]
        shown = Shown(splits, recipe, num_samples)
        cka = MinibatchCKA(*(len(model.names) for model in compared))
        dtype = choose_dtype(recipe.train.precision, device)
        with torch.no_grad(), evaluating(models[0]), evaluating(models[1]):
            for batches in shown.batches(views, batch_size=shown.batch_size(1)):
                if len(batches[0]) < 4:
                    continue  # nothing can be estimated of so few
                seen: list[list[Tensor]] = []
                with autocast(device, dtype):
                    for model, batch in zip(compared, batches, strict=True):
                        seen.append(model(batch.images.to(device)))
                cka.update(*seen)
    if not cka.num_samples:
        raise DataError(
            f"{splits.name} has {len(splits.val)} images to compare models on, 4 are needed",
            hint="hold out more: --set data.val_fraction=0.5, or raise --num-samples",
        )
    rows, columns = (model.names for model in compared)
    matrix = [[round(value, 6) for value in row] for row in cka.compute().tolist()]
    before = _before(first, second) if layers == "stages" else None
    return Likeness((first, second), rows, columns, matrix, before, cka.num_samples)


def _recipe(names: tuple[str, str], data: str | None, overrides: list[str]) -> Recipe:
    """The images, and how they are shown: of the first that is a run, unless told otherwise."""
    runs = [RunDir(name).recipe for name in names]
    values = next((read_toml(path) for path in runs if path.is_file()), {})
    values = {key: values[key] for key in ("data", "augment", "train") if key in values}
    if data is not None:
        values["data"] = values.get("data", {}) | {"source": data}
    values["student"] = {"name": names[0]}
    values.setdefault("augment", AugmentConfig(preset="none").model_dump(exclude_none=True))
    values.setdefault("train", {"batch_size": 32})
    values = apply_overrides(values, overrides)
    if "data" not in values:
        raise RecipeError("no data is given", hint="give --data SPEC")
    return Recipe.from_dict(values)


def _load(name: str, image_size: int | None, num_classes: int) -> StagedModel:
    config = TeacherConfig(name=name, image_size=image_size)
    return load_with_weights(config, None, num_classes, new_head=True)


def _before(first: str, second: str) -> list[list[float]] | None:
    """What a run found when it began, where the second model is one of its teachers."""
    run = RunDir(first)
    if not run.analysis.is_file():
        return None
    found = run.read_json(run.analysis)
    for one in found.get("cka") or []:
        source = found["teachers"][one["teacher"]]["source"]
        if source == second or Path(source).resolve() == Path(second).resolve():
            return one["before"]
    return None
