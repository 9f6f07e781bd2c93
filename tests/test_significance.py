"""Paired tests: McNemar's against scipy's binomial test, Holm's correction against a worked example."""

import numpy as np
import pytest
from scipy.stats import binomtest

from tune_inat.significance import compare_with_best, holm_adjusted, mcnemar_p


@pytest.mark.parametrize(("first", "second"), [(1, 0), (5, 5), (3, 12), (0, 8), (40, 70), (700, 1_300)])
def test_mcnemar_is_the_binomial_test_of_a_fair_coin(first: int, second: int) -> None:
    assert mcnemar_p(first, second) == pytest.approx(binomtest(first, first + second, 0.5).pvalue, rel=1e-9)


def test_classifiers_that_are_right_on_the_same_images_are_no_different() -> None:
    assert mcnemar_p(0, 0) == 1.0


def test_holm_corrects_step_by_step() -> None:
    # 4 * 0.005, then 3 * 0.01, 2 * 0.03, and the last is no smaller than the one before: 1 * 0.04 < 0.06
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_ends_at_one() -> None:
    assert holm_adjusted([0.6, 0.9]) == [1.0, 1.0]


def test_only_images_that_one_of_two_had_right_count() -> None:
    best = np.array([True] * 60 + [False] * 40)
    same, worse = best.copy(), np.array([True] * 40 + [False] * 60)
    tie, different = compare_with_best(best, [same, worse])
    assert (tie.only_best, tie.only_other, tie.is_tie) == (0, 0, True)
    assert (different.only_best, different.only_other, different.is_tie) == (20, 0, False)
    assert different.adjusted_p == pytest.approx(2 * 2 * 0.5**20)  # two-sided, and the smallest of two tests


def test_many_comparisons_make_a_difference_harder_to_claim() -> None:
    best = np.ones(20, dtype=np.bool_)
    worse = np.array([False] * 8 + [True] * 12)  # p = 2 / 2^8 = 0.0078
    assert not compare_with_best(best, [worse])[0].is_tie
    assert all(test.is_tie for test in compare_with_best(best, [worse] * 10))
