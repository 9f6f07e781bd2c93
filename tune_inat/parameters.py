"""What a value or a distribution means to a trial: our parameters' names, types and ranges."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tune_inat.config import ALIASES, PARAMETER_NAMES, TrialConfig
from tune_inat.distributions import Choice, Distribution, Integers, LogUniform, Normal, Rounded, Uniform
from tune_inat.sweep_schema import Findings, SweepParameter
from tune_inat.wording import complaint, did_you_mean, nearest_word, short, shown
from tune_inat.yaml_lines import Finding, number_in

_GROUP_WORDS = ("name", "type")  # `optimizer: {parameters: {name: ...}}` means the optimizer itself

# pydantic's errors about a value that is of the right type
_LIMITS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")


@dataclass(frozen=True)
class Checked:
    """A value as a trial takes it, or why it takes none.

    Attributes:
        misfit: a number that makes no sense for this parameter, such as 0 epochs.
        refusal: a word or a type that this parameter does not have, such as an optimizer of others.
        notice: what was done to the value.
    """

    value: Any = None
    misfit: str | None = None
    refusal: str | None = None
    notice: str | None = None

    @property
    def is_fine(self) -> bool:
        """Whether there is a value to use."""
        return self.misfit is None and self.refusal is None


def canonical_name(name: str) -> str | None:
    """Our name of a parameter, `None` if we have no such parameter."""
    name = ALIASES.get(name, name)
    return name if name in PARAMETER_NAMES else None


def leaf_name(path: tuple[str, ...]) -> str:
    """The name that a nested parameter goes by: its own, or its group's for a group's `name` or `type`."""
    return path[-2] if len(path) > 1 and path[-1] in _GROUP_WORDS else path[-1]


def unknown_name(name: str, *, with_list: bool = True) -> str:
    """About a parameter that we do not have: the nearest that we have or, `with_list`, all of them."""
    known = (*PARAMETER_NAMES, *ALIASES)
    is_hinted = with_list or nearest_word(name, known) is not None
    return f'there is no parameter "{name}".{f" {did_you_mean(name, known)}" if is_hinted else ""}'


def check_value(name: str, value: Any) -> Checked:
    """A value of one of our parameters, converted where only its spelling is off, and range-checked."""
    kinds = _kinds(name)
    value, notice = _respelled(name, value, kinds)
    try:
        return Checked(_adapter(name).validate_python(value), notice=notice)
    except ValidationError as error:
        details = [dict(detail) for detail in error.errors()]
    text = f"{name}: {_complaint(name, value, details)}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and kinds & {"number", "integer"}:
        return Checked(misfit=text)
    return Checked(refusal=text)


def check_distribution(name: str, distribution: Distribution) -> Checked:
    """A range or a curve for one of our parameters, as one that gives values of the parameter's type."""
    kinds = _kinds(name)
    if not kinds & {"number", "integer"}:
        allowed = TrialConfig.model_fields[name].description
        return Checked(refusal=f"{name}: it is no number but {allowed}. List its values.")
    if "number" in kinds:
        typed, notice = _as_floats(name, distribution)
    elif (whole := _as_integers(distribution)) is not None:
        typed, notice = whole, None
    else:
        text = f"{name}: it is a whole number. Use int_uniform, or a q_ distribution with a whole q."
        return Checked(refusal=text)
    typed = _without_excluded_ends(name, typed)
    for end in (typed.ppf(0.0), typed.ppf(1.0)):
        checked = check_value(name, end)
        if checked.misfit is not None:
            return Checked(misfit=f"{checked.misfit.rstrip('.')}, and {_reach(typed)}")
    return Checked(typed, notice=notice)


def _complaint(name: str, value: Any, details: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a value: one sentence, also where a parameter can be of either of two types."""
    beyond = [detail for detail in details if detail["type"] in _LIMITS]
    if beyond or len(details) == 1:
        return complaint((beyond or details)[0])
    return f"{shown(value)} does not fit: {TrialConfig.model_fields[name].description}."


def fit_distribution(name: str, parameter: SweepParameter, findings: Findings) -> Distribution | None:
    """The distribution with values of the parameter's type, if they all make sense for it."""
    if parameter.distribution.values is None:
        checked = check_distribution(name, parameter.distribution)
        _note(checked, parameter.line, findings)
        distribution: Distribution | None = checked.value
        return distribution
    if not parameter.listed:
        return _fit_axis(name, parameter, parameter.distribution.values, findings)
    values = []
    for value, line in parameter.listed:
        checked = check_value(name, value)
        _note(checked, line, findings)
        values.append(checked)
    if not all(checked.is_fine for checked in values):
        return None
    choice = Choice.of([checked.value for checked in values], parameter.weights)
    if len(choice.values) < len(values):
        findings.notices.append(Finding(parameter.line, f"{name}: a value is listed more than once."))
    return choice


def _fit_axis(
    name: str, parameter: SweepParameter, values: Sequence[Any], findings: Findings
) -> Distribution | None:
    """A range that a grid spells out. Of values that make no sense the first speaks for the others."""
    fitting = []
    for value in values:
        checked = check_value(name, value)
        if not checked.is_fine:
            _note(checked, parameter.line, findings)
            return None
        fitting.append(checked.value)
    if parameter.kind == "int_uniform" and "number" in _kinds(name):
        findings.notices.append(Finding(parameter.line, _only_whole_numbers(name, values[0], values[-1])))
    return Choice.of(fitting)


def _note(checked: Checked, line: int, findings: Findings) -> None:
    noted = (
        (checked.misfit, findings.misfits),
        (checked.refusal, findings.refusals),
        (checked.notice, findings.notices),
    )
    for text, where in noted:
        if text is not None:
            where.append(Finding(line, text))


def _as_floats(name: str, distribution: Distribution) -> tuple[Distribution, str | None]:
    if isinstance(distribution, Rounded):
        return replace(distribution, q=float(distribution.q)), None
    if not isinstance(distribution, Integers):
        return distribution, None
    notice = _only_whole_numbers(name, distribution.low, distribution.high)
    notice += f" Write {distribution.low}.0 and {distribution.high}.0 for all between."
    return replace(distribution, as_float=True), notice


def _only_whole_numbers(name: str, low: int, high: int) -> str:
    return f"{name}: min {low} and max {high} are whole numbers, so W&B takes only whole numbers."


def _without_excluded_ends(name: str, distribution: Distribution) -> Distribution:
    """A range whose end is the first number that is too low or too high, such as an lr of 0, less that end.

    No draw falls on it anyway, but Optuna's suggestions may.
    """
    if not isinstance(distribution, Uniform | LogUniform):
        return distribution
    low, high = distribution.low, distribution.high
    if not check_value(name, low).is_fine:
        low = math.nextafter(low, high)
    if not check_value(name, high).is_fine:
        high = math.nextafter(high, low)
    return replace(distribution, low=low, high=high)


def _as_integers(distribution: Distribution) -> Distribution | None:
    if isinstance(distribution, Rounded) and float(distribution.q).is_integer():
        return replace(distribution, q=int(distribution.q))
    return distribution if isinstance(distribution, Integers) else None


def _reach(distribution: Distribution) -> str:
    """How a distribution comes to a value that its parameter cannot have."""
    text = f"the draws ({distribution}) reach it."
    bell = distribution.of if isinstance(distribution, Rounded) else distribution
    if isinstance(bell, Normal):
        return f"{text} A log_normal stays above 0."
    if isinstance(distribution, Rounded):
        return f"{text} They are rounded to steps of {short(distribution.q)}, also beyond min and max."
    return text


def _respelled(name: str, value: Any, kinds: frozenset[str]) -> tuple[Any, str | None]:
    """A value as the parameter's type where that loses nothing, and a notice where its author should know."""
    notice = None
    if isinstance(value, str) and kinds & {"number", "integer"}:
        number = number_in(value)
        if number is not None:
            notice = f'{name}: "{value}" in quotes is read as the number {short(number)}.'
            value = number
    if "integer" in kinds and isinstance(value, float) and value.is_integer():
        notice = notice or f"{name}: {value} is read as the whole number {short(value)}."
        value = int(value)
    return value, notice


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    field = TrialConfig.model_fields[name]
    config = ConfigDict(strict=True, allow_inf_nan=False)
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(annotation, config=config)


@cache
def _kinds(name: str) -> frozenset[str]:
    """JSON schema's types of a parameter: of `number`, `integer` and `string` one or two."""
    schema: Mapping[str, Any] = _adapter(name).json_schema()
    return frozenset(part["type"] for part in schema.get("anyOf", [schema]))
