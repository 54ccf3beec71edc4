"""A cache as a person reads it."""

from anykd.data.cache import Cache, Manifest
from anykd.methods import METHODS
from anykd.units import duration, size

__all__ = ["describe_cache"]

_SOME = {"fbt": "fbt (where the student stands in front)"}


def describe_cache(cache: Cache) -> str:
    """Say what a cache was made of, and what it can serve."""
    manifest = cache.manifest
    teacher, data, views = manifest.teacher, manifest.data, manifest.views
    layout, view = manifest.layout, teacher.view
    seen = f"{view.image_size[0]}x{view.image_size[1]}"
    shown = f"{views.image_size[0]}x{views.image_size[1]}"
    classes = "" if teacher.classes is None else ", chosen from its own by a class map"
    rows = {
        "teacher": f"{teacher.source} ({teacher.name}), weights {teacher.weights[:12]}",
        "": f"sees {seen}, {view.interpolation}, mean {_channels(view.mean)}, "
        f"std {_channels(view.std)}; {teacher.num_classes:,} classes{classes}",
        "data": f"{data.source}, {data.samples:,} images, fingerprint {data.fingerprint[:12]}",
        "views": f"{views.num_views} of each image, seed {views.seed}, {shown}",
        " ": _augment(manifest),
        "stored": f"{manifest.codec.summary}; computed in {manifest.precision}",
        "size": f"{layout.record_bytes:,} bytes a view, {size(cache.bytes)} in "
        f"{len(manifest.shards)} files",
        "built": _built(manifest),
        "serves": ", ".join(_served(manifest)) or "no method",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name.strip():{width}}  {said}" for name, said in rows.items() if said)


def _channels(channels: tuple[float, ...]) -> str:
    shown = [f"{value:.4g}" for value in channels]
    return shown[0] if len(set(shown)) == 1 else "/".join(shown)


def _augment(manifest: Manifest) -> str:
    """The settings that are not off."""
    off = ("", 0, [1.0, 1.0])
    given = {key: value for key, value in manifest.views.augment.items() if value not in off}
    return ", ".join(f"{key} {value}" for key, value in given.items())


def _built(manifest: Manifest) -> str:
    built = manifest.built
    environment = built.get("environment", {})
    took = f" in {duration(built['seconds'])}" if "seconds" in built else ""
    where = f" on {environment['device']}" if "device" in environment else ""
    return f"{environment.get('started', 'unknown when')}{took}{where}"


def _served(manifest: Manifest) -> list[str]:
    """Methods that read no more than is stored, with their defaults."""
    held = manifest.codec.parts
    found = [name for name, method in METHODS.items() if method.Config().reads <= held]
    return [_SOME.get(name, name) for name in found if METHODS[name].needs_teacher]
