"""The temperature that fits: known where it was put in, and harmless where there is nothing to fit."""

import numpy as np
import numpy.typing as npt
import pytest

from tune_inat.calibration import MAX_TEMPERATURE, calibrated, fit_temperature
from tune_inat.metrics import evaluate, log_softmax

LogitArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.int64]


def honest(n: int = 20_000) -> tuple[LogitArray, LabelArray]:
    """Logits whose softmax is the true distribution of the labels: their temperature is 1."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (n, 5)).astype(np.float32)
    cumulated = np.exp(log_softmax(logits)).cumsum(axis=1)
    labels = (random.random((n, 1)) > cumulated).sum(axis=1).clip(max=4)
    return logits, labels.astype(np.int64)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_put_in_is_found(factor: float) -> None:
    logits, labels = honest()
    assert fit_temperature(logits * np.float32(factor), labels) == pytest.approx(factor, rel=0.03)


def test_overconfident_logits_are_calibrated_and_no_prediction_changes() -> None:
    logits, labels = honest()
    sure = logits * np.float32(3)
    fitted = calibrated(sure, fit_temperature(sure, labels))
    assert (fitted.argmax(axis=1) == sure.argmax(axis=1)).all()
    assert evaluate(sure, labels).ece > 0.1
    assert evaluate(fitted, labels).ece < 0.02
    assert evaluate(fitted, labels).loss < evaluate(sure, labels).loss


def test_nothing_is_fitted_where_every_image_is_right() -> None:
    logits = np.eye(3, dtype=np.float32)
    assert fit_temperature(logits, np.arange(3)) == 1.0


def test_logits_that_are_all_wrong_stop_at_the_bound() -> None:
    logits = 30 * np.eye(3, dtype=np.float32)
    temperature = fit_temperature(logits, np.array([1, 2, 0]))
    assert temperature == pytest.approx(MAX_TEMPERATURE, rel=1e-3)


def test_logits_that_say_nothing_keep_their_temperature() -> None:
    assert fit_temperature(np.zeros((4, 3), np.float32), np.array([0, 1, 2, 1])) == 1.0


def test_one_image_is_enough() -> None:
    logits = np.array([[1000.0, -1000.0]], np.float32)
    assert 0 < fit_temperature(logits, np.array([1])) <= MAX_TEMPERATURE
