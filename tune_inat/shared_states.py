"""Epochs that machines share through a bucket: each has a copy, and any goes on with what one has trained."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tune_inat.bucket import RemoteFolder
from tune_inat.disk import make_folder, writing
from tune_inat.rows import Row
from tune_inat.states import CHECKSUM, RECORD_FILE, FamilyStates, Found, Record, content_of, record_of
from tune_inat.store import hash_of, write_atomically


class SharedStates:
    """The families' epochs in a bucket.

    Args:
        remote: the folder that has a folder for each family.
    """

    def __init__(self, remote: RemoteFolder) -> None:
        self._remote = remote

    def family(self, root: Path, family_key: str) -> "SharedFamilyStates":
        """The epochs of a family; `root` has this machine's copies.

        For a plan of many trials: that a family is there is looked up once for all of them.
        """
        return SharedFamilyStates(
            root, family_key, self._remote / family_key, is_there=lambda: family_key in self._families
        )

    @cached_property
    def _families(self) -> frozenset[str]:
        return frozenset(self._remote.folders())


@dataclass(frozen=True)
class _Published:
    """A record in a bucket, and the names there of the files that it promises, by their names here."""

    record: Record = field(default_factory=Record)
    files: Mapping[str, str] = field(default_factory=dict)


class SharedFamilyStates(FamilyStates):
    """The epochs of one family, here and in a bucket.

    What is reported of an epoch is in the bucket by then: its files first, then the record that names them.
    A file's name there has the checksum of its tensors, so whoever writes one of that name writes the same;
    of two records the longer one counts, whole. So a trial that was cut off and goes on writing, or another
    search, can make work be done twice, but never mix two.

    Raises, with whatever asks the bucket:
        UnreachableError: it does not answer.
    """

    def __init__(
        self,
        root: Path,
        family_key: str,
        remote: RemoteFolder,
        *,
        is_there: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(root, family_key)
        self._remote = remote
        self._is_there = is_there
        self._names: dict[str, str] | None = None  # as in `_Published`, once it is known

    @contextmanager
    def exclusively(self, look: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the family on this machine, and bring copy and bucket to the same record."""
        with super().exclusively(look):
            self._agree()
            self._known = super().record()
            yield

    def record(self) -> Record:
        """The epochs recorded so far, here or in the bucket."""
        here = super().record()
        if self._names is not None or not self._is_there():
            return here
        there = self._read_published().record
        return there if len(there.rows) > len(here.rows) else here

    def save(self, epoch: int, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Write what an epoch left, here and in the bucket."""
        super().save(epoch, weights, optimizer)
        for path in (self._optimizer_file(epoch), self._weights_file(epoch)):
            self._send(path)

    def append(self, row: Row, did: Mapping[str, Any], correct: str = "") -> tuple[Row, ...]:
        """Record an epoch here and in the bucket, unless the record there is longer already."""
        rows = super().append(row, did, correct)
        self._publish()
        return rows

    def resumable_epoch(self, up_to: int) -> int:
        """The last epoch, at most `up_to`, whose files the record names; 0 if there is none."""
        names = self._known_names()
        epochs = (
            epoch
            for epoch in range(1, up_to + 1)
            if {self._weights_file(epoch).name, self._optimizer_file(epoch).name} <= names.keys()
        )
        return max(epochs, default=0)

    def prune(self, *, resume_epochs: Collection[int], weight_epochs: Collection[int]) -> None:
        """Remove the files of all epochs but these: from the record in the bucket first."""
        super().prune(resume_epochs=resume_epochs, weight_epochs=weight_epochs)
        names = self._known_names()
        kept = {self._optimizer_file(epoch).name for epoch in resume_epochs}
        kept |= {self._weights_file(epoch).name for epoch in {*resume_epochs, *weight_epochs}}
        dropped = {name for here, name in names.items() if here not in kept}
        if dropped:
            self._names = {here: name for here, name in names.items() if here in kept}
            for name in dropped - set(self._publish().values()):
                self._remote.remove(name)

    # ---- between here and there

    def _agree(self) -> None:
        """Have the same record here and in the bucket: the longer one, whole."""
        here, published = super().record(), self._read_published()
        there = published.record
        self._names = dict(published.files)
        if here.rows == there.rows:
            return
        if len(there.rows) >= len(here.rows):
            make_folder(self.folder)
            with writing(self.folder):
                write_atomically(self.folder / RECORD_FILE, json.dumps(content_of(there)).encode())
            return
        self._names = {}
        for path in sorted(self.folder.glob("*.safetensors")):  # of an earlier search on this machine alone
            if _checksum_in(path) is not None:
                self._send(path)
        self._publish()

    def _publish(self) -> Mapping[str, str]:
        """Write our record in the bucket, unless the one there is longer; returns the files it names."""
        published, here = self._read_published(), super().record()
        if len(published.record.rows) > len(here.rows):
            return published.files
        content = {**content_of(here), "files": dict(self._known_names())}
        content["files_checksum"] = hash_of([content["checksum"], content["files"]])
        self._remote.write(RECORD_FILE, json.dumps(content).encode())
        return self._known_names()

    def _read_published(self) -> _Published:
        """What the bucket has. A torn or altered record counts as none."""
        content = self._remote.read(RECORD_FILE)
        try:
            read = json.loads(content or b"{}")
            files = {str(here): str(name) for here, name in read["files"].items()}
            if read["files_checksum"] != hash_of([read["checksum"], files]):
                return _Published()
            return _Published(record_of(read), files)
        except (ValueError, KeyError, TypeError, AttributeError):
            return _Published()

    def _known_names(self) -> dict[str, str]:
        if self._names is None:
            self._names = dict(self._read_published().files)
        return self._names

    def _send(self, path: Path) -> None:
        name = f"{path.stem}-{_checksum_in(path)}{path.suffix}"
        self._remote.send(path, name)
        self._known_names()[path.name] = name

    def _read(self, path: Path) -> Found | None:
        """The tensors that the record means: the copy here may be of another run of the same epochs."""
        name = self._known_names().get(path.name)
        if name is None:
            return None
        if name != f"{path.stem}-{_checksum_in(path)}{path.suffix}":
            make_folder(self.folder)
            if not self._remote.fetch(name, path):
                return None
        return super()._read(path)


def _checksum_in(path: Path) -> str | None:
    """The checksum that a file of tensors says it has; `None` if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(CHECKSUM)
    except (OSError, SafetensorError):
        return None
