"""While trials run, what finished ones left makes room for what comes."""

from pathlib import Path

import torch

from tune_inat.disk import size_of
from tune_inat.housekeeping import Housekeeper
from tune_inat.states import FamilyStates
from tune_inat.store import STATES_KIND, Store


def leave(store: Store, family_key: str) -> FamilyStates:
    """What a trial of a family leaves."""
    states = FamilyStates(store.root / STATES_KIND, family_key)
    with states.exclusively():
        states.save(1, {"weight": torch.zeros(1000)}, {"momentum": torch.zeros(1000)})
        states.append({"epoch": 1}, did={})
    return states


def test_what_was_unused_for_longest_goes_when_a_trial_ends(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = leave(store, "first")
    store.budget_bytes = size_of(tmp_path) + 1000
    housekeeper = Housekeeper(store, pause_seconds=0)
    second = leave(store, "second")
    housekeeper.on_trial_complete(1, [], None)
    assert not first.folder.exists()
    assert second.load(1) is not None


def test_cache_is_not_looked_through_after_each_trial(tmp_path: Path) -> None:
    store = Store(tmp_path, budget_bytes=0)
    states = leave(store, "only")
    Housekeeper(store).on_trial_complete(1, [], None)
    assert states.folder.exists()
