r"""Images a second of one core: Pillow and timm as people use them, and anykd's own loading.

    python -m benchmarks.loader           # ten minutes
    python -m benchmarks.loader --page    # the page anew, from the results

One process, one thread; the arms of a comparison in turn, each several times. Seconds are those of
the processor in this process, to which others do less. The photographs are written to a temporary
folder, as they are stored and in the size of ImageNet's. It writes benchmarks/results/loader.json
and docs/results/loader.md.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision import transforms

from anykd.data import AugmentConfig, DataConfig, Reader, TrainViews, open_data
from anykd.data.choices import Chooser, Crop
from anykd.data.decoded import decode_once
from anykd.data.folder import FolderReader
from anykd.data.images import decode_pixels
from anykd.data.reader import Sample
from anykd.data.rendering import crop_and_flip
from anykd.data.seeded import Stream, generators_kept, seed_generators
from anykd.environment import describe_environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "loader.json"
PAGE = ROOT / "docs" / "results" / "loader.md"
BATCH = 64
SIDE = 224
BAR = 1.5
PHOTOS: dict[str, tuple[int, int] | None] = {
    "256 px, as stored": None,
    "375 px, quality 92": (375, 92),
    "375 px, quality 98": (375, 98),
}
"""Sets of photographs: short side and quality, or None for the files as they are."""
PRESETS: dict[str, dict[str, Any]] = {
    "cnn": {},
    "vit": {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"},
}
"""timm's names of what the presets do beside cropping and flipping."""
EPOCHS = 4
"""Views of each image in which the differences of pixels are looked for."""

Arm = Callable[[int, Sequence[int]], Any]
"""Makes the batch of some images, in some epoch."""
Step = Callable[[Any], Any]


def write_photos(
    source: Path, kind: tuple[int, int] | None, count: int, folder: Path
) -> list[Path]:
    """Write JPEG files, as they are stored or resized."""
    with np.load(source) as stored:
        content, offsets = stored["jpeg"], stored["offsets"]
    paths = []
    for number in np.linspace(0, len(offsets) - 2, count).astype(int):
        one = content[offsets[number] : offsets[number + 1]].tobytes()
        paths.append(folder / f"{number:04}.jpg")
        paths[-1].write_bytes(one if kind is None else _resized(one, *kind))
    return paths


def _resized(content: bytes, side: int, quality: int) -> bytes:
    image = Image.open(io.BytesIO(content))
    scale = side / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "jpeg", quality=quality)
    return file.getvalue()


def timm_steps(preset: str, *, floats: bool) -> list[Step]:
    """The parts of timm's transform for training, to bytes for its prefetcher or to floats."""
    settings: Any = {"color_jitter": None, **PRESETS[preset]}
    whole: Any = create_transform(
        SIDE,
        is_training=True,
        interpolation="bicubic",
        use_prefetcher=not floats,
        normalize=False,
        **settings,
    )
    for policy in whole.transforms:
        for op in getattr(policy, "ops", ()):
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
    return whole.transforms


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep so many bits; timm asks for none at times, which Pillow 13 refuses."""
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))


def from_files(paths: Sequence[Path], steps: Sequence[Step]) -> Arm:
    """How people read files with Pillow and transform them."""
    transform = transforms.Compose(steps)

    def batch(_: int, positions: Sequence[int]) -> torch.Tensor:
        views: list[Any] = []
        for position in positions:
            with Image.open(paths[position]) as file:
                views.append(transform(file.convert("RGB")))
        return torch.stack(views)

    return batch


def from_images(images: Sequence[Image.Image], steps: Sequence[Step]) -> Arm:
    """How people transform images in memory."""
    transform = transforms.Compose(steps)

    def batch(_: int, positions: Sequence[int]) -> torch.Tensor:
        views: list[Any] = [transform(images[position]) for position in positions]
        return torch.stack(views)

    return batch


def cropped(views: TrainViews) -> Arm:
    """What loader processes do where a GPU does the rest."""
    return lambda epoch, positions: views.draw(epoch, positions, crops=True)


def chosen(views: TrainViews) -> Arm:
    """What they do where the pixels of all images are on the GPU."""
    return lambda epoch, positions: views.draw(epoch, positions, crops=False)


def shown(views: TrainViews) -> Arm:
    """What they do where nothing else does anything."""
    return lambda epoch, positions: views.show(epoch, positions)


def views_of(reader: Reader, size: int, **augment: Any) -> TrainViews:
    """Training's views of some images."""
    return TrainViews(
        reader,
        num_classes=1000,
        image_size=size,
        augment=AugmentConfig(**augment),
        label_smoothing=0.1,
        seed=0,
    )


def speeds(arms: dict[str, Arm], count: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of each arm in each round; the arms take turns."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    batches = [range(start, start + BATCH) for start in range(0, count - BATCH + 1, BATCH)]
    for turn in range(-1, rounds):  # the first warms up
        for name in sorted(arms, key=lambda name: (list(arms).index(name) + turn) % len(arms)):
            begun = time.process_time()
            for positions in batches:
                arms[name](turn + 1, positions)
            if turn >= 0:
                found[name].append(len(batches) * BATCH / (time.process_time() - begun))
    medians = {name: round(statistics.median(each)) for name, each in found.items()}
    print(json.dumps(medians), file=sys.stderr)
    return found


def photographs(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Every set of photographs, with every preset."""
    found = []
    for name, kind in PHOTOS.items():
        (scratch / name).mkdir()
        paths = write_photos(arguments.photos, kind, arguments.images, scratch / name)
        reader = FolderReader(paths, [0] * len(paths))
        once = decode_once(reader, scratch / "decoded")
        for preset in PRESETS:
            ours, decoded = (views_of(one, SIDE, preset=preset) for one in (reader, once))
            arms = {
                "Pillow + timm": from_files(paths, timm_steps(preset, floats=False)),
                "anykd": cropped(ours),
                "anykd, decoded once": cropped(decoded),
                "Pillow + timm, floats": from_files(paths, timm_steps(preset, floats=True)),
                "anykd, floats": shown(ours),
                "anykd, decoded once, floats": shown(decoded),
            }
            kilobytes = statistics.fmean(path.stat().st_size for path in paths) / 1000
            speed = speeds(arms, len(paths), arguments.rounds)
            found.append(
                {"photographs": name, "preset": preset, "kilobytes": kilobytes, "images/s": speed}
            )
    return found


def differences(scratch: Path) -> dict[str, Any]:
    """How far views are from what Pillow makes of the same choices, in levels of 255."""
    paths = sorted((scratch / "375 px, quality 92").iterdir())[:BATCH]
    reader = FolderReader(paths, [0] * len(paths))
    views = views_of(reader, SIDE, preset="cnn")
    counts = np.zeros(256, dtype=np.int64)
    for epoch in range(EPOCHS):
        exact, fast = (
            views.show(epoch, range(BATCH), exact=exact).images.mul(255).round().int()
            for exact in (True, False)
        )
        counts += np.bincount((exact - fast).abs().flatten().numpy(), minlength=256)
    return {
        "values": int(counts.sum()),
        "largest": int(np.flatnonzero(counts)[-1]),
        "share that differs": float(counts[1:].sum() / counts.sum()),
        "share that differs by more than 1": float(counts[2:].sum() / counts.sum()),
    }


def parts(name: str, scratch: Path, rounds: int) -> dict[str, Any]:
    """Where the time of an image goes: microseconds of each part."""
    paths = sorted((scratch / name).iterdir())[:BATCH]
    contents = [path.read_bytes() for path in paths]
    samples = [Sample(decode_pixels(one, "a file"), None, n) for n, one in enumerate(contents)]
    images = [sample.image for sample in samples]
    chooser = Chooser(AugmentConfig(preset="vit"), (SIDE, SIDE))
    pairs = [(sample, _choose(chooser, sample)) for sample in samples]
    settings: dict[str, Any] = {"size": (SIDE, SIDE), "interpolation": "bicubic"}
    views = [crop_and_flip(*pair, **settings) for pair in pairs]
    pictures = [Sample(view, None, 0).image for view in views]
    timm = transforms.Compose(timm_steps("cnn", floats=False))
    rand_augment = timm_steps("vit", floats=False)[2]
    steps: dict[str, Callable[[], Any]] = {
        "read the file": lambda: [path.read_bytes() for path in paths],
        "decode: Pillow, to an image": lambda: [
            Image.open(io.BytesIO(one)).convert("RGB") for one in contents
        ],
        "decode: anykd, to pixels": lambda: [decode_pixels(one, "a file") for one in contents],
        "choose, crop, resize, flip: timm, to bytes": lambda: [timm(image) for image in images],
        "seed and choose (vit): anykd": lambda: [_choose(chooser, one) for one in samples],
        "crop, resize, flip: anykd": lambda: [crop_and_flip(*pair, **settings) for pair in pairs],
        "RandAugment: timm": lambda: [rand_augment(picture) for picture in pictures],
        "stack bytes": lambda: torch.stack(views),
    }
    found: dict[str, list[float]] = {step: [] for step in steps}
    for turn in range(-1, rounds):
        for step, run in steps.items():
            begun = time.process_time()
            run()
            if turn >= 0:
                found[step].append(1e6 * (time.process_time() - begun) / len(paths))
    return {"photographs": name, "microseconds": found}


def _choose(chooser: Chooser, sample: Sample) -> Crop:
    seed_generators(0, Stream.VIEW, 0, sample.index)
    return chooser.crop(sample.content)


def cifar(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """CIFAR-100 at its own size, out of memory."""
    reader = open_data(DataConfig(source=f"cifar100:{arguments.cifar}")).train
    images = [reader[position].image for position in range(arguments.images)]
    found = []
    for preset in PRESETS:
        # timm has no pad-and-crop: torchvision's takes the place of its crop.
        to_bytes, to_floats = (
            [transforms.RandomCrop(32, padding=4), *timm_steps(preset, floats=floats)[1:]]
            for floats in (False, True)
        )
        views = views_of(reader, 32, preset=preset, crop_scale=(1, 1), crop_padding=4)
        arms = {
            "torchvision + timm": from_images(images, to_bytes),
            "anykd, choices alone": chosen(views),
            "torchvision + timm, floats": from_images(images, to_floats),
            "anykd, floats": shown(views),
        }
        found.append({"preset": preset, "images/s": speeds(arms, len(images), arguments.rounds)})
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, in one process and one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, generators_kept():
        scratch = Path(folder)
        return {
            "environment": describe_environment(torch.device("cpu")),
            "pillow": Image.__version__,
            "batch": BATCH,
            "images": arguments.images,
            "rounds": arguments.rounds,
            "photographs": photographs(arguments, scratch),
            "differences": differences(scratch),
            "parts": [parts(name, scratch, arguments.rounds) for name in PHOTOS],
            "cifar": cifar(arguments),
        }


def page(found: dict[str, Any]) -> str:
    """The results as a page."""
    environment, apart = found["environment"], found["differences"]
    packages = environment["packages"]
    names = [each["photographs"] for each in found["parts"]]
    lines = [
        "# Images a second of one core",
        "",
        f"Made by `{environment['command']}` from benchmarks/results/loader.json: "
        f"{environment['device']}, one process, one thread, torch {packages['torch']}, "
        f"torchvision {packages['torchvision']}, timm {packages['timm']}, Pillow "
        f"{found['pillow']}, commit {environment['commit']}, {environment['started'][:10]}. "
        f"Batches of {found['batch']}, {found['images']} images. Seconds are the processor's in "
        "this process. Speeds are medians of "
        f"{found['rounds']} rounds in which the arms take turns; ratios (÷) are of the same round: "
        "the median, and the smallest to the largest.",
        "",
        f"## Photographs in a folder, to {SIDE} px",
        "",
        "JPEG files of ImageNet's images: as they are stored here, which is progressive, and "
        "resized to the short side that ImageNet's mostly have, in two qualities. Speeds of "
        "different lines were measured at different times: compare within a line. Files come out "
        "of the system's memory, not from a disk.",
        "",
        '*Pillow + timm* is `Image.open(path).convert("RGB")` and timm\'s `create_transform` for '
        "training. *Decoded once* reads `data.decoded`. The bar is "
        f"{BAR} times Pillow + timm, from files; bold is what misses it.",
        "",
        "What loader processes do where a GPU does the rest, to bytes. timm's leave it erasing and "
        "mixing. anykd's leave it RandAugment too, but choose all that is done to each image, and "
        "draw the noise that replaces what is erased:",
        "",
        *_table(found["photographs"], "Pillow + timm", "anykd", "anykd, decoded once"),
        "",
        "All of it by the processor, to floats in [0, 1], with RandAugment and erasing for vit, "
        "for which anykd also mixes pairs:",
        "",
        *_table(
            found["photographs"],
            "Pillow + timm, floats",
            "anykd, floats",
            "anykd, decoded once, floats",
        ),
        "",
        "## The same pixels",
        "",
        "Decoding gives Pillow's pixels to the bit (tests/data/test_images.py). Of "
        f"{apart['values']:,} values of views that were cropped, resized and flipped by the same "
        f"choices, {100 * apart['share that differs']:.2g} % differ from Pillow's, by one level of "
        f"255; {1e6 * apart['share that differs by more than 1']:.2g} in a million by more, "
        f"{apart['largest']} at most.",
        "",
        "## Where the time goes",
        "",
        "Microseconds for an image, medians:",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    for step in found["parts"][0]["microseconds"]:
        cells = [statistics.median(each["microseconds"][step]) for each in found["parts"]]
        lines.append(f"| {step} | {' | '.join(f'{cell:,.0f}' for cell in cells)} |")
    lines += [
        "",
        "## CIFAR-100 at 32 px",
        "",
        "Padded, cropped and flipped, out of memory; vit with RandAugment and erasing. All by the "
        "processor, to floats (anykd's vit also mixes); and what the processor does where the "
        "pixels are on a GPU, against all up to bytes, which is what timm's prefetcher needs:",
        "",
        "| preset | torchvision + timm, floats | anykd | ÷ | torchvision + timm, bytes | "
        "anykd, choices alone | ÷ |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found["cifar"]:
        floats = _columns(one, "torchvision + timm, floats", "anykd, floats")
        choices = _columns(one, "torchvision + timm", "anykd, choices alone")
        lines.append(f"| {one['preset']} | {floats} | {choices} |")
    return "\n".join(lines) + "\n"


def _table(found: list[dict[str, Any]], *arms: str) -> list[str]:
    """Each set of photographs with each preset."""
    lines = [
        "| photographs | KB | preset | Pillow + timm | anykd | ÷ | decoded once | ÷ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        start = f"| {one['photographs']} | {one['kilobytes']:.0f} | {one['preset']} | "
        lines.append(f"{start}{_columns(one, *arms, bar=BAR)} |")
    return lines


def _columns(one: dict[str, Any], base: str, *arms: str, bar: float = 0) -> str:
    """Images a second of an arm and of others, and how many times as many these are.

    The first of the others is bold where it misses a bar.
    """
    speed = one["images/s"]
    cells = [f"{statistics.median(speed[base]):,.0f}"]
    for arm in arms:
        ratios = [a / b for a, b in zip(speed[arm], speed[base], strict=True)]
        cells.append(f"{statistics.median(speed[arm]):,.0f}")
        ratio = f"{statistics.median(ratios):.2f}"
        if arm == arms[0] and statistics.median(ratios) < bar:
            ratio = f"**{ratio}**"
        cells.append(f"{ratio} ({min(ratios):.2f} to {max(ratios):.2f})")
    return " | ".join(cells)


def main() -> int:
    """Measure, and write the results."""
    shared = ROOT.parent / "shared" / "data"
    photos, tiles = shared / "imagenet_samples" / "images.npz", shared / "cifar100"
    parser = argparse.ArgumentParser(description="Images a second of one core")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    parser.add_argument("--photos", type=Path, default=photos, help="JPEG files in one .npz")
    parser.add_argument("--cifar", type=Path, default=tiles, help="folder of CIFAR-100")
    parser.add_argument("--images", type=int, default=192, help="of each set, 64 or more")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if not arguments.page:
        for needed in (arguments.photos, arguments.cifar):
            if not needed.exists():
                print(f"nothing is measured: there is no {needed}", file=sys.stderr)
                return 2
        RESULTS.write_text(json.dumps(measure(arguments), indent=1) + "\n")
    PAGE.write_text(page(json.loads(RESULTS.read_text())))
    print(PAGE.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
