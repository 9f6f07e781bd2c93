"""The distributions of a search space: which value stands at each quantile."""

import math
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from decimal import Decimal
from itertools import accumulate
from statistics import NormalDist
from typing import Any, Literal, Protocol

# Distributions without ends get some: what is rarer than one draw in a million takes the value of that draw.
# So a draw never leaves what was checked when the file was read.
TAIL = 1e-6
MAX_WORDS = 20  # values that a text lists, in all of which a reader would lose the last


@dataclass(frozen=True)
class Native:
    """A distribution of Optuna's with exactly the values of one of ours."""

    kind: Literal["float", "int", "categorical"]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()


class Distribution(Protocol):
    """How the values of a parameter are spread. `str()` says it to a reader."""

    @property
    def values(self) -> tuple[Any, ...] | None:
        """The values, where they were listed one by one; `grid_values` lists those of some ranges."""
        ...

    def ppf(self, u: float) -> Any:
        """The value at quantile `u` in [0, 1]: of a uniform `u` it is a draw. Never falls as `u` grows."""
        ...

    def optuna(self) -> Native | None:
        """Optuna's own distribution, or `None`: then search the quantile in [0, 1]."""
        ...

    def from_optuna(self, suggestion: Any) -> Any:
        """The value for what Optuna suggested: of the native distribution, else a quantile."""
        ...


@dataclass(frozen=True)
class Choice:
    """Listed values, each with a weight. Made by `Choice.of`."""

    values: tuple[Any, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[Any], weights: Sequence[float] | None = None) -> "Choice":
        """A choice among values; one that is listed twice is one value with both weights."""
        summed: dict[tuple[str, str], tuple[Any, float]] = {}
        for value, weight in zip(values, weights or [1 / len(values)] * len(values), strict=True):
            key = (type(value).__name__, repr(value))  # 1, 1.0 and True are equal in Python
            first, so_far = summed.get(key, (value, 0.0))
            summed[key] = (first, so_far + weight)
        return cls(
            tuple(value for value, _ in summed.values()), tuple(weight for _, weight in summed.values())
        )

    @property
    def is_even(self) -> bool:
        """Whether all values are as likely."""
        return all(math.isclose(weight, self.weights[0]) for weight in self.weights)

    def ppf(self, u: float) -> Any:
        """The value in whose share `u` falls; a value of weight zero has none."""
        place = bisect_right(list(accumulate(self.weights)), u * math.fsum(self.weights))
        likely = [index for index, weight in enumerate(self.weights) if weight > 0]
        return self.values[min(place, likely[-1])]

    def optuna(self) -> Native | None:
        """Optuna's categorical distribution knows no weights."""
        return Native("categorical", choices=self.values) if self.is_even else None

    def from_optuna(self, suggestion: Any) -> Any:
        """The suggestion itself, or the value at this quantile."""
        return suggestion if self.is_even else self.ppf(suggestion)

    def __str__(self) -> str:
        words = [f"{value:g}" if isinstance(value, float) else str(value) for value in self.values]
        if not self.is_even:
            words = [f"{word} ({weight:.0%})" for word, weight in zip(words, self.weights, strict=True)]
        if len(words) > MAX_WORDS:
            return f"{', '.join(words[:2])}, ..., {words[-1]} ({len(words):,} values)"
        return ", ".join(words)


@dataclass(frozen=True)
class Integers:
    """Whole numbers from `low` to `high`, both included, all as likely; as floats for a float parameter."""

    low: int
    high: int
    as_float: bool = False

    values = None

    def ppf(self, u: float) -> int | float:
        """The `u`-th of them."""
        count = self.high - self.low + 1
        number = self.low + min(int(u * count), count - 1)
        return float(number) if self.as_float else number

    def optuna(self) -> Native:
        """Optuna has it."""
        return Native("int", self.low, self.high)

    def from_optuna(self, suggestion: Any) -> int | float:
        """The suggestion as the parameter's type."""
        return float(suggestion) if self.as_float else int(suggestion)

    def __str__(self) -> str:
        return f"{self.low} to {self.high}, whole numbers"


@dataclass(frozen=True)
class Uniform:
    """All between `low` and `high` as likely."""

    low: float
    high: float

    values = None

    def ppf(self, u: float) -> float:
        """Linear in `u`."""
        return min(max(self.low * (1 - u) + self.high * u, self.low), self.high)

    def optuna(self) -> Native:
        """Optuna has it."""
        return Native("float", self.low, self.high)

    def from_optuna(self, suggestion: Any) -> float:
        """The suggestion itself."""
        return float(suggestion)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class LogUniform:
    """All logarithms between those of `low` and `high` as likely."""

    low: float
    high: float

    values = None

    def ppf(self, u: float) -> float:
        """Geometric in `u`."""
        value = math.exp(Uniform(math.log(self.low), math.log(self.high)).ppf(u))
        return min(max(value, self.low), self.high)

    def optuna(self) -> Native:
        """Optuna has it."""
        return Native("float", self.low, self.high, log=True)

    def from_optuna(self, suggestion: Any) -> float:
        """The suggestion itself."""
        return float(suggestion)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, even in the logarithm"


@dataclass(frozen=True)
class Normal:
    """The bell curve, its tails cut at `TAIL`."""

    mu: float
    sigma: float

    values = None

    def ppf(self, u: float) -> float:
        """The quantile of the bell curve."""
        return NormalDist(self.mu, self.sigma).inv_cdf(_inside(u)) if self.sigma > 0 else self.mu

    def optuna(self) -> None:
        """Optuna has none."""

    def from_optuna(self, suggestion: Any) -> float:
        """The value at this quantile."""
        return self.ppf(suggestion)

    def __str__(self) -> str:
        return f"normal, mean {self.mu:g}, deviation {self.sigma:g}"


@dataclass(frozen=True)
class LogNormal:
    """A value whose logarithm is normal."""

    mu: float
    sigma: float

    values = None

    def ppf(self, u: float) -> float:
        """The exponential of the bell curve's quantile."""
        return math.exp(Normal(self.mu, self.sigma).ppf(u))

    def optuna(self) -> None:
        """Optuna has none."""

    def from_optuna(self, suggestion: Any) -> float:
        """The value at this quantile."""
        return self.ppf(suggestion)

    def __str__(self) -> str:
        return f"log-normal, the logarithm's mean {self.mu:g}, deviation {self.sigma:g}"


@dataclass(frozen=True)
class Beta:
    """The beta distribution on [0, 1], its tails cut at `TAIL`."""

    a: float
    b: float

    values = None

    def ppf(self, u: float) -> float:
        """Its quantile, by bisection down to neighbouring floats."""
        u, low, high = _inside(u), 0.0, 1.0
        while low < (middle := (low + high) / 2) < high:
            if _incomplete_beta(self.a, self.b, middle) < u:
                low = middle
            else:
                high = middle
        return high

    def optuna(self) -> None:
        """Optuna has none."""

    def from_optuna(self, suggestion: Any) -> float:
        """The value at this quantile."""
        return self.ppf(suggestion)

    def __str__(self) -> str:
        return f"beta, a {self.a:g}, b {self.b:g}"


@dataclass(frozen=True)
class Rounded:
    """Another distribution, rounded to multiples of `q`: whole numbers when `q` is an `int`.

    As with W&B this is `round(x / q) * q`, so it may end up to half a step beyond the other's ends.
    """

    of: Uniform | LogUniform | Normal | LogNormal | Beta
    q: float

    values = None

    def ppf(self, u: float) -> float:
        """The rounded quantile; 3 steps of 0.1 are 0.3, not 0.30000000000000004."""
        return self._nearest(self.of.ppf(u))

    def optuna(self) -> Native | None:
        """Optuna has stepped ranges, and whole numbers even in the logarithm from 1 on."""
        low, high = self.ppf(0.0), self.ppf(1.0)
        kind: Literal["int", "float"] = "int" if isinstance(self.q, int) else "float"
        if isinstance(self.of, Uniform):
            return Native(kind, low, high, step=self.q)
        if isinstance(self.of, LogUniform) and kind == "int" and self.q == 1 and low >= 1:
            return Native(kind, low, high, log=True)
        return None

    def from_optuna(self, suggestion: Any) -> float:
        """The suggestion without the noise of float steps, or the value at this quantile."""
        return self.ppf(suggestion) if self.optuna() is None else self._nearest(suggestion)

    def _nearest(self, value: float) -> float:
        steps = round(value / self.q)
        return steps * self.q if isinstance(self.q, int) else float(steps * Decimal(repr(self.q)))

    def __str__(self) -> str:
        return f"{self.of}, in steps of {self.q:g}"


def grid_length(distribution: Distribution) -> int | None:
    """How many values a grid tries, `None` for what it cannot try: see `grid_values`."""
    if distribution.values is not None:
        return len(distribution.values)
    if isinstance(distribution, Integers):
        return distribution.high - distribution.low + 1
    if isinstance(distribution, Rounded) and isinstance(distribution.of, Uniform):
        n_steps = (distribution.of.high - distribution.of.low) / distribution.q
        return math.ceil(min(n_steps, sys.maxsize))
    return None


def grid_values(distribution: Distribution) -> tuple[Any, ...]:
    """The values that a grid tries: those listed, and the ranges that W&B's own grid spells out.

    Of whole numbers these are all. Of a uniform range in steps of `q` they are, as with W&B (`numpy.arange`),
    `min`, `min + q` and so on below `max`, which is left out: not the multiples of `q` that a draw gives.
    """
    n_values = grid_length(distribution)
    assert n_values is not None, "a grid can try it"
    if distribution.values is not None:
        return distribution.values
    if isinstance(distribution, Integers):
        numbers = range(distribution.low, distribution.high + 1)
        return tuple(map(float, numbers)) if distribution.as_float else tuple(numbers)
    assert isinstance(distribution, Rounded), "all others are listed or whole numbers"
    low, step = Decimal(repr(distribution.of.ppf(0.0))), Decimal(repr(distribution.q))
    is_whole = low == int(low) and step == int(step)
    steps = [low + place * step for place in range(n_values)]  # exact: 0.3, not 0.30000000000000004
    return tuple(int(number) if is_whole else float(number) for number in steps)


def identity(distribution: Distribution) -> dict[str, Any]:
    """A distribution as JSON's types: equal for two that give the same value at every quantile."""
    assert is_dataclass(distribution)
    described: dict[str, Any] = {"distribution": type(distribution).__name__}
    for field in fields(distribution):
        value = getattr(distribution, field.name)
        described[field.name] = identity(value) if is_dataclass(value) else value
    return described


def _inside(u: float) -> float:
    return min(max(u, TAIL), 1 - TAIL)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), the distribution function of beta.

    The continued fraction of DLMF 8.17.22, taken from its far end. It converges where x is left of the
    mean, in a number of terms that grows with the root of the parameters; the other side is mirrored.
    """
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    n_pairs = 60 + 3 * math.isqrt(int(max(a, b)))
    fraction = 1.0
    for m in range(n_pairs, 0, -1):
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = 1 + even / (1 + odd / fraction)
    fraction = 1 - (a + b) * x / (a + 1) / fraction
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / (a * fraction)
