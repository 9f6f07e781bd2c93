"""Images under a URI (s3://, gs://, file://) as a folder on this machine, copied once."""

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from tune_inat.disk import check_room, make_folder, writing
from tune_inat.errors import DataError
from tune_inat.interrupts import call_apart, worker_threads
from tune_inat.meter import Meter

SCHEMES = ("s3", "gs", "gcs", "file")
N_THREADS = 16  # they wait for the network more than they compute
CHUNK_BYTES = 1 << 20
N_PROBLEMS = 20  # that an error spells out
MAX_REASON = 200  # characters of a library's own message
GCS_PATIENCE = "retry_limit_seconds=10"  # instead of a quarter of an hour
SECRETS = re.compile(r"^([^:/?]+://)(?:[^@/?]*@|[^@?]*:[^@?]*@)")  # a secret may hold bare slashes
SECRET_OPTIONS = re.compile("key|secret|token|passw|credential|signature|^sig$", re.IGNORECASE)  # in a query

HINTS: Mapping[
    str, str
] = {  # by words of what pyarrow reports, in lower case; the first that is there counts
    "no_such_bucket": "Is the bucket's name right?",
    "bucket does not exist": "Is the bucket's name right?",
    "access_denied": "Do AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give access?",
    "invalid_access_key_id": "Is AWS_ACCESS_KEY_ID right?",
    "signature_does_not_match": "Is AWS_SECRET_ACCESS_KEY right?",
    "access token": "Is GOOGLE_APPLICATION_CREDENTIALS set? A public bucket is gs://anonymous@BUCKET.",
    "permission_denied": "Do the credentials give access?",
    "resolve host": "Is the network there, and the region or endpoint_override right?",
    "network_connection": "Is the network there, and the region or endpoint_override right?",
    "does not exist": "Is the path right?",
}


@dataclass(frozen=True)
class _RemoteFile:
    relative: str
    n_bytes: int
    changed_ns: int

    def is_copied_to(self, folder: Path) -> bool:
        try:
            status = (folder / self.relative).stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.n_bytes, self.changed_ns)


def is_uri(source: str) -> bool:
    """Whether a source is a URI rather than a path."""
    return "://" in source


def hide_secrets(uri: str) -> str:
    """A URI without the keys that it may carry (`s3://KEY:SECRET@bucket?token=...`), fit to be shown.

    It may stand in an argument (`--data=s3://...`); all other text comes back as it is.
    """
    if not is_uri(uri):
        return uri
    place, _, query = SECRETS.sub(r"\1", uri).partition("?")
    shown = [option for option in query.split("&") if not SECRET_OPTIONS.search(option.partition("=")[0])]
    return f"{place}?{'&'.join(shown)}" if any(shown) else place


def copy_images(uri: str, home: Path, *, is_wanted: Callable[[str], bool], meter: Meter) -> Path:
    """The folder on this machine that has the images under `uri`.

    Files that are there with the same size and time of change are not copied again, so a copy that was cut
    goes on; what has gone from the source goes from the folder.

    Args:
        uri: as `pyarrow.fs.FileSystem.from_uri` reads it, e.g. `s3://bucket/images?region=eu-west-1`.
        home: the folder of all such copies.
        is_wanted: given a path below `uri`, with slashes, whether that file is to be copied.

    Raises:
        DataError: the source cannot be reached, listed or read, or there is nothing.
        ResourceError: the disk has no room.
    """
    name = hide_secrets(uri)
    file_system, base = connect(uri, name)
    files = [file for file in _list_files(file_system, base, uri, name) if is_wanted(file.relative)]
    if not files:
        raise DataError(f"{name}: there are no images.")
    _check_names(files, name)
    copy = home / hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:32]
    folder = copy / "files"
    make_folder(folder)
    with FileLock(copy / "lock"):
        _remove_others(folder, {file.relative for file in files})
        missing = [file for file in files if not file.is_copied_to(folder)]
        check_room(folder, sum(file.n_bytes for file in missing), f"the copy of {name}")
        _copy_files(file_system, base, missing, folder, name, meter)
    return folder


def connect(uri: str, name: str) -> tuple[Any, str]:
    """The file system that a URI names, of pyarrow, and the path in it.

    Args:
        name: the URI as it is shown.

    Raises:
        DataError: it cannot be opened, or names no bucket or folder.
    """
    scheme = uri.partition("://")[0].lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise DataError(f"{name}: {scheme}:// cannot be read. Known are {known} and paths of this machine.")
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in uri:
        uri += ("&" if "?" in uri else "?") + GCS_PATIENCE
    try:
        file_system, base = call_apart(lambda: FileSystem.from_uri(uri))  # may ask for the region
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(explain(name, "cannot be opened", error, uri)) from error
    if not base.strip("/"):
        raise DataError(f"{name}: names no bucket or folder.")
    return file_system, base.rstrip("/")


def _list_files(file_system: Any, base: str, uri: str, name: str) -> list[_RemoteFile]:
    from pyarrow import ArrowException
    from pyarrow.fs import FileSelector, FileType

    try:
        infos = call_apart(lambda: file_system.get_file_info(FileSelector(base, recursive=True)))
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(explain(name, "cannot be listed", error, uri)) from error
    return [
        _RemoteFile(info.path[len(base) :].lstrip("/"), info.size, info.mtime_ns or 0)
        for info in infos
        if info.type == FileType.File
    ]


def explain(name: str, what: str, error: Exception, uri: str) -> str:
    """What failed and why, without secrets, and what may be wrong."""
    reason = str(error).replace(uri, name).partition("\n")[0].strip().rstrip(".")
    if len(reason) > MAX_REASON:
        reason = f"{reason[:MAX_REASON]}..."
    hint = next((hint for words, hint in HINTS.items() if words in str(error).lower()), "")
    return f"{name}: {what} ({reason}). {hint}".rstrip()


def _check_names(files: Sequence[_RemoteFile], name: str) -> None:
    """Refuse object names that are no paths below a folder; buckets may have any."""
    folders = {parent for file in files for parent in _parents(file.relative)}
    problems = []
    for relative in sorted(file.relative for file in files):
        if not is_below(relative):
            problems.append(f"{name}: {relative!r} is not a path below it.")
        elif relative in folders:
            problems.append(f"{name}: {relative!r} is both a file and a folder.")
    _raise_some(problems)


def is_below(relative: str) -> bool:
    """Whether an object's name, with slashes, is a path below a folder; in buckets it may be anything."""
    return not {"", ".", ".."} & set(relative.split("/")) and "\0" not in relative


def _parents(relative: str) -> list[str]:
    parts = relative.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _remove_others(folder: Path, wanted: set[str]) -> None:
    for path in folder.rglob("*"):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):  # the deepest first
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _copy_files(
    file_system: Any, base: str, files: Sequence[_RemoteFile], folder: Path, name: str, meter: Meter
) -> None:
    from pyarrow import ArrowException

    def copy_one(file: _RemoteFile) -> str | None:
        try:
            _copy_file(file_system, f"{base}/{file.relative}", file, folder / file.relative)
        except (OSError, ArrowException) as error:
            first_line = str(error).partition("\n")[0]
            return f"{name}: {file.relative!r} cannot be copied ({first_line})."
        return None

    problems = []
    with (
        meter.task(f"Copying {name}", sum(file.n_bytes for file in files), "bytes") as advance,
        worker_threads(N_THREADS, "copy", may_be_left=True) as pool,
    ):
        for file, problem in zip(files, pool.map(copy_one, files), strict=True):
            if problem is not None:
                problems.append(problem)
            advance(file.n_bytes)
    _raise_some(problems)


def _copy_file(file_system: Any, source: str, file: _RemoteFile, target: Path) -> None:
    """Copy aside and rename; the copy's time of change says of which state of the source it is."""
    aside = target.with_name(f".{uuid.uuid4().hex}.part")  # another copy may be under way, left behind
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        opened = aside.open("wb")
    try:
        with opened, file_system.open_input_stream(source) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                with writing(target):
                    opened.write(chunk)
        n_bytes = aside.stat().st_size
        if n_bytes != file.n_bytes:
            raise OSError(f"{n_bytes:,} of {file.n_bytes:,} bytes came")
        os.utime(aside, ns=(file.changed_ns, file.changed_ns))
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _raise_some(problems: Sequence[str]) -> None:
    if problems:
        n_more = len(problems) - N_PROBLEMS
        raise DataError(
            [*problems[:N_PROBLEMS], *([f"... and {n_more} more like these."] if n_more > 0 else [])]
        )
