"""One trial: the freeze-and-fine-tune loop. It is a pure function of its configuration and its inputs."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tune_inat.config import TrialConfig
from tune_inat.freeze import load_trainable_state, trainable_state
from tune_inat.frozen import threads
from tune_inat.life import sign
from tune_inat.metrics import evaluate, pack_correct
from tune_inat.micro_batches import MicroBatches
from tune_inat.network import Network
from tune_inat.ownership import LostOwnershipError
from tune_inat.recipe import Optimizer, batches, draw_epoch
from tune_inat.rows import Row, best_row
from tune_inat.sources import Source, batches_ahead, batches_in_turn
from tune_inat.states import RAN_ON, FamilyStates, ran_on, to_cpu
from tune_inat.steps import Step
from tune_inat.workbench import Workbench

# Images in a pass of what trains, in validation: on a CPU, more than these do not stay in its cache.
EVALUATION_BATCH_SIZE = {"cpu": 64, "cuda": 256}

# What an epoch reports. The last three are measured, not computed: they differ from run to run.
ROW_NAMES = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_macro_f1",
    "val_balanced_accuracy",
    "val_ece",
    "lr",
    "peak_lr",
    "steps",
    "images_per_second",
    "train_seconds",
    "epoch_seconds",
)


class NonFiniteLossError(Exception):
    """The loss of a step was infinite or not a number: the trial cannot go on."""


class InterruptedTrialError(Exception):
    """The search is being ended: the epoch in progress is given up."""


@dataclass(frozen=True)
class EpochReport:
    """An epoch's metrics, whether it was trained now or taken from the store, and what was done for it.

    `correct` says which validation images were right, see `metrics.pack_correct`.
    """

    row: Row
    trained: bool
    did: Mapping[str, Any]
    correct: str = ""


Report = Callable[[EpochReport], None]


def run_trial(
    bench: Workbench,
    config: TrialConfig,
    *,
    horizons: Sequence[int],
    report: Report,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Report each epoch of a trial: those on record at once, the rest as they are trained.

    Args:
        horizons: the epochs at which trials of this family end, as far as they are known. For each, the
            weights of the best epoch up to it are kept.
        report: may raise `SystemExit`, which ends the trial (a scheduler stops it); what was trained is kept.
        is_interrupted: asked before each step.

    Raises:
        NonFiniteLossError: with the epoch and step at which it happened.
        InterruptedTrialError: `is_interrupted` said so.
        LostOwnershipError: the search has given this process up, and another one trains the trial.
    """
    states = bench.states(config)
    n_reported = 0

    def report_new(progress: EpochReport) -> None:
        nonlocal n_reported
        if progress.row["epoch"] > n_reported:
            n_reported = int(progress.row["epoch"])
            report(progress)

    def is_to_end() -> bool:
        states.look()
        return is_interrupted()

    def look() -> None:
        if is_interrupted():
            raise InterruptedTrialError

    while True:
        try:
            with states.exclusively(look):
                record = states.record()
                for row, correct in zip(record.rows, record.correct, strict=True):
                    if (epoch := int(row["epoch"])) <= config.epochs:
                        did = {**(record.did or {}), RAN_ON: ran_on(record, epoch)}
                        report_new(EpochReport(row, trained=False, did=did, correct=correct))
                if len(record.rows) < config.epochs:
                    wanted = sorted({*horizons, config.epochs})
                    _train_onwards(bench, config, states, wanted, report_new, is_to_end)
                return
        except LostOwnershipError as lost:  # to another search: what that one trains is taken over in turn
            if lost.is_to_same_search:
                raise


def weights_after(bench: Workbench, config: TrialConfig, epoch: int) -> Network:
    """A trial's network as it was after an epoch: its weights from the store, or trained again to there."""
    weights = bench.states(config).load_weights(epoch)
    if weights is not None:
        network = bench.network(config)
        load_trainable_state(network.backbone, weights)
        return network
    with threads(bench.job.n_threads):  # as the trial had them: numbers depend on it
        trainer = Trainer(bench, config)
        for number in range(1, epoch + 1):
            trainer.train_epoch(number, lambda: False)
    return trainer.network


def _train_onwards(
    bench: Workbench,
    config: TrialConfig,
    states: FamilyStates,
    horizons: Sequence[int],
    report: Report,
    is_interrupted: Callable[[], bool],
) -> None:
    """Train on from the last epoch whose state is kept.

    What an epoch leaves is written during the next one, and it is reported as soon as that is done: what was
    reported is never trained again. All is written when this returns or raises.
    """
    trainer = Trainer(bench, config)
    before = states.record()
    first = trainer.resume(states, up_to=len(before.rows))
    goal, metric = bench.job.goal, bench.job.metric

    def keep(report: EpochReport, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        epoch = int(report.row["epoch"])
        states.save(epoch, weights, optimizer)
        rows = states.append(report.row, report.did, report.correct)[:epoch]
        best = {int(best_row(rows[:horizon], metric, goal)["epoch"]) for horizon in horizons}
        states.prune(resume_epochs={epoch}, weight_epochs=best)

    unreported: list[tuple[Future[None], EpochReport]] = []  # one at most

    def report_written(*, wait: bool) -> None:
        if unreported and (wait or unreported[0][0].done()):
            written, progress = unreported.pop()
            written.result()
            report(progress)

    def look() -> bool:
        report_written(wait=False)
        return is_interrupted()

    with ThreadPoolExecutor(1, thread_name_prefix="keep") as writer:  # all is written when it is left
        for epoch in range(first + 1, config.epochs + 1):
            row = trainer.train_epoch(epoch, look)
            report_written(wait=True)
            did = {**trainer.did, RAN_ON: ran_on(before, epoch, here=bench.where)}
            progress = EpochReport(row, trained=True, did=did, correct=trainer.correct)
            written = writer.submit(keep, progress, trainer.weights(), trainer.optimizer_state())
            unreported.append((written, progress))
        report_written(wait=True)


class Trainer:
    """A trial's network, optimizer and data, from its first step on.

    Attributes:
        correct: which validation images were right after the last epoch, see `metrics.pack_correct`.
    """

    def __init__(self, bench: Workbench, config: TrialConfig) -> None:
        self.correct = ""
        self._config = config
        self._bench = bench
        self._job = bench.job
        self._device = bench.device
        self.network = bench.network(config)
        self._train = bench.source(self.network, config, "train")
        self._val = bench.source(self.network, config, "val")
        labels = bench.job.data.train.labels
        self._labels = torch.from_numpy(labels).to(self._device)
        self._optimizer = Optimizer(config, self.network.trainable, self.network.block_of)
        self._step = Step(bench, config, self.network, labels=self._labels, undo=self._optimizer.clear)

    @property
    def did(self) -> dict[str, Any]:
        """What is really done: what trains, where the network is cut, in which precision, in which parts."""
        n_parts = self._step.n_parts
        return {
            "trainable_tensors": len(self.network.trainable),
            "trainable_parameters": sum(p.numel() for p in self.network.trainable.values()),
            "cut": self.network.cut,
            "precision": self._job.precision,
            "device": self._device.type,
            "threads": torch.get_num_threads(),
            **self._place(),
            **({"micro_batches": n_parts} if n_parts > 1 else {}),
        }

    def _place(self) -> dict[str, Any]:
        """Which GPU this is, by the number that the machine has for it, and how much of it."""
        job = self._job
        if job.gpus == 0:
            return {}
        fraction = {} if job.memory_fraction is None else {"memory_fraction": round(job.memory_fraction, 4)}
        return {"gpus": job.gpus, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""), **fraction}

    def resume(self, states: FamilyStates, *, up_to: int) -> int:
        """Take over the latest state kept, at most that of epoch `up_to`; returns its epoch, 0 for none."""
        epoch = states.resumable_epoch(up_to)
        while epoch > 0:
            state = states.load(epoch)
            if state is not None:
                weights, optimizer = state
                load_trainable_state(self.network.backbone, weights)
                self._optimizer.load_state(optimizer)
                return epoch
            epoch = states.resumable_epoch(epoch - 1)
        return 0

    def weights(self) -> dict[str, Tensor]:
        """What trains, now, on the CPU."""
        return to_cpu(trainable_state(self.network.backbone))

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, now, on the CPU."""
        return to_cpu(self._optimizer.state())

    def train_epoch(self, epoch: int, is_interrupted: Callable[[], bool]) -> Row:
        """Train the epoch (counted from 1) and validate; the device is waited for once, at its end."""
        started = time.perf_counter()
        config = self._config
        draws = draw_epoch(config.seed, epoch, len(self._labels))
        torch.manual_seed(draws.torch_seed)
        self.network.suffix.train()
        losses: list[Tensor] = []
        n_correct = torch.zeros((), dtype=torch.int64, device=self._device)
        steps = batches(draws.order, config.batch_size)
        rates: list[float] = []
        for number, (picked, features) in enumerate(zip(steps, self._batches(steps, epoch), strict=True)):
            sign()
            if is_interrupted():
                raise InterruptedTrialError
            loss, correct = self._step.add_gradients(features, picked, epoch, number)
            rates.append(self._optimizer.step((epoch - 1) * len(steps) + number, len(steps)))
            losses.append(loss)
            n_correct += correct
        sizes = torch.tensor([len(picked) for picked in steps], dtype=torch.float64)
        train_loss = _mean_loss(torch.stack(losses).double().cpu(), sizes, epoch)
        train_seconds = time.perf_counter() - started
        logits = predict(self._bench, self.network, self._val, len(self._job.data.val.labels))
        if not np.isfinite(logits).all():
            raise NonFiniteLossError(
                f"epoch {epoch}: the network's output for validation images is not finite"
            )
        validation = evaluate(logits, self._job.data.val.labels)
        self.correct = pack_correct(logits.argmax(axis=1) == self._job.data.val.labels)
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": int(n_correct) / len(self._labels),
            **validation.prefixed("val"),
            "lr": rates[-1],
            "peak_lr": max(rates),
            "steps": epoch * len(steps),
            "images_per_second": len(self._labels) / train_seconds,
            "train_seconds": train_seconds,
            "epoch_seconds": time.perf_counter() - started,
        }
        for name, value in row.items():
            if not math.isfinite(value):
                raise NonFiniteLossError(f"epoch {epoch}: {name} is {value}")
        return row

    def _batches(self, steps: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        read = batches_ahead if self._device.type == "cuda" else batches_in_turn
        return read(self._train, steps, epoch)


def predict(bench: Workbench, network: Network, source: Source, n: int) -> npt.NDArray[np.float32]:
    """The logits (n, K) float32 of images 0..n-1 of a source; fewer at a time where memory runs out."""
    network.suffix.eval()
    parts: list[Tensor] = []
    micro_batches = MicroBatches()
    with torch.no_grad(), bench.autocast():
        for picked in torch.split(torch.arange(n), EVALUATION_BATCH_SIZE[bench.device.type]):
            sign()
            parts += micro_batches.run(len(picked), partial(_logits, network, source, picked))
    logits: npt.NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    return logits


def _logits(network: Network, source: Source, picked: Tensor, part: slice) -> Tensor:
    logits: Tensor = network.suffix(source.take(picked[part], 0)).float()
    return logits


def _mean_loss(losses: Tensor, sizes: Tensor, epoch: int) -> float:
    """The mean loss of an epoch's images from each step's mean (n_steps,) float64."""
    bad = torch.nonzero(~torch.isfinite(losses))
    if len(bad) > 0:
        step = int(bad[0])
        raise NonFiniteLossError(f"epoch {epoch}, step {step + 1}: the loss is {losses[step].item()}")
    return float((losses * sizes).sum() / sizes.sum())
