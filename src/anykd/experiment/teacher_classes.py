"""Whether a teacher's classes are the data's, and which of them."""

from dataclasses import dataclass
from typing import Literal

from anykd.data import DataSplits
from anykd.errors import ModelError, RecipeError, nearest
from anykd.files import expanded
from anykd.models import StagedModel
from anykd.models.classes import ClassMatch, Spellings, class_names_of, match_classes, shown

from .teacher_head import HeadScores

__all__ = ["ClassesKind", "TeacherClasses", "resolve_classes"]

_BY_HAND = "name the teacher's class for each of the data's: teacher.classes = FILE, or a list"

ClassesKind = Literal["equal", "mapped", "unnamed", "own", "probe", "finetuned", "none needed"]


@dataclass(frozen=True)
class TeacherClasses:
    """How a teacher comes by the data's classes.

    Attributes:
        kind: ``equal``: its classes are the data's. ``mapped``: the data's are some of its classes,
            or all in another order. ``unnamed``: it has as many, and they are taken to be the
            data's in their order. ``own``: the data has no labels, and the student learns the
            teacher's classes. ``probe`` and ``finetuned``: it got a new head. ``none needed``: no
            method compares its class scores.
        num_own: Classes that the model came with.
        names: What the teacher calls each of the classes that it is compared by; empty where it
            does not say.
        chosen: The class map: for each of the data's classes the teacher's index; None without one.
        head: How well a probe does; None for every other kind, and before it is fitted.
        warning: What a person should look at; empty where all is well.
        remedy: What would mend that.
    """

    kind: ClassesKind
    num_own: int
    names: tuple[str, ...] = ()
    chosen: tuple[int, ...] | None = None
    head: HeadScores | None = None
    warning: str = ""
    remedy: str = ""


def resolve_classes(
    model: StagedModel,
    data: DataSplits,
    *,
    name: str,
    given: str | tuple[int | str, ...] | None = None,
    hint: str,
) -> TeacherClasses:
    """Find the data's classes among those that a model scores.

    Args:
        model: The teacher, or any model that is to be scored.
        data: With labels.
        name: What the recipe calls the model.
        given: ``teacher.classes``, where the recipe gives the class map.
        hint: What to do where the model does not know the data's classes.

    Raises:
        ModelError: If it does not know them, or a name may mean several of its classes.
        RecipeError: If the class map that the table gives does not fit.
    """
    spellings = class_names_of(model)
    if given is not None:
        chosen = tuple(_index_of(entry, spellings, name) for entry in _read_map(given, data))
        return _mapped(model, spellings, chosen)
    match = match_classes(data.class_names, spellings)
    subject = f"{name} and {data.name}"
    if model.num_classes == data.num_classes:
        if match.in_place:
            names = tuple(shown(several) for several in spellings)
            return TeacherClasses("equal", model.num_classes, names)
        if not match.moved:
            return _taken_as_given(model, match, subject, bool(spellings))
        if match.unknown:
            raise ModelError(
                f"{subject} have {data.num_classes} classes each, but {match.moved[0]!r} is not "
                f"the same one in both, and {name} has no {match.unknown[0]!r}",
                hint=_BY_HAND,
            )
    elif match.unknown or model.num_classes < data.num_classes:
        raise ModelError(_different(model, name, data, match, bool(spellings)), hint=hint)
    return _mapped(model, spellings, _chosen(match, spellings, name))


def _taken_as_given(
    model: StagedModel, match: ClassMatch, subject: str, named: bool
) -> TeacherClasses:
    """As many classes, none of them in another place: they are taken to be the same."""
    if not named:
        return TeacherClasses("unnamed", model.num_classes)
    unknown = match.unknown
    return TeacherClasses(
        "unnamed",
        model.num_classes,
        warning=f"{subject} have {len(match.names)} classes each, but call {len(unknown)} of them "
        f"differently, such as {unknown[0]!r}; they are taken to be the same, in the same order",
        remedy=f"check the order, or {_BY_HAND}",
    )


def _mapped(
    model: StagedModel, spellings: tuple[Spellings, ...], chosen: tuple[int, ...]
) -> TeacherClasses:
    known = [index for index in chosen if 0 <= index < len(spellings)]
    names = tuple(shown(spellings[index]) for index in known)
    return TeacherClasses("mapped", model.num_classes, names, chosen)


def _chosen(match: ClassMatch, spellings: tuple[Spellings, ...], teacher: str) -> tuple[int, ...]:
    """The class map that the names give, where each means one class and no two the same."""
    for name, found in match.ambiguous.items():
        several = " or ".join(f"{index}, {_all_names(spellings[index])}" for index in found)
        raise ModelError(
            f"{name!r} may be several classes of {teacher}: {several}",
            hint=f"call it by a name that no other has, or {_BY_HAND}",
        )
    for index, names in match.shared.items():
        raise ModelError(
            f"{' and '.join(map(repr, names))} are one class of {teacher}: {index}, "
            f"{_all_names(spellings[index])}",
            hint="join them, or give the teacher a new head: --teacher-head probe",
        )
    return tuple(found[0] for found in match.candidates)


def _all_names(spellings: Spellings) -> str:
    return " = ".join(dict.fromkeys((shown(spellings), *spellings[2:])))


def _different(
    model: StagedModel, teacher: str, data: DataSplits, match: ClassMatch, named: bool
) -> str:
    message = f"{teacher} knows {model.num_classes} classes, {data.name} has {data.num_classes}"
    if model.num_classes < data.num_classes:
        return message
    if not named:
        return f"{message}, and it does not say what its classes are called"
    more = len(match.unknown) - 1
    verb = f"and {more} more are" if more else "is"
    return f"{message}, and {match.unknown[0]!r} {verb} none of them"


def _read_map(entries: str | tuple[int | str, ...], data: DataSplits) -> tuple[int | str, ...]:
    """The entries of ``teacher.classes``, one for each of the data's classes."""
    where = "teacher.classes"
    if isinstance(entries, str):
        path = expanded(entries)
        if not path.is_file():
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise RecipeError(
                f"teacher.classes: no file at {path}",
                hint=nearest(path.name, siblings, or_list=False),
            )
        lines = path.read_text().splitlines()
        entries = tuple(line.strip() for line in lines if line.strip())
        where = str(path)
    if len(entries) != data.num_classes:
        raise RecipeError(
            f"{where} names {len(entries)} classes, {data.name} has {data.num_classes}",
            hint=f"it needs one for each, in this order: {', '.join(data.class_names[:5])}"
            + (", ..." if data.num_classes > 5 else ""),
        )
    return entries


def _index_of(entry: int | str, spellings: tuple[Spellings, ...], teacher: str) -> int:
    """The class that an entry of a class map means: a name, else an index."""
    if isinstance(entry, int):
        return entry
    (found,) = match_classes([entry], spellings).candidates
    if len(found) == 1:
        return found[0]
    if found:
        raise RecipeError(
            f"teacher.classes: {entry!r} may be several classes of {teacher}",
            hint=f"give the index of one: {', '.join(map(str, found))}",
        )
    if entry.isdecimal():
        return int(entry)
    known = [spelling for several in spellings for spelling in several]
    raise RecipeError(
        f"teacher.classes: {teacher} has no class {entry!r}",
        hint=nearest(entry, known) or "give its index",
    )
