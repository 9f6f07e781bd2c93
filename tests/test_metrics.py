"""The metrics, held against scikit-learn and against values worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from tune_inat.metrics import (
    evaluate,
    expected_calibration_error,
    is_better,
    log_softmax,
    pack_correct,
    unpack_correct,
    wilson_interval,
)


def test_evaluation_agrees_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(200, 5)).astype(np.float32)
    labels = random.integers(0, 5, size=200)
    evaluation = evaluate(logits, labels)
    predicted = logits.argmax(axis=1)
    assert evaluation.loss == pytest.approx(log_loss(labels, np.exp(log_softmax(logits))), rel=1e-9)
    assert evaluation.accuracy == np.mean(predicted == labels)
    assert evaluation.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert evaluation.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_class_that_is_never_right_counts_as_zero_not_as_an_error() -> None:
    logits = np.array([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0]], np.float32)
    evaluation = evaluate(logits, np.array([0, 1, 2]))
    # Recalls are 1, 0, 1; F1 of class 0 is 2/3 (precision 1/2), of class 1 it is 0, of class 2 it is 1.
    assert evaluation.balanced_accuracy == pytest.approx(2 / 3)
    assert evaluation.macro_f1 == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_log_softmax_of_huge_logits_is_finite() -> None:
    log_p = log_softmax(np.array([[1e4, 0.0], [-1e4, 1e4]], np.float32))
    assert np.isfinite(log_p).all()
    assert log_p[0, 0] == 0.0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    # Ten images at confidence 0.8, of which six are right: the only bin is off by 0.2.
    probabilities = np.tile([0.8, 0.2], (10, 1))
    labels = np.array([0] * 6 + [1] * 4)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.2)


def test_certain_and_right_is_perfectly_calibrated() -> None:
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0.0


@pytest.mark.parametrize(
    ("n_correct", "n", "low", "high"),
    # Values of statsmodels' proportion_confint(method="wilson").
    [(90, 100, 0.825634, 0.944773), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0)],
)
def test_wilson_interval(n_correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(n_correct, n) == pytest.approx((low, high), abs=1e-5)


def test_better_follows_the_goal() -> None:
    assert is_better(0.9, 0.8, "maximize")
    assert not is_better(0.9, 0.8, "minimize")
    assert not is_better(0.8, 0.8, "maximize")


@pytest.mark.parametrize("n", [1, 8, 13])
def test_which_images_were_right_comes_back_from_its_text(n: int) -> None:
    correct = np.random.default_rng(0).random(n) < 0.5
    assert unpack_correct(pack_correct(correct), n).tolist() == correct.tolist()
    with pytest.raises(ValueError, match="cannot say which of"):
        unpack_correct(pack_correct(correct), n + 8)
