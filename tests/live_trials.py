"""Trials as Tune would show them, made by hand."""

from collections.abc import Sequence
from typing import Any

METRICS = ("val_accuracy", "val_loss")


class FakeTrial:
    """A trial with so many `epochs`, at `epoch`; other numbers are metrics or parameters by their name."""

    def __init__(
        self,
        trial_id: str,
        *,
        status: str = "RUNNING",
        epochs: int = 5,
        epoch: int = 0,
        seconds: float = 12.0,
        failures: Sequence[str] = (),
        **values: Any,
    ) -> None:
        self.trial_id = trial_id
        self.status = status
        self.seconds = seconds
        self.failures = failures
        metrics = {name: value for name, value in values.items() if name in METRICS}
        self.config = {name: value for name, value in values.items() if name not in METRICS} | {
            "epochs": epochs
        }
        self.row: dict[str, Any] | None = {"epoch": epoch, **metrics} if epoch else None
