"""How the devices of a machine or a cluster are shared out over trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tune_inat.errors import ResourceError
from tune_inat.packing import ASKED_SHARE, Packing

CARD_PREFIX = "accelerator_type:"


@dataclass(frozen=True)
class Node:
    """One machine. A trial runs on one of them, so can never have more than it has.

    Attributes:
        card: the type of its GPUs, where Ray knows it.
        node_id: Ray's name for it.
    """

    n_cpus: int
    n_gpus: int
    card: str = ""
    node_id: str = ""

    def n_fitting(self, cpus: int, gpus: float) -> int:
        """How many trials run here at a time; shares of a GPU are not put together from two."""
        by_cpu = self.n_cpus // cpus
        if gpus == 0:
            return by_cpu
        by_gpu = self.n_gpus * int(1 / gpus + 1e-9) if gpus < 1 else int(self.n_gpus / gpus)
        return min(by_cpu, by_gpu)


def card_of(resources: Mapping[str, float]) -> str:
    """The type of a node's GPUs, as Ray names it in a resource of its own; empty where it does not."""
    return next((name[len(CARD_PREFIX) :] for name in resources if name.startswith(CARD_PREFIX)), "")


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
class Place:
    """What a trial gets on nodes of one kind.

    Attributes:
        kind: names it.
        cards: of which types the GPUs are; `None` for any, and "" for one that was not known beforehand.
        memory_fraction: of a GPU's memory, for one trial.
        n_trials: how many run at a time on the nodes that there are.
    """

    kind: str
    cpus: int
    gpus: float
    n_trials: int
    cards: tuple[str, ...] | None = None
    memory_fraction: float | None = None

    def is_on(self, node: Node) -> bool:
        """Whether a node is of this kind. CPUs beside GPUs are left to the trials on those."""
        if self.gpus == 0:
            return node.n_gpus == 0
        is_any = self.cards is None or "" in self.cards
        return node.n_gpus > 0 and (is_any or node.card in (self.cards or ()))


@dataclass(frozen=True)
class Devices:
    """What the trials of a search run on.

    Attributes:
        places: where nodes differ, what a trial gets on each kind; the rest is that of the first then.
        load: how much longer a step takes than alone, because trials share a GPU.
    """

    n_cpus: int
    n_gpus: int
    cpus_per_trial: int
    gpus_per_trial: float
    max_concurrent: int
    memory_fraction: float | None = None
    places: tuple[Place, ...] = ()
    load: float = 1.0

    def on_gpus(self) -> "Devices":
        """The same without CPUs that help: nobody knows how long a trial takes there."""
        n_trials = sum(place.n_trials for place in self.places if place.gpus > 0)
        return replace(self, max_concurrent=min(self.max_concurrent, n_trials)) if n_trials else self


@dataclass(frozen=True)
class Asked:
    """What the user asks for. `None` leaves it to the search, which takes GPUs where there are some.

    Attributes:
        cpu_trials: whether nodes without GPUs take trials of a search on GPUs, too.
    """

    cpus_per_trial: int | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None
    cpu_trials: bool = False

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
    fraction = gpus * ASKED_SHARE if 0 < gpus < 1 else None
    at_a_time = max(1, min(wanted, n_fitting(cpus)))
    return Devices(cluster.n_cpus, cluster.n_gpus, cpus, gpus, at_a_time, fraction)


def share_by_kind(
    cluster: Cluster, asked: Asked, packings: Sequence[tuple[str, Packing]], *, n_trials: int
) -> Devices:
    """The devices of each trial where GPUs are shared as packed, and nodes may differ.

    Where all GPUs take equally many trials, and none run on CPUs, a trial takes whichever GPU is free, also
    on nodes that join later. Otherwise there are `places`.

    Args:
        packings: by the type of their GPUs; none where the share was asked for.
        n_trials: how many could run at a time, as far as they are concerned.

    Raises:
        ResourceError: what is asked for can never be there.
    """
    with_cpus = asked.cpu_trials and asked.takes_gpu(cluster)
    helpers = [node for node in cluster.machines if with_cpus and node.n_gpus == 0 and node.n_cpus > 0]
    shares = {packing.share for _, packing in packings}
    if len(shares) <= 1 and not helpers:
        if not packings:
            return share_devices(cluster, asked, n_trials=n_trials)
        return _share_packed(cluster, asked, [packing for _, packing in packings], n_trials=n_trials)
    devices: list[tuple[tuple[str, ...] | None, Devices]] = [
        ((card,), _share_packed(_only(cluster, (card,)), asked, [packing], n_trials=n_trials))
        for card, packing in packings
    ]
    if not packings:
        devices.append((None, share_devices(_only(cluster, None), asked, n_trials=n_trials)))
    devices.sort(key=lambda each: -each[1].gpus_per_trial)
    places = [
        Place(
            " ".join(["gpu", *(cards or ())]).strip(),
            each.cpus_per_trial,
            each.gpus_per_trial,
            _n_slots(_only(cluster, cards), each),
            cards,
            each.memory_fraction,
        )
        for cards, each in devices
    ]
    if helpers:
        most = min(node.n_cpus for node in helpers)
        cpus = min(asked.cpus_per_trial or most, max(node.n_cpus for node in helpers))
        places.append(Place("cpu", cpus, 0.0, sum(node.n_fitting(cpus, 0.0) for node in helpers)))
    n_slots = sum(place.n_trials for place in places)
    at_a_time = max(1, min(n_trials, n_slots, asked.max_concurrent or n_trials))
    return replace(
        devices[0][1],
        n_cpus=cluster.n_cpus,
        n_gpus=cluster.n_gpus,
        max_concurrent=at_a_time,
        places=tuple(places),
        load=max(each.load for _, each in devices),
    )


def _share_packed(cluster: Cluster, asked: Asked, packings: Sequence[Packing], *, n_trials: int) -> Devices:
    """Devices where each GPU takes the same number of trials; the least of memory is what all of them get."""
    packed = replace(asked, gpus_per_trial=packings[0].share)
    fractions = [p.memory_fraction for p in packings if p.memory_fraction is not None]
    return replace(
        share_devices(cluster, packed, n_trials=n_trials),
        memory_fraction=min(fractions, default=None),
        load=max(packing.load for packing in packings),
    )


def _only(cluster: Cluster, cards: tuple[str, ...] | None) -> Cluster:
    """The nodes with GPUs, of some types."""
    nodes = tuple(n for n in cluster.machines if n.n_gpus > 0 and (cards is None or n.card in cards))
    return Cluster(sum(n.n_cpus for n in nodes), sum(n.n_gpus for n in nodes), nodes)


def _n_slots(cluster: Cluster, devices: Devices) -> int:
    return sum(node.n_fitting(devices.cpus_per_trial, devices.gpus_per_trial) for node in cluster.machines)


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
