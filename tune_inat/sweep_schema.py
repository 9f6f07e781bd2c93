"""W&B's schema of sweep files: the keys of each section, and what each distribution's keys mean.

The schema is the one of the PyPI package `sweeps` 0.3.0 (wandb/sweeps, `config/schema.json`). Stricter here,
since W&B's own controllers fail or hang on it later: `q` has to be given, and values must be finite.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
from tune_inat.wording import complaint, did_you_mean, short
from tune_inat.yaml_lines import Finding, Table, number_in

Method = Literal["grid", "random", "bayes"]

# Keys that W&B's agents and servers read. They are checked, and have no meaning here.
AGENT_KEYS = ("program", "command", "job", "image_uri", "controller", "scheduler", "apiVersion", "kind")
MAX_EPOCHS = 10**9


class Section(BaseModel):
    """A mapping in a sweep file. All of it is checked, nothing is guessed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class SweepSection(Section):
    """The top of the file."""

    method: Method = Field(description="grid, random or bayes")
    parameters: dict[str, Any] = Field(description="what to search", min_length=1)
    metric: dict[str, Any] | None = None
    early_terminate: dict[str, Any] | None = None
    run_cap: Annotated[int, Field(gt=0)] | None = None
    name: str | None = None
    description: str | None = None
    project: str | None = None
    entity: str | None = None
    program: str | None = None
    command: list[Any] | None = None
    job: str | None = None
    image_uri: str | None = None
    controller: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    apiVersion: str | None = None
    kind: Literal["sweep"] | None = None


class MetricSection(Section):
    """`metric`."""

    name: str = Field(description="what to optimize, such as val_accuracy")
    goal: Literal["minimize", "maximize"] | None = None
    target: float | None = None
    impute: Literal["latest", "best", "worst"] | None = None
    impute_while_running: Literal["latest", "best", "worst", "false", False] | None = None


class HyperbandSection(Section):
    """`early_terminate`."""

    type: Literal["hyperband"] = Field(description="hyperband")
    min_iter: int | None = Field(None, ge=1, le=MAX_EPOCHS)
    max_iter: int | None = Field(None, ge=1, le=MAX_EPOCHS)
    s: int | None = Field(None, ge=1)
    eta: float = Field(3.0, gt=1)
    strict: bool = True


class _Value(Section):
    value: Any


class _Values(Section):
    values: list[Any] = Field(min_length=1)


class _Weighted(_Values):
    probabilities: list[Annotated[float, Field(ge=0)]]


class _IntRange(Section):
    min: int
    max: int


class _Range(Section):
    min: float
    max: float


class _PositiveRange(Section):
    min: float = Field(gt=0)
    max: float = Field(gt=0)


class _Bell(Section):
    mu: float = 0.0
    sigma: float = Field(1.0, ge=0)


class _Beta(Section):
    a: float = Field(1.0, ge=1e-3, le=1e4)  # what our quantiles are exact for
    b: float = Field(1.0, ge=1e-3, le=1e4)


class _Step(Section):
    q: float = Field(gt=0, description="the step, such as q: 1 for whole numbers")


class _QRange(_Step, _Range): ...


class _QPositiveRange(_Step, _PositiveRange): ...


class _QBell(_Step, _Bell): ...


class _QBeta(_Step, _Beta): ...


@dataclass(frozen=True)
class Kind:
    """One of W&B's distributions: the keys that it takes, and the distribution that they describe."""

    section: type[Section]
    build: Callable[[Any], Distribution]


def _exp_range(low: float, high: float) -> LogUniform:
    if math.exp(low) == 0:
        raise OverflowError("no float is so small")
    return LogUniform(math.exp(low), math.exp(high))


KINDS: dict[str, Kind] = {
    "constant": Kind(_Value, lambda of: Choice.of([of.value])),
    "categorical": Kind(_Values, lambda of: Choice.of(of.values)),
    "categorical_w_probabilities": Kind(_Weighted, lambda of: Choice.of(of.values, of.probabilities)),
    "int_uniform": Kind(_IntRange, lambda of: Integers(of.min, of.max)),
    "uniform": Kind(_Range, lambda of: Uniform(of.min, of.max)),
    "q_uniform": Kind(_QRange, lambda of: Rounded(Uniform(of.min, of.max), of.q)),
    # In W&B's words "log(X) is uniform between min and max": the bounds are exponents of e.
    "log_uniform": Kind(_Range, lambda of: _exp_range(of.min, of.max)),
    "log_uniform_values": Kind(_PositiveRange, lambda of: LogUniform(of.min, of.max)),
    "q_log_uniform": Kind(_QRange, lambda of: Rounded(_exp_range(of.min, of.max), of.q)),
    "q_log_uniform_values": Kind(_QPositiveRange, lambda of: Rounded(LogUniform(of.min, of.max), of.q)),
    # "log(1/X) is uniform between min and max", or with _values between log(1/max) and log(1/min).
    "inv_log_uniform": Kind(_Range, lambda of: _exp_range(-of.max, -of.min)),
    "inv_log_uniform_values": Kind(_PositiveRange, lambda of: LogUniform(of.min, of.max)),
    "normal": Kind(_Bell, lambda of: Normal(of.mu, of.sigma)),
    "q_normal": Kind(_QBell, lambda of: Rounded(Normal(of.mu, of.sigma), of.q)),
    "log_normal": Kind(_Bell, lambda of: LogNormal(of.mu, of.sigma)),
    "q_log_normal": Kind(_QBell, lambda of: Rounded(LogNormal(of.mu, of.sigma), of.q)),
    "beta": Kind(_Beta, lambda of: Beta(of.a, of.b)),
    "q_beta": Kind(_QBeta, lambda of: Rounded(Beta(of.a, of.b), of.q)),
}
EXPONENT_KINDS = ("log_uniform", "q_log_uniform", "inv_log_uniform")
PARAMETER_KEYS = tuple(
    dict.fromkeys(
        ["distribution", "parameters", *(key for kind in KINDS.values() for key in kind.section.model_fields)]
    )
)


@dataclass(frozen=True)
class SweepParameter:
    """One parameter.

    Attributes:
        path: the names of the groups around it and, last, its own.
        kind: W&B's name of its distribution.
        listed: for listed values, each with its line, as the file has them.
        weights: for `probabilities`, one for each of them.
    """

    path: tuple[str, ...]
    line: int
    kind: str
    distribution: Distribution
    listed: tuple[tuple[Any, int], ...] = ()
    weights: Sequence[float] | None = None

    @property
    def name(self) -> str:
        """How messages call it: `optimizer.lr`."""
        return ".".join(self.path)


@dataclass
class Findings:
    """What was found in a file, line by line, in whatever order it was found.

    Attributes:
        problems: what W&B's schema forbids.
        misfits: numbers that make no sense for a parameter of ours, such as 0 epochs.
        refusals: what is sound and nothing that tune_inat has: a parameter, an optimizer, a metric.
        notices: what an author may not know of a file that is accepted.
    """

    problems: list[Finding] = field(default_factory=list)
    misfits: list[Finding] = field(default_factory=list)
    refusals: list[Finding] = field(default_factory=list)
    notices: list[Finding] = field(default_factory=list)


S = TypeVar("S", bound=Section)


def check_section(model: type[S], table: Table, findings: Findings, *, where: str = "") -> S | None:
    """A section as its model, or `None` and what is wrong with it. `where` goes before a key: `metric.`."""
    plain = table.plain()
    empty = [key for key, value in plain.items() if value is None and key != "value"]
    for key in empty:
        text = f"{where}{key}: it is empty. Give it a value, or leave it out."
        findings.problems.append(Finding(table.line_of([key]), text))
        del plain[key]
    for key in plain.keys() & model.model_fields.keys():
        line = table.line_of([key])
        types = _types_in(model.model_fields[key].annotation)
        plain[key], notices = _read_numbers(plain[key], types)
        findings.notices += [Finding(line, f"{where}{key}: {notice}") for notice in notices]
    try:
        checked = model.model_validate(plain)
    except ValidationError as error:
        for detail in error.errors():
            key = str(detail["loc"][0])
            if detail["type"] != "missing" or key not in table.nodes:
                text = _section_complaint(model, dict(detail), where)
                findings.problems.append(Finding(table.line_of(detail["loc"]), text))
        return None
    return None if empty else checked


def inconsistencies(kind: str, plain: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong among the keys of a parameter, each fine by itself: the key to blame, and a sentence."""
    numbers = {key: number for key, value in plain.items() if (number := as_number(value)) is not None}
    low, high, q = numbers.get("min"), numbers.get("max"), numbers.get("q")
    if low is not None and high is not None and low >= high:
        yield "max", f"min {short(low)} is not below max {short(high)}."
    elif q is not None and (width := _width(kind, low, high)) is not None and q > width * (1 + 1e-9):
        yield "q", f"a step (q) of {short(q)} is wider than the range, which has {width:g}."
    values, shares = plain.get("values"), plain.get("probabilities")
    if isinstance(values, list) and isinstance(shares, list):
        if len(values) != len(shares):
            yield "probabilities", f"{len(shares)} probabilities for {len(values)} values."
        known = [number for share in shares if (number := as_number(share)) is not None]
        if len(known) == len(shares) and not math.isclose(sum(known), 1.0, rel_tol=1e-5):
            yield "probabilities", f"they sum to {sum(known):g}, not to 1."


def as_number(value: Any) -> int | float | None:
    """A finite number that is one, or that is spelled in quotes."""
    number = number_in(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    try:
        return number if math.isfinite(number) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def _width(kind: str, low: float | None, high: float | None) -> float | None:
    if kind == "q_beta":
        return 1.0
    if low is None or high is None:
        return None
    if kind != "q_log_uniform":
        return high - low
    try:
        return math.exp(high) - math.exp(low)
    except OverflowError:
        return None


def _read_numbers(value: Any, types: set[Any]) -> tuple[Any, list[str]]:
    """A value with its numbers as the schema has them, and what was done to get there."""
    if not types & {int, float}:
        return value, []
    if isinstance(value, list):
        pairs = [_read_numbers(item, types) for item in value]
        return [item for item, _ in pairs], [notice for _, notices in pairs for notice in notices]
    notices = []
    if isinstance(value, str) and (number := number_in(value)) is not None:
        notices.append(f'"{value}" in quotes is read as the number {short(number)}.')
        value = number
    if int in types and isinstance(value, float) and value.is_integer():
        notices.append(f"{value} is read as the whole number {short(value)}.")
        value = int(value)
    return value, notices


def _types_in(annotation: Any) -> set[Any]:
    """The types that an annotation is made of, such as `float` of `list[Annotated[float, ...]] | None`."""
    parts = [part for part in get_args(annotation) if isinstance(part, type) or get_origin(part)]
    return {annotation}.union(*map(_types_in, parts))


def _section_complaint(model: type[Section], detail: Mapping[str, Any], where: str) -> str:
    key = str(detail["loc"][0])
    if detail["type"] == "missing":
        hint = model.model_fields[key].description
        return f"{where}{key} is missing{f': {hint}' if hint else ''}."
    if detail["type"] == "extra_forbidden":
        known = tuple(model.model_fields)
        return f'{where.rstrip(".: ") or "a sweep"} has no key "{key}". {did_you_mean(key, known)}'
    return f"{where}{key}: {complaint(detail)}"
