"""The metrics of an epoch as a row, which of a trial's rows is its best, and what trials are ranked by."""

import math
from collections.abc import Collection, Mapping
from typing import Any

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


Rank = tuple[bool, bool, float, float, int, str]


def rank(
    trial_id: str,
    config: Mapping[str, Any],
    status: str,
    best: Mapping[str, Any] | None,
    metric: str,
    goal: Goal,
) -> Rank:
    """What trials are sorted by, best first; those that failed, then those without an epoch, come last.

    Of trials that are equal in all of it, the one that asks for fewer epochs comes first. So the order does
    not depend on which of them ended first.
    """
    value = None if best is None else best.get(metric)
    if best is None or value is None:
        return True, True, 0.0, 0.0, 0, ""
    cost = sortable(-value if goal == "maximize" else value)
    loss = sortable(best.get("val_loss", 0.0))
    return status == "ERROR", False, cost, loss, int(config.get("epochs", 0)), trial_id
