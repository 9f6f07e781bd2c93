"""The best model examined on a node that takes trials, where the one that conducts a search takes none."""

from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from tune_inat.devices import Devices
from tune_inat.job import Job
from tune_inat.leaderboard import TrialResult
from tune_inat.meter import SilentMeter
from tune_inat.neighbours import Neighbours
from tune_inat.outcome import Examined, examine
from tune_inat.places import at_this_host
from tune_inat.workbench import Work, open_driver_bench

MAX_RETRIES = 3  # of a node that is lost meanwhile


class Examination:
    """Runs on whichever node has room for a trial: all of them have what it reads, or fetch it."""

    def __init__(self, job: Job, devices: Devices, neighbours: Neighbours) -> None:
        self._job, self._devices, self._neighbours = job, devices, neighbours

    def of(self, best: TrialResult) -> tuple[Examined | None, Work, str | None]:
        """The examined model, the work that it took; or without one, what the user must be told."""
        job = replace(self._job, n_threads=int(best.did.get("threads", self._job.n_threads)))
        task = ray.remote(_examine).options(
            num_cpus=self._devices.cpus_per_trial,
            num_gpus=self._devices.gpus_per_trial,
            max_retries=MAX_RETRIES,
        )
        try:
            examined, work = ray.get(task.remote(job, self._neighbours, best))
        except RayError as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            return None, Work(), f"No node could test the best model ({reason}): it is tested here."
        return examined, work, None


def _examine(job: Job, neighbours: Neighbours, best: TrialResult) -> tuple[Examined, Any]:
    bench = open_driver_bench(at_this_host(job), SilentMeter(), peers=neighbours)
    return examine(bench, best), bench.take_work()
