"""The metrics of an epoch as a row, and which of a trial's rows is its best."""

from collections.abc import Collection

from tune_inat.objective import Goal

Row = dict[str, float]  # `epoch` from 1, and numbers by name


def best_row(rows: Collection[Row], metric: str, goal: Goal) -> Row:
    """The row with the best metric; the lower `val_loss`, then the earlier epoch, where metrics are equal."""
    sign = -1.0 if goal == "maximize" else 1.0
    return min(rows, key=lambda row: (sign * row[metric], row["val_loss"], row["epoch"]))
