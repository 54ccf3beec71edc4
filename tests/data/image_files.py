"""Image files that Pillow cannot write itself, byte by byte."""

import struct
import zlib

import numpy as np

__all__ = ["bomb", "png", "tiff"]


def png(pixels: np.ndarray, *, transparent: tuple[int, ...] | None = None) -> bytes:
    """A PNG of 8 or 16 bits a channel; 1 to 4 channels are grey, grey-alpha, RGB and RGBA."""
    height, width, channels = pixels.shape
    depth = 8 * pixels.dtype.itemsize
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = pixels.astype(f">u{pixels.dtype.itemsize}").reshape(height, -1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    if transparent is not None:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    return _png([*chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])


def bomb(side: int) -> bytes:
    """A PNG of one bit a pixel, all of them 0: a few bytes for every thousand pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (1 + side // 8)), 9)
    return _png([(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")])


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def tiff(
    pixels: np.ndarray,
    *,
    photometric: int,
    alpha: int | None = None,
    orientation: int = 1,
    bits: int | None = None,
    width: int | None = None,
) -> bytes:
    """A TIFF in the byte order of its pixels, in one strip without compression.

    Args:
        pixels: (height, width, channels); packed bytes where ``bits`` are given.
        photometric: 0 is grey with white at 0, 1 grey, 2 RGB, 5 CMYK.
        alpha: What the last channel is: 1 premultiplied alpha, 2 plain alpha, 0 nothing known.
        orientation: As in EXIF.
        bits: Per channel, where they are not those of the array.
        width: In pixels, where it is not that of the array.
    """
    order = ">" if pixels.dtype.str.startswith(">") else "<"
    formats = {"u": 1, "i": 2, "f": 3}
    channels = pixels.shape[2]
    data = pixels.tobytes()
    tags = {
        256: (4, [width or pixels.shape[1]]),
        257: (4, [pixels.shape[0]]),
        258: (3, [bits or 8 * pixels.dtype.itemsize] * channels),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [0]),
        274: (3, [orientation]),
        277: (3, [channels]),
        278: (4, [pixels.shape[0]]),
        279: (4, [len(data)]),
        **({} if alpha is None else {338: (3, [alpha])}),
        339: (3, [formats[pixels.dtype.kind]] * channels),
    }
    start = 8 + 2 + 12 * len(tags) + 4
    spilt = b"".join(_values(order, *tag) for tag in tags.values() if len(_values(order, *tag)) > 4)
    tags[273] = (4, [start + len(spilt)])
    directory, place = struct.pack(f"{order}H", len(tags)), start
    for number, (kind, values) in tags.items():
        content = _values(order, kind, values)
        directory += struct.pack(f"{order}HHI", number, kind, len(values))
        if len(content) > 4:
            directory += struct.pack(f"{order}I", place)
            place += len(content)
        else:
            directory += content.ljust(4, b"\0")
    magic = b"II" if order == "<" else b"MM"
    return magic + struct.pack(f"{order}HI", 42, 8) + directory + bytes(4) + spilt + data


def _values(order: str, kind: int, values: list[int]) -> bytes:
    return struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
