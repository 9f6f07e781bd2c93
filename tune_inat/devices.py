"""How the devices of a machine or a cluster are shared out over trials."""

from dataclasses import dataclass, replace

from tune_inat.errors import ResourceError


@dataclass(frozen=True)
class Cluster:
    """What there is."""

    n_cpus: int
    n_gpus: int


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
    """What the user asks for. `None` leaves it to the search: of GPUs, it takes a whole one if there is one."""

    cpus_per_trial: int | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None


def device_options(cluster: Cluster, asked: Asked, *, n_trials: int) -> list[Devices]:
    """The ways to share the devices out that are worth comparing: of CPUs, one thread a trial, or more.

    Raises:
        ResourceError: what is asked for can never be there.
    """
    plain = share_devices(cluster, asked, n_trials=n_trials)
    if asked.cpus_per_trial is not None or plain.gpus_per_trial > 0:
        return [plain]
    counts = {1 << power for power in range(cluster.n_cpus.bit_length())} | {plain.cpus_per_trial}
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
    cpus_per_trial, max_concurrent = asked.cpus_per_trial, asked.max_concurrent
    gpus = asked.gpus_per_trial if asked.gpus_per_trial is not None else float(cluster.n_gpus > 0)
    problems = []
    if gpus > cluster.n_gpus or (gpus > 1 and gpus != int(gpus)):
        problems.append(
            f"--gpus-per-trial {gpus:g}: there are {cluster.n_gpus} GPUs. A trial takes a share (0.25), "
            "or whole GPUs, or 0 to run on the CPU."
        )
    if cpus_per_trial is not None and cpus_per_trial > cluster.n_cpus:
        problems.append(f"--cpus-per-trial {cpus_per_trial}: there are {cluster.n_cpus} CPU cores.")
    if problems:
        raise ResourceError(problems)
    by_gpu = int(cluster.n_gpus / gpus + 1e-9) if gpus else n_trials
    wanted = max(1, min(n_trials, by_gpu, max_concurrent or n_trials))
    cpus = cpus_per_trial or max(1, cluster.n_cpus // min(wanted, cluster.n_cpus))
    concurrent = max(1, min(wanted, cluster.n_cpus // cpus))
    return Devices(cluster.n_cpus, cluster.n_gpus, cpus, gpus, concurrent)
