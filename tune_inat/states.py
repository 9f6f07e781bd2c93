"""What epochs left: the metrics of each one and the tensors to go on from, by family of trials."""

import hashlib
import json
import os
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

from tune_inat.disk import check_room, make_folder, sync, writing
from tune_inat.errors import ResourceError
from tune_inat.life import sign
from tune_inat.rows import Row
from tune_inat.store import FAMILY_RECORD, family_lock, hash_of, write_atomically

RECORD_FILE = FAMILY_RECORD
CHECKSUM = "checksum"  # of a file's tensors, in its metadata
LOOK_SECONDS = 0.2  # between two looks at whether a trial that waits for its family is to end


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


class FamilyStates:
    """The folder of one family. Only one process trains a family at a time (`exclusively`).

    Each epoch may leave two files: the weights that train, and the optimizer's tensors. The record of an
    epoch is written when its files are on the disk, so it never promises more than there is, whatever ends
    the process or the machine. Files and record carry checksums.
    """

    def __init__(self, root: Path, family_key: str) -> None:
        self.folder = root / family_key

    @contextmanager
    def exclusively(self, look: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the family; others wait until it is let go, or its holder dies. It counts as used now.

        Args:
            look: called now and then while it waits; may raise, to give up.

        Raises:
            ResourceError: the cache cannot be written.
        """
        make_folder(self.folder.parent)
        lock = FileLock(family_lock(self.folder))
        with writing(self.folder):
            while True:
                with suppress(Timeout):
                    lock.acquire(timeout=LOOK_SECONDS)
                    break
                sign()  # to wait for who holds it is no hang
                look()
        try:
            with writing(self.folder):
                self.folder.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):
                    os.utime(self.folder / RECORD_FILE)
            yield
        finally:
            lock.release()

    def record(self) -> Record:
        """The epochs recorded so far. A torn or altered record counts as none."""
        try:
            return record_of(json.loads((self.folder / RECORD_FILE).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return Record()

    def save(self, epoch: int, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Write what an epoch left: both files whole, or neither counts.

        Raises:
            ResourceError: the disk has no room, or cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        n_bytes = sum(value.nbytes for value in (*weights.values(), *optimizer.values()))
        check_room(self.folder, n_bytes, "what an epoch leaves")
        self._write(self._optimizer_file(epoch), optimizer)
        self._write(self._weights_file(epoch), weights)

    def append(self, row: Row, did: Mapping[str, Any], correct: str = "") -> tuple[Row, ...]:
        """Record an epoch: the next one, or one that is recorded already. Returns all on record."""
        record = self.record()
        rows = record.rows
        epoch = int(row["epoch"])
        if epoch <= len(rows):
            return rows
        assert epoch == len(rows) + 1, f"epoch {epoch} cannot follow epoch {len(rows)}"
        kept = (*rows, row)
        answers = (*record.correct, correct)
        content = json.dumps(content_of(Record(kept, dict(did), answers))).encode()
        with writing(self.folder):
            write_atomically(self.folder / RECORD_FILE, content)
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
        """Weights and optimizer after an epoch, on the CPU; `None` when they are gone or torn."""
        weights = self.load_weights(epoch)
        optimizer = self._read(self._optimizer_file(epoch))
        return None if weights is None or optimizer is None else (weights, optimizer)

    def load_weights(self, epoch: int) -> dict[str, Tensor] | None:
        """The weights that train, after an epoch, on the CPU; `None` when they are gone or torn."""
        return self._read(self._weights_file(epoch))

    def prune(self, *, resume_epochs: Collection[int], weight_epochs: Collection[int]) -> None:
        """Remove the files of all epochs but those to go on from and those whose weights are wanted."""
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
        aside = path.with_suffix(".tmp")
        whole = {name: value.detach().contiguous() for name, value in tensors.items()}
        with writing(path):
            try:
                save_file(whole, aside, metadata={CHECKSUM: _checksum_of(whole)})
            except SafetensorError as error:  # as it says whatever the file system refuses
                raise ResourceError(f"{path}: cannot be written ({error}).") from error
            sync(aside)
            aside.replace(path)

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        try:
            with safe_open(path, framework="pt") as file:
                checksum = (file.metadata() or {}).get(CHECKSUM)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except (OSError, SafetensorError):
            return None
        return tensors if _checksum_of(tensors) == checksum else None


def _checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and every byte."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum_of_record(content: Mapping[str, Any]) -> str:
    return hash_of([content["rows"], content["correct"], content["did"]])


def to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU, safe from the steps that follow."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
