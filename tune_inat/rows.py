"""The metrics of an epoch as a row, and which of a trial's rows is its best."""

import math
from collections.abc import Collection

from tune_inat.objective import Goal

Row = dict[str, float]  # `epoch` from 1, and numbers by name


def best_row(rows: Collection[Row], metric: str, goal: Goal) -> Row:
    """The row with the best metric; the lower `val_loss`, then the earlier epoch, where metrics are equal."""
    sign = -1.0 if goal == "maximize" else 1.0
    return min(rows, key=lambda row: (sortable(sign * row[metric]), sortable(row["val_loss"]), row["epoch"]))


def sortable(cost: float) -> float:
    """A cost to sort by: what is no finite number comes after all that are."""
    return cost if math.isfinite(cost) else math.inf


def finite(value: float | None) -> float | None:
    """A value as JSON can hold it: `None` for what is no finite number."""
    return value if value is not None and math.isfinite(value) else None
