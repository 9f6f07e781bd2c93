"""The best model's predictions: its confusions, its calibration, and pictures of its mistakes."""

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tune_inat.leaderboard import PREDICTION_COLUMNS, PREDICTIONS_FILE, safe_cell
from tune_inat.metrics import CalibrationBins, calibration_bins
from tune_inat.pictures import UnreadableImage, read_picture, strict_pillow

THUMBNAIL = 192  # pixels of the longer side: sharp on a screen of two pixels a point
N_MISTAKES = 24

Scale = Literal["confidence", "calibrated"]


@dataclass(frozen=True)
class Predictions:
    """Predictions of one part, N images.

    Attributes:
        labels: (N,) int64, into `classes`; so is `predicted`.
        confidence: (N,) float64, the probability of the predicted class; `calibrated` after temperature.
    """

    part: str
    classes: Sequence[str]
    files: Sequence[str]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    calibrated: npt.NDArray[np.float64]

    def confusion(self) -> npt.NDArray[np.int64]:
        """(K, K): how many images of the row's class were taken for the column's."""
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)
        return counts

    def mistakes(self) -> list[int]:
        """The images that were wrong, the most confident first."""
        wrong = np.flatnonzero(self.labels != self.predicted)
        return [int(index) for index in wrong[np.argsort(-self.calibrated[wrong], kind="stable")]]


def read_predictions(folder: Path, classes: Sequence[str]) -> tuple[Predictions | None, str]:
    """The predictions on the test images, or on the validation images where there is no test part.

    Returns:
        `None` and the reason where there are none.
    """
    path = folder / PREDICTIONS_FILE
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            if not set(PREDICTION_COLUMNS) <= set(reader.fieldnames or ()):
                return None, f"{PREDICTIONS_FILE} has not the columns {', '.join(PREDICTION_COLUMNS)}."
            rows = [tuple(row[name] for name in PREDICTION_COLUMNS) for row in reader]
    except FileNotFoundError:
        return None, f"There is no {PREDICTIONS_FILE}: it is written when a search has tested its best model."
    except (OSError, csv.Error, ValueError) as error:
        return None, f"{PREDICTIONS_FILE} cannot be read ({error})."
    part = "test" if any(row[0] == "test" for row in rows) else "val"
    chosen = [row for row in rows if row[0] == part]
    if not chosen:
        return None, f"{PREDICTIONS_FILE} holds no image of part test or val."
    known = [safe_cell(name) for name in classes]  # as the file has them
    others = sorted({name for row in chosen for name in row[2:4]} - set(known))
    index = {name: number for number, name in enumerate([*known, *others])}
    try:
        return Predictions(
            part=part,
            classes=[*classes, *others],
            files=[row[1] for row in chosen],
            labels=np.array([index[row[2]] for row in chosen], dtype=np.int64),
            predicted=np.array([index[row[3]] for row in chosen], dtype=np.int64),
            confidence=np.array([float(row[4]) for row in chosen]),
            calibrated=np.array([float(row[5]) for row in chosen]),
        ), ""
    except (ValueError, TypeError) as error:
        return None, f"{PREDICTIONS_FILE} cannot be read ({error})."


def reliability(predictions: Predictions, scale: Scale) -> CalibrationBins:
    """How often predictions of a confidence are right."""
    values = predictions.confidence if scale == "confidence" else predictions.calibrated
    return calibration_bins(values, predictions.labels == predictions.predicted)


def thumbnails(files: Sequence[str], places: Sequence[Path]) -> list[str | None]:
    """Each image as a small JPEG in a data: URI, `None` where its file is not there or is no image any more.

    Args:
        places: where relative names may start.
    """
    with strict_pillow():
        return [_thumbnail(file, places) for file in files]


def _thumbnail(file: str, places: Sequence[Path]) -> str | None:
    for path in (place / file for place in places):  # an absolute name stays what it is
        try:
            picture = read_picture(path, at_least=THUMBNAIL)
        except (UnreadableImage, ValueError):
            continue
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=82)
        return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    return None
