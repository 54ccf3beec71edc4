"""What a plan says of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anykd.experiment.assemble import Parts
from anykd.experiment.flops import count_flops
from anykd.experiment.teacher_head import HeadScores
from anykd.experiment.teachers import BuiltTeacher
from anykd.models import StagedModel
from anykd.recipe import ModelConfig, TeacherConfig

__all__ = ["ModelFacts", "describe_models", "is_pretrained"]


@dataclass(frozen=True)
class ModelFacts:
    """A model as a person would want to know it.

    Attributes:
        role: ``student``, ``teacher``, or ``teacher 2`` where there are several.
        name: Architecture.
        source: What the recipe calls it.
        weights: Where its weights come from.
        kind: ``conv``, ``attention``, ``mlp`` or ``hybrid``.
        parameters: Numbers that it holds.
        flops: Floating-point operations of one image forward: twice the multiply-adds of matrix
            products and convolutions.
        image_size: (height, width) in pixels.
        interpolation: How other sizes are brought to this one.
        mean: Of each colour, in [0, 1].
        std: Of each colour.
        license: Of the weights, where their config names one.
        classes: How many it scores, and for a teacher how they are the data's.
        shapes: (chan, height, width) of its four stages.
        class_map: For a teacher whose classes are mapped: what the data calls each class, the
            teacher's index for it, and what the teacher calls it.
        width: Length of its pooled vector.
        num_classes: Length of its logits.
    """

    role: str
    name: str
    source: str
    weights: str
    kind: str
    parameters: int
    flops: int
    image_size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str | None
    classes: str
    shapes: tuple[tuple[int, int, int], ...]
    width: int
    num_classes: int
    class_map: tuple[tuple[str, int, str], ...] = ()


def describe_models(parts: Parts) -> tuple[ModelFacts, ...]:
    """Collect what is known of the student and then of each teacher."""
    recipe = parts.recipe
    student = _describe(
        parts.student,
        recipe.student,
        role="student",
        classes=_count(parts.student.num_classes),
    )
    several = len(parts.built) > 1
    teachers = [
        _describe(
            built.model.model,
            config,
            role=f"teacher {number}" if several else "teacher",
            classes=_classes(built),
            class_map=_class_map(built, parts.data.class_names),
        )
        # The control arm leaves the recipe's teachers alone.
        for number, (built, config) in enumerate(
            zip(parts.built, recipe.teachers, strict=False), start=1
        )
    ]
    return (student, *teachers)


def _describe(
    model: StagedModel,
    config: ModelConfig | TeacherConfig,
    *,
    role: str,
    classes: str,
    class_map: tuple[tuple[str, int, str], ...] = (),
) -> ModelFacts:
    return ModelFacts(
        role=role,
        name=model.name,
        source=config.name,
        weights=_origin(model, config),
        kind=model.kind,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=count_flops(model),
        image_size=model.image_size,
        interpolation=model.view.interpolation,
        mean=_rounded(model.view.mean),
        std=_rounded(model.view.std),
        license=_license(model, config),
        classes=classes,
        shapes=model.shapes,
        width=model.width,
        num_classes=model.num_classes,
        class_map=class_map,
    )


def _license(model: StagedModel, config: ModelConfig | TeacherConfig) -> str | None:
    """What a name's own weights come under; a config says nothing of others that it is used for."""
    own = is_pretrained(config) and config.weights is None and not Path(config.name).is_dir()
    return model.license if own else None


def _rounded(channels: Sequence[float]) -> tuple[float, ...]:
    """Plain numbers without the noise of float32."""
    return tuple(round(float(value), 6) for value in channels)


def _origin(model: StagedModel, config: ModelConfig | TeacherConfig) -> str:
    """Where a model's weights come from, and what of them was left out."""
    if model.loaded is not None:
        return str(model.loaded).removeprefix("weights of ")
    return config.name if is_pretrained(config) else "random"


def _classes(built: BuiltTeacher) -> str:
    """How many classes a teacher scores, and how it comes by them."""
    classes, count = built.classes, _count(built.model.num_classes)
    match classes.kind:
        case "equal":
            return f"{count}, the data's"
        case "mapped":
            return f"{count} of its {classes.num_own}, mapped"
        case "unnamed":
            return f"{count}, taken for the data's"
        case "own":
            return f"{count}, its own"
        case "probe":
            return f"{count}, by a linear probe{_probe_scores(classes.head)}"
        case "finetuned":
            return f"{count}, finetuned"
        case "none needed":
            return f"{_count(classes.num_own)}, not compared"


def _class_map(built: BuiltTeacher, names: Sequence[str]) -> tuple[tuple[str, int, str], ...]:
    chosen = built.classes.chosen
    if chosen is None:
        return ()
    own = built.classes.names or ("",) * len(chosen)
    return tuple(zip(names, chosen, own, strict=True))


def _probe_scores(head: HeadScores | None) -> str:
    if head is None:
        return ", fitted before training"
    if head.held_out_top1 is None:
        return ""
    return f": {head.held_out_top1:.2f} % on images left out of its fit"


def _count(num_classes: int) -> str:
    return str(num_classes) if num_classes else "none"


def is_pretrained(config: ModelConfig | TeacherConfig) -> bool:
    """Whether a model starts from weights."""
    named = isinstance(config, TeacherConfig) or config.pretrained
    return named or config.weights is not None or Path(config.name).is_dir()
