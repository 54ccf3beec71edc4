"""A run's state on disk: whole or not there, sharded over ranks, and nothing in it can execute.

::

    step-00000120/shard-0000R-....safetensors   every tensor, each rank's share in a file
                  state.json                    everything that is no tensor
                  manifest.json                 sha256 of each of these; written last

Tensors go through ``torch.distributed.checkpoint``, so what four ranks wrote is read by two, by one
or by a sharded model. Its own format pickles its index; Hugging Face's storage has none.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from anykd.distributed import from_first_rank, rank, wait_for_all, world_size
from anykd.errors import CheckpointError, first_line
from anykd.files import make_folder, sync, unfinished, written

__all__ = ["Checkpoint", "newest_checkpoint", "save_checkpoint"]

FORMAT = 1
_KEPT = 2
"""Checkpoints that are kept: the newest, and one to fall back on."""
_NAME = re.compile(r"step-\d{8,}")
"""Folders of other names, such as a copy that somebody keeps, are left alone."""
_STATE, _MANIFEST = "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        path: Its folder.
        state: What it holds beside tensors.
    """

    path: Path
    state: dict[str, Any]

    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of every tensor in it."""
        entries: Any = self._reader().read_metadata().state_dict_metadata
        return {
            name: (tuple(entry.size), entry.properties.dtype) for name, entry in entries.items()
        }

    def read_into(self, tensors: dict[str, Tensor]) -> None:
        """Fill tensors with what was saved under their names, each rank its share of sharded ones.

        Args:
            tensors: Of the saved shapes; a collective where ranks train together.
        """
        with _alone():
            dcp.load(
                {name: tensor.detach() for name, tensor in tensors.items()},
                storage_reader=self._reader(),
            )

    def _reader(self) -> HuggingFaceStorageReader:
        return HuggingFaceStorageReader(str(self.path))


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write a checkpoint and remove those before the last two. A collective.

    It is written under another name and put in place by one renaming, so a process that ends on the
    way, or a disk that is full, leaves the older ones as they are.

    Args:
        folder: Where checkpoints go; all ranks must see it.
        step: Optimiser steps done.
        tensors: By name; each rank has its share of those that are sharded.
        state: Plain values; the first rank's are kept.

    Raises:
        CheckpointError: If it cannot be written.
    """
    place = folder / f"step-{step:08d}"
    new = unfinished(place)
    with written(place):
        if rank() == 0:
            make_folder(folder)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
        wait_for_all()
        try:
            _write_tensors(new, tensors)
            if rank() == 0:
                _describe(new, step, state)
                _replace(place, new)
                sync(folder)
                # Those ahead are corrupt: they were passed over, or training would be there.
                ahead = [path for path in _found(folder) if _step_of(path) > step]
                behind = [path for path in _found(folder) if _step_of(path) <= step]
                for old in ahead + behind[_KEPT:]:
                    shutil.rmtree(old)
        except BaseException:
            if rank() == 0:
                shutil.rmtree(new, ignore_errors=True)
            raise
    return place


def newest_checkpoint(folder: Path, warn: Callable[[str], None] = print) -> Checkpoint | None:
    """Find the newest checkpoint that is whole. A collective.

    Args:
        folder: Where checkpoints are.
        warn: Told of each one that is torn or corrupt and passed over.

    Returns:
        None where there is none at all.

    Raises:
        CheckpointError: If there are some and none is whole.
    """
    chosen = from_first_rank(lambda: _newest(folder, warn))
    if isinstance(chosen, str):
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {chosen}", hint="start the run anew elsewhere"
        )
    if chosen is None:
        return None
    return Checkpoint(chosen, json.loads((chosen / _STATE).read_text()))


def _newest(folder: Path, warn: Callable[[str], None]) -> Path | str | None:
    reasons = []
    for path in _found(folder):
        reason = _what_is_wrong(path)
        if reason is None:
            return path
        reasons.append(f"{path.name} {reason}")
        warn(f"the checkpoint {path} {reason}; the one before it is used")
    return "; ".join(reasons) or None


def _what_is_wrong(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return f"has format {manifest['format']}, and this version reads {FORMAT}"
        shards = {file.name for file in path.glob("*.safetensors")}
        if not shards <= set(manifest["files"]):
            return "holds shards that are not its own"
        for name, digest in manifest["files"].items():
            if Path(name).name != name:
                return f"names a file outside of itself: {name}"
            if not (path / name).is_file():
                return f"lacks {name}"
            if _digest(path / name) != digest:
                return f"is corrupt: {name} is not what was written"
        json.loads((path / _STATE).read_text())
        Checkpoint(path, {}).shapes()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        return f"is torn: {first_line(error)}"
    return None


def _found(folder: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    paths = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _replace(place: Path, new: Path) -> None:
    """Put a folder in place; one that is there, such as a torn one, makes way whole."""
    if place.exists():
        old = unfinished(place.with_name(f"{place.name}-old"))
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
        new.rename(place)
        shutil.rmtree(old)
    else:
        new.rename(place)


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _alone():
        dcp.save(_separate(tensors), storage_writer=writer)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: in one layout, and none in another's memory.

    Tied weights are saved under each of their names.
    """
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        local = plain.to_local() if isinstance(plain, DTensor) else plain
        place = local.untyped_storage().data_ptr()
        separate[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return separate


def _describe(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write what is no tensor, and the digests of everything, and wait for the disk."""
    (folder / _STATE).write_text(json.dumps(state))
    files = sorted(folder.iterdir())
    digests = {file.name: _digest(file) for file in files}
    manifest = {"format": FORMAT, "ranks": world_size(), "step": step, "files": digests}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2))
    for path in (*files, folder / _MANIFEST, folder):
        sync(path)


@contextmanager
def _alone() -> Iterator[None]:
    """Let torch not warn of a single process."""
    with warnings.catch_warnings():
        if world_size() == 1:
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
