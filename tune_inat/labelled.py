"""How right predictions are on images that stand in folders named by class: `predict --evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tune_inat.errors import UserError, printable
from tune_inat.folders import name_some
from tune_inat.metrics import wilson_interval

MAX_COLUMNS = 15  # classes of a confusion matrix that is printed whole
N_CONFUSIONS = 15  # listed where it is not
NAME_WIDTH = 24  # columns of a class's name


@dataclass(frozen=True)
class Confusion:
    """Predictions against the truth.

    Attributes:
        counts: (K, K) int64; of the images of the row's class, how many were taken for the column's.
    """

    classes: Sequence[str]
    counts: npt.NDArray[np.int64]

    @property
    def n(self) -> int:
        """The images."""
        return int(self.counts.sum())

    @property
    def n_correct(self) -> int:
        """The images that were taken for what they are."""
        return int(self.counts.trace())

    def to_json(self) -> dict[str, Any]:
        """As it stands in the command's JSON; without images, accuracy and interval are null."""
        return {
            "n": self.n,
            "n_correct": self.n_correct,
            "accuracy": self.n_correct / self.n if self.n else None,
            "interval": list(wilson_interval(self.n_correct, self.n)) if self.n else None,
            "classes": list(self.classes),
            "confusion": self.counts.tolist(),
        }

    def lines(self) -> list[str]:
        """The same for people: accuracy with its interval, and what was taken for what."""
        if not self.n:
            return ["No labelled image could be predicted: there is no accuracy."]
        low, high = wilson_interval(self.n_correct, self.n)
        accuracy = (
            f"Accuracy {self.n_correct / self.n:.4f} ({self.n_correct:,} of {self.n:,} images, "
            f"95 % interval {low:.4f} to {high:.4f})"
        )
        occurring = np.flatnonzero(self.counts.sum(axis=0) + self.counts.sum(axis=1))
        matrix = self._matrix(occurring) if len(occurring) <= MAX_COLUMNS else self._largest()
        return [accuracy, *matrix]

    def _matrix(self, occurring: npt.NDArray[np.int64]) -> list[str]:
        counts = self.counts[np.ix_(occurring, occurring)]
        width = max(len(f"{counts.max():,}"), len(f"[{len(occurring)}]")) + 2
        names = [_short(self.classes[index]) for index in occurring]
        name_width = max(len("true class"), *(len(name) for name in names))
        heads = "".join(f"{f'[{column}]':>{width}}" for column in range(1, len(names) + 1))
        rows = [
            f"{f'[{number}]':>4} {name:<{name_width}}" + "".join(f"{count:>{width},}" for count in row)
            for number, (name, row) in enumerate(zip(names, counts, strict=True), start=1)
        ]
        return [f"{'':>4} {'true class':<{name_width}}{heads}  predicted", *rows]

    def _largest(self) -> list[str]:
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:N_CONFUSIONS]
        pairs = [divmod(int(index), len(self.classes)) for index in order]
        return [
            f"{wrong[true, taken]:>6,} x {_short(self.classes[true])} taken for {_short(self.classes[taken])}"
            for true, taken in pairs
            if wrong[true, taken]
        ]


def labels_of(files: Sequence[Path], classes: Sequence[str]) -> list[int | None]:
    """The class of each file: the nearest folder in its path that is named like one; `None` where none is.

    Raises:
        UserError: no file has a class.
    """
    index = {name: number for number, name in enumerate(classes)}
    labels = [next((index[p.name] for p in file.parents if p.name in index), None) for file in files]
    if files and all(label is None for label in labels):
        raise UserError(
            f"--evaluate: no image is in a folder named by a class. The classes are {name_some(classes)}."
        )
    return labels


def confusion_of(pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> Confusion:
    """Count pairs of a true class and a predicted one."""
    index = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for true, predicted in pairs:
        counts[index[true], index[predicted]] += 1
    return Confusion(classes, counts)


def _short(name: str) -> str:
    line = printable(name).replace("\n", "\\n")
    return line if len(line) <= NAME_WIDTH else line[: NAME_WIDTH - 3] + "..."
