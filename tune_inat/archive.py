"""A zip archive from elsewhere as a folder: checked before and while it is unpacked, never outside."""

import lzma
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tune_inat.disk import check_room, writing
from tune_inat.errors import DataError
from tune_inat.meter import Meter

CHUNK_BYTES = 1 << 20
N_PROBLEMS = 20  # that an error spells out
ENCRYPTED_FLAG = 0x1
MAX_ENTRIES = 1_000_000  # files and folders
MAX_GROWTH = 100  # times the archive's own size; images hardly shrink in an archive, let alone so much
DRIVE = re.compile("[A-Za-z]:")
# What `zipfile` raises for content that it cannot read; fuzzed archives have shown each of them.
DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,  # of reading: what fails while it writes is a ResourceError
    NotImplementedError,
    ValueError,
)


def unpack(archive: Path, folder: Path, *, meter: Meter) -> None:
    """Unpack a zip archive into `folder`, in place of whatever is there.

    Raises:
        DataError: the archive is damaged (each entry's checksum is verified), or has entries that a data
            set has no use for: paths that leave the folder, links, encrypted or doubled files.
        ResourceError: the disk has no room.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            _check_size(archive, opened.infolist())
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check_entries(archive, entries)
            n_bytes = sum(entry.file_size for entry in entries)
            shutil.rmtree(folder, ignore_errors=True)
            with writing(folder):
                folder.mkdir(parents=True)
            check_room(folder, n_bytes, f"unpacking {archive.name}")
            with meter.task(f"Unpacking {archive.name}", n_bytes, "bytes") as advance:
                for entry in entries:
                    _unpack_entry(opened, entry, folder)
                    advance(entry.file_size)
    except DAMAGES as error:
        raise DataError(f"{archive}: is not a whole zip archive ({error}).") from error


def _check_size(archive: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse an archive made to fill the disk. What an entry has beyond the size it states stays packed."""
    n_packed, n_bytes = archive.stat().st_size, sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES:
        raise DataError(f"{archive}: has {len(entries):,} entries; at most {MAX_ENTRIES:,} are unpacked.")
    if n_bytes > MAX_GROWTH * n_packed:
        raise DataError(
            f"{archive}: refused, since it would grow {n_bytes / n_packed:,.0f}-fold, to {n_bytes:,} bytes."
        )


def _check_entries(archive: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    problems = [f"{archive}: {entry.filename!r} {fault}." for entry in entries if (fault := _fault_of(entry))]
    doubled = [name for name, n in Counter(entry.filename for entry in entries).items() if n > 1]
    problems += [f"{archive}: {name!r} is there more than once." for name in doubled]
    if problems:
        n_more = len(problems) - N_PROBLEMS
        raise DataError(
            problems[:N_PROBLEMS] + ([f"... and {n_more} more like these."] if n_more > 0 else [])
        )


def _fault_of(entry: zipfile.ZipInfo) -> str | None:
    """Why an entry is refused, going on from its name."""
    name = entry.orig_filename  # as stored: `filename` is cut at a NUL and has its slashes turned
    parts = name.replace("\\", "/").split("/")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith(("/", "\\")) or DRIVE.match(name):
        return "is an absolute path"
    if ".." in parts or "." in parts or "" in parts or "\0" in name:
        return "is a path that leaves its folder or is ambiguous"
    if kind not in (0, stat.S_IFREG):
        return "is a link or a special file"
    if entry.flag_bits & ENCRYPTED_FLAG:
        return "is encrypted"
    return None


def _unpack_entry(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = folder.joinpath(*entry.filename.split("/"))
    with opened.open(entry) as source:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            file = target.open("xb")
        with file:
            while chunk := source.read(CHUNK_BYTES):  # the last read verifies the checksum
                with writing(target):
                    file.write(chunk)
