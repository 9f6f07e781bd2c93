"""The hash of each file's content, computed once for as long as the file stays as it is."""

import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tune_inat.disk import writing
from tune_inat.interrupts import worker_threads
from tune_inat.meter import Meter
from tune_inat.store import write_atomically

N_THREADS = 16  # they wait for the disk or the network more than they compute
HASH_BYTES = 16
SETTLED_NS = 2 * 10**9  # a file changed this recently may change again within one tick of its clock

Stamp = tuple[int, int, int]  # bytes, time of change of the content and of the inode, in ns
Record = dict[str, tuple[Stamp, str]]


def hash_content(path: Path) -> str:
    """The BLAKE2b hash of a file's bytes, 32 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES)).hexdigest()


def hash_files(
    paths: Sequence[Path], *, record: Path, meter: Meter
) -> tuple[Mapping[Path, str], Mapping[Path, str]]:
    """The hash of each file's content, and for files that cannot be read the reason.

    Args:
        record: a file of ours that keeps hashes between calls. A file is read again when its size or one
            of its times is not as recorded.

    Raises:
        ResourceError: the record cannot be written.
    """
    known = _read_record(record)
    stamps, unreadable = _stamp_files(paths)
    contents = {path: content for path in stamps if (content := _recall(known, path, stamps[path]))}
    to_read = [path for path in stamps if path not in contents]
    with (
        meter.task("Reading images", len(to_read), "images") as advance,
        worker_threads(N_THREADS, "hash") as pool,
    ):
        for path, result in zip(to_read, pool.map(_try_hash, to_read), strict=True):
            if isinstance(result, OSError):
                unreadable[path] = _reason(result)
            else:
                contents[path] = result
            advance(1)
    if to_read or len(known) != len(contents):
        _write_record(record, {path: (stamps[path], contents[path]) for path in contents})
    return contents, unreadable


def _stamp_files(paths: Sequence[Path]) -> tuple[dict[Path, Stamp], dict[Path, str]]:
    stamps: dict[Path, Stamp] = {}
    unreadable: dict[Path, str] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            unreadable[path] = "is a broken link" if path.is_symlink() else _reason(error)
            continue
        if stat.S_ISREG(status.st_mode):
            stamps[path] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        else:
            unreadable[path] = "is not a regular file"
    return stamps, unreadable


def _recall(known: Record, path: Path, stamp: Stamp) -> str | None:
    recorded = known.get(str(path))
    return recorded[1] if recorded is not None and recorded[0] == stamp else None


def _try_hash(path: Path) -> str | OSError:
    try:
        return hash_content(path)
    except OSError as error:
        return error


def _reason(error: OSError) -> str:
    return f"cannot be read ({os.strerror(error.errno or 0)})"


def _read_record(record: Path) -> Record:
    """What is recorded; nothing where the record is missing or damaged, as it can be made anew."""
    try:
        entries = json.loads(record.read_bytes())
        return {
            str(path): ((int(a), int(b), int(c)), str(hash_)) for path, (a, b, c, hash_) in entries.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_record(record: Path, entries: Mapping[Path, tuple[Stamp, str]]) -> None:
    settled = time.time_ns() - SETTLED_NS
    kept = {
        str(path): (*stamp, content) for path, (stamp, content) in entries.items() if min(stamp[1:]) < settled
    }
    with writing(record):
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(kept).encode())
