"""How long things take on this machine: a few steps of each kind are timed, once, and kept in the store."""

import json
import math
import platform
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tune_inat.config import TrialConfig
from tune_inat.frozen import PART_SIZE, STORED_TYPE, run_frozen, threads
from tune_inat.graph import INPUT
from tune_inat.network import Network
from tune_inat.recipe import Optimizer, training_loss
from tune_inat.store import Store, hash_of
from tune_inat.workbench import Workbench

PROBES_KIND = "probes"
TIMED_RUNS = 3
ENOUGH_SECONDS = 0.3  # after which no more is timed, however few runs that were
SLOW_SECONDS = 0.1  # of a step that takes arithmetic only, not Python
MIN_HALVED = 16  # images of a batch
EVALUATED_IMAGES = 16
LOAD_SECONDS = 0.2


@dataclass(frozen=True)
class StepTimes:
    """What training takes.

    Attributes:
        step_seconds: of a training step.
        image_seconds: of an image in validation.
        saved_bytes: the activations that a step keeps for its backward pass.
    """

    step_seconds: float
    image_seconds: float
    saved_bytes: int


class Probe:
    """Times what trials do, with the workbench's networks, device and precision.

    Args:
        store: where the times are kept: the user's, also for a search that keeps nothing of its work.
    """

    def __init__(self, bench: Workbench, store: Store) -> None:
        self._bench = bench
        self._store = store

    def step_times(self, config: TrialConfig, *, n_threads: int) -> StepTimes:
        """A trial's steps, alone on the machine, with so many threads (of a CPU)."""
        network = self._bench.network(config)
        key = [
            "step",
            *self._of_model(config),
            network.cut,
            sorted(network.trainable),
            config.batch_size,
            config.optimizer,
            n_threads,
        ]
        times = self._kept(key, lambda: asdict(self._time_step(config, network, n_threads)))
        return StepTimes(**times)

    def possible_step_times(self, config: TrialConfig, *, n_threads: int, n_images: int) -> StepTimes:
        """The same for a trial on `n_images`. A step that fails takes nothing: the trial will say why."""
        batch_size = min(config.batch_size, n_images)
        try:
            return self.step_times(config.model_copy(update={"batch_size": batch_size}), n_threads=n_threads)
        except (RuntimeError, ValueError):  # out of a GPU's memory, or a BatchNorm over a single value
            self._bench.rest()
            return StepTimes(0.0, 0.0, 0)

    def pass_seconds(self, config: TrialConfig) -> float:
        """What a batch takes forward and backward through what trains, on one core of a CPU."""
        network = self._bench.network(config)
        key = ["pass", *self._of_model(config), network.cut, sorted(network.trainable)]
        measured = self._kept(key, lambda: {"seconds": self._time_pass(config, network)})
        return float(measured["seconds"])

    def frozen_rate(self, config: TrialConfig, *, n_threads: int) -> float:
        """Operations that frozen layers do in a second; infinite where there are none to be done."""
        network = self._bench.network(config)
        if network.prefix is None or network.traced.at(network.cut, config.image_size).flops == 0:
            return math.inf
        key = ["frozen", *self._of_model(config), network.cut, n_threads]
        measured = self._kept(key, lambda: {"rate": self._time_frozen(config, network, n_threads)})
        return float(measured["rate"])

    def measured_for(
        self, config: TrialConfig, key: list[Any], measure: Callable[[], dict[str, float]]
    ) -> dict[str, Any]:
        """What `measure` says of a trial's steps, measured once for all trials that take the same.

        Args:
            key: what else it depends on. This process holds nothing on a GPU meanwhile.
        """
        network = self._bench.network(config)
        of_step = [network.cut, sorted(network.trainable), config.batch_size, config.optimizer]
        of_step += [*self._of_model(config), self._bench.job.reuse]
        del network
        self._bench.rest()
        return self._kept([*key, *of_step], measure)

    def contention(self, *, n_threads: int, n_concurrent: int) -> float:
        """How much longer a CPU takes for each thing when it does several at a time, 1 or more."""
        if n_concurrent == 1 or self._bench.device.type != "cpu":
            return 1.0
        key = ["contention", n_threads, n_concurrent]
        return float(self._kept(key, lambda: {"factor": _contention(n_threads, n_concurrent)})["factor"])

    def _of_model(self, config: TrialConfig) -> list[Any]:
        return [config.model, config.image_size, self._bench.job.precision]

    def _kept(self, key: list[Any], measure: Callable[[], dict[str, float]]) -> dict[str, Any]:
        def build(folder: Path) -> None:
            (folder / "measured.json").write_text(json.dumps({"of": key, **measure()}))

        folder = self._store.get_or_build(PROBES_KIND, hash_of([machine(self._bench.device), *key]), build)
        measured: dict[str, Any] = json.loads((folder / "measured.json").read_text())
        self._store.release(PROBES_KIND, folder.name)
        del measured["of"]
        return measured

    def _time_step(self, config: TrialConfig, network: Network, n_threads: int) -> StepTimes:
        optimizer = Optimizer(config, network.trainable, network.block_of)
        features = features_like(self._bench, network, config, config.batch_size)
        labels = torch.zeros(config.batch_size, dtype=torch.int64, device=self._bench.device)
        numbers = iter(range(10**6))

        def step(n: int = config.batch_size) -> None:
            with self._bench.autocast():
                logits = network.suffix(features[:n])
            loss = training_loss(logits, labels[:n], config, None)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step(next(numbers), 10**6)

        def evaluate() -> None:
            with torch.no_grad(), self._bench.autocast():
                network.suffix(images)

        with threads(n_threads):
            network.suffix.train()
            saved = _SavedBytes()
            n_tried = config.batch_size if config.batch_size < MIN_HALVED else config.batch_size // 2
            with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
                tried = self._timed(lambda: step(n_tried))  # the first one also warms up
            if tried > SLOW_SECONDS:  # its time goes by the images: half a batch tells as much
                step_seconds = self._seconds(lambda: step(n_tried)) * config.batch_size / n_tried
            else:
                step_seconds = self._seconds(step)
            images = features_like(self._bench, network, config, EVALUATED_IMAGES)
            network.suffix.eval()
            self._timed(evaluate)
            n_bytes = saved.n_bytes * config.batch_size // n_tried
            return StepTimes(step_seconds, self._seconds(evaluate) / EVALUATED_IMAGES, n_bytes)

    def _time_pass(self, config: TrialConfig, network: Network) -> float:
        features = features_like(self._bench, network, config, config.batch_size)

        def run(n: int = config.batch_size) -> None:
            with self._bench.autocast():
                logits = network.suffix(features[:n])
            logits.float().sum().backward()

        with threads(1):
            network.suffix.train()
            n_few = min(PART_SIZE, config.batch_size)
            run(n_few)  # warms up
            few_seconds = self._timed(lambda: run(n_few))
            if few_seconds > SLOW_SECONDS:  # as in steps: time goes by the images
                return few_seconds * config.batch_size / n_few
            run()
            return self._seconds(run)

    def _time_frozen(self, config: TrialConfig, network: Network, n_threads: int) -> float:
        prefix = network.prefix
        assert prefix is not None, "something is frozen"
        size = config.image_size
        n_images = PART_SIZE * n_threads
        images = torch.zeros(n_images, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        images = images.to(self._bench.device)

        def run() -> None:
            run_frozen(prefix, images, self._bench.job.precision)

        flops = network.traced.at(network.cut, size).flops
        with threads(n_threads):
            self._timed(run)
            return n_images * flops / self._seconds(run)

    def _seconds(self, run: Callable[[], None]) -> float:
        """The median time of a few runs; of slow ones, the time of one."""
        times = [self._timed(run)]
        while len(times) < TIMED_RUNS and sum(times) < ENOUGH_SECONDS:
            times.append(self._timed(run))
        return statistics.median(times)

    def _timed(self, run: Callable[[], None]) -> float:
        started = time.perf_counter()
        run()
        if self._bench.device.type == "cuda":
            torch.cuda.synchronize(self._bench.device)
        return time.perf_counter() - started


def features_like(bench: Workbench, network: Network, config: TrialConfig, n: int) -> Tensor:
    """Something of the shape and type of what crosses at the cut; at the input, of pixels."""
    size = config.image_size
    if network.cut == INPUT:
        pixels = torch.zeros(n, size, size, 3, dtype=torch.uint8, device=bench.device)
        return pixels.permute(0, 3, 1, 2)
    shape = network.traced.at(network.cut, size).shape
    dtype = STORED_TYPE[bench.job.precision][1]
    features = torch.rand(n, *shape, device=bench.device, dtype=dtype)
    return features.to(memory_format=torch.channels_last) if features.ndim == 4 else features


class _SavedBytes:
    """Counts the bytes of tensors that autograd keeps, those of parameters left out."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._seen: set[int] = set()

    def note(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.data_ptr() not in self._seen:
            self._seen.add(tensor.data_ptr())
            self.n_bytes += tensor.nbytes
        return tensor


def machine(device: torch.device) -> list[str]:
    """What tells one machine from another, as far as speed goes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return [name, platform.machine(), torch.__version__, torch.backends.cpu.get_cpu_capability()]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except FileNotFoundError:  # not Linux
        pass
    return platform.processor()


def _contention(n_threads: int, n_concurrent: int) -> float:
    """The same convolutions alone, and in as many Python threads as there will be trials."""
    with threads(n_threads):
        alone = _convolutions(LOAD_SECONDS)
        is_over = threading.Event()
        others = [
            threading.Thread(target=_convolutions, args=(math.inf, is_over), daemon=True)
            for _ in range(n_concurrent - 1)
        ]
        try:
            for other in others:
                other.start()
            _convolutions(LOAD_SECONDS / 2)  # until all are at it
            together = _convolutions(LOAD_SECONDS)
        finally:
            is_over.set()
        for other in others:
            other.join()
    # Beyond that, something else kept the machine busy meanwhile: one after the other is always possible.
    return min(max(1.0, alone / together), float(n_concurrent))


def _convolutions(seconds: float, is_over: threading.Event | None = None) -> float:
    """How many passes forward and backward through a convolution are done in a second, for so long."""
    features = torch.rand(16, 64, 28, 28).to(memory_format=torch.channels_last).requires_grad_()
    convolution = nn.Conv2d(64, 64, 3, padding=1)
    convolution(features).sum().backward()
    started = time.perf_counter()
    n = 0
    while (passed := time.perf_counter() - started) < seconds and not (is_over and is_over.is_set()):
        convolution(features).sum().backward()
        n += 1
    return n / passed
