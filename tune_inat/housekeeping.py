"""Keeps the cache within its budget while trials run: each of them leaves weights and an optimizer."""

import time
from typing import Any

from ray import tune

from tune_inat.store import Store

PAUSE_SECONDS = 30.0  # between two looks at the cache: each walks through all of its files


class Housekeeper(tune.Callback):
    """Has the store make room when trials have ended. Tune pickles its callbacks; this one has no state."""

    def __init__(self, store: Store, *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._store = store
        self._pause_seconds = pause_seconds
        self._looked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended: what it left is no longer in use."""
        now = time.monotonic()
        if now - self._looked >= self._pause_seconds:
            self._looked = now
            self._store.make_room()
