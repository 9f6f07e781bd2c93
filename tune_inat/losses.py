"""Machines that are lost while trials run on them."""

import socket
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune

ANSWER_SECONDS = 2.0  # a raylet that is up takes a connection at once


class Losses(tune.Callback):
    """Knows on which machine each try runs, and whether that machine is still there.

    Ray takes a while to give a machine up. A trial on it fails sooner, so the machine is asked itself. Tune
    pickles its callbacks; this one has no state that counts.
    """

    def __init__(self) -> None:
        self._actors: dict[str, str] = {}  # by Tune's id of a try

    def __getstate__(self) -> dict[str, Any]:
        return {"_actors": {}}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A try starts, in a process of Ray that its machine is found by."""
        actor = trial.temporary_state.ray_actor
        if actor is not None:
            self._actors[trial.trial_id] = actor._actor_id.hex()

    def has_lost_machine(self, try_id: str) -> bool:
        """Whether the machine that a try, by Tune's id, ran on is gone."""
        actor_id = self._actors.get(try_id)
        if actor_id is None:
            return False
        actor: Mapping[str, Any] = ray._private.state.actors(actor_id)
        node_id = actor.get("Address", {}).get("NodeID")
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        node = next((node for node in nodes if node["NodeID"] == node_id), None)
        return node is not None and not (node["Alive"] and _answers(node))


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        address = node["NodeManagerAddress"], node["NodeManagerPort"]
        socket.create_connection(address, timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
