"""Tests of `distributions`: against scipy's quantiles, and against what Optuna suggests."""

import json
import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy import stats

from tune_inat.distributions import (
    Beta,
    Choice,
    Distribution,
    Integers,
    LogNormal,
    LogUniform,
    Native,
    Normal,
    Rounded,
    Uniform,
    grid_length,
    grid_values,
    identity,
)

QUANTILES = (1e-4, 0.013, 0.27, 0.5003, 0.77, 0.9871, 0.9999)  # none where a step falls for both

ALL: list[Distribution] = [
    Choice.of(["adam", "sgd", None, True]),
    Choice.of([1, 2, 3], [0.2, 0.0, 0.8]),
    Integers(-3, 4),
    Integers(1, 3, as_float=True),
    Uniform(-0.5, 2.5),
    LogUniform(1e-5, 0.1),
    Normal(3.0, 0.5),
    LogNormal(-7.0, 1.0),
    Beta(2.0, 5.0),
    Rounded(Uniform(0.6, 1.0), 0.1),
    Rounded(Uniform(10.0, 100.0), 16),
    Rounded(LogUniform(1.0, 300.0), 1),
    Rounded(LogUniform(16.0, 256.0), 16),
    Rounded(Normal(10.0, 2.0), 2.5),
    Rounded(Beta(0.5, 0.5), 0.25),
]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Integers(-3, 4), stats.randint(-3, 5)),
        (Uniform(-0.5, 2.5), stats.uniform(-0.5, 3.0)),
        (LogUniform(1e-5, 0.1), stats.loguniform(1e-5, 0.1)),
        (Normal(3.0, 0.5), stats.norm(3.0, 0.5)),
        (LogNormal(-7.0, 1.5), stats.lognorm(1.5, scale=math.exp(-7.0))),
        (Beta(2.0, 5.0), stats.beta(2.0, 5.0)),
        (Beta(0.05, 0.3), stats.beta(0.05, 0.3)),
        (Beta(1.0, 1.0), stats.beta(1.0, 1.0)),
        (Beta(300.0, 40.0), stats.beta(300.0, 40.0)),
    ],
)
@pytest.mark.parametrize("u", QUANTILES)
def test_quantiles_are_those_of_scipy(ours: Distribution, theirs: Any, u: float) -> None:
    assert ours.ppf(u) == pytest.approx(theirs.ppf(u), rel=1e-8)


@pytest.mark.parametrize("distribution", ALL, ids=str)
def test_quantiles_never_fall_and_have_ends(distribution: Distribution) -> None:
    values = [distribution.ppf(step / 200) for step in range(201)]
    if distribution.values is None:
        assert values == sorted(values)
        assert all(math.isfinite(value) for value in values)
    else:
        places = [distribution.values.index(value) for value in values]
        assert places == sorted(places)


def test_a_draw_beyond_one_in_a_million_takes_that_draws_value() -> None:
    assert Normal(0.0, 1.0).ppf(0.0) == pytest.approx(stats.norm.ppf(1e-6))
    assert Normal(0.0, 1.0).ppf(1.0) == pytest.approx(-stats.norm.ppf(1e-6))


def test_a_normal_without_deviation_is_its_mean() -> None:
    assert Normal(3.0, 0.0).ppf(0.9) == 3.0


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (
            Rounded(Uniform(0.0, 0.5), 0.1),
            [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
        ),  # 3 * 0.1 would be 0.30000000000000004
        (
            Rounded(Uniform(1.0, 10.0), 4),
            [0, 4, 8],
        ),  # W&B's round(x / q) * q, so below min: round(1 / 4) is 0
        (Rounded(LogUniform(1.0, 4.0), 1), [1, 2, 3, 4]),
    ],
)
def test_rounded_values_are_multiples_of_the_step(distribution: Rounded, values: list[float]) -> None:
    drawn = sorted({distribution.ppf(step / 1000) for step in range(1001)})
    assert drawn == values
    assert {type(value) for value in drawn} == {type(values[0])}


def test_each_listed_value_gets_its_share() -> None:
    choice = Choice.of(["a", "b", "c"], [0.5, 0.0, 0.5])
    drawn = [choice.ppf((step + 0.5) / 1000) for step in range(1000)]
    assert (drawn.count("a"), drawn.count("b"), drawn.count("c")) == (500, 0, 500)


def test_the_last_quantile_is_the_last_likely_value() -> None:
    assert Choice.of(["a", "b"], [1.0, 0.0]).ppf(1.0) == "a"


def test_a_value_listed_twice_is_one_value_of_double_weight() -> None:
    choice = Choice.of([1, 1, 2])
    assert choice.values == (1, 2)
    assert choice.weights == pytest.approx((2 / 3, 1 / 3))


def test_values_of_other_types_are_other_values() -> None:
    assert Choice.of([1, 1.0, True]).values == (1, 1.0, True)


@pytest.mark.parametrize(
    ("distribution", "native"),
    [
        (Choice.of([1, "a"]), Native("categorical", choices=(1, "a"))),
        (Choice.of([1, "a"], [0.9, 0.1]), None),
        (Integers(1, 3), Native("int", 1, 3)),
        (Uniform(0.0, 1.5), Native("float", 0.0, 1.5)),
        (LogUniform(0.1, 1.5), Native("float", 0.1, 1.5, log=True)),
        (Normal(0.0, 1.0), None),
        (Rounded(Uniform(0.6, 1.0), 0.1), Native("float", 0.6, 1.0, step=0.1)),
        (Rounded(Uniform(1.0, 10.0), 4), Native("int", 0, 8, step=4)),
        (Rounded(LogUniform(1.0, 64.0), 1), Native("int", 1, 64, log=True)),
        (Rounded(LogUniform(1.0, 64.0), 2), None),
        (Rounded(LogUniform(0.1, 64.0), 1), None),
    ],
)
def test_optuna_gets_its_own_distribution_only_where_it_has_the_same_values(
    distribution: Distribution, native: Native | None
) -> None:
    assert distribution.optuna() == native


def as_optuna(native: Native | None) -> BaseDistribution:
    if native is None:
        return FloatDistribution(0.0, 1.0)
    if native.kind == "categorical":
        return CategoricalDistribution(native.choices)
    if native.kind == "int":
        step = int(native.step or 1)
        return IntDistribution(int(native.low), int(native.high), log=native.log, step=step)
    return FloatDistribution(native.low, native.high, log=native.log, step=native.step)


@pytest.mark.parametrize("distribution", ALL, ids=str)
def test_what_optuna_suggests_is_a_value_of_the_distribution(distribution: Distribution) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    dimension = as_optuna(distribution.optuna())
    values = [distribution.from_optuna(study.ask({"x": dimension}).params["x"]) for _ in range(60)]
    drawn = [distribution.ppf(step / 400) for step in range(401)]
    if len(set(map(repr, drawn))) < 100:  # few values: each must be one of them, to the last digit and type
        assert set(map(repr, values)) <= set(map(repr, drawn))
    else:
        assert all(distribution.ppf(0.0) <= value <= distribution.ppf(1.0) for value in values)


def test_identities_are_json_and_tell_distributions_apart() -> None:
    texts = [json.dumps(identity(distribution), allow_nan=False) for distribution in ALL]
    texts += [json.dumps(identity(Rounded(kind(1.0, 2.0), 1))) for kind in (Uniform, LogUniform, Normal)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("low", "high", "q"),
    [(0, 10, 2), (0.1, 0.5, 0.1), (0.1, 0.4, 0.1), (-1, 1, 0.3), (16, 256, 16), (1, 2, 1)],
)
def test_grid_of_steps_has_the_values_of_numpys_arange(low: float, high: float, q: float) -> None:
    steps = Rounded(Uniform(low, high), q)
    assert grid_values(steps) == pytest.approx(np.arange(low, high, q).tolist())
    assert grid_length(steps) == len(grid_values(steps))


@pytest.mark.parametrize("distribution", ALL, ids=str)
def test_grid_tries_what_is_listed_and_no_curve(distribution: Distribution) -> None:
    if distribution.values is not None:
        assert grid_values(distribution) == distribution.values
    elif isinstance(distribution, Integers):
        assert grid_values(distribution) == tuple(range(distribution.low, distribution.high + 1))
    elif not isinstance(distribution, Rounded):
        assert grid_length(distribution) is None


def test_long_list_of_values_is_said_in_short() -> None:
    assert str(Choice.of(list(range(1, 101)))) == "1, 2, ..., 100 (100 values)"
    assert str(Choice.of(list(range(1, 4)))) == "1, 2, 3"
