"""Measures the GPUs of a cluster's nodes: each type on one of them, by an actor that has a whole GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_inat.config import TrialConfig
from tune_inat.devices import Node
from tune_inat.errors import ResourceError
from tune_inat.gauge import LocalProcesses, Processes, ProcessGauge
from tune_inat.job import Job
from tune_inat.packing import Card
from tune_inat.probe import Probe

START_SECONDS = 120.0  # until a GPU of the node is free, and a process is up there
COME_SECONDS = 900.0  # the same where the node has to be started first
ANSWER_SECONDS = 300.0


def cluster_gauge(node: Node, job: Job, probe: Probe) -> ProcessGauge:
    """The gauge of a node's GPUs, all of which are taken for alike."""
    return ProcessGauge(probe, lambda: processes_on(node, job))


@contextmanager
def processes_on(node: Node, job: Job, *, device: Literal["cpu", "cuda"] = "cuda") -> Iterator[Processes]:
    """Processes on a GPU of a node.

    Raises:
        ResourceError: no GPU is free there, or the node does not answer.
    """
    actor: Any = (
        ray.remote(_Measuring)
        .options(
            num_gpus=1,
            num_cpus=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            if node.node_id
            else "DEFAULT",  # on any, which Ray's autoscaler starts
        )
        .remote(replace(job, device=device, memory_fraction=None))
    )
    try:
        _answer(node, actor.is_up.remote, START_SECONDS if node.node_id else COME_SECONDS)
        yield _Remote(node, actor)
    finally:
        ray.kill(actor)


class _Measuring:
    """The actor."""

    def __init__(self, job: Job) -> None:
        self._processes = LocalProcesses(job)

    def is_up(self) -> bool:
        return True

    def ask(self, what: str, *arguments: Any) -> Any:
        return getattr(self._processes, what)(*arguments)


class _Remote:
    """`Processes` that an actor has."""

    def __init__(self, node: Node, actor: Any) -> None:
        self._node = node
        self._actor = actor

    def card(self) -> Card:
        card: Card = self._ask("card")
        return card

    def memory(self, config: TrialConfig) -> dict[str, float]:
        memory: dict[str, float] = self._ask("memory", config)
        return memory

    def rate(self, config: TrialConfig, count: int) -> dict[str, float]:
        rate: dict[str, float] = self._ask("rate", config, count)
        return rate

    def _ask(self, what: str, *arguments: Any) -> Any:
        return _answer(self._node, lambda: self._actor.ask.remote(what, *arguments), ANSWER_SECONDS)


def _answer(node: Node, ask: Callable[[], Any], seconds: float) -> Any:
    try:
        return ray.get(ask(), timeout=seconds)
    except ray.exceptions.GetTimeoutError as error:
        raise ResourceError(
            f"No GPU of the node {_name(node)} ({node.card or 'of an unknown type'}) could be measured "
            f"within {seconds:g} s: others may have them."
        ) from error
    except ray.exceptions.RayError as error:
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise ResourceError(
            f"The GPUs of the node {_name(node)} could not be measured ({reason})."
        ) from error


def _name(node: Node) -> str:
    return node.node_id[:8] or "that is to come on demand"
