"""Names and numbers of classes, where data brings a value per image."""

from collections.abc import Sequence

from anykd.errors import DataError

__all__ = ["Values", "number_classes"]

Values = Sequence[int] | Sequence[str]
"""What data says of each image: numbers or names of classes."""


def number_classes(
    train: Values | None, val: Values | None, *, where: str, names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[int] | None, list[int] | None]:
    """Count the classes from 0.

    Args:
        train: Values of the images to train on; None where they have none.
        val: Values of those to evaluate on; None where they have none, or there are no such images.
        where: What errors call the data.
        names: Names of all classes, which numbers count from 0; None takes the values that occur
            in ``train``, else in ``val``, sorted.

    Returns:
        Names of the classes, and the labels of both.

    Raises:
        DataError: If a value names no class, or there are fewer than two classes.
    """
    if train is None and val is None:
        return (), None, None
    known = train if train is not None else val
    assert known is not None
    if len({type(value) for value in [*(train or ()), *(val or ())]}) > 1:
        raise DataError(f"{where} has both numbers and names for labels", "use one of them for all")
    values = sorted(set(known)) if names is None else list(names)
    if len(values) < 2:
        raise DataError(f"{where} has {len(values)} classes, a classifier needs at least 2")
    numbers: dict[int | str, int] = {value: number for number, value in enumerate(values)}
    if names is not None and all(isinstance(value, int) for value in known[:1]):
        numbers = {number: number for number in range(len(values))}
    for part in (train, val):
        if unknown := sorted({value for value in part or () if value not in numbers}):
            shown = ", ".join(str(value) for value in unknown[:5])
            raise DataError(
                f"{where} has labels that name no class: {shown}"
                + (", ..." if len(unknown) > 5 else ""),
                f"known are {len(values)} classes: {', '.join(str(v) for v in values[:5])}"
                + (", ..." if len(values) > 5 else ""),
            )
    return (
        tuple(str(value) for value in values),
        None if train is None else [numbers[value] for value in train],
        None if val is None else [numbers[value] for value in val],
    )
