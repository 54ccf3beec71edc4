"""What a model's classes are called, and which of them a data set's classes are."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset

from .staged import StagedModel

__all__ = ["ClassMatch", "Spellings", "class_names_of", "match_classes", "shown"]

Spellings = tuple[str, ...]
"""Every way to write the name of one class."""

_MOSTLY = 0.9
"""Share of a model's class names that must be ImageNet's, in place, to take them for ImageNet's."""


@dataclass(frozen=True)
class ClassMatch:
    """Where the names of a data set are found among those of a model.

    Attributes:
        names: The data's classes.
        candidates: For each of them the model's classes that are called so: none where it is not
            known, several where the name is ambiguous.
    """

    names: tuple[str, ...]
    candidates: tuple[tuple[int, ...], ...]

    @property
    def in_place(self) -> bool:
        """Whether every class may be the model's of the same index."""
        return all(index in found for index, found in enumerate(self.candidates))

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of classes that the model has under another index only."""
        pairs = enumerate(zip(self.names, self.candidates, strict=True))
        return tuple(name for index, (name, found) in pairs if found and index not in found)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names that the model does not have."""
        pairs = zip(self.names, self.candidates, strict=True)
        return tuple(name for name, found in pairs if not found)

    @property
    def ambiguous(self) -> dict[str, tuple[int, ...]]:
        """Names that several of the model's classes have, with their indices."""
        pairs = zip(self.names, self.candidates, strict=True)
        return {name: found for name, found in pairs if len(found) > 1}

    @property
    def shared(self) -> dict[int, tuple[str, ...]]:
        """Classes of the model that several names mean, with these names."""
        names: dict[int, tuple[str, ...]] = {}
        for name, found in zip(self.names, self.candidates, strict=True):
            if len(found) == 1:
                names[found[0]] = (*names.get(found[0], ()), name)
        return {index: several for index, several in names.items() if len(several) > 1}


def class_names_of(model: StagedModel) -> tuple[Spellings, ...]:
    """Find what the classes of a model are called.

    The names are the model's ``class_names``, which runs and the hub keep. A timm classifier of one
    of ImageNet's sizes without names is taken to score ImageNet's classes in timm's order; its
    names are WordNet's. Where a model's own names are ImageNet's, WordNet's other spellings join
    them. A classifier that was replaced has no names.

    Returns:
        For each class every way to write it, the model's own first: such as ``n02012849``,
        ``crane``; empty where nothing is known.
    """
    if model.new_classifier is not None:
        return ()
    imagenet = _imagenet(model.num_classes)
    if not model.class_names:
        return imagenet if model.is_timm and timm.is_model(model.name) else ()
    if len(model.class_names) != model.num_classes:
        return ()
    config: dict[str, Any] = getattr(model.model, "pretrained_cfg", None) or {}
    descriptions = config.get("label_descriptions")
    own = tuple(_spellings(name, descriptions) for name in model.class_names)
    if imagenet and _agreement(own, imagenet) >= _MOSTLY:
        return tuple(
            tuple(dict.fromkeys((*mine, *theirs)))
            for mine, theirs in zip(own, imagenet, strict=True)
        )
    return own


def match_classes(names: Sequence[str], spellings: Sequence[Spellings]) -> ClassMatch:
    """Look up a data set's classes among a model's, by name.

    Case does not count, and underscores, hyphens and spaces are one.

    Args:
        names: The data's classes.
        spellings: The model's, as `class_names_of` finds them.

    Example:
        >>> match_classes(["Grey_Owl", "crane"], [("crane",), ("grey owl",), ("crane",)])
        ClassMatch(names=('Grey_Owl', 'crane'), candidates=((1,), (0, 2)))
    """
    known: dict[str, list[int]] = {}
    for index, several in enumerate(spellings):
        for key in {_canonical(spelling) for spelling in several}:
            known.setdefault(key, []).append(index)
    return ClassMatch(tuple(names), tuple(tuple(known.get(_canonical(name), ())) for name in names))


def shown(spellings: Spellings) -> str:
    """One class as a person would read it: its name, behind it the WordNet id where that is first.

    Example:
        >>> shown(("n02012849", "crane"))
        'crane (n02012849)'
    """
    first, *others = spellings
    return f"{others[0]} ({first})" if others and re.fullmatch(r"n\d{8}", first) else first


@cache
def _imagenet(num_classes: int) -> tuple[Spellings, ...]:
    """WordNet's spellings of ImageNet's classes, where a set of them has this size."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return ()
    info = ImageNetInfo(subset)
    return tuple(
        tuple(dict.fromkeys((synset, *_parts(info.label_name_to_description(synset)))))
        for synset in info.label_names()
    )


def _spellings(name: str, descriptions: Any) -> Spellings:
    described = descriptions.get(name) if isinstance(descriptions, dict) else None
    return tuple(dict.fromkeys((*_parts(name), *(_parts(str(described)) if described else ()))))


def _parts(description: str) -> Iterator[str]:
    """A description such as ``tench, Tinca tinca``, and each of its names."""
    yield description
    for part in description.split(","):
        if part.strip():
            yield part.strip()


def _agreement(own: Sequence[Spellings], theirs: Sequence[Spellings]) -> float:
    """Share of classes that have a spelling in common with the one in the same place."""
    common = [
        not {_canonical(a) for a in mine}.isdisjoint(_canonical(b) for b in known)
        for mine, known in zip(own, theirs, strict=True)
    ]
    return sum(common) / len(common)


def _canonical(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()
