"""The model card: what a stranger needs to know before using a student."""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCardData

from .signature import Signature
from .to_timm import Library

__all__ = ["CardFacts", "Maker", "model_card"]

_SHOWN_CLASSES = 50


@dataclass(frozen=True)
class Maker:
    """A model that a student's weights come from: a teacher, or the student before training.

    Attributes:
        name: Architecture.
        weights: Where its weights come from, in words.
        license: Of these weights, where it is known.
        top1: Accuracy on the same held-out images in percent, where it was scored.
    """

    name: str
    weights: str
    license: str | None
    top1: float | None = None


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells.

    Attributes:
        name: Architecture of the student.
        method: Names of the methods.
        data: What it was trained on.
        start: What the student was before training.
        teachers: Who taught it; nobody in the control arm.
        parameters: Numbers that it holds.
        signature: What it takes and gives.
        library: Who loads it.
        top1: Percent of held-out images whose best class is the label; None without labels.
        agreement: Percent for which student and teacher choose the same; None where not measured.
        num_samples: Held-out images of both; None where nothing was scored.
        seed: Of its random choices.
        epochs: Passes over the training images.
        train_samples: How many these are.
        versions: Of packages, by name.
    """

    name: str
    method: str
    data: str
    start: Maker
    teachers: tuple[Maker, ...]
    parameters: int
    signature: Signature
    library: Library
    top1: float | None
    agreement: float | None
    num_samples: int | None
    seed: int
    epochs: int
    train_samples: int
    versions: dict[str, str]


def model_card(facts: CardFacts) -> str:
    """Write the card: YAML that the hub reads, and Markdown that people read.

    Names come from users' folders and may be any text; none of them ends a line, opens a tag or a
    link, or leaves its place in the YAML.
    """
    sections = [
        f"# {_text(facts.name)}, taught by {_text(facts.method)}",
        _opening(facts),
        "## Numbers",
        _numbers(facts),
        "## Use",
        _use(facts),
        "## Images and classes",
        _images(facts.signature),
        "## Licence",
        _licence(facts),
        "## Make it again",
        _again(facts),
    ]
    return f"---\n{_front_matter(facts)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    is_classifier = facts.signature.num_classes > 0
    found = ModelCardData(
        # The hub's word for a licence that nobody has named.
        license="unknown",
        library_name="timm" if facts.library == "timm" else facts.library,
        pipeline_tag="image-classification" if is_classifier else "image-feature-extraction",
        tags=["anykd", "knowledge-distillation", "image-classification"],
    )
    return found.to_yaml().strip()


def _opening(facts: CardFacts) -> str:
    size = " x ".join(map(str, facts.signature.image_size))
    said = f"An image model of {facts.parameters:,} parameters for images of {size} px, trained on "
    said += f"{_code(facts.data)} "
    if not facts.teachers:
        return said + "with labels alone by anykd."
    names = ", ".join(_code(one.name) for one in facts.teachers)
    return said + f"from {names} by the method {_code(facts.method)} of anykd."


def _numbers(facts: CardFacts) -> str:
    if facts.num_samples is None:
        return "It was not scored: there was nothing to score it by."
    rows = [("", "top-1 (%)")]
    if facts.top1 is not None:
        rows.append(("this student", f"{facts.top1:.2f}"))
    rows += [
        (f"teacher {_code(one.name)}", f"{one.top1:.2f}")
        for one in facts.teachers
        if one.top1 is not None
    ]
    if facts.agreement is not None:
        rows.append(("same class as the first teacher", f"{facts.agreement:.2f}"))
    lines = [f"| {name} | {value} |" for name, value in rows]
    lines.insert(1, "|---|---|")
    seed = f"On {facts.num_samples:,} held-out images, one training with seed {facts.seed}."
    return "\n".join(lines) + f"\n\n{seed}"


def _use(facts: CardFacts) -> str:
    if facts.library == "timm":
        lines = [
            "import timm",
            'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()'
            "  # or hf-hub:NAME",
            "config = timm.data.resolve_model_data_config(model)",
            "transform = timm.data.create_transform(**config, is_training=False)",
        ]
        note = ""
    elif facts.library == "transformers":
        lines = [
            "from transformers import AutoImageProcessor, AutoModelForImageClassification",
            'model = AutoModelForImageClassification.from_pretrained("FOLDER")',
            'processor = AutoImageProcessor.from_pretrained("FOLDER")',
        ]
        note = ""
    else:
        lines = [
            "from anykd.models import create_staged",
            'model = create_staged("local-dir:FOLDER", pretrained=True).eval()',
            "logits = model(images).logits  # images: RGB in [0, 1]; it normalises for itself",
        ]
        note = "\n\nNo other library makes this model by a name, so that anykd loads it."
    return "```python\n" + "\n".join(lines) + "\n```" + note


def _images(signature: Signature) -> str:
    told = signature.to_dict()
    before = told["before"]
    lines = [
        f"- RGB, resized ({before['interpolation']}) to {before['resize_short_side']} px and "
        f"cropped to {signature.image_size[0]} x {signature.image_size[1]} px in the centre",
        f"- normalised by mean {_list(signature.mean)} and deviation {_list(signature.std)} of "
        "R, G and B in [0, 1]",
    ]
    if not signature.num_classes:
        lines.append("- it has no classifier: it gives a vector for each image")
    elif not signature.class_names:
        lines.append(f"- {signature.num_classes} classes, whose names are not known")
    else:
        names = signature.class_names
        shown = ", ".join(_code(name) for name in names[:_SHOWN_CLASSES])
        more = len(names) - _SHOWN_CLASSES
        rest = f" and {more} more; all stand in `config.json`" if more > 0 else ""
        lines.append(f"- {len(names)} classes: {shown}{rest}")
    return "\n".join(lines)


def _licence(facts: CardFacts) -> str:
    lines = [
        "No licence has been named for these weights. Who publishes them chooses one, and may be "
        "bound by the licences of the images and of the weights that they come from:",
        "",
    ]
    makers = [*(("teacher", one) for one in facts.teachers), ("student", facts.start)]
    for role, one in makers:
        known = _code(one.license) if one.license else "not known"
        lines.append(f"- {role} {_code(one.name)}, weights {_text(one.weights)}: {known}")
    lines.append(f"- images {_code(facts.data)}: not known")
    return "\n".join(lines)


def _again(facts: CardFacts) -> str:
    command = "anykd distill" if facts.teachers else "anykd train"
    versions = ", ".join(f"{_text(name)} {_text(value)}" for name, value in facts.versions.items())
    trained = f"{facts.epochs} epochs over {facts.train_samples:,} images"
    return f"```\n{command} recipe.toml\n```\n\n{trained}, seed {facts.seed}; {versions}."


def _text(given: str) -> str:
    """Any text as one line of Markdown that means itself."""
    line = html.escape(" ".join(given.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", line)


def _code(given: str) -> str:
    """Any text as code in a line or cell, where HTML means itself; quoted where it is not plain."""
    line = given if re.fullmatch(r"[\w .,:/@+=()\-]+", given) else json.dumps(given)
    # Within a code span a backtick would end it, and a bar a cell of a table.
    return "`" + line.replace("`", "'").replace("|", "¦") + "`"


def _list(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
