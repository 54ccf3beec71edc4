"""Operations that move pixels: each is a matrix, so that images of many go through one function."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

__all__ = ["MATRICES", "READERS", "Matrix", "fixed_point", "warp"]

Bytes = UInt8[Tensor, "count 3 height width"]
Floats = Float[Tensor, "count 3 *rows height width"]
Points = Float[Tensor, "count 2 height width"]  # float64, x and y from the first pixel's corner

Matrix = tuple[float, float, float, float, float, float]
"""Leads from the middle of a pixel of the result to a point of the image: two rows (a, b, c), for
x = a·x + b·y + c and for y alike, counted from the corner of the first pixel."""


def _shear_x(factor: float, **_: int) -> Matrix:
    return 1, factor, 0, 0, 1, 0


def _shear_y(factor: float, **_: int) -> Matrix:
    return 1, 0, 0, factor, 1, 0


def _translate_x(pixels: float, **_: int) -> Matrix:
    return 1, 0, pixels, 0, 1, 0


def _translate_y(pixels: float, **_: int) -> Matrix:
    return 1, 0, 0, 0, 1, pixels


def _translate_x_rel(share: float, *, width: int, **_: int) -> Matrix:
    return 1, 0, share * width, 0, 1, 0


def _translate_y_rel(share: float, *, height: int, **_: int) -> Matrix:
    return 1, 0, 0, 0, 1, share * height


def _rotate(degrees: float, *, width: int, height: int) -> Matrix:
    """Turn about the centre. Rounding makes right angles exact."""
    angle = -math.radians(degrees % 360)
    cos, sin, minus = (
        round(part, 15) for part in (math.cos(angle), math.sin(angle), -math.sin(angle))
    )
    x, y = width / 2, height / 2
    return cos, sin, cos * -x + sin * -y + x, minus, cos, minus * -x + cos * -y + y


def fixed_point(matrix: Matrix) -> Matrix:
    """Round as Pillow does before it takes nearest pixels, unless it only shifts or turns over."""
    if matrix[1] == matrix[3] == 0:
        return matrix
    return *_fixed_point_row(*matrix[:3]), *_fixed_point_row(*matrix[3:])


def _fixed_point_row(a: float, b: float, c: float) -> tuple[float, float, float]:
    """Round the steps and the centre of the first pixel to 1/65536; the sums are exact then."""
    a_fixed, b_fixed, first = (
        math.floor(number * 65536 + 0.5) / 65536 for number in (a, b, c + a * 0.5 + b * 0.5)
    )
    return a_fixed, b_fixed, first - a_fixed / 2 - b_fixed / 2


MATRICES: dict[str, Callable[..., Matrix]] = {
    "Rotate": _rotate,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateXRel": _translate_x_rel,
    "TranslateY": _translate_y,
    "TranslateYRel": _translate_y_rel,
}
"""What makes a matrix of the arguments and the size of the images, by timm's name."""


def warp(
    images: Bytes, arguments: Float[Tensor, "count arguments"], *, interpolation: str
) -> Bytes:
    """Fetch each pixel from where a matrix says.

    Args:
        images: RGB.
        arguments: A row for each image, in float64: the six numbers of a matrix, and the colour of
            what lies outside.
        interpolation: One of `READERS`.
    """
    height, width = images.shape[2:]
    x, y = (
        torch.arange(size, dtype=torch.float64, device=images.device) + 0.5
        for size in (width, height)
    )
    a, b, c = arguments[:, :6].view(-1, 2, 3, 1, 1).unbind(2)
    # In Pillow's order and precision: whether a point is outside hangs on the last bit.
    points = a * x + b * y[:, None] + c
    x, y = points.unbind(1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    fill = arguments[:, 6:9, None, None].to(torch.uint8)
    return torch.where(inside.unsqueeze(1), READERS[interpolation](images, points), fill)


def _nearest(images: Bytes, points: Points) -> Bytes:
    return _pixels(images, points.floor(), range(1))[:, :, 0, 0]


def _bilinear(images: Bytes, points: Points) -> Bytes:
    return _between(images, points, range(2), _mean_of_two)


def _bicubic(images: Bytes, points: Points) -> Bytes:
    return _between(images, points, range(-1, 3), _cubic)


def _between(images: Bytes, points: Points, steps: range, mean: Callable[..., Tensor]) -> Bytes:
    """Interpolate within some rows, then from row to row.

    Args:
        images: RGB.
        points: Where.
        steps: Which pixels count, from the last one whose middle is not behind the point.
        mean: Makes one value of as many, and of how far the point is behind that middle.
    """
    points = points - 0.5
    middles = points.floor()
    right, down = (points - middles).float().split(1, dim=1)
    pixels = _pixels(images.float(), middles, steps)
    rows = mean(*pixels.unbind(3), right.unsqueeze(2))
    return mean(*rows.unbind(2), down).clamp_(0, 255).to(torch.uint8)


def _pixels(
    images: Tensor, whole: Points, steps: range
) -> Shaped[Tensor, "count 3 steps steps height width"]:
    """The square of pixels some steps from each place; the border goes on outside."""
    x, y = whole.long().unbind(1)
    ahead = torch.arange(steps.start, steps.stop, device=images.device).view(-1, 1, 1)
    columns = (x[:, None] + ahead).clamp_(0, images.shape[3] - 1)
    rows = (y[:, None] + ahead).clamp_(0, images.shape[2] - 1)
    places = rows[:, :, None] * images.shape[3] + columns[:, None]
    numbers = places.flatten(1).unsqueeze(1).expand(-1, 3, -1)
    return images.flatten(2).gather(2, numbers).unflatten(2, places.shape[1:])


def _mean_of_two(first: Floats, second: Floats, at: Tensor) -> Floats:
    return torch.addcmul(first, at, second - first)


def _cubic(first: Floats, second: Floats, third: Floats, fourth: Floats, at: Tensor) -> Floats:
    """Between the second and the third value, with the slope of their neighbours: a = -1.

    Pillow resizes with another cubic, a = -0.5. In this form equal values give just that value.
    """
    rise, fall = second - first, fourth - third
    bend = rise + fall
    slope = torch.addcmul(third - first, at, at * bend - (bend + rise))
    return torch.addcmul(second, at, slope)


READERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nearest": _nearest,
    "bilinear": _bilinear,
    "bicubic": _bicubic,
}
"""What makes the colours of points, by the name of the interpolation."""
