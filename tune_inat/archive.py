"""A zip archive from elsewhere as a folder: checked before and while it is unpacked, never outside."""

import shutil
import stat
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


def unpack(archive: Path, folder: Path, *, meter: Meter) -> None:
    """Unpack a zip archive into `folder`, in place of whatever is there.

    Raises:
        DataError: the archive is damaged (each entry's checksum is verified), or has entries that a data
            set has no use for: paths that leave the folder, links, encrypted or doubled files.
        ResourceError: the disk has no room.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
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
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive}: is not a whole zip archive ({error}).") from error


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
    if name.startswith(("/", "\\")) or parts[0].endswith(":"):
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
