"""What epochs left: the metrics of each one and the tensors to go on from, by family of trials."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tune_inat.life import locked
from tune_inat.rows import Row
from tune_inat.store import FAMILY_RECORD, family_lock, hash_of, write_atomically

RECORD_FILE = FAMILY_RECORD


@dataclass(frozen=True)
class Record:
    """The epochs of a family, whole and in order, and what was really done to train them.

    `correct` says for each row which validation images were right, see `metrics.pack_correct`.
    """

    rows: tuple[Row, ...] = ()
    did: Mapping[str, Any] | None = None
    correct: tuple[str, ...] = ()


class FamilyStates:
    """The folder of one family. Only one process trains a family at a time (`exclusively`).

    Each epoch may leave two files: the weights that train, and the optimizer's tensors. The record of an
    epoch is written after its files, so it never promises more than there is.
    """

    def __init__(self, root: Path, family_key: str) -> None:
        self.folder = root / family_key

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the family; others wait until it is let go, or its holder dies. It counts as used now."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(family_lock(self.folder)):
            self.folder.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                os.utime(self.folder / RECORD_FILE)
            yield

    def record(self) -> Record:
        """The epochs recorded so far. A torn or altered record counts as none."""
        try:
            content = json.loads((self.folder / RECORD_FILE).read_bytes())
            rows = tuple(dict(row) for row in content["rows"])
            correct = tuple(content["correct"])
            if content["checksum"] != hash_of([content["rows"], content["correct"]]):
                return Record()
            if len(correct) != len(rows):
                return Record()
            if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
                return Record()
            return Record(rows, content["did"], correct)
        except (OSError, ValueError, KeyError, TypeError):
            return Record()

    def save(self, epoch: int, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Write what an epoch left: both files whole, or neither counts."""
        self.folder.mkdir(parents=True, exist_ok=True)
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
        checksum = hash_of([kept, answers])
        content = {"rows": kept, "did": dict(did), "correct": answers, "checksum": checksum}
        write_atomically(self.folder / RECORD_FILE, json.dumps(content).encode())
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
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, aside)
        aside.replace(path)

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            return None


def to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU, safe from the steps that follow."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
