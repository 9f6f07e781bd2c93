"""Waits for the machines of a cluster that take trials: `ray up` returns before they have joined."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from tune_inat.autoscaling import machines_on_demand, n_kept_up
from tune_inat.devices import Devices
from tune_inat.errors import EXIT_FAILED, ResourceError
from tune_inat.job import Job
from tune_inat.meter import Meter
from tune_inat.spread import trial_nodes

LOOK_SECONDS = 0.5
JOIN_SECONDS = 120.0  # for one more machine to join, of those that the cluster is to have


class NoMachineError(ResourceError):
    """No machine that takes trials has come in time. The same command tries again."""

    exit_code = EXIT_FAILED


def await_members(
    meter: Meter, is_over: Callable[[], bool], *, join_seconds: float = JOIN_SECONDS
) -> str | None:
    """Wait for those that the cluster is to have all the time, so that the plan is for all of them.

    Where machines come when trials ask for them, there is nothing to wait for yet.

    Args:
        is_over: whether the search has no more time.
        join_seconds: how long to wait for one more, once there is one that takes trials.

    Returns:
        What the user must be told: some have not joined.

    Raises:
        NoMachineError: the search has no more time.
    """
    address = ray.get_runtime_context().gcs_address
    n_members = 1 + n_kept_up(address)
    if _is_complete(n_members) or machines_on_demand(address):
        return None
    n_up, waited_since = 0, time.monotonic()
    with meter.task("Waiting for the cluster's machines", None, ""):
        while not _is_complete(n_members):
            if is_over():
                raise _no_machine()
            if len(_alive()) != n_up:
                n_up, waited_since = len(_alive()), time.monotonic()
            if any(map(_takes_trials, _alive())) and time.monotonic() - waited_since > join_seconds:
                return (
                    f"{n_up} of the cluster's {n_members} machines are up: the search is planned for these. "
                    "Those that join later take trials, too."
                )
            time.sleep(LOOK_SECONDS)
    return None


def await_demanded(job: Job, devices: Devices, meter: Meter, is_over: Callable[[], bool]) -> bool:
    """Wait for the first machine that takes trials; where there is none, the trials' devices are asked for.

    Args:
        devices: those of the trials.
        is_over: whether the search has no more time.

    Returns:
        Whether there was none.

    Raises:
        NoMachineError: the search has no more time.
    """

    def is_up() -> bool:
        return bool(trial_nodes(_alive(), cpus=job.n_threads, device=job.device))

    if is_up():
        return False
    task = ray.remote(_be_there).options(
        num_cpus=devices.cpus_per_trial, num_gpus=devices.gpus_per_trial, scheduling_strategy="SPREAD"
    )
    asked = [task.remote() for _ in range(devices.max_concurrent)]
    with meter.task("Waiting for machines that take trials", None, ""):
        while not is_up():
            if is_over():
                raise _no_machine()
            time.sleep(LOOK_SECONDS)
    for ref in asked:
        ray.cancel(ref)  # what is on its way comes all the same
    return True


def _be_there() -> None:
    """What a machine is asked for; nothing else."""


def _is_complete(n_members: int) -> bool:
    """Whether all machines are up, and some of them take trials."""
    return len(_alive()) >= n_members and any(map(_takes_trials, _alive()))


def _alive() -> list[Mapping[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _takes_trials(node: Mapping[str, Any]) -> bool:
    return int(node["Resources"].get("CPU", 0)) > 0


def _no_machine() -> NoMachineError:
    return NoMachineError(
        "--max-hours is over, and no machine that takes trials has joined the cluster. `ray status` on its "
        "head says what it waits for. The same command tries again."
    )
