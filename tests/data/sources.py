"""Data sets of every kind, written to a folder as other tools write them."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import webdataset
from PIL import Image

__all__ = ["SOURCES", "encoded", "pixels", "write_idx", "write_shards", "write_table"]

CLASSES = ("cat", "dog", "eel")


def pixels(number: int) -> np.ndarray:
    """One small picture, a function of its number."""
    return np.random.default_rng((7, number)).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def encoded(number: int) -> bytes:
    """The same as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "png")
    return file.getvalue()


def write_folder(root: Path, count: int = 12) -> str:
    for number in range(count):
        path = root / "pets" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return str(root / "pets")


def write_divided_folder(root: Path) -> str:
    write_folder(root / "pets" / "train")
    write_folder(root / "pets" / "val", 3)
    for part in ("train", "val"):
        (root / "pets" / part / "pets").rename(root / "pets" / "moved")
        (root / "pets" / part).rmdir()
        (root / "pets" / "moved").rename(root / "pets" / part)
    return str(root / "pets")


def write_shards(root: Path, count: int = 12, *, name: str = "train", per_shard: int = 5) -> str:
    """Shards as WebDataset's own writer makes them."""
    (root / "shards").mkdir(parents=True, exist_ok=True)
    pattern = str(root / "shards" / f"{name}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:  # type: ignore[attr-defined]
        for number in range(count):
            sample = {"__key__": f"pets/{number:04d}", "png": encoded(number), "cls": number % 3}
            writer.write(sample)
    return f"wds:{root / 'shards'}"


def write_table(path: Path, numbers: range, *, as_hugging_face: bool = True, **columns) -> Path:
    """A parquet file; as Hugging Face writes images, or with a column of bytes."""
    images = [encoded(number) for number in numbers]
    labels = [CLASSES[number % 3] for number in numbers]
    if as_hugging_face:
        rows = [{"bytes": one, "path": f"{n}.png"} for n, one in zip(numbers, images, strict=True)]
        image = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    else:
        image = pa.array(images, pa.binary())
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table({"image": image, "label": labels} | columns), path)
    return path


def write_parquet(root: Path) -> str:
    write_table(root / "table" / "train-00000-of-00002.parquet", range(7))
    write_table(root / "table" / "train-00001-of-00002.parquet", range(7, 12))
    write_table(root / "table" / "test-00000-of-00001.parquet", range(12, 15))
    return f"parquet:{root / 'table'}"


def write_saved(root: Path) -> str:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageType

    rows = {
        "image": [{"bytes": encoded(number), "path": None} for number in range(12)],
        "label": [number % 3 for number in range(12)],
    }
    features = Features({"image": ImageType(), "label": ClassLabel(names=list(CLASSES))})
    Dataset.from_dict(rows, features=features).save_to_disk(str(root / "saved"))
    return f"hf:{root / 'saved'}"


def write_image_folder(root: Path) -> str:
    return f"hf:{write_folder(root)}"


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST: a number for the type, the shape, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path) -> str:
    for part, count in (("train", 12), ("t10k", 6)):
        images = np.stack([pixels(number)[..., 0] for number in range(count)])
        folder = root / "mnist" / "MNIST" / "raw"
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count) % 3)
    return f"mnist:{root / 'mnist'}"


def write_eurosat(root: Path) -> str:
    for number in range(12):
        path = root / "eurosat" / "2750" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return f"eurosat:{root}"


SOURCES: dict[str, Callable[[Path], str]] = {
    "digits": lambda root: "digits",
    "synthetic": lambda root: "synthetic:3x4",
    "folder": write_folder,
    "divided folder": write_divided_folder,
    "shards": write_shards,
    "parquet": write_parquet,
    "saved to disk": write_saved,
    "image folder of hf": write_image_folder,
    "mnist": write_mnist,
    "eurosat": write_eurosat,
}
"""Each writes a data set below a folder, and gives the spec of it."""
