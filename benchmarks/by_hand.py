"""Row b, Ray Tune by hand: the plain loop's trials as Ray's documentation shows it, with its W&B callback.

As many trials at a time as there are cores, each with one thread and one process that decodes images.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.air.integrations.wandb import WandbLoggerCallback

from benchmarks.plain import Epoch, time_trial
from benchmarks.task import VARIED, Task
from benchmarks.timing import TimedTrial, TimedTrials
from tune_inat.config import TrialConfig


def train(config: dict[str, Any], task: Task, results: Path) -> None:
    """The trainable: a trial of the plain loop that reports each epoch to Tune."""
    torch.set_num_threads(1)
    trial_config = TrialConfig(**{**task.trials[0].model_dump(), **config})

    def report(epoch: Epoch) -> None:
        tune.report({"train_loss": epoch.train_loss, "val_accuracy": epoch.val_accuracy})

    timed = time_trial(task, trial_config, n_workers=1, report=report)
    # Not as a last report: that would be a point more in W&B than a trial has epochs.
    (results / f"{tune.get_context().get_trial_id()}.json").write_text(timed.model_dump_json())


def run(task: Task, folder: Path) -> TimedTrials:
    """All trials of a task through Tune, whose files and W&B's go to a folder.

    Raises:
        RuntimeError: a trial failed; Tune has said why.
    """
    n_cores = len(os.sched_getaffinity(0))
    results = folder / "timed"
    results.mkdir(parents=True)
    trials = task.trials_to_run()
    space = {name: list(dict.fromkeys(getattr(trial, name) for trial in trials)) for name in VARIED}
    started = time.perf_counter()
    ray.init(num_cpus=n_cores)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, task=task, results=results), {"cpu": 1}),
        param_space={name: tune.grid_search(values) for name, values in space.items()},
        tune_config=tune.TuneConfig(
            metric="val_accuracy", mode="max", num_samples=1, max_concurrent_trials=n_cores
        ),
        run_config=tune.RunConfig(
            name="by_hand",
            storage_path=str(folder / "ray"),
            callbacks=[WandbLoggerCallback(project="by_hand", group="by_hand")],
        ),
    )
    begun = time.perf_counter()
    tuner.fit()
    seconds = time.perf_counter() - begun
    sys.stderr.write(f"ray.init and the Tuner took {begun - started:.1f} s, the trials {seconds:.1f} s\n")
    ray.shutdown()
    timed = [TimedTrial.model_validate_json(path.read_bytes()) for path in sorted(results.glob("*.json"))]
    if len(timed) != len(trials):
        raise RuntimeError(f"{len(timed)} of {len(trials)} trials came to their end")
    return TimedTrials(seconds=seconds, n_slots=n_cores, trials=tuple(timed))


if __name__ == "__main__":
    task_file, result_file = map(Path, sys.argv[1:])
    task = Task.model_validate_json(task_file.read_bytes())
    result_file.write_text(run(task, result_file.parent / "by_hand").model_dump_json())
