"""Tests of `sweep` and `sweep_schema`: W&B's schema as W&B means it."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tune_inat.distributions import (
    Beta,
    Choice,
    Distribution,
    Integers,
    LogNormal,
    LogUniform,
    Normal,
    Rounded,
    Uniform,
)
from tune_inat.space import shipped_spaces
from tune_inat.sweep import EarlyStopping, Sweep, parse_sweep
from tune_inat.sweep_schema import KINDS


def sound(text: str) -> Sweep:
    sweep, findings = parse_sweep(text.encode())
    assert findings.problems == []
    return sweep


def problems(text: str) -> list[str]:
    _, findings = parse_sweep(text.encode())
    return [f"line {line}: {problem}" for line, problem in sorted(findings.problems)]


def parameter(spec: str) -> str:
    return f"method: random\nparameters:\n  p: {{{spec}}}\n"


def read(spec: str) -> tuple[str, Distribution]:
    (only,) = sound(parameter(spec)).parameters
    return only.kind, only.distribution


@pytest.mark.parametrize(
    ("spec", "kind", "distribution"),
    [
        ("value: 3", "constant", Choice.of([3])),
        ("distribution: constant, value: a", "constant", Choice.of(["a"])),
        ("values: [1, b, null]", "categorical", Choice.of([1, "b", None])),
        ("values: [[1, 2], {a: 1}]", "categorical", Choice.of([[1, 2], {"a": 1}])),
        ("distribution: categorical, values: [1]", "categorical", Choice.of([1])),
        (
            "values: [1, 2], probabilities: [0.25, 0.75]",
            "categorical_w_probabilities",
            Choice.of([1, 2], [0.25, 0.75]),
        ),
        ("min: 1, max: 3", "int_uniform", Integers(1, 3)),
        ("min: 1.0, max: 3.0", "uniform", Uniform(1, 3)),
        ("min: 1, max: 3.0", "uniform", Uniform(1, 3)),
        ("min: 1e-4, max: 1", "uniform", Uniform(1e-4, 1)),
        ("distribution: uniform, min: 1, max: 3", "uniform", Uniform(1, 3)),
        ("distribution: q_uniform, min: 0, max: 1, q: 0.25", "q_uniform", Rounded(Uniform(0, 1), 0.25)),
        ("distribution: log_uniform, min: -2, max: 1", "log_uniform", LogUniform(math.exp(-2), math.exp(1))),
        ("distribution: log_uniform_values, min: 0.1, max: 1", "log_uniform_values", LogUniform(0.1, 1)),
        (
            "distribution: q_log_uniform, min: 0, max: 3, q: 2",
            "q_log_uniform",
            Rounded(LogUniform(1, math.exp(3)), 2),
        ),
        (
            "distribution: q_log_uniform_values, min: 16, max: 256, q: 16",
            "q_log_uniform_values",
            Rounded(LogUniform(16, 256), 16),
        ),
        # log(1/X) between -2 and 1, so X between e^-1 and e^2
        (
            "distribution: inv_log_uniform, min: -2, max: 1",
            "inv_log_uniform",
            LogUniform(math.exp(-1), math.exp(2)),
        ),
        (
            "distribution: inv_log_uniform_values, min: 2, max: 4",
            "inv_log_uniform_values",
            LogUniform(2, 4),
        ),
        ("distribution: normal", "normal", Normal(0, 1)),
        ("distribution: normal, mu: 3, sigma: 0.5", "normal", Normal(3, 0.5)),
        ("distribution: q_normal, mu: 3, q: 1", "q_normal", Rounded(Normal(3, 1), 1)),
        ("distribution: log_normal, mu: -3", "log_normal", LogNormal(-3, 1)),
        ("distribution: q_log_normal, sigma: 2, q: 5", "q_log_normal", Rounded(LogNormal(0, 2), 5)),
        ("distribution: beta", "beta", Beta(1, 1)),
        ("distribution: beta, a: 2, b: 5", "beta", Beta(2, 5)),
        ("distribution: q_beta, a: 2, q: 0.1", "q_beta", Rounded(Beta(2, 1), 0.1)),
    ],
)
def test_each_distribution_of_wandb_is_read_as_it_means_it(
    spec: str, kind: str, distribution: Distribution
) -> None:
    assert read(spec) == (kind, distribution)


def test_all_18_distributions_of_wandb_are_known() -> None:
    assert len(KINDS) == 18  # the enums of `distribution` in config/schema.json of sweeps 0.3.0


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("values: 3", "values: 3 stands where a list belongs"),
        ("values: []", "values: it is empty"),
        ("vals: [1]", 'there is no key "vals". Did you mean "values"?'),
        ("values: [1], mni: 3", 'there is no key "mni". Did you mean "min"?'),
        ("values: [1], min: 3", '"min" is no key of a categorical parameter'),
        ("value: 1, values: [1]", '"values" is no key of a constant parameter'),
        ("min: 2, max: 1", "min 2 is not below max 1"),
        ("min: 2, max: 2", "min 2 is not below max 2"),
        ("min: 2", "max is missing"),
        ("min: .nan, max: 1.0", "min: nan is not a finite number"),
        ("min: 1, max: .inf", "max: inf is not a finite number"),
        ("min: 1, max: 1e999", "max: inf is not a finite number"),
        ("min: low, max: 1", 'min: "low" stands where a number belongs'),
        ("min: true, max: 3", "min: true stands where a number belongs"),
        ("min: , max: 3", "min: it is empty"),
        ("value: .nan", "nan is not a finite number"),
        ("values: [1, .inf]", "inf is not a finite number"),
        ("distribution: unifrom, min: 1, max: 2", '"unifrom" is no distribution. Did you mean "uniform"?'),
        ("distribution: [uniform]", "a list is no distribution"),
        ("distribution: int_uniform, min: 0.5, max: 2", "min: 0.5 stands where a whole number belongs"),
        ("distribution: log_uniform_values, min: 0, max: 1", "min: 0 is not above 0"),
        ("distribution: inv_log_uniform_values, min: 0, max: 1", "min: 0 is not above 0"),
        ("distribution: q_log_uniform_values, min: 0, max: 9, q: 1", "min: 0 is not above 0"),
        ("distribution: log_uniform, min: 0, max: 1000", "reaches numbers beyond any computer's"),
        ("distribution: log_normal, mu: 800", "reaches numbers beyond any computer's"),
        ("distribution: q_uniform, min: 0, max: 9", "q is missing: the step, such as q: 1"),
        ("distribution: q_normal", "q is missing"),
        ("distribution: q_uniform, min: 0, max: 9, q: 0", "q: 0 is not above 0"),
        ("distribution: q_uniform, min: 0, max: 9, q: -1", "q: -1 is not above 0"),
        ("distribution: q_uniform, min: 0, max: 9, q: 10", "(q) of 10 is wider than the range, which has 9"),
        ("distribution: q_log_uniform, min: 0, max: 1, q: 2", "is wider than the range, which has 1.71828"),
        ("distribution: q_beta, q: 2", "is wider than the range, which has 1"),
        ("distribution: normal, sigma: -1", "sigma: -1 is below the minimum of 0"),
        ("distribution: beta, a: 0", "a: 0 is below the minimum of 0.001"),
        ("mu: 3", "mu tells nothing without a distribution"),
        ("min: 1, max: 9, q: 2", "q tells nothing without a distribution"),
        ("values: [1, 2], probabilities: [1]", "1 probabilities for 2 values"),
        ("values: [1, 2], probabilities: [0.5, 0.6]", "they sum to 1.1, not to 1"),
        ("values: [1, 2], probabilities: [-0.5, 1.5]", "-0.5 is below the minimum of 0"),
        ("values: [1, 2], probabilities: [a, 0.5]", '"a" stands where a number belongs'),
        ("distribution: categorical, values: [1], probabilities: [1]", '"probabilities" is no key of a cat'),
        ("", "it has no value, no values, no min and max, and no distribution"),
        ("parameters: {}", "p.parameters: a mapping stands where a mapping of parameters belongs"),
        ("parameters: [1]", "p.parameters: a list stands where a mapping of parameters belongs"),
        (
            "parameters: {a: {value: 1}}, value: 3",
            'a group has no key but "parameters"; "value" has no place',
        ),
    ],
)
def test_a_parameter_that_makes_no_sense_is_found(spec: str, problem: str) -> None:
    (found,) = problems(parameter(spec))
    assert found.startswith("line 3: p")
    assert problem in found


def test_both_bounds_of_a_logarithm_are_found_with_the_order_of_the_two() -> None:
    spec = parameter("distribution: log_uniform_values, min: 0, max: -1")
    assert [problem.split("p: ")[1] for problem in problems(spec)] == [
        "max: -1 is not above 0.",
        "min 0 is not below max -1.",
        "min: 0 is not above 0.",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr: 0.1", "lr: 0.1 stands where a mapping belongs. Write lr: {value: 0.1}."),
        ("lr: [0.1, 0.2]", "lr: a list stands where a mapping belongs. Write lr: {values: [...]}."),
        ("lr:", "lr: nothing (null) stands where a mapping belongs. Give it value, values, or min and max."),
        ("9x: {value: 1}", '"9x" is no parameter\'s name: letters, digits and _ . - only, a letter first.'),
        (
            '"a b": {value: 1}',
            '"a b" is no parameter\'s name: letters, digits and _ . - only, a letter first.',
        ),
    ],
)
def test_what_stands_for_a_parameter_is_a_mapping_with_a_name(text: str, problem: str) -> None:
    assert problems(f"method: random\nparameters:\n  {text}\n") == [f"line 3: {problem}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["line 0: the file is empty."]),
        ("null", ["line 1: the file is empty."]),
        ("- a\n- b", ["line 1: a sweep is a mapping (key: value), not a list."]),
        (
            "parameters: {p: {value: 1}}",
            ["line 0: method is missing: grid, random or bayes."],
        ),
        ("method: grid", ["line 0: parameters is missing: what to search."]),
        ("method: grid\nparameters: {}", ["line 2: parameters: it is empty."]),
        (
            "method: grid\nparameters: [a]",
            ["line 2: parameters: a list stands where a mapping (key: value) belongs."],
        ),
        (
            "method: gird\nparameters: {p: {value: 1}}",
            ['line 1: method: "gird" is not one of grid, random, bayes. Did you mean "grid"?'],
        ),
        (
            "method: grid\nparameter: {p: {value: 1}}",
            [
                "line 0: parameters is missing: what to search.",
                'line 2: a sweep has no key "parameter". Did you mean "parameters"?',
            ],
        ),
        (
            "method: random\nparameters: {p: {value: 1}}\nrun_cap: 0\nname: 7\nproject: [a]\nkind: sweeep",
            [
                "line 3: run_cap: 0 is not above 0.",
                "line 4: name: 7 stands where text belongs. Put it in quotes.",
                "line 5: project: a list stands where text belongs.",
                'line 6: kind: "sweeep" is not sweep. Did you mean "sweep"?',
            ],
        ),
        (
            "method: random\nparameters: {p: {value: 1}}\nmetric: val_acc",
            ['line 3: metric: "val_acc" stands where a mapping (key: value) belongs.'],
        ),
        (
            "method: random\nparameters: {p: {value: 1}}\nmetric:\n  goal: maximise\n  nane: loss",
            [
                "line 3: metric.name is missing: what to optimize, such as val_accuracy.",
                'line 4: metric.goal: "maximise" is not one of minimize, maximize. Did you mean "maximize"?',
                'line 5: metric has no key "nane". Did you mean "name"?',
            ],
        ),
        (
            "method: bayes\nparameters: {p: {min: 1, max: 2}}",
            ["line 1: method bayes needs a metric: what to optimize."],
        ),
        (
            "method: bayes\nmetric: {name: loss}\nparameters: {p: {value: 2}}",
            ["line 1: method bayes needs a parameter that varies."],
        ),
        (
            "method: grid\nparameters:\n  a: {min: 5, max: 7}\n  b: {min: 0.1, max: 1.0}\n"
            "  c: {values: [1, 2], probabilities: [0.5, 0.5]}\n  d: {distribution: normal}",
            [
                "line 4: b: a grid needs each value, not a range. Write values: [...], give it steps "
                "(q_uniform), or use method random.",
                "line 5: c: a grid tries every value, so probabilities have no meaning. Leave them out.",
                "line 6: d: a grid needs each value, not a range. Write values: [...], give it steps "
                "(q_uniform), or use method random.",
            ],
        ),
    ],
)
def test_a_file_that_makes_no_sense_is_found(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def grid(spec: str) -> str:
    return f"method: grid\nparameters:\n  p: {{{spec}}}\n"


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        # W&B's own package `sweeps` 0.3.0, grid_search.py: range(min, max + 1) and numpy.arange(min, max, q)
        ("min: 5, max: 7", (5, 6, 7)),
        ("distribution: int_uniform, min: -1, max: 1", (-1, 0, 1)),
        ("distribution: q_uniform, min: 1, max: 10, q: 2", (1, 3, 5, 7, 9)),
        ("distribution: q_uniform, min: 0, max: 8, q: 2", (0, 2, 4, 6)),
        ("distribution: q_uniform, min: 0.1, max: 0.5, q: 0.1", (0.1, 0.2, 0.3, 0.4)),
        (
            "distribution: q_uniform, min: 0.1, max: 0.4, q: 0.1",
            (0.1, 0.2, 0.3, 0.4),
        ),  # 3.0000000000000004 steps
        ("distribution: q_uniform, min: 0.05, max: 1, q: 0.3", (0.05, 0.35, 0.65, 0.95)),
    ],
)
def test_grid_tries_each_value_of_a_stepped_range(spec: str, values: tuple[float, ...]) -> None:
    (only,) = sound(grid(spec)).parameters
    assert only.distribution == Choice.of(values)
    assert list(map(type, only.distribution.values or ())) == list(map(type, values))


@pytest.mark.parametrize(
    ("spec", "noticed"),
    [
        (
            "distribution: q_uniform, min: 0, max: 8, q: 2",
            ["line 3: p: as with W&B, a grid of q_uniform leaves max out. It tries 0, 2, 4, 6."],
        ),
        ("distribution: q_uniform, min: 0, max: 9, q: 2", []),
        ("min: 0, max: 8", []),
    ],
)
def test_grid_that_leaves_out_a_step_at_max_is_noticed(spec: str, noticed: list[str]) -> None:
    assert notices(grid(spec)) == noticed


@pytest.mark.parametrize(
    "spec",
    [
        "min: 1, max: 1000000000000000000000000000000",
        "distribution: q_uniform, min: 0, max: 1, q: 1e-9",
        "distribution: q_uniform, min: -1e308, max: 1e308, q: 1",
    ],
)
def test_range_of_too_many_values_is_refused_before_they_are_made(spec: str) -> None:
    _, findings = parse_sweep(grid(spec).encode())
    assert findings.problems == []
    assert [finding.text for finding in findings.refusals] == [
        "p: a grid tries every value, and these are more than 100,000. Use method random."
    ]


def test_mistakes_of_all_kinds_are_found_at_once() -> None:
    text = "method: grid\nmethod: random\nparameters:\n"
    text += "  a: !x {value: 1}\n  b: {min: 2, max: 1}\n  c: 3\nrum_cap: 1"
    assert [problem.split(":")[0] for problem in problems(text)] == [
        "line 2",
        "line 4",
        "line 5",
        "line 6",
        "line 7",
    ]


HYPERBAND = "method: random\nparameters: {{p: {{value: 1}}}}\nearly_terminate: {{type: hyperband, {}}}"


@pytest.mark.parametrize(
    ("keys", "expected", "rungs"),
    [
        # the series of rungs are those of W&B's documentation of sweep configurations
        ("min_iter: 3", EarlyStopping(3, None, 3.0, 1, True), (3, 9, 27, 81)),
        ("max_iter: 27, s: 2", EarlyStopping(3, 27, 3.0, 1, True), (3, 9)),
        ("max_iter: 27, s: 9", EarlyStopping(1, 27, 3.0, 1, True), (1, 3, 9)),
        ("max_iter: 16, s: 1, eta: 2, strict: false", EarlyStopping(8, 16, 2.0, 1, False), (8,)),
        ("min_iter: 2, max_iter: 9, eta: 2", EarlyStopping(2, 9, 2.0, 1, True), (2, 4, 8)),
        ("min_iter: 5, max_iter: 50, s: 2", EarlyStopping(5, 50, 3.0, 1, True), (5, 15, 45)),
        (
            "min_iter: 1, eta: 1.5",
            EarlyStopping(1, None, 1.5, 1, True),
            (1, 2, 3, 5, 7, 11, 17, 25, 38, 57, 86),
        ),
    ],
)
def test_hyperband_is_read_as_asha_takes_it(
    keys: str, expected: EarlyStopping, rungs: tuple[int, ...]
) -> None:
    early_stopping = sound(HYPERBAND.format(keys)).early_stopping
    assert early_stopping == expected
    assert early_stopping.rungs(100) == rungs


def test_a_trial_is_not_stopped_after_its_last_epoch() -> None:
    assert EarlyStopping(2, None, 2.0, 1, True).rungs(8) == (2, 4)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("eta: 3", "early_terminate needs min_iter, or max_iter and s"),
        ("max_iter: 9", "early_terminate needs min_iter, or max_iter and s"),
        ("max_iter: 2, s: 2", "max_iter 2 leaves no epoch to stop at"),
        ("min_iter: 9, max_iter: 9", "min_iter 9 is not below max_iter 9"),
        ("min_iter: 0", "min_iter: 0 is below the minimum of 1"),
        ("min_iter: 1.5", "min_iter: 1.5 stands where a whole number belongs"),
        ("min_iter: 1, eta: 1", "eta: 1 is not above 1"),
        ("min_iter: 1, strict: maybe", 'strict: "maybe" stands where true or false belongs'),
        ("min_itre: 1, min_iter: 1", 'early_terminate has no key "min_itre". Did you mean "min_iter"?'),
    ],
)
def test_hyperband_that_makes_no_sense_is_found(keys: str, problem: str) -> None:
    (found,) = problems(HYPERBAND.format(keys).replace("early_terminate.", ""))
    assert problem in found.replace("early_terminate.", "")


def test_groups_keep_the_path_to_their_parameters() -> None:
    text = "method: random\nparameters:\n  a:\n    parameters:\n"
    text += "      b: {parameters: {c: {value: 1}}}\n      d: {value: 2}"
    assert [(each.name, each.line) for each in sound(text).parameters] == [("a.b.c", 5), ("a.d", 6)]


def notices(text: str) -> list[str]:
    _, findings = parse_sweep(text.encode())
    assert findings.problems == []
    return [f"line {line}: {notice}" for line, notice in sorted(findings.notices)]


def test_keys_of_wandbs_agents_are_named_as_unused() -> None:
    text = "program: train.py\ncommand: [python]\nmethod: random\nparameters: {p: {value: 1}}\n"
    text += "scheduler: {engine: wandb}"
    assert notices(text) == ["line 1: program, command, scheduler are for W&B's agents and not used here."]


@pytest.mark.parametrize(
    ("spec", "notice"),
    [
        ('min: "0.1", max: 1.0', 'line 3: p: min: "0.1" in quotes is read as the number 0.1.'),
        (
            "distribution: int_uniform, min: 1, max: 3.0",
            "line 3: p: max: 3.0 is read as the whole number 3.",
        ),
        (
            "distribution: log_uniform, min: 0.0001, max: 0.1",
            "line 3: p: the bounds of log_uniform are exponents of e, so its values go from 1.0001 to "
            "1.10517. For bounds that are values themselves there is log_uniform_values.",
        ),
    ],
)
def test_what_an_author_may_not_expect_is_noticed(spec: str, notice: str) -> None:
    assert notices(parameter(spec)) == [notice]


@pytest.mark.parametrize("value", [None, [], "x", -1, 1e400, {"parameters": None}])
@pytest.mark.parametrize("path", sorted(shipped_spaces().values()), ids=lambda path: path.stem)
def test_no_value_in_any_place_is_a_crash(path: Path, value: Any) -> None:
    def with_each_place_replaced(node: Any) -> list[Any]:
        """All copies of a tree in which one place has the value instead."""
        copies: list[Any] = [value]
        places = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for place, inner in places:
            for changed in with_each_place_replaced(inner):
                copy = dict(node) if isinstance(node, dict) else list(node)
                copy[place] = changed
                copies.append(copy)
        return copies

    for changed in with_each_place_replaced(yaml.safe_load(path.read_bytes())):
        sweep, findings = parse_sweep(yaml.safe_dump(changed).encode())
        assert sweep.head is not None or findings.problems
