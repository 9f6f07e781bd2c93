"""Where each trial runs, in a search whose nodes differ: GPUs of several kinds, or CPUs beside GPUs."""

from collections.abc import Callable, Sequence
from typing import Any

from tune_inat.devices import Cluster, Place


class Slots:
    """Gives each trial that starts a place for it: on the first kind of node that has one free.

    Nodes are counted as they are then: those that are gone get no trial, those that have joined do.

    Args:
        places: the kinds, the one to be preferred first.
        cluster: what there is now.
    """

    def __init__(self, places: Sequence[Place], cluster: Callable[[], Cluster]) -> None:
        self._places = tuple(places)
        self._cluster = cluster
        self._taken: dict[str, str] = {}  # the kind, by Tune's id of the trial

    def take(self, trial_id: str) -> dict[str, Any] | None:
        """A place for a trial: its `kind`, `cpus`, `gpus` and `nodes`; `None` while all are taken."""
        machines = self._cluster().machines
        for place in self._places:
            nodes = [node for node in machines if place.is_on(node)]
            n_slots = sum(node.n_fitting(place.cpus, place.gpus) for node in nodes)
            if list(self._taken.values()).count(place.kind) < n_slots:
                self._taken[trial_id] = place.kind
                return {
                    "kind": place.kind,
                    "cpus": place.cpus,
                    "gpus": place.gpus,
                    # Those that come on demand have no ids yet: Ray finds one by its devices.
                    "nodes": sorted(node.node_id for node in nodes)
                    if all(it.node_id for it in nodes)
                    else [],
                }
        return None

    def release(self, trial_id: str) -> None:
        """A trial has ended, or a try of it."""
        self._taken.pop(trial_id, None)
