"""Row e, the floor: the arithmetic alone that no search can do without, everything in memory.

The images of training and validation go once through the frozen layers up to each cut, from the nearest
shallower one; then the longest trial of each family trains and validates what lies behind the cut. No Ray,
no W&B, nothing read or saved. Not counted: starting Python, decoding the images, loading the network.
"""

import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel
from torch import Tensor

from benchmarks.task import Task
from tune_inat.config import TrialConfig
from tune_inat.features import BATCH_SIZE, Rows, as_stored
from tune_inat.frozen import Precision, run_frozen
from tune_inat.inputs import read_inputs
from tune_inat.job import Job
from tune_inat.meter import SilentMeter
from tune_inat.network import Network
from tune_inat.recipe import Optimizer, batches, draw_epoch, training_loss
from tune_inat.store import Store
from tune_inat.trial import EVALUATION_BATCH_SIZE
from tune_inat.workbench import Workbench

CPU = torch.device("cpu")


class FloorResult(BaseModel):
    """What the floor came to."""

    prefix_seconds: float
    training_seconds: float
    epochs: int
    best_val_accuracy: float
    precision: str


class Floor:
    """Activations at the cuts and the trials that train on them, with tune_inat's own networks.

    Args:
        precision: that of the search which is held against the floor.
    """

    def __init__(self, task: Task, precision: Precision) -> None:
        inputs = read_inputs(task.settings, SilentMeter(), Store(task.inputs_cache))
        assert inputs.pixels is not None, "they were decoded for the task"
        train, val = inputs.data.train, inputs.data.val
        job = Job(
            store=inputs.store,
            data=inputs.data,
            files=inputs.files,
            precision=precision,
            device="cpu",
            reuse=True,
            metric=inputs.space.metric.name,
            goal=inputs.space.metric.goal,
            n_threads=torch.get_num_threads(),
        )
        self._bench = Workbench(job, CPU, SilentMeter())
        self._precision = precision
        self._n_train = len(train.rows)
        # Both parts in one array, train first. What the prefix has made of it is kept by crossing.
        self._pixels = Rows(np.array(inputs.pixels.array[np.concatenate([train.rows, val.rows])]), CPU)
        self._labels = torch.from_numpy(np.concatenate([train.labels, val.labels]))
        self._at_crossing: dict[str, Rows] = {}
        self.leaders = [
            max(family, key=lambda trial: trial.config.epochs).config
            for family in inputs.plan.families().values()
        ]
        self._bench.network(self.leaders[0])  # loads and traces it, before the clock runs

    def run_prefix(self) -> None:
        """The activations at all cuts, shallow ones first."""
        networks = {}
        for config in self.leaders:
            network = self._bench.network(config)
            networks[network.cut] = network
        for cut in sorted(networks, key=lambda cut: networks[cut].traced.crossings.index(cut)):
            if networks[cut].prefix is not None:
                self._at_crossing[cut] = Rows(self._pass_prefix(networks[cut]), CPU)

    def _pass_prefix(self, network: Network) -> npt.NDArray[np.generic]:
        crossings = network.traced.crossings
        lead, start = network.prefix, self._pixels
        for crossing in crossings[: crossings.index(network.cut)]:
            if crossing in self._at_crossing:
                lead = network.traced.segment(crossing, network.cut)
                start = self._at_crossing[crossing]
        assert lead is not None, "there is a frozen prefix"
        parts = torch.split(torch.arange(len(self._labels)), BATCH_SIZE)
        return np.concatenate([as_stored(run_frozen(lead, start.take(p), self._precision)) for p in parts])

    def train(self, config: TrialConfig) -> float:
        """All epochs of a trial; returns its best validation accuracy."""
        network = self._bench.network(config)
        features = self._at_crossing.get(network.cut, self._pixels)
        optimizer = Optimizer(config, network.trainable, network.block_of)
        accuracies = []
        for epoch in range(1, config.epochs + 1):
            network.suffix.train()
            steps = batches(draw_epoch(config.seed, epoch, self._n_train).order, config.batch_size)
            for number, picked in enumerate(steps):
                with self._bench.autocast():
                    logits = network.suffix(features.take(picked))
                training_loss(logits, self._labels[picked], config, None).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step((epoch - 1) * len(steps) + number, len(steps))
            accuracies.append(self._validate(network, features))
        return max(accuracies)

    @torch.no_grad()
    def _validate(self, network: Network, features: Rows) -> float:
        network.suffix.eval()
        rows = torch.arange(self._n_train, len(self._labels))
        right: list[Tensor] = []
        for picked in torch.split(rows, EVALUATION_BATCH_SIZE["cpu"]):
            with self._bench.autocast():
                logits = network.suffix(features.take(picked))
            right.append(logits.argmax(dim=1) == self._labels[picked])
        return float(torch.cat(right).double().mean())


def run(task: Task, precision: Precision) -> FloorResult:
    """The floor of a task, with torch's own number of threads."""
    floor = Floor(task, precision)
    started = time.perf_counter()
    floor.run_prefix()
    prefix_done = time.perf_counter()
    accuracies = [floor.train(config) for config in floor.leaders]
    return FloorResult(
        prefix_seconds=prefix_done - started,
        training_seconds=time.perf_counter() - prefix_done,
        epochs=sum(config.epochs for config in floor.leaders),
        best_val_accuracy=max(accuracies),
        precision=precision,
    )


if __name__ == "__main__":
    task_file, result_file = map(Path, sys.argv[1:3])
    task = Task.model_validate_json(task_file.read_bytes())
    result_file.write_text(run(task, "bf16" if sys.argv[3] == "bf16" else "fp32").model_dump_json())
