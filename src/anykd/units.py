"""Numbers as a person reads them."""

__all__ = ["amount", "duration", "percent", "shape", "size"]


def amount(number: float) -> str:
    """A count in thousands, millions, ...

    Example:
        >>> amount(11_220_132), amount(640), amount(3.6e9)
        ('11.2 M', '640', '3.6 G')
    """
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes in decimal units.

    Example:
        >>> size(44_900_000), size(512)
        ('44.9 MB', '512 B')
    """
    shown = amount(number)
    return f"{shown}B" if shown[-1].isalpha() else f"{shown} B"


def duration(seconds: float) -> str:
    """A time in the units that suit it.

    Example:
        >>> duration(0.0123), duration(7.25), duration(400), duration(9000), duration(400_000)
        ('12.3 ms', '7.25 s', '6 min 40 s', '2 h 30 min', '4 d 15 h')
    """
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 60:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    if hours < 48:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(hours // 24)} d {int(hours % 24)} h"


def percent(share: float) -> str:
    """A share of 1 in percent."""
    return f"{100 * share:.0f} %"


def shape(numbers: tuple[int, ...]) -> str:
    """A shape as it is written, such as 64x56x56."""
    return "x".join(map(str, numbers))
