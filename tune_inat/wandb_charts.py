"""What W&B gets of a search's best trial: charts of its validation predictions, and its model."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import wandb

from tune_inat.errors import printable
from tune_inat.wandb_files import MODEL_TYPE

MAX_MATRIX_CLASSES = 100  # W&B's tables have room for 10,000 cells
MAX_CURVES = 20  # more cannot be told apart by their colours
OTHERS = "(others)"
NOT_IN_NAMES = re.compile(r"[^\w.-]", re.ASCII)  # of artifacts
MAX_ARTIFACT_NAME = 128  # characters
DATA_FOLDER = "WANDB_DATA_DIR"


@dataclass(frozen=True)
class BestTrial:
    """A best trial, as its run is to show it.

    Attributes:
        probabilities: of the validation images, (N, K).
        labels: theirs, (N,) int, each in 0..K-1; the true classes.
        classes: the K names.
        model_folder: to keep as an artifact of the run, `None` to keep none.
        test_accuracy: of the model, `None` where it was not tested.
    """

    probabilities: npt.NDArray[np.floating[Any]]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    model_folder: Path | None = None
    test_accuracy: float | None = None


def charts_of(best: BestTrial) -> dict[str, Any]:
    """W&B's own confusion matrix and precision-recall curves, by the names of their panels.

    Of more than `MAX_MATRIX_CLASSES` classes the matrix has those with most errors, and all others as one;
    there are curves of at most `MAX_CURVES` classes, again those with most errors. A class without any
    validation image has no curve.
    """
    ranked = _by_errors(best)
    names = [printable(name) for name in best.classes]
    return {"confusion_matrix": _matrix(best, ranked, names), "pr_curve": _curves(best, ranked, names)}


def model_artifact(folder: Path, *, search: str, aside: Path) -> wandb.Artifact:
    """The files of a model as an artifact named after its search; every search has one, with versions.

    W&B reads the files when it sends them, which may be after a later search has replaced them, so the
    artifact holds links to them (copies where the disk has no links) in the new folder `aside`.
    """
    aside.mkdir(parents=True)
    name = NOT_IN_NAMES.sub("-", search)[: MAX_ARTIFACT_NAME - len("-model")]
    artifact = wandb.Artifact(f"{name}-model", type=MODEL_TYPE)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        kept = aside / path.name
        try:
            os.link(path, kept)
        except OSError:
            shutil.copy2(path, kept)
        artifact.add_file(str(kept), name=path.name, policy="immutable")  # else W&B copies it to the home
    return artifact


@contextmanager
def data_kept_in(folder: Path) -> Iterator[None]:
    """Have W&B stage what it will send in `folder`, not in the user's home; `WANDB_DATA_DIR` goes before."""
    if os.environ.get(DATA_FOLDER):
        yield
        return
    os.environ[DATA_FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(DATA_FOLDER, None)


def _by_errors(best: BestTrial) -> npt.NDArray[np.int64]:
    """All classes, those first whose images were taken for others, or others for theirs, most often."""
    predicted = best.probabilities.argmax(axis=1)
    wrong = predicted != best.labels
    n = len(best.classes)
    errors = np.bincount(best.labels[wrong], minlength=n) + np.bincount(predicted[wrong], minlength=n)
    return np.argsort(-errors, kind="stable")


def _matrix(best: BestTrial, ranked: npt.NDArray[np.int64], names: list[str]) -> Any:
    predicted, title = best.probabilities.argmax(axis=1), "Confusion matrix of the validation images"
    n = len(names)
    if n <= MAX_MATRIX_CLASSES:
        places, shown = np.arange(n), names
    else:
        kept = np.sort(ranked[: MAX_MATRIX_CLASSES - 1])
        places = np.full(n, len(kept))
        places[kept] = np.arange(len(kept))
        shown = [*(names[index] for index in kept), OTHERS]
        title += f", {len(kept)} of {n:,} classes"
    return wandb.plot.confusion_matrix(
        y_true=places[best.labels].tolist(),
        preds=places[predicted].tolist(),
        class_names=shown,
        title=title,
    )


def _curves(best: BestTrial, ranked: npt.NDArray[np.int64], names: list[str]) -> Any:
    present = np.unique(best.labels)  # W&B's function takes column n for the nth class that is present
    drawn = [index for index in ranked if index in present][:MAX_CURVES]
    title = "Precision and recall of the validation images"
    if len(drawn) < len(present):
        title += f", {len(drawn)} of {len(present):,} classes"
    return wandb.plot.pr_curve(
        y_true=np.searchsorted(present, best.labels),
        y_probas=best.probabilities[:, present],
        labels=[names[index] for index in present],
        classes_to_plot=np.searchsorted(present, np.sort(drawn)).tolist(),
        title=title,
    )
