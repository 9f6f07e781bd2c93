"""How many trials share a GPU: as many as fit into its memory, at most what still gains throughput."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

SHARE_STEPS = 10_000  # Ray counts shares of a GPU in steps of 1e-4
RESERVED_SHARE = 0.05  # of a GPU's memory: the search's own process, and what others come to need
MARGIN = 1.15  # on what a step takes: memory is handed out in blocks, and some stay half empty
ASKED_SHARE = 0.9  # of its part of the memory that a trial may take whose share was asked for, not measured
LEAST_FRACTION = 0.001
# Twice as many trials on a GPU must train at least so many times as many images in a second: with less, all
# of them take about twice as long, and those that run when the search ends or is killed are worth less.
GAIN = 1.1
MOST = 16  # processes on a GPU: MPS takes no more on older ones, and each has a context and a CPU core

Limit = Literal["memory", "throughput", "cores", "trials", "most", "asked", "unmeasured"]


@dataclass(frozen=True)
class Card:
    """A GPU: its name, its memory in bytes, how much of that nobody has, and whether CUDA MPS runs for it."""

    name: str
    n_bytes: int
    n_free: int
    mps: bool = False

    @property
    def usable(self) -> int:
        """The bytes that trials may have, all together."""
        return max(1, min(self.n_free, int(self.n_bytes * (1 - RESERVED_SHARE))))


@dataclass(frozen=True)
class Measured:
    """What trials take of a GPU.

    Attributes:
        step_bytes: the most that a step of the heaviest trial holds.
        process_bytes: what a process takes beside that: its CUDA context and the libraries' own.
        throughput: images a second that so many trials at a time train, all together; that of 1 is there.
    """

    step_bytes: int
    process_bytes: int
    throughput: Mapping[int, float] = field(default_factory=dict)

    @property
    def trial_bytes(self) -> int:
        """What a trial needs, with room to spare."""
        return math.ceil(self.step_bytes * MARGIN) + self.process_bytes


@dataclass(frozen=True)
class Packing:
    """How the GPUs of one kind are shared out.

    Attributes:
        n_gpus: how many GPUs there are of this kind.
        per_gpu: how many trials each takes.
        limit: why no more.
        n_by_memory: how many its memory would hold.
    """

    card: Card
    n_gpus: int
    per_gpu: int
    limit: Limit
    n_by_memory: int
    measured: Measured | None = None

    @property
    def share(self) -> float:
        """Of a GPU, for one trial."""
        return share_of(self.per_gpu)

    @property
    def memory_fraction(self) -> float | None:
        """Of a GPU's memory, what a trial's tensors may take; `None` for a trial that has it alone."""
        if self.per_gpu == 1:
            return None
        process_bytes = 0 if self.measured is None else self.measured.process_bytes
        return memory_fraction(self.card, self.per_gpu, process_bytes)

    def to_json(self) -> dict[str, Any]:
        """The packing as JSON, with what follows from it."""
        content = asdict(self)
        if self.measured is not None:
            rates = {str(n): round(rate, 1) for n, rate in self.measured.throughput.items()}
            content["measured"]["throughput"] = rates
        return {**content, "share": self.share, "memory_fraction": self.memory_fraction}

    @property
    def load(self) -> float:
        """How much longer a step takes than it does alone on the GPU, 1 or more."""
        throughput = {} if self.measured is None else self.measured.throughput
        known = [count for count in throughput if count >= self.per_gpu]
        if not known:
            return 1.0
        return max(1.0, min(known) * throughput[1] / throughput[min(known)])


def share_of(per_gpu: int) -> float:
    """The share of a GPU of which Ray puts so many on each, and no more: whole for one."""
    return SHARE_STEPS // per_gpu / SHARE_STEPS


def memory_fraction(card: Card, per_gpu: int, process_bytes: int) -> float:
    """What each of so many trials may allocate of a GPU's memory, beside what their processes take."""
    own = card.usable // per_gpu - process_bytes
    return min(1.0, max(LEAST_FRACTION, own / card.n_bytes))


def n_fitting(card: Card, measured: Measured) -> int:
    """How many trials the memory of a GPU holds, at least 1: a step that it does not hold is split."""
    return max(1, card.usable // max(1, measured.trial_bytes))


def counts_up_to(most: int) -> Iterator[int]:
    """The numbers of trials at a time that are tried: 1, 2, 4, ... and `most`."""
    count = 1
    while count < most:
        yield count
        count *= 2
    yield max(1, most)


def gains(throughput: Mapping[int, float], fewer: int, more: int) -> bool:
    """Whether more trials at a time are worth it."""
    return throughput[more] >= throughput[fewer] * math.pow(GAIN, math.log2(more / fewer))


def n_gaining(throughput: Mapping[int, float]) -> int:
    """The most trials at a time that were measured, up to which each more has gained."""
    counts = sorted(throughput)
    best = counts[0]
    for more in counts[1:]:
        if not gains(throughput, best, more):
            break
        best = more
    return best


def pack(
    card: Card, measured: Measured, *, n_gpus: int, n_by_cores: int, n_wanted: int, most: int = MOST
) -> Packing:
    """How many trials each GPU takes, and why no more.

    Args:
        n_by_cores: how many trials the CPU cores beside each GPU serve.
        n_wanted: how many on each GPU would keep all trials busy: beyond it, some GPUs would idle.
    """
    n_by_memory = n_fitting(card, measured)
    limits: dict[Limit, int] = {
        "memory": n_by_memory,
        "throughput": n_gaining(measured.throughput) if measured.throughput else 1,
        "cores": max(1, n_by_cores),
        "trials": max(1, n_wanted),
        "most": most,
    }
    per_gpu = min(limits.values())
    # Throughput was measured only up to the other limits: it is the reason only where it is below them.
    first = min(limits, key=lambda name: (limits[name], name == "throughput"))
    return Packing(card, n_gpus, per_gpu, first, n_by_memory, measured)


def spread(packings: Sequence[Packing], n_trials: int) -> list[Packing]:
    """The packings with no more trials on a GPU than keep `n_trials` running on all GPUs together.

    Ray fills one GPU before it takes the next: with room for more, it would leave some idle.
    """
    highest = max(packing.per_gpu for packing in packings)
    level = next(
        (
            level
            for level in range(1, highest)
            if sum(packing.n_gpus * min(packing.per_gpu, level) for packing in packings) >= n_trials
        ),
        highest,
    )
    return [
        replace(packing, per_gpu=level, limit="trials") if packing.per_gpu > level else packing
        for packing in packings
    ]
