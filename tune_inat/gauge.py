"""What trials take of a GPU: measured in processes of their own, on the GPU itself, and kept in the store."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from tune_inat.config import TrialConfig
from tune_inat.errors import ResourceError
from tune_inat.figures import Cuts
from tune_inat.job import Job
from tune_inat.packing import MOST, Card, Measured, counts_up_to, gains, n_fitting
from tune_inat.probe import Probe
from tune_inat.rehearsal import card_of
from tune_inat.store import Store, default_root

MAX_HEAVY = 6  # configurations whose step is measured
RATE_SECONDS = 1.5  # for which throughput is measured
READY_SECONDS = 1.0  # from the call until all processes are at it


class Gauge(Protocol):
    """Measures a GPU for a search. One is real, one has its figures from the environment."""

    def card(self) -> Card:
        """The GPU; of several that differ, the smallest."""

    def measure(self, heavy: Sequence[TrialConfig], most: int) -> Measured:
        """What the heaviest of these trials takes, and the throughput of up to `most` at a time."""


@dataclass(frozen=True)
class PretendedGauge:
    """A GPU that is not there, and what trials would take of it."""

    pretended: Card
    measured: Measured

    def card(self) -> Card:
        """See `Gauge`."""
        return self.pretended

    def measure(self, heavy: Sequence[TrialConfig], most: int) -> Measured:
        """See `Gauge`."""
        counts = list(counts_up_to(min(most, MOST, n_fitting(self.pretended, self.measured))))
        known = sorted(self.measured.throughput.items())
        rates = np.interp(counts, [count for count, _ in known], [rate for _, rate in known])
        return replace(self.measured, throughput=dict(zip(counts, map(float, rates), strict=True)))


class Processes(Protocol):
    """Processes that train on one GPU, started as they are needed."""

    def card(self) -> Card:
        """The GPU."""

    def memory(self, config: TrialConfig) -> dict[str, float]:
        """The `step_bytes` and `process_bytes` of a trial, see `Measured`; nothing where there is no room."""

    def rate(self, config: TrialConfig, count: int) -> dict[str, float]:
        """The `rate` in images a second at which so many train at a time; nothing likewise."""


class ProcessGauge:
    """Measures with processes that each train as a trial does, on random activations.

    Args:
        probe: keeps what was measured.
        processes: are there within it.
    """

    def __init__(self, probe: Probe, processes: Callable[[], AbstractContextManager[Processes]]) -> None:
        self._probe = probe
        self._open = processes
        self._card: Card | None = None

    def card(self) -> Card:
        """See `Gauge`."""
        if self._card is None:
            with self._open() as processes:
                self._card = processes.card()
        return self._card

    def measure(self, heavy: Sequence[TrialConfig], most: int) -> Measured:
        """See `Gauge`."""
        card = self.card()
        with self._open() as processes:
            memory = {config: self._memory(config, processes) for config in heavy}
            heaviest = max(heavy, key=lambda config: memory[config].step_bytes)
            measured = memory[heaviest]
            throughput: dict[int, float] = {}
            fewer = 1
            for count in counts_up_to(max(1, min(most, MOST, n_fitting(card, measured)))):
                rate = self._rate(heaviest, count, processes)
                if rate is None:
                    break
                throughput[count] = rate
                if not gains(throughput, fewer, count):
                    break
                fewer = count
        return replace(measured, throughput=throughput)

    def _memory(self, config: TrialConfig, processes: Processes) -> Measured:
        kept = self._kept(config, ["gpu memory"], lambda: processes.memory(config))
        if kept is None:
            return Measured(step_bytes=self.card().n_bytes, process_bytes=0)
        return Measured(step_bytes=int(kept["step_bytes"]), process_bytes=int(kept["process_bytes"]))

    def _rate(self, config: TrialConfig, count: int, processes: Processes) -> float | None:
        kept = self._kept(config, ["gpu throughput", count], lambda: processes.rate(config, count))
        return None if kept is None else float(kept["rate"])

    def _kept(
        self, config: TrialConfig, key: list[Any], measure: Callable[[], dict[str, float]]
    ) -> dict[str, Any] | None:
        """What is kept, or measured now; nothing where there was no room: others may have had it."""

        def measure_now() -> dict[str, float]:
            measured = measure()
            if not measured:
                raise _NoRoom
            return measured

        card = self.card()
        try:
            return self._probe.measured_for(config, [*key, card.name, card.mps], measure_now)
        except _NoRoom:
            return None


class _NoRoom(Exception):
    """The GPU had no room for what was to be measured."""


class LocalProcesses:
    """Processes on this machine, on one of the GPUs that this one sees, until it is left.

    Args:
        job: of the search. On a CPU, whose memory stands for a GPU's, only tests measure.
        device: the GPU, by its number.
    """

    def __init__(self, job: Job, device: int = 0) -> None:
        self._job = job
        self._device = device
        self._stack = ExitStack()
        self._started: list[GaugeProcess] = []

    def __enter__(self) -> "LocalProcesses":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._stack.close()

    def card(self) -> Card:
        """See `Processes`."""
        return card_of(
            torch.device("cuda", self._device) if self._job.device == "cuda" else torch.device("cpu")
        )

    def memory(self, config: TrialConfig) -> dict[str, float]:
        """See `Processes`. What a process takes beside a step, another one has less of meanwhile."""
        (watching,) = self._first(1)
        before = watching.ask("card").n_free
        with gauge_process(self._job, self._device) as process:
            try:
                peak, held = process.ask("step", config)
            except torch.OutOfMemoryError:
                return {}
            after = watching.ask("card").n_free
        return {"step_bytes": peak, "process_bytes": max(0, before - after - held)}

    def rate(self, config: TrialConfig, count: int) -> dict[str, float]:
        """See `Processes`."""
        processes = self._first(count)
        try:
            _ask_all(processes, "warm up", config)
            start = time.time() + READY_SECONDS
            return {"rate": sum(_ask_all(processes, "rate", config, start, RATE_SECONDS))}
        except torch.OutOfMemoryError:
            self.close()  # some have not been heard
            self._started.clear()
            return {}

    def _first(self, count: int) -> "list[GaugeProcess]":
        while len(self._started) < count:
            self._started.append(self._stack.enter_context(gauge_process(self._job, self._device)))
        return self._started[:count]


def local_gauge(job: Job, probe: Probe) -> ProcessGauge:
    """The gauge of the smallest GPU that this process sees."""
    n_gpus = torch.cuda.device_count()
    sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(n_gpus)]
    return ProcessGauge(probe, lambda: LocalProcesses(job, sizes.index(min(sizes))))


def heavy_configs(configs: Sequence[TrialConfig], cuts: Cuts, *, n_images: int) -> list[TrialConfig]:
    """Of these trials those whose step may be the heaviest of a network: what trains most, in large batches.

    What trains from a shallower cut holds all that a deeper one does, and a larger batch more than a smaller
    one. So only trials matter that no other trial of their network exceeds in both.

    Args:
        n_images: of the training set; no batch is larger.
    """
    configs = [c.model_copy(update={"batch_size": min(c.batch_size, n_images)}) for c in configs]
    networks: dict[tuple[str, int], list[TrialConfig]] = {}
    for config in configs:
        networks.setdefault((config.model, config.image_size), []).append(config)

    def size(config: TrialConfig) -> tuple[float, int]:
        return cuts.of(config).suffix_flops, config.batch_size

    heavy: list[TrialConfig] = []
    for alike in networks.values():
        if any(config.optimizer != "sgd" for config in alike):  # Adam keeps twice as much
            alike = [config.model_copy(update={"optimizer": "adam"}) for config in alike]
        largest = sorted({size(config): config for config in alike}.items(), reverse=True)
        most_images = 0
        for (_, n_images), config in largest:
            if n_images > most_images:  # shallower ones have smaller batches
                most_images = n_images
                heavy.append(config)
    return sorted(heavy, key=lambda config: -size(config)[0] * config.batch_size)[:MAX_HEAVY]


# ---- processes that measure


class GaugeProcess:
    """A process that trains on a GPU when it is asked to."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def ask(self, what: str, *arguments: Any) -> Any:
        """Its answer to a question of `rehearsal.Answers`."""
        self.send(what, *arguments)
        return self.receive()

    def send(self, *question: Any) -> None:
        """Ask, and do something else while it works."""
        assert self._process.stdin is not None
        try:
            pickle.dump(question, self._process.stdin)
            self._process.stdin.flush()
        except OSError as error:
            raise ResourceError("The process that measures the GPU has ended.") from error

    def receive(self) -> Any:
        """Its answer.

        Raises:
            torch.OutOfMemoryError: it has no room for what it was asked.
            ResourceError: it failed otherwise.
        """
        assert self._process.stdout is not None
        try:
            is_well, answer = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise ResourceError(f"The process that measures the GPU has ended with code {code}.") from error
        if is_well:
            return answer
        if answer is None:
            raise torch.OutOfMemoryError("no room for a step on the GPU")
        raise ResourceError(f"The GPU could not be measured ({answer}).")


@contextmanager
def gauge_process(job: Job, device: int) -> Iterator[GaugeProcess]:
    """A process of its own for a search's job, on one of the GPUs that this process sees."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name for name in seen.split(",") if name] or [str(device)] * (device + 1)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **({"CUDA_VISIBLE_DEVICES": names[device]} if job.device == "cuda" else {}),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", "from tune_inat.rehearsal import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C comes to us alone
    )
    try:
        child = GaugeProcess(process)
        here = Store(default_root())  # the job's own may be on another machine
        child.send(replace(job, store=here, host="", files={}, n_threads=1, memory_fraction=None))
        yield child
    finally:
        process.kill()
        process.communicate()


def _ask_all(processes: "Sequence[GaugeProcess]", *question: Any) -> list[Any]:
    """The answers of several that work at the same time."""
    for process in processes:
        process.send(*question)
    return [process.receive() for process in processes]
