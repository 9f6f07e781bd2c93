"""A process that takes a trial's steps on random activations, to find out what they need of a GPU."""

import os
import pickle
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from tune_inat.config import TrialConfig
from tune_inat.frozen import run_frozen
from tune_inat.micro_batches import is_out_of_memory
from tune_inat.mps import mps_runs
from tune_inat.packing import Card
from tune_inat.probe import features_like, machine
from tune_inat.recipe import Optimizer, training_loss
from tune_inat.trial import EVALUATION_BATCH_SIZE
from tune_inat.workbench import Workbench, open_worker_bench

FROZEN_IMAGES = 64  # that run through frozen layers at a time, where these are not done already


class Rehearsal:
    """The steps of a trial, as often as one likes.

    Raises:
        torch.OutOfMemoryError: a step does not fit.
    """

    def __init__(self, bench: Workbench, config: TrialConfig) -> None:
        self._bench = bench
        self._config = config
        self._network = bench.network(config)
        self._optimizer = Optimizer(config, self._network.trainable, self._network.block_of)
        self._features = features_like(bench, self._network, config, config.batch_size)
        self._labels = torch.zeros(config.batch_size, dtype=torch.int64, device=bench.device)
        self._n_steps = 0

    def step(self) -> None:
        """One step of training."""
        self._network.suffix.train()
        with self._bench.autocast():
            logits = self._network.suffix(self._features)
        loss = training_loss(logits, self._labels, self._config, None)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimizer.step(self._n_steps, 10**9)
        self._n_steps += 1

    def validate(self) -> None:
        """A batch of validation."""
        n_images = EVALUATION_BATCH_SIZE[self._bench.device.type]
        images = features_like(self._bench, self._network, self._config, n_images)
        self._network.suffix.eval()
        with torch.no_grad(), self._bench.autocast():
            self._network.suffix(images)

    def freeze(self) -> None:
        """A batch through the frozen layers, where a trial may have to run them."""
        if self._network.prefix is not None:
            n_images = FROZEN_IMAGES if self._bench.job.reuse else self._config.batch_size
            size = self._config.image_size
            shape = (n_images, size, size, 3)
            images = torch.zeros(shape, dtype=torch.uint8, device=self._bench.device).permute(0, 3, 1, 2)
            run_frozen(self._network.prefix, images, self._bench.job.precision)


class Answers:
    """What the process can be asked."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._rehearsals: dict[TrialConfig, Rehearsal] = {}

    def answer(self, what: str, *arguments: Any) -> Any:
        """`card`, `step` (peak and held bytes), `warm up`, `rate` (images a second)."""
        answers: dict[str, Callable[..., Any]] = {
            "card": self.card,
            "step": self.step,
            "warm up": self.warm_up,
            "rate": self.rate,
        }
        return answers[what](*arguments)

    def card(self) -> Card:
        """The GPU, with what is free of it now."""
        return card_of(self._bench.device)

    def step(self, config: TrialConfig) -> tuple[int, int]:
        """The most bytes that steps of a trial hold, and those that they hold afterwards."""
        device = self._bench.device
        before = _most_resident()
        rehearsal = self._rehearsal(config)
        for _ in range(2):  # the second has the optimizer's moments beside the gradients
            rehearsal.step()
        rehearsal.validate()
        rehearsal.freeze()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_reserved(device), torch.cuda.memory_reserved(device)
        return _most_resident() - before, 0

    def warm_up(self, config: TrialConfig) -> None:
        """Take steps until libraries have made their choices."""
        rehearsal = self._rehearsal(config)
        for _ in range(3):
            rehearsal.step()
        self._wait()

    def rate(self, config: TrialConfig, start: float, seconds: float) -> float:
        """The images a second that train from a time on, by `time.time()`, for so long."""
        rehearsal = self._rehearsal(config)
        time.sleep(max(0.0, start - time.time()))
        started, n_images = time.perf_counter(), 0
        while (passed := time.perf_counter() - started) < seconds:
            rehearsal.step()
            self._wait()
            n_images += config.batch_size
        return n_images / passed

    def _rehearsal(self, config: TrialConfig) -> Rehearsal:
        if config not in self._rehearsals:
            self._rehearsals.clear()  # networks of one model share a backbone
            self._rehearsals[config] = Rehearsal(self._bench, config)
        return self._rehearsals[config]

    def _wait(self) -> None:
        if self._bench.device.type == "cuda":
            torch.cuda.synchronize(self._bench.device)


def card_of(device: torch.device) -> Card:
    """A GPU, with what is free of it now; of a CPU, which only tests measure, the machine's memory."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)  # makes a context there
        return Card(machine(device)[0], total, free, mps_runs())
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    return Card(machine(device)[0], total, free)


def serve(questions: BinaryIO, replies: BinaryIO) -> None:
    """Answer pickled questions, the first of which is the search's job, until there are no more."""
    answers: Answers | None = None
    (job,) = pickle.load(questions)
    while True:
        try:
            what, *arguments = pickle.load(questions)
        except EOFError:
            return
        try:
            answers = answers or Answers(open_worker_bench(job))
            reply: tuple[bool, Any] = (True, answers.answer(what, *arguments))
        except Exception as error:  # noqa: BLE001  # the asking process says it
            reply = (False, None if is_out_of_memory(error) else f"{type(error).__name__}: {error}")
        pickle.dump(reply, replies)
        replies.flush()


def main() -> None:
    """Serve on the standard streams; what libraries print goes nowhere."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, replies)


def _most_resident() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
