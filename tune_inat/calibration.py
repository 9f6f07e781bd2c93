"""How sure a classifier may say it is: one temperature for its logits, fitted on validation images."""

import math

import numpy as np
import numpy.typing as npt

from tune_inat.metrics import log_softmax

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # beyond, probabilities are one-hot or uniform to the eye


def fit_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The T > 0 for which softmax(logits / T) has the least cross-entropy; it changes no prediction.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), section 4.2. It is kept between
    `MIN_TEMPERATURE` and `MAX_TEMPERATURE`. Where every image is right there is no minimum, as ever lower
    temperatures fit ever better: then, and where no temperature is better, it is 1.

    Args:
        logits: (N, K) float32, finite, N >= 1.
        labels: (N,) int64.
    """
    from scipy.optimize import minimize_scalar

    if bool((logits.argmax(axis=1) == labels).all()):
        return 1.0

    def loss_at(log_temperature: float) -> float:
        log_p = log_softmax(logits.astype(np.float64) / math.exp(log_temperature))  # type: ignore[arg-type]
        return float(-log_p[np.arange(len(labels)), labels].mean())

    # The loss is convex in 1 / T, so it has one minimum in log T too.
    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    found = minimize_scalar(loss_at, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x)) if found.fun < loss_at(0.0) else 1.0


def calibrated(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float32]:
    """The logits (N, K) at a temperature."""
    scaled: npt.NDArray[np.float32] = logits / np.float32(temperature)
    return scaled
