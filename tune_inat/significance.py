"""Which trials the same images can tell from the best one: exact paired tests, Holm-corrected."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.05  # of the whole family of tests

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PairedTest:
    """A trial against the best one on the same images.

    Attributes:
        only_best: images that only the best trial had right; `only_other` those that only the other had.
        p: two-sided and exact, before any correction.
        adjusted_p: after Holm's correction; below `LEVEL`, the two differ.
    """

    only_best: int
    only_other: int
    p: float
    adjusted_p: float

    @property
    def is_tie(self) -> bool:
        """Whether the images cannot tell the two apart."""
        return self.adjusted_p >= LEVEL


def compare_with_best(best: BoolArray, others: Sequence[BoolArray]) -> list[PairedTest]:
    """McNemar's exact test of each of `others` against `best`, all (N,): which images were right.

    McNemar, "Note on the sampling error of the difference between correlated proportions" (Psychometrika,
    1947); the p-values are corrected as one family by Holm, "A simple sequentially rejective multiple test
    procedure" (Scandinavian Journal of Statistics, 1979).
    """
    log_factorials = _log_factorials(len(best))
    counts = [(int((best & ~other).sum()), int((other & ~best).sum())) for other in others]
    p_values = [_two_sided(min(pair), sum(pair), log_factorials) for pair in counts]
    adjusted = holm_adjusted(p_values)
    return [PairedTest(*pair, p, q) for pair, p, q in zip(counts, p_values, adjusted, strict=True)]


def mcnemar_p(only_first: int, only_second: int) -> float:
    """The two-sided exact p-value of images that only one of two classifiers had right.

    A binomial test of a fair coin. Without any such image it is 1.
    """
    n = only_first + only_second
    return _two_sided(min(only_first, only_second), n, _log_factorials(n))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order of `p_values`."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _log_factorials(n: int) -> npt.NDArray[np.float64]:
    """ln(k!) for k = 0..n."""
    logs: npt.NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return logs


def _two_sided(fewer: int, n: int, log_factorials: npt.NDArray[np.float64]) -> float:
    """Twice the probability of at most `fewer` heads in `n` throws, at most 1."""
    k = np.arange(fewer + 1)
    logs = log_factorials[n] - log_factorials[k] - log_factorials[n - k] - n * np.log(2.0)
    return min(1.0, 2.0 * float(np.exp(logs).sum()))
