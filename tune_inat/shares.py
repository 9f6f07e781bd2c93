"""Chooses how trials share the GPUs of a machine or a cluster, from what is measured on one of each type."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tune_inat.config import TrialConfig
from tune_inat.devices import Asked, Cluster, Devices, Node, Place, device_options, share_by_kind
from tune_inat.errors import ResourceError
from tune_inat.gauge import Gauge, PretendedGauge, local_gauge
from tune_inat.job import Job
from tune_inat.packing import Card, Packing, pack, spread
from tune_inat.pretended import PRETENDED_VARIABLE, pretended_gpus
from tune_inat.probe import Probe

GaugeOf = Callable[[Node], Gauge]
Measures = Callable[[Node, Job, Probe], Gauge]


class GpuShares:
    """How the trials of a search share GPUs; without any, or with a share that was asked for, nothing.

    Args:
        gauge_of: measures the GPUs of a node.
        heavy: the trials whose steps may be the heaviest.
        n_trials: how many could run at a time, as far as they are concerned.

    Attributes:
        notices: what the user should know.
    """

    def __init__(
        self,
        cluster: Cluster,
        asked: Asked,
        gauge_of: GaugeOf,
        heavy: Sequence[TrialConfig],
        *,
        n_trials: int,
    ) -> None:
        self._cluster = cluster
        self._asked = asked
        self._gauge_of = gauge_of
        self._heavy = heavy
        self.notices: list[str] = []
        self._packings: dict[str, Packing] = {}
        if asked.gpus_per_trial is None and asked.takes_gpu(cluster) and heavy:
            self._packings = self._measure(min(n_trials, asked.max_concurrent or n_trials))
        if asked.takes_gpu(cluster) and pretended_gpus():
            self.notices.append(f"{PRETENDED_VARIABLE}: these GPUs are pretended, trials run on the CPU.")
        if asked.cpu_trials:
            self.notices += self._about_cpu_trials()

    def packings(self, n_trials: int) -> list[Packing]:
        """The GPUs of each type, as so many trials that run at a time share them."""
        return [packing for _, packing in self._spread(n_trials)]

    def share(self, asked: Asked, *, n_trials: int) -> Devices:
        """The devices for so many trials that run at a time.

        Raises:
            ResourceError: what is asked for can never be there.
        """
        return share_by_kind(self._cluster, asked, self._spread(n_trials), n_trials=n_trials)

    def options(self, *, n_trials: int) -> list[Devices]:
        """The ways to share the devices out that are worth comparing.

        Raises:
            ResourceError: what is asked for can never be there.
        """
        if self._asked.takes_gpu(self._cluster):
            return [self.share(self._asked, n_trials=n_trials)]
        return device_options(self._cluster, self._asked, n_trials=n_trials)

    def step_bytes(self) -> int:
        """The most that a trial's step needs of a GPU, as far as that was measured."""
        measured = [packing.measured for packing in self._packings.values() if packing.measured is not None]
        return max((each.trial_bytes - each.process_bytes for each in measured), default=0)

    def _spread(self, n_trials: int) -> list[tuple[str, Packing]]:
        if not self._packings:
            return []
        wanted = min(n_trials, self._asked.max_concurrent or n_trials)
        return list(zip(self._packings, spread(list(self._packings.values()), wanted), strict=True))

    def _measure(self, n_trials: int) -> dict[str, Packing]:
        by_card: dict[str, list[Node]] = {}
        for node in self._cluster.machines:
            if node.n_gpus > 0:
                by_card.setdefault(node.card, []).append(node)
        return {card: self._pack(card, nodes, n_trials) for card, nodes in sorted(by_card.items())}

    def _pack(self, name: str, nodes: Sequence[Node], n_trials: int) -> Packing:
        n_gpus = sum(node.n_gpus for node in nodes)
        n_wanted = -(-n_trials // n_gpus)
        cpus = self._asked.cpus_per_trial or 1
        n_by_cores = min(node.n_cpus // (cpus * node.n_gpus) for node in nodes)
        alone = Packing(Card(name or "GPU", 0, 0), n_gpus, 1, "trials", 1)
        if n_wanted == 1:
            return alone  # nothing to be measured
        try:
            gauge = self._gauge_of(nodes[0])
            card = gauge.card()
            measured = gauge.measure(self._heavy, min(n_wanted, max(1, n_by_cores)))
        except ResourceError as error:
            self.notices.append(
                f"{' '.join(error.problems)} So each trial gets a whole {alone.card.name}; --gpus-per-trial "
                "0.25, for one, would put four on each."
            )
            return replace(alone, limit="unmeasured")
        return pack(card, measured, n_gpus=n_gpus, n_by_cores=n_by_cores, n_wanted=n_wanted)

    def _about_cpu_trials(self) -> list[str]:
        if not self._asked.takes_gpu(self._cluster):
            return ["--cpu-trials: the trials of this search run on CPUs anyway."]
        if all(node.n_gpus > 0 for node in self._cluster.machines):
            return ["--cpu-trials: there are no machines without GPUs. Nothing changes."]
        return [
            "--cpu-trials: trials run on GPUs or on CPUs, whichever is free. Both round otherwise, so their "
            "numbers are not quite comparable."
        ]


def gauge_of(node: Node, job: Job, probe: Probe, measures: Measures | None) -> Gauge:
    """What measures the GPUs of a node: pretended ones have their figures from the environment.

    Args:
        measures: `None` for this machine.
    """
    pretended = pretended_gpus()
    if pretended:
        gpus = pretended.get(node.card) or next(iter(pretended.values()))
        return PretendedGauge(gpus.card(node.card), gpus.measured())
    return local_gauge(job, probe) if measures is None else measures(node, job, probe)


def job_for(job: Job, devices: Devices, *, step_bytes: int) -> Job:
    """The job of trials that get these devices; where nodes differ, of those on the first kind."""
    takes_gpu = devices.gpus_per_trial > 0
    return replace(
        job,
        n_threads=devices.cpus_per_trial,
        device="cuda" if takes_gpu and not pretended_gpus() else "cpu",
        gpus=devices.gpus_per_trial,
        memory_fraction=devices.memory_fraction,
        step_bytes=step_bytes,
        is_mixed=any(place.gpus == 0 for place in devices.places),
    )


def job_at(job: Job, place: Place) -> Job:
    """The job of a trial at one place of several."""
    return replace(
        job,
        n_threads=place.cpus,
        device=job.device if place.gpus > 0 else "cpu",
        gpus=place.gpus,
        memory_fraction=place.memory_fraction,
    )
