"""How the devices of a machine or a cluster are shared out over trials."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tune_inat.errors import ResourceError


@dataclass(frozen=True)
class Node:
    """One machine. A trial runs on one of them, so can never have more than it has."""

    n_cpus: int
    n_gpus: int

    def n_fitting(self, cpus: int, gpus: float) -> int:
        """How many trials run here at a time; shares of a GPU are not put together from two."""
        by_cpu = self.n_cpus // cpus
        if gpus == 0:
            return by_cpu
        by_gpu = self.n_gpus * int(1 / gpus + 1e-9) if gpus < 1 else int(self.n_gpus / gpus)
        return min(by_cpu, by_gpu)


@dataclass(frozen=True)
class Cluster:
    """What there is, all machines together. `nodes` are these machines; without any it is one."""

    n_cpus: int
    n_gpus: int
    nodes: tuple[Node, ...] = ()

    @property
    def machines(self) -> tuple[Node, ...]:
        """Each machine."""
        return self.nodes or (Node(self.n_cpus, self.n_gpus),)


@dataclass(frozen=True)
class Devices:
    """What the trials of a search run on."""

    n_cpus: int
    n_gpus: int
    cpus_per_trial: int
    gpus_per_trial: float
    max_concurrent: int


@dataclass(frozen=True)
class Asked:
    """What the user asks for. `None` leaves it to the search, which takes a whole GPU where there is one."""

    cpus_per_trial: int | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None

    def takes_gpu(self, cluster: Cluster) -> bool:
        """Whether a trial gets a GPU, or a share of one."""
        return cluster.n_gpus > 0 if self.gpus_per_trial is None else self.gpus_per_trial > 0


def device_options(cluster: Cluster, asked: Asked, *, n_trials: int) -> list[Devices]:
    """The ways to share the devices out that are worth comparing: of CPUs, one thread a trial, or more.

    Raises:
        ResourceError: what is asked for can never be there.
    """
    plain = share_devices(cluster, asked, n_trials=n_trials)
    if asked.cpus_per_trial is not None or plain.gpus_per_trial > 0:
        return [plain]
    most = max(node.n_cpus for node in cluster.machines)
    counts = {1 << power for power in range(most.bit_length())} | {plain.cpus_per_trial}
    return [
        share_devices(cluster, replace(asked, cpus_per_trial=n_threads), n_trials=n_trials)
        for n_threads in sorted(counts)
    ]


def share_devices(cluster: Cluster, asked: Asked, *, n_trials: int) -> Devices:
    """The devices of each trial and how many run at a time, with no core left idle.

    Args:
        n_trials: how many could run at a time, as far as they are concerned.

    Raises:
        ResourceError: what is asked for can never be there.
    """
    gpus = asked.gpus_per_trial if asked.gpus_per_trial is not None else float(cluster.n_gpus > 0)
    nodes = [node for node in cluster.machines if node.n_gpus >= gpus]
    _check(cluster, asked, gpus)
    n_by_gpu = sum(node.n_fitting(1, gpus) for node in nodes)
    wanted = max(1, min(n_trials, n_by_gpu, asked.max_concurrent or n_trials))

    def n_fitting(cpus: int) -> int:
        return sum(node.n_fitting(cpus, gpus) for node in nodes)

    most = max(node.n_cpus for node in nodes)
    cpus = asked.cpus_per_trial or next((n for n in range(most, 1, -1) if n_fitting(n) >= wanted), 1)
    return Devices(cluster.n_cpus, cluster.n_gpus, cpus, gpus, max(1, min(wanted, n_fitting(cpus))))


def _check(cluster: Cluster, asked: Asked, gpus: float) -> None:
    """Refuse what no machine has: Tune would wait for it forever."""
    nodes = cluster.machines
    problems = []
    most_gpus = max(node.n_gpus for node in nodes)
    if gpus > most_gpus or (gpus > 1 and gpus != int(gpus)):
        problems.append(
            f"--gpus-per-trial {gpus:g}: {_there_are(most_gpus, 'GPUs', nodes)} A trial takes a share "
            "(0.25), or whole GPUs, or 0 to run on the CPU."
        )
    fitting = [node for node in nodes if node.n_gpus >= gpus] or nodes
    most_cpus = max(node.n_cpus for node in fitting)
    if asked.cpus_per_trial is not None and asked.cpus_per_trial > most_cpus:
        there_are = _there_are(most_cpus, "CPU cores", fitting)
        problems.append(f"--cpus-per-trial {asked.cpus_per_trial}: {there_are}")
    if problems:
        raise ResourceError(problems)


def _there_are(most: int, what: str, nodes: Sequence[Node]) -> str:
    return f"there are {most} {what}{' on the largest machine' if len(nodes) > 1 else ''}."
