"""What is said of a classifier: metrics of logits against labels, and the interval of an accuracy."""

import base64
import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from tune_inat.objective import Goal

ECE_BINS = 15  # as in Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017)
NORMAL_QUANTILE_95 = 1.959963984540054


@dataclass(frozen=True)
class Evaluation:
    """One pass over labelled images. `loss` is the mean cross-entropy in nats, without label smoothing."""

    loss: float
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    ece: float

    def prefixed(self, prefix: str) -> dict[str, float]:
        """The metrics by the names that users see, e.g. `val_accuracy`."""
        return {f"{prefix}_{name}": value for name, value in asdict(self).items()}


def evaluate(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Evaluation:
    """All metrics of `logits: (N, K) float32` against `labels: (N,) int64`, N >= 1.

    Macro-F1 and balanced accuracy are means over the classes that occur in `labels` or among the
    predictions, and in `labels`, respectively.
    """
    from sklearn.metrics import f1_score, recall_score

    log_p = log_softmax(logits)
    predicted = logits.argmax(axis=1)
    present = np.unique(labels)
    return Evaluation(
        loss=float(-log_p[np.arange(len(labels)), labels].mean()),
        accuracy=float((predicted == labels).mean()),
        macro_f1=float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        balanced_accuracy=float(
            recall_score(labels, predicted, labels=present, average="macro", zero_division=0.0)
        ),
        ece=expected_calibration_error(np.exp(log_p), labels),
    )


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log probabilities (N, K) in float64 of logits (N, K)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def expected_calibration_error(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
) -> float:
    """The mean gap between confidence and accuracy over `ECE_BINS` equal bins of confidence, 0..1.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), equation 3.
    """
    return calibration_bins(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels).ece


@dataclass(frozen=True)
class CalibrationBins:
    """The bins of confidence that hold images: mean confidence, share that is right, number of images."""

    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    @property
    def ece(self) -> float:
        """The expected calibration error, see `expected_calibration_error`."""
        return float((np.abs(self.confidence - self.accuracy) * self.counts).sum() / self.counts.sum())


def calibration_bins(confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> CalibrationBins:
    """How often predictions of a confidence (N,) in 0..1 are right (N,), in `ECE_BINS` equal bins of it."""
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    used = counts > 0
    mean, right = (
        np.bincount(bins, weights=values, minlength=ECE_BINS)[used] / counts[used]
        for values in (confidence, correct)
    )
    return CalibrationBins(mean, right, counts[used])


def pack_correct(correct: npt.NDArray[np.bool_]) -> str:
    """Which of N images were right (N,) as text, a bit an image: base64 of the packed bits."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")


def unpack_correct(text: str, n: int) -> npt.NDArray[np.bool_]:
    """The inverse of `pack_correct` for `n` images.

    Raises:
        ValueError: the text is of another number of images.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(packed) != -(-n // 8):
        raise ValueError(f"{len(packed)} bytes cannot say which of {n} images were right")
    return np.unpackbits(packed, count=n).astype(np.bool_)


def wilson_interval(n_correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy of `n_correct` of `n` >= 1 images.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (JASA, 1927).
    """
    z2 = NORMAL_QUANTILE_95**2
    p = n_correct / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_QUANTILE_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if n_correct == 0 else centre - half  # exact there; the formula leaves a rounding error
    high = 1.0 if n_correct == n else centre + half
    return low, high


def is_better(value: float, than: float, goal: Goal) -> bool:
    """Whether a metric's value is strictly better than another."""
    return value > than if goal == "maximize" else value < than
