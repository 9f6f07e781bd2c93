"""Where a search leaves its folder and its epochs: in a folder, or in a bucket with a copy here."""

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from tune_inat.bucket import RemoteFolder, UnreachableError, copies_of
from tune_inat.disk import make_folder
from tune_inat.errors import ResourceError, UserError
from tune_inat.leaderboard import SUMMARY_FILE
from tune_inat.lease import CLAIMS_FOLDER, Lease
from tune_inat.ledger import LEDGER_FILE
from tune_inat.meter import Meter
from tune_inat.mirror import Mirror, StorageError
from tune_inat.remote import is_uri
from tune_inat.runs import IDENTITY_FILE, held
from tune_inat.settings import SearchSettings
from tune_inat.store import COPIES_KIND, LOCK_FILE, LOOKED_AT_KIND, claim_root, default_root, write_atomically

STATES_FOLDER = ".states"  # in --storage: the epochs that all machines share
OTHER_FILES = ".other-files"  # in a copy: the bucket's folder holds something that is no search


class Listener(Meter, Protocol):
    """Whoever is told how far it has come, and what there is to say."""

    def say(self, text: str) -> None:
        """A notice."""
        ...


class FolderStorage:
    """A folder of this machine, or one that all nodes of a cluster see.

    Args:
        is_shared: whether nodes share the epochs there.
        is_for_once: they come from no earlier search, and are left for no later one.

    Attributes:
        root: of the searches' folders, on this machine.
        states_root: of the epochs that nodes share; `None` where they stay in the cache.
        states: the same in a bucket.
    """

    states: RemoteFolder | None = None

    def __init__(self, root: Path, *, is_shared: bool, is_for_once: bool = False) -> None:
        self.root = root
        self.states_root = root.absolute() / STATES_FOLDER if is_shared else None
        self._is_for_once = is_for_once
        if is_for_once and self.states_root is not None:
            self.states_root = self.states_root / _once()

    def look_up(self, name: str | None, proposed: str) -> None:
        """Have in `root` what tells whose a search's folder is."""

    def place(self, folder: Path, file: str = "") -> str:
        """A search's folder, or a file in it, as it is shown and can be typed."""
        return str(folder / file)

    @contextmanager
    def kept(self, folder: Path, listener: Listener) -> Iterator[Mirror | None]:
        """Hold a search's folder while it is written to.

        Raises:
            ResourceError: another search holds it, or it cannot be written.
        """
        with held(folder):
            if self.states_root is not None:
                make_folder(self.states_root)  # a machine that does not see it has another disk
            try:
                yield None
            finally:
                self._forget_states()

    def _forget_states(self) -> None:
        if self.states_root is None:
            return
        if self._is_for_once:
            shutil.rmtree(self.states_root, ignore_errors=True)
        with suppress(OSError):  # a search that was refused leaves nothing, not even an empty folder
            (self.root / STATES_FOLDER).rmdir()


class BucketStorage:
    """A folder in a bucket. Searches write to a copy in the cache, which is sent there as it changes.

    What is there counts: whatever machine the command is run on, it goes on from there.

    Attributes:
        root, states_root, states: as of `FolderStorage`.
    """

    states_root: Path | None = None

    def __init__(self, settings: SearchSettings) -> None:
        self._remote = RemoteFolder(settings.storage)
        self._is_only_read = settings.dry_run
        kind = LOOKED_AT_KIND if settings.dry_run else COPIES_KIND
        self.root = copies_of(settings.storage, kind)
        self.states: RemoteFolder | None = self._remote / STATES_FOLDER
        self._is_for_once = not settings.reuse
        if self._is_for_once:  # nothing from earlier searches, nothing for later ones
            self.states = self.states / _once() if settings.address is not None else None

    def check(self) -> None:
        """Refuse a bucket that cannot be used, before anything is computed.

        Raises:
            DataError: the URI names no storage that is known.
            ResourceError: with the reason.
        """
        try:
            self._remote.check(is_only_read=self._is_only_read)
        except UserError as error:
            raise type(error)([f"--storage {problem}" for problem in error.problems]) from error

    def look_up(self, name: str | None, proposed: str) -> None:
        """Have in `root` what tells whose a search's folder is.

        Raises:
            ResourceError: the bucket does not answer.
        """
        claim_root(default_root())
        make_folder(self.root)
        pattern = re.compile(re.escape(name) if name is not None else rf"{re.escape(proposed)}(-\d+)?")
        try:
            there = {folder for folder in self._remote.folders() if pattern.fullmatch(folder)}
            for folder in there:
                self._bring_identity(folder)
        except UnreachableError as error:
            raise ResourceError(f"--storage {error}") from error
        for copy in list(self.root.iterdir()):
            if pattern.fullmatch(copy.name) and copy.name not in there:
                _empty(copy)

    def place(self, folder: Path, file: str = "") -> str:
        """A search's folder, or a file in it, as it is shown and can be typed."""
        return (self._remote / folder.name / file).name

    @contextmanager
    def kept(self, folder: Path, listener: Listener) -> Iterator[Mirror | None]:
        """Hold a search's folder, here and in the bucket, and send what changes in it.

        Raises:
            ResourceError: another search holds it, or it cannot be read or written.
            StorageError: at the end, what is left could not be sent.
        """
        remote = self._remote / folder.name
        lease = Lease(remote)
        mirror = Mirror(
            folder,
            remote,
            first=(IDENTITY_FILE, LEDGER_FILE),
            last=(SUMMARY_FILE,),
            may_write=lease.ensure,
        )
        try:
            with lease.held(listener.say), held(folder):
                mirror.fetch(listener)
                mirror.start()
                try:
                    yield mirror
                except UnreachableError as error:
                    raise StorageError(f"--storage {error}") from error
                finally:
                    mirror.flush()
                    self._forget_states()
        except UnreachableError as error:
            raise ResourceError(f"--storage {error}") from error

    def _bring_identity(self, name: str) -> None:
        remote, folder = self._remote / name, self.root / name
        make_folder(folder)
        wanted = (IDENTITY_FILE, LEDGER_FILE) if self._is_only_read else (IDENTITY_FILE,)
        contents = {file: remote.read(file) for file in wanted}
        for file, content in contents.items():
            if content is not None and not _has(folder / file, content):
                write_atomically(folder / file, content)
        if contents[IDENTITY_FILE] is None:
            _empty(folder)
            if any(file.split("/")[0] != CLAIMS_FOLDER for file in remote.files(recursive=True)):
                folder.mkdir(exist_ok=True)
                (folder / OTHER_FILES).touch()

    def _forget_states(self) -> None:
        if self._is_for_once and self.states is not None:
            with suppress(UnreachableError):
                self.states.remove_all()


Storage = FolderStorage | BucketStorage


def open_storage(settings: SearchSettings) -> Storage:
    """What `--storage` names, once it is known that it can be used.

    Raises:
        DataError: a URI of an unknown kind.
        ResourceError: a bucket that cannot be used, with the reason.
    """
    if not is_uri(settings.storage):
        return _folder_storage(Path(settings.storage), settings)
    if settings.storage.lower().startswith("file://"):
        path = Path(unquote(urlsplit(settings.storage).path))
        return _folder_storage(path, settings)
    storage = BucketStorage(settings)
    storage.check()
    return storage


def _folder_storage(root: Path, settings: SearchSettings) -> FolderStorage:
    return FolderStorage(root, is_shared=settings.address is not None, is_for_once=not settings.reuse)


def _once() -> str:
    """The name of a folder for the epochs of one run."""
    return f"once-{uuid.uuid4().hex}"


def _has(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _empty(folder: Path) -> None:
    """Remove a copy of what is not in the bucket, unless a search of this machine writes to it."""
    if not folder.is_dir():
        return
    with suppress(Timeout), FileLock(folder / LOCK_FILE, timeout=0):
        shutil.rmtree(folder)
