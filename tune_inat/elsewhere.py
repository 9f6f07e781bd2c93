"""Searches' folders wherever they are: of those in a bucket, what is needed is copied here first."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock

from tune_inat.bucket import RemoteFolder, UnreachableError, copies_of
from tune_inat.disk import make_folder
from tune_inat.errors import ResourceError, UserError
from tune_inat.ledger import LEDGER_FILE
from tune_inat.meter import SilentMeter
from tune_inat.mirror import Mirror
from tune_inat.remote import is_uri
from tune_inat.runs import IDENTITY_FILE
from tune_inat.store import LOOKED_AT_KIND, claim_root, default_root, sibling_lock

OF_SEARCHES = (IDENTITY_FILE, LEDGER_FILE, "summary.json")


@contextmanager
def folder_at(place: str, *, is_wanted: Callable[[str], bool]) -> Iterator[Path]:
    """A search's folder on this machine, for a while; what goes wrong in it is told of `place`.

    Args:
        place: a path, or a URI (s3://, gs://).
        is_wanted: given a name below a URI, with slashes, whether that file is needed.

    Raises:
        UserError: there is nothing, or the bucket cannot be read.
    """
    if not is_uri(place):
        yield Path(place)
        return
    remote = RemoteFolder(place, patience_seconds=0.0)
    folder = _copy(remote, is_wanted)
    try:
        yield folder
    except UserError as error:
        told = [problem.replace(str(folder), remote.name) for problem in error.problems]
        raise type(error)(told) from error


def folders_at(places: Sequence[str]) -> list[Path]:
    """The folders of searches on this machine, each with what says what it came to.

    A URI names a search, or a folder of searches (`s3://bucket/runs`, or `s3://bucket/runs/*`).

    Raises:
        UserError: a bucket cannot be read.
    """
    folders: list[Path] = []
    for place in places:
        if not is_uri(place):
            folders.append(Path(place))
            continue
        uri, mark, options = place.partition("?")
        remote = RemoteFolder(uri.rstrip("*").rstrip("/") + mark + options, patience_seconds=0.0)
        with _explaining():
            searches = [remote] if _is_search(remote) else []
            if not searches:
                searches = [remote / name for name in remote.folders() if not name.startswith(".")]
                searches = [search for search in searches if _is_search(search)]
        if not searches:
            raise UserError(f"{remote.name}: there are no searches here.")
        folders += [_copy(search, lambda name: name in OF_SEARCHES) for search in searches]
    return folders


def _is_search(remote: RemoteFolder) -> bool:
    return bool(remote.files().keys() & set(OF_SEARCHES))


def send_to(place: str, file: Path, name: str) -> str:
    """Send a file to a search's folder in a bucket; returns where it is then.

    Raises:
        ResourceError: the bucket cannot be written.
    """
    remote = RemoteFolder(place)
    with _explaining():
        remote.send(file, name)
    return (remote / name).name


def _copy(remote: RemoteFolder, is_wanted: Callable[[str], bool]) -> Path:
    uri = remote.uri.partition("?")[0].rstrip("/")
    parent, _, last = f"{uri}/{remote.below}".rstrip("/").rpartition("/")
    claim_root(default_root())
    folder = copies_of(parent, LOOKED_AT_KIND) / unquote(last)
    make_folder(folder.parent)
    with _explaining(), FileLock(sibling_lock(folder)):
        if not remote.files(recursive=True):
            raise UserError(f"{remote.name}: there is nothing here.")
        Mirror(folder, remote, first=(), last=(), may_write=lambda: None).fetch(
            SilentMeter(), is_wanted=is_wanted
        )
    return folder


@contextmanager
def _explaining() -> Iterator[None]:
    try:
        yield
    except UnreachableError as error:
        raise ResourceError(str(error)) from error
