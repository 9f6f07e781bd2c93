"""What epochs left: the metrics of each one and the tensors to go on from, by family of trials."""

import errno
import hashlib
import json
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tune_inat.disk import check_room, is_of_full_disk, make_folder, sync, writing
from tune_inat.errors import ResourceError
from tune_inat.life import sign
from tune_inat.ownership import LOOK_SECONDS, Ownership
from tune_inat.rows import Row
from tune_inat.store import FAMILY_RECORD, hash_of, sibling_lock, write_atomically

RECORD_FILE = FAMILY_RECORD
CHECKSUM, OWNER = "checksum", "owner"  # of a file's tensors, in its metadata
RAN_ON = "ran_on"  # of what was done: where each epoch was trained


@dataclass(frozen=True)
class Record:
    """The epochs of a family, whole and in order, and what was really done to train them.

    `correct` says for each row which validation images were right, see `metrics.pack_correct`.
    """

    rows: tuple[Row, ...] = ()
    did: Mapping[str, Any] | None = None
    correct: tuple[str, ...] = ()


def content_of(record: Record) -> dict[str, Any]:
    """A record as its file has it, with a checksum."""
    content: dict[str, Any] = {"rows": record.rows, "did": record.did, "correct": record.correct}
    return {**content, "checksum": _checksum_of_record(content)}


def record_of(content: Mapping[str, Any]) -> Record:
    """The record that a file's content says; none if it disagrees with its checksum, or with itself.

    Raises:
        KeyError, TypeError, ValueError: it is not of that form.
    """
    rows = tuple(dict(row) for row in content["rows"])
    correct = tuple(content["correct"])
    is_whole = content["checksum"] == _checksum_of_record(content) and len(correct) == len(rows)
    if not is_whole or [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
        return Record()
    return Record(rows, content["did"], correct)


@dataclass(frozen=True)
class Found:
    """The tensors of a file, and whose they are: one owner's weights do not go with another's optimizer."""

    tensors: dict[str, Tensor]
    owner: str


class FamilyStates:
    """The folder of one family. Only one process trains a family at a time (`exclusively`).

    Each epoch may leave two files: the weights that train, and the optimizer's tensors. The record of an
    epoch is written when its files are on the disk, so it never promises more than there is, whatever ends
    the process or the machine. Files and record carry checksums.

    Args:
        search: whose trial this is, where machines share the root: then the family may be taken over from a
            process that lives on where nobody reaches it, and `save`, `append` and `prune` of that one raise
            `LostOwnershipError`. Without it, the family is held by a lock that dies with its process.
    """

    def __init__(self, root: Path, family_key: str, search: str | None = None) -> None:
        self.folder = root / family_key
        self._ownership = None if search is None else Ownership(self.folder, search)
        self._known: Record | None = None  # while it is owned: another's late write does not count

    @contextmanager
    def exclusively(self, look: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the family; others wait until it is let go, or its holder dies. It counts as used now.

        Args:
            look: called now and then while it waits; may raise, to give up.

        Raises:
            ResourceError: the cache cannot be written, or this machine does not see what is shared.
        """
        root = self.folder.parent
        if self._ownership is None:
            make_folder(root)
        elif not root.is_dir():  # of a machine that came while the search runs
            raise ResourceError(
                f"{socket.gethostname()} does not see {root}, where trials of all nodes keep their epochs. "
                "Give a --storage that all nodes share: a folder, such as one on NFS, or a bucket."
            )
        holding = self._locked(look) if self._ownership is None else self._ownership.held(look)
        with holding:
            with writing(self.folder):
                self.folder.mkdir(exist_ok=True)
                for pattern in ("weights-*.tmp", "optimizer-*.tmp", f".{RECORD_FILE}.*.tmp"):
                    for left in self.folder.glob(pattern):  # of who was killed, or lost the family
                        left.unlink(missing_ok=True)
                with suppress(FileNotFoundError):
                    os.utime(self.folder / RECORD_FILE)
            self._known = self.record()
            try:
                yield
            finally:
                self._known = None

    @contextmanager
    def _locked(self, look: Callable[[], None]) -> Iterator[None]:
        lock = FileLock(sibling_lock(self.folder))
        with writing(self.folder):
            while True:
                with suppress(Timeout):
                    lock.acquire(timeout=LOOK_SECONDS)
                    break
                sign()  # to wait for who holds it is no hang
                look()
        try:
            yield
        finally:
            lock.release()

    def look(self) -> None:
        """Find out, at no cost, whether the family was lost: within seconds, not at once.

        Raises:
            LostOwnershipError: it is another's by now.
        """
        if self._ownership is not None and self._ownership.is_doubtful:
            self._ownership.check()

    def _check(self) -> None:
        if self._ownership is not None:
            self._ownership.check()

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Around writes: what is half written goes when another takes the family over: no fault of a disk."""
        try:
            with writing(path):
                yield
        except ResourceError:
            self._check()
            raise

    def record(self) -> Record:
        """The epochs recorded so far. A torn or altered record counts as none."""
        try:
            return record_of(json.loads((self.folder / RECORD_FILE).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return Record()

    def save(self, epoch: int, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Write what an epoch left: both files whole and of one owner, or neither counts.

        Raises:
            ResourceError: the disk has no room, or cannot be written.
            LostOwnershipError: the family is another's by now.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        n_bytes = sum(value.nbytes for value in (*weights.values(), *optimizer.values()))
        check_room(self.folder, n_bytes, "what an epoch leaves")
        self._write(self._optimizer_file(epoch), optimizer)
        self._write(self._weights_file(epoch), weights)

    def append(self, row: Row, did: Mapping[str, Any], correct: str = "") -> tuple[Row, ...]:
        """Record an epoch: the next one, or one that is recorded already. Returns all on record."""
        record = self._known or self.record()
        rows = record.rows
        epoch = int(row["epoch"])
        if epoch <= len(rows):
            return rows
        assert epoch == len(rows) + 1, f"epoch {epoch} cannot follow epoch {len(rows)}"
        kept = (*rows, row)
        answers = (*record.correct, correct)
        longer = Record(kept, dict(did), answers)
        self._check()
        with self._writing(self.folder):
            write_atomically(self.folder / RECORD_FILE, json.dumps(content_of(longer)).encode())
        if self._known is not None:
            self._known = longer
        return kept

    def resumable_epoch(self, up_to: int) -> int:
        """The last epoch, at most `up_to`, with weights and optimizer on the disk; 0 if there is none."""
        epochs = (
            epoch
            for epoch in self._epochs_of("optimizer")
            if epoch <= up_to and self._weights_file(epoch).exists()
        )
        return max(epochs, default=0)

    def load(self, epoch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """Weights and optimizer after an epoch, on the CPU; `None` if gone, torn or of two owners."""
        weights = self._read(self._weights_file(epoch))
        optimizer = self._read(self._optimizer_file(epoch))
        if weights is None or optimizer is None or weights.owner != optimizer.owner:
            return None
        return weights.tensors, optimizer.tensors

    def load_weights(self, epoch: int) -> dict[str, Tensor] | None:
        """The weights that train, after an epoch, on the CPU; `None` when they are gone or torn."""
        found = self._read(self._weights_file(epoch))
        return None if found is None else found.tensors

    def prune(self, *, resume_epochs: Collection[int], weight_epochs: Collection[int]) -> None:
        """Remove the files of all epochs but those to go on from and those whose weights are wanted.

        Raises:
            LostOwnershipError: the family is another's by now.
        """
        self._check()
        for epoch in self._epochs_of("optimizer"):
            if epoch not in resume_epochs:
                self._optimizer_file(epoch).unlink(missing_ok=True)
        for epoch in self._epochs_of("weights"):
            if epoch not in resume_epochs and epoch not in weight_epochs:
                self._weights_file(epoch).unlink(missing_ok=True)

    def _epochs_of(self, kind: str) -> list[int]:
        return sorted(int(file.stem.split("-")[1]) for file in self.folder.glob(f"{kind}-*.safetensors"))

    def _weights_file(self, epoch: int) -> Path:
        return self.folder / f"weights-{epoch:05d}.safetensors"

    def _optimizer_file(self, epoch: int) -> Path:
        return self.folder / f"optimizer-{epoch:05d}.safetensors"

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        owner = "" if self._ownership is None else self._ownership.token
        aside = path.with_suffix(f".{owner}.tmp" if owner else ".tmp")
        whole = {name: value.detach().contiguous() for name, value in tensors.items()}
        with self._writing(path):
            try:
                save_file(whole, aside, metadata={CHECKSUM: _checksum_of(whole), OWNER: owner})
            except SafetensorError as error:  # as it says whatever the file system refuses
                if is_of_full_disk(error):
                    raise OSError(errno.ENOSPC, str(error)) from error
                raise ResourceError(f"{path}: cannot be written ({error}).") from error
            sync(aside)
            self._check()
            aside.replace(path)

    def _read(self, path: Path) -> Found | None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except (OSError, SafetensorError):
            return None
        is_whole = _checksum_of(tensors) == metadata.get(CHECKSUM)
        return Found(tensors, metadata.get(OWNER, "")) if is_whole else None


def _checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and every byte."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum_of_record(content: Mapping[str, Any]) -> str:
    return hash_of([content["rows"], content["correct"], content["did"]])


def ran_on(record: Record, n_epochs: int, *, here: str | None = None) -> list[list[Any]]:
    """Where each of a family's first epochs was trained, in stretches: `[["worker1 cpu", 3], ...]`.

    Args:
        record: of epochs that were trained before; of older records that is not known.
        here: where those that it does not have are trained.
    """
    known = (record.did or {}).get(RAN_ON) or [["unknown", len(record.rows)]]
    stretches: list[list[Any]] = []
    left = n_epochs
    for where, n in [*(known if record.rows else []), [here, n_epochs]]:
        taken = min(n, left)
        if taken and stretches and stretches[-1][0] == where:
            stretches[-1][1] += taken
        elif taken:
            stretches.append([where, taken])
        left -= taken
    return stretches


def to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU, safe from the steps that follow."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
