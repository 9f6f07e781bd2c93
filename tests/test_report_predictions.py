"""A best model's predictions as the report has them, against scikit-learn and our own metrics."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from tests.report_searches import write_predictions
from tune_inat.leaderboard import PREDICTION_COLUMNS, PREDICTIONS_FILE, safe_cell
from tune_inat.metrics import expected_calibration_error
from tune_inat.report_predictions import THUMBNAIL, Predictions, read_predictions, reliability, thumbnails


@pytest.fixture
def predictions(tmp_path: Path) -> Predictions:
    classes = write_predictions(tmp_path, 5)
    found, reason = read_predictions(tmp_path, classes)
    assert found is not None, reason
    return found


def test_confusions_are_those_of_scikit_learn(predictions: Predictions) -> None:
    expected = confusion_matrix(predictions.labels, predictions.predicted, labels=range(5))
    assert np.array_equal(predictions.confusion(), expected)


def test_calibration_error_is_that_of_the_search(predictions: Predictions) -> None:
    # Probabilities of which the highest is the confidence, and is of the predicted class.
    n = len(predictions.labels)
    rest = (1 - predictions.confidence) / 4
    probabilities = np.repeat(rest[:, None], 5, axis=1)
    probabilities[np.arange(n), predictions.predicted] = predictions.confidence
    expected = expected_calibration_error(probabilities, predictions.labels)
    assert reliability(predictions, "confidence").ece == pytest.approx(expected)


def test_mistakes_are_wrong_and_the_most_confident_come_first(predictions: Predictions) -> None:
    wrong = predictions.mistakes()
    assert len(wrong) == (predictions.labels != predictions.predicted).sum()
    confidences = [predictions.calibrated[index] for index in wrong]
    assert confidences == sorted(confidences, reverse=True)
    assert set(wrong[:2]) == {0, 1}  # the two of 0.999


def test_validation_images_stand_in_where_there_is_no_test_part(tmp_path: Path) -> None:
    write_predictions(tmp_path, 3)
    path = tmp_path / "predictions.csv"
    path.write_text(path.read_text().replace("\ntest,", "\nval,"))
    found, _ = read_predictions(tmp_path, ())
    assert found is not None
    assert found.part == "val"
    assert len(found.classes) == 3


def test_missing_file_is_said(tmp_path: Path) -> None:
    assert read_predictions(tmp_path, ()) == (
        None,
        "There is no predictions.csv: it is written when a search has tested its best model.",
    )


def test_other_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("a,b\n1,2\n")
    assert "has not the columns part, file" in read_predictions(tmp_path, ())[1]


def test_thumbnails_are_small_and_of_files_that_are_images(hostile_path: Path) -> None:
    Image.new("RGB", (900, 500), (10, 200, 30)).save(hostile_path / "large.png")
    (hostile_path / "text.png").write_text("no image")
    files = ["large.png", str(hostile_path / "large.png"), "text.png", "none.png", "nul\0.png"]
    relative, absolute, *others = thumbnails(files, [hostile_path])
    assert relative == absolute
    assert relative is not None
    assert len(relative) < THUMBNAIL * THUMBNAIL
    assert others == [None, None, None]


def test_class_whose_name_could_be_a_formula_is_one_class(tmp_path: Path) -> None:
    rows = [PREDICTION_COLUMNS, ("test", "a.png", safe_cell("=x"), safe_cell("=x"), "0.9", "0.8")]
    (tmp_path / PREDICTIONS_FILE).write_text("".join(f"{','.join(row)}\n" for row in rows))
    found, reason = read_predictions(tmp_path, ["=x", "y"])
    assert found is not None, reason
    assert found.classes == ["=x", "y"]
    assert found.confusion().tolist() == [[1, 0], [0, 0]]
