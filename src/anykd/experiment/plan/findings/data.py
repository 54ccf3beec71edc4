"""What may be amiss with the images and their labels."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping

from anykd.data import AugmentConfig, DataConfig, DataSplits
from anykd.experiment.plan.finding import Finding
from anykd.experiment.plan.sample import Look

__all__ = [
    "class_imbalance",
    "cropped_borders",
    "enlarged_images",
    "labels_out_of_range",
    "missing_classes",
    "overlap",
    "unreadable_images",
]

_IMBALANCE = 10
"""Ratio of the largest class to the smallest from which accuracy says little of the smallest."""
_SHOWN = 5
"""Unreadable files that are named."""
_TINY = 64
"""Short side, in pixels, up to which images show their object and no border to spare."""
_SMALL_OVERLAP = 0.01
"""Share of shared images that well-known data sets have by accident."""


def unreadable_images(train: Look, val: Look, config: DataConfig) -> Iterator[Finding]:
    """Some files of the sample cannot be read: an error where training would stop at them.

    Args:
        train: Training images.
        val: Images to evaluate on.
        config: What becomes of such images, and how many there may be.
    """
    broken = train.unreadable + val.unreadable
    if not broken:
        return
    limit = config.max_bad_fraction
    stops = config.bad_images == "stop"
    many = any(len(look.unreadable) > limit * len(look) for look in (train, val))
    if stops:
        remedy = "mend or remove them, or set data.bad_images = 'replace'"
    elif many:
        remedy = f"mend or remove them, or raise data.max_bad_fraction, which is {limit}"
    else:
        remedy = "mend or remove them; training and scores go on without them"
    yield Finding(
        "error" if stops or many else "warning",
        "unreadable-images",
        f"{len(broken)} of {len(train) + len(val)} images that were tried cannot be read: "
        + "; ".join(broken[:_SHOWN])
        + ("; ..." if len(broken) > _SHOWN else ""),
        remedy,
    )


def labels_out_of_range(data: DataSplits) -> Iterator[Finding]:
    """A label names no class."""
    for part, reader in (("training", data.train), ("held-out", data.val)):
        labels = reader.labels
        if labels is None or not data.num_classes:
            continue
        wrong = [label for label in labels if not 0 <= label < data.num_classes]
        if wrong:
            yield Finding(
                "error",
                "labels-out-of-range",
                f"{len(wrong)} {part} images have labels such as {wrong[0]}, but the classes are 0 "
                f"to {data.num_classes - 1}",
                "mend the labels: classes are counted from 0",
            )


def missing_classes(data: DataSplits) -> Iterator[Finding]:
    """A class has no image to learn from."""
    if data.train.labels is None or not data.num_classes:
        return
    present = set(data.train.labels)
    missing = [name for label, name in enumerate(data.class_names) if label not in present]
    if missing:
        yield Finding(
            "warning",
            "classes-without-images",
            f"{len(missing)} of {data.num_classes} classes have no training image, such as "
            f"{missing[0]}",
            "raise data.limit, or remove these classes",
        )


def class_imbalance(data: DataSplits) -> Iterator[Finding]:
    """Some classes have many times the images of others."""
    if data.train.labels is None or not len(data.train):
        return
    counts = Counter(data.train.labels).most_common()
    (most, large), (least, small) = counts[0], counts[-1]
    if large >= _IMBALANCE * small:
        names = dict(enumerate(data.class_names))
        yield Finding(
            "warning",
            "class-imbalance",
            f"class {names.get(most, most)} has {large} training images, class "
            f"{names.get(least, least)} has {small}",
            "read the accuracy of each class, not the mean alone; add images of the small classes",
        )


def overlap(train: Look, val: Look) -> Iterator[Finding]:
    """Images are held out and trained on at once: the accuracy would be too good."""
    known = set(train.digests)
    shared = sum(digest in known for digest in val.digests)
    if not shared:
        return
    whole = train.total == len(train)
    found = shared / len(val.positions)
    yield Finding(
        "warning" if found > _SMALL_OVERLAP or not whole else "note",
        "train-val-overlap",
        f"{shared} of {len(val.positions)} held-out images that were tried are "
        f"{'' if whole else f'among {len(train)} of the {train.total} '}training images, pixel for "
        "pixel",
        "hold out other images: the accuracy on these is too good",
    )


def enlarged_images(look: Look, models: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    """Models see the images at twice their size or more: cost without content.

    Args:
        look: Training images.
        models: (height, width) that each model sees, by what it is called.
    """
    if not look.sizes:
        return
    height = statistics.median(size[0] for size in look.sizes)
    width = statistics.median(size[1] for size in look.sizes)
    factors = {name: min(size[0] / height, size[1] / width) for name, size in models.items()}
    enlarging = {name: factor for name, factor in factors.items() if factor >= 2}
    if enlarging:
        largest = max(enlarging.values())
        times = " and ".join(f"{factor:.3g} times for the {n}" for n, factor in enlarging.items())
        yield Finding(
            "note",
            "images-enlarged",
            f"images of {width:.0f}x{height:.0f} px are enlarged {times}: up to "
            f"{largest**2:.0f} times the pixels, and nothing more to see in them",
            "set an image_size nearer to the images', with a patch_size or stem that suits it; a "
            "pretrained teacher may keep its own by teacher.image_size",
        )


def cropped_borders(look: Look, augment: AugmentConfig) -> Iterator[Finding]:
    """Evaluation cuts off what may be part of the object."""
    if not look.sizes:
        return
    short = statistics.median(min(size) for size in look.sizes)
    if augment.crop_pct < 1 and short <= _TINY:
        yield Finding(
            "warning",
            "crop-cuts-borders",
            f"augment.crop_pct {augment.crop_pct} cuts {1 - augment.crop_pct**2:.0%} off images of "
            f"{short:.0f} px, whose objects mostly fill them",
            "set augment.crop_pct = 1",
        )
        return
    elongation = statistics.median(max(size) / min(size) for size in look.sizes)
    kept = augment.crop_pct**2 / elongation
    if kept < 0.5:
        yield Finding(
            "note",
            "crop-cuts-borders",
            f"the centre crop of evaluation keeps {kept:.0%} of a typical image, whose sides are "
            f"1 to {elongation:.2g}",
            "set augment.crop_pct = 1, or cut the images to their objects",
        )
