"""The comparison as a table for a terminal, as Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.goals import Goal, check_goals
from benchmarks.machine import Machine
from benchmarks.rows import TITLES, Measurement

COLUMNS = ("", "what", "seconds", "faster than a", "times the floor", "best val acc")
FIRST_NUMBER = 2  # columns from here on hold numbers


@dataclass(frozen=True)
class Comparison:
    """The rows measured so far on one subject, and what they were measured on."""

    subject: str
    description: str
    machine: Machine
    measurements: tuple[Measurement, ...]

    def goals(self) -> list[Goal]:
        """Which goals are reached."""
        return check_goals(self.subject, {m.row: m.seconds for m in self.measurements})

    def notes(self) -> list[str]:
        """How the figures were obtained."""
        return [note for measurement in self.measurements for note in measurement.notes]

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return asdict(self) | {"goals": [asdict(goal) for goal in self.goals()]}


def cells(measurements: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """The table's rows as text. What rests on an estimate is marked with `~`."""
    by_row = {measurement.row: measurement for measurement in measurements}
    return [
        (
            measurement.row,
            TITLES[measurement.row],
            _number(measurement.seconds, is_estimate=measurement.is_estimate),
            _ratio(by_row.get("a"), measurement),
            _ratio(measurement, by_row.get("e")),
            "" if measurement.best_val_accuracy is None else f"{measurement.best_val_accuracy:.4f}",
        )
        for measurement in measurements
    ]


def to_table(measurements: Sequence[Measurement]) -> Table:
    """The table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    for number, title in enumerate(COLUMNS):
        table.add_column(title, justify="left" if number < FIRST_NUMBER else "right")
    for row in cells(measurements):
        table.add_row(*row)
    return table


def to_markdown(measurements: Sequence[Measurement]) -> str:
    """The table for a README."""
    rules = ["---" if number < FIRST_NUMBER else "---:" for number in range(len(COLUMNS))]
    lines = [COLUMNS, rules, *cells(measurements)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(of: Measurement | None, to: Measurement | None) -> str:
    if of is None or to is None:
        return ""
    return _number(of.seconds / to.seconds, is_estimate=of is not to and (of.is_estimate or to.is_estimate))


def _number(value: float, *, is_estimate: bool) -> str:
    return f"{'~' if is_estimate else ''}{value:,.1f}"
