"""W&B's runs on disk: what their files hold, and how to send those that were never sent."""

import json
import shlex
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL_TYPE = "model"  # of the artifact that a search's best model is
OFFLINE = "offline-"  # how W&B begins the name of an offline run's folder

# A `.wandb` file is a LevelDB log (google/leveldb, doc/log_format.md) of protobuf records behind W&B's own
# header. W&B had a reader for Python up to 0.30; since then only its Go part has one.
MAGIC = b":W&B"
HEADER_BYTES = 7
BLOCK_BYTES = 32 * 1024
CHUNK_HEADER = struct.Struct("<IHB")  # crc32 of kind and data, length, kind
PADDING, FULL, FIRST, MIDDLE, LAST = range(5)


class TornFileError(ValueError):
    """A run's file that ends in the middle of a record, or holds what W&B did not write."""


@dataclass
class Recorded:
    """What all the files of one run hold together.

    Attributes:
        steps: those that have a row in the history. Up to the run's last epoch, a step is an epoch.
        exit_code: with which the run ended last; `None` if it never did.
        has_model: whether a model was kept with it.
        is_waiting: whether a file of it waits for `wandb sync`.
    """

    steps: set[int] = field(default_factory=set)
    exit_code: int | None = None
    has_model: bool = False
    is_waiting: bool = False


def read_records(path: Path) -> Iterator[Any]:
    """The records (`wandb.proto.wandb_internal_pb2.Record`) of a run's `.wandb` file, in their order.

    Raises:
        TornFileError: after the last whole record, if that is not the end of the file.
    """
    from wandb.proto import wandb_internal_pb2

    for data in _read_entries(path):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # protobuf makes it at import
        record.ParseFromString(data)
        yield record


def row_of(history: Any) -> dict[str, Any]:
    """One row of a run's history, from its protobuf."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}


def read_recorded(folder: Path, run_id: str) -> Recorded:
    """What is on disk of a run, over all its files in a search's folder, sent or waiting.

    A waiting file that cannot be sent is removed on the way: one without any run in it (its writer was
    killed at once), or with a torn end. `wandb sync` would stumble over it, and might send nothing at all.
    """
    recorded = Recorded()
    paths = folder.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb")
    for path in sorted(paths, key=lambda path: path.parent.name.removeprefix(OFFLINE)):  # by their start
        is_waiting = _is_waiting(path)
        found, is_whole = _read_one(path)
        if is_waiting and not is_whole:
            shutil.rmtree(path.parent, ignore_errors=True)
            continue
        recorded.steps |= found.steps
        recorded.exit_code = found.exit_code
        recorded.has_model |= found.has_model
        recorded.is_waiting |= is_waiting
    return recorded


def has_ended(path: Path) -> bool:
    """Whether a run's file is whole, up to the record of the run's end."""
    recorded, is_whole = _read_one(path)
    return is_whole and recorded.exit_code is not None


def sync_line(folder: Path) -> str | None:
    """The command that sends all runs in a search's folder that wait on disk; `None` if none does."""
    waiting = any(_is_waiting(path) for path in folder.glob(f"wandb/{OFFLINE}*/*.wandb"))
    return f"wandb sync {shlex.quote(str(folder / 'wandb'))}" if waiting else None


def _read_one(path: Path) -> tuple[Recorded, bool]:
    """What one file holds, and whether `wandb sync` can send it."""
    recorded, has_run = Recorded(), False
    try:
        for record in read_records(path):
            has_run |= record.HasField("run")
            if record.HasField("history"):
                recorded.steps.add(int(row_of(record.history)["_step"]))
            elif record.HasField("artifact"):
                recorded.has_model |= record.artifact.type == MODEL_TYPE
            elif record.HasField("exit"):
                recorded.exit_code = record.exit.exit_code
    except TornFileError:
        return recorded, False
    return recorded, has_run


def _is_waiting(path: Path) -> bool:
    """Whether a file was written offline and `wandb sync` has not begun to send it."""
    marks = (path.with_suffix(".wandb.synced"), path.with_suffix(".wandb.syncstate"))
    return path.parent.name.startswith(OFFLINE) and not any(mark.exists() for mark in marks)


def _read_entries(path: Path) -> Iterator[bytes]:
    """The entries of a log, each joined from its chunks. No chunk crosses the end of a block."""
    content = path.read_bytes()
    if content[: len(MAGIC)] != MAGIC:
        raise TornFileError(f"{path}: this is not a W&B run")
    position, parts = HEADER_BYTES, bytearray()
    while position < len(content):
        left_in_block = BLOCK_BYTES - position % BLOCK_BYTES
        if left_in_block < CHUNK_HEADER.size:
            position += left_in_block
            continue
        kind, data = _read_chunk(path, content, position)
        position += CHUNK_HEADER.size + len(data)
        parts += data
        if kind in (FULL, LAST):
            yield bytes(parts)
            parts.clear()
    if parts:
        raise TornFileError(f"{path}: the last record is torn")


def _read_chunk(path: Path, content: bytes, position: int) -> tuple[int, bytes]:
    start = position + CHUNK_HEADER.size
    if start > len(content):
        raise TornFileError(f"{path}: the last record is torn")
    checksum, length, kind = CHUNK_HEADER.unpack(content[position:start])
    data = content[start : start + length]
    if kind == PADDING or len(data) < length or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
        raise TornFileError(f"{path}: the record at byte {position} is torn")
    return kind, data
