"""Tests of `parameters`: what values and ranges mean to a trial."""

import math
from typing import Any

import pytest

from tune_inat.config import PARAMETER_NAMES, TrialConfig
from tune_inat.distributions import (
    Beta,
    Distribution,
    Integers,
    LogNormal,
    LogUniform,
    Normal,
    Rounded,
    Uniform,
)
from tune_inat.parameters import canonical_name, check_distribution, check_value, leaf_name, unknown_name


@pytest.mark.parametrize("name", PARAMETER_NAMES)
def test_each_default_of_a_trial_is_a_fine_value(name: str) -> None:
    default = TrialConfig.model_fields[name].default
    checked = check_value(name, default)
    assert checked.is_fine
    assert checked.notice is None
    assert (checked.value, type(checked.value)) == (default, type(default))


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("lr", 1, 1.0),
        ("freeze", 1, 1.0),
        ("freeze", "layer3", "layer3"),
        ("views", "fresh", "fresh"),
        ("weights", "none", "none"),
    ],
)
def test_values_become_the_type_that_a_trial_has(name: str, value: Any, taken: Any) -> None:
    checked = check_value(name, value)
    assert (checked.value, type(checked.value), checked.notice) == (taken, type(taken), None)


@pytest.mark.parametrize(
    ("name", "value", "taken", "notice"),
    [
        ("batch_size", 32.0, 32, "batch_size: 32.0 is read as the whole number 32."),
        ("batch_size", "64", 64, 'batch_size: "64" in quotes is read as the number 64.'),
        ("lr", "1e-3", 1e-3, 'lr: "1e-3" in quotes is read as the number 0.001.'),
        ("freeze", "0.8", 0.8, 'freeze: "0.8" in quotes is read as the number 0.8.'),
        ("views", "8", 8, 'views: "8" in quotes is read as the number 8.'),
    ],
)
def test_a_number_in_another_spelling_is_taken_with_a_notice(
    name: str, value: Any, taken: Any, notice: str
) -> None:
    checked = check_value(name, value)
    assert (checked.value, type(checked.value), checked.notice) == (taken, type(taken), notice)


@pytest.mark.parametrize(
    ("name", "value", "misfit"),
    [
        ("epochs", 0, "epochs: 0 is below the minimum of 1."),
        ("epochs", 2.5, "epochs: 2.5 stands where a whole number belongs."),
        ("batch_size", 0, "batch_size: 0 is below the minimum of 1."),
        ("batch_size", "0", "batch_size: 0 is below the minimum of 1."),
        ("lr", 0, "lr: 0 is not above 0."),
        ("lr", -0.1, "lr: -0.1 is not above 0."),
        ("lr", math.nan, "lr: nan is not a finite number."),
        ("freeze", 1.5, "freeze: 1.5 is above the maximum of 1."),
        ("freeze", -1, "freeze: -1 is below the minimum of 0."),
        ("dropout", 1.0, "dropout: 1 is not below 1."),
        ("image_size", 8, "image_size: 8 is below the minimum of 16."),
        ("views", 0, "views: 0 is below the minimum of 1."),
    ],
)
def test_a_number_that_makes_no_sense_is_a_misfit(name: str, value: Any, misfit: str) -> None:
    checked = check_value(name, value)
    assert (checked.misfit, checked.refusal) == (misfit, None)


@pytest.mark.parametrize(
    ("name", "value", "refusal"),
    [
        ("optimizer", "rmsprop", 'optimizer: "rmsprop" is not one of adam, adamw, sgd.'),
        ("optimizer", "Adam", 'optimizer: "Adam" is not one of adam, adamw, sgd. Did you mean "adam"?'),
        ("augment", None, "augment: nothing (null) is not one of none, flip, light, strong."),
        ("lr", "auto", 'lr: "auto" stands where a number belongs.'),
        ("lr", [0.1], "lr: a list stands where a number belongs."),
        ("epochs", True, "epochs: true stands where a whole number belongs."),
        (
            "freeze",
            True,
            "freeze: true does not fit: share 0..1 of the parameter tensors to freeze, or the last",
        ),
        ("model", 50, "model: 50 stands where text belongs. Put it in quotes."),
        ("weights", None, "weights: nothing (null) stands where text belongs."),
        ("model", "", "model: it is empty."),
    ],
)
def test_what_we_do_not_have_is_refused(name: str, value: Any, refusal: str) -> None:
    checked = check_value(name, value)
    assert checked.misfit is None
    assert checked.refusal is not None
    assert checked.refusal.startswith(refusal)


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("lr", LogUniform(1e-4, 1e-2), LogUniform(1e-4, 1e-2)),
        ("lr", LogNormal(-7.0, 1.0), LogNormal(-7.0, 1.0)),
        ("weight_decay", Normal(0.1, 0.01), Normal(0.1, 0.01)),
        ("dropout", Beta(1.0, 1.0), Beta(1.0, 1.0)),
        ("epochs", Integers(1, 5), Integers(1, 5)),
        ("freeze", Rounded(Uniform(0.6, 1.0), 0.1), Rounded(Uniform(0.6, 1.0), 0.1)),
    ],
)
def test_ranges_that_stay_within_what_a_parameter_can_be_are_taken(
    name: str, given: Distribution, taken: Distribution
) -> None:
    assert check_distribution(name, given).value == taken


def test_rounded_draws_of_a_whole_parameter_are_whole() -> None:
    checked = check_distribution("batch_size", Rounded(LogUniform(16.0, 256.0), 16.0))
    assert checked.value.ppf(0.5) == 64
    assert isinstance(checked.value.ppf(0.5), int)


def test_whole_draws_of_a_float_parameter_are_floats_and_noticed() -> None:
    checked = check_distribution("freeze", Integers(0, 1))
    assert [type(checked.value.ppf(u)) for u in (0.0, 1.0)] == [float, float]
    assert checked.notice is not None
    assert "W&B takes only whole numbers. Write 0.0 and 1.0 for all between." in checked.notice


@pytest.mark.parametrize(("name", "given"), [("lr", Uniform(0.0, 0.1)), ("dropout", Uniform(0.0, 1.0))])
def test_an_end_that_a_parameter_cannot_have_is_left_out_of_a_range(name: str, given: Uniform) -> None:
    taken = check_distribution(name, given).value
    assert check_value(name, taken.low).is_fine
    assert check_value(name, taken.high).is_fine
    assert (taken.low, taken.high) == pytest.approx((given.low, given.high))


@pytest.mark.parametrize(
    ("name", "given", "misfit"),
    [
        ("freeze", Uniform(0.5, 1.5), "1.5 is above the maximum of 1, and the draws (0.5 to 1.5) reach it."),
        ("lr", Uniform(-0.1, 0.1), "-0.1 is not above 0, and the draws"),
        (
            "epochs",
            Integers(0, 9),
            "0 is below the minimum of 1, and the draws (0 to 9, whole numbers) reach it.",
        ),
        (
            "weight_decay",
            Normal(0.0, 1.0),
            "-4.75342 is below the minimum of 0, and the draws (normal, mean 0, ",
        ),
        ("weight_decay", Normal(0.0, 1.0), "A log_normal stays above 0."),
        ("batch_size", Rounded(Uniform(1.0, 64.0), 8.0), "0 is below the minimum of 1"),
        (
            "batch_size",
            Rounded(Uniform(1.0, 64.0), 8.0),
            "They are rounded to steps of 8, also beyond min and max",
        ),
        ("dropout", Rounded(Beta(1.0, 1.0), 0.1), "1 is not below 1"),
    ],
)
def test_draws_that_reach_what_a_parameter_cannot_be_are_a_misfit(
    name: str, given: Distribution, misfit: str
) -> None:
    checked = check_distribution(name, given)
    assert checked.misfit is not None
    assert misfit in checked.misfit


@pytest.mark.parametrize(
    ("name", "given", "refusal"),
    [
        ("epochs", Uniform(1.0, 9.0), "epochs: it is a whole number. Use int_uniform, or a q_ distribution"),
        ("epochs", Rounded(Uniform(1.0, 9.0), 0.5), "epochs: it is a whole number."),
        ("views", LogUniform(1.0, 9.0), "views: it is a whole number."),
        (
            "optimizer",
            Integers(0, 2),
            "optimizer: it is no number but the optimizer: `adam`, `adamw` or `sgd`. List its values.",
        ),
    ],
)
def test_ranges_of_another_type_are_refused(name: str, given: Distribution, refusal: str) -> None:
    checked = check_distribution(name, given)
    assert checked.refusal is not None
    assert checked.refusal.startswith(refusal)


def test_learning_rate_is_lr() -> None:
    assert canonical_name("learning_rate") == "lr"
    assert canonical_name("learning-rate") is None


def test_the_nearest_name_is_suggested() -> None:
    assert unknown_name("freeze_ratio") == 'there is no parameter "freeze_ratio". Did you mean "freeze"?'


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("lr",), "lr"),
        (("optimizer", "lr"), "lr"),
        (("optimizer", "name"), "optimizer"),
        (("a", "schedule", "type"), "schedule"),
        (("name",), "name"),
    ],
)
def test_a_nested_parameter_goes_by_its_own_name_or_its_groups(path: tuple[str, ...], name: str) -> None:
    assert leaf_name(path) == name
