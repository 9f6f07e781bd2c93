"""The rows of the comparison: what each one runs, and what it came to."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.floor import FloorResult
from benchmarks.memory import TrialMemory, trial_memory
from benchmarks.processes import RowProcess, Watch
from benchmarks.task import Task, command_arguments, kind
from benchmarks.timing import TimedTrials, scale_up

RowName = Literal["a", "b", "c", "d", "e"]

TITLES: Mapping[RowName, str] = {
    "a": "the plain loop",
    "b": "Ray Tune by hand",
    "c": "tune_inat, empty cache",
    "d": "tune_inat, the same again",
    "e": "the floor",
}
MIB = 2**20

# The rows are compared on the CPU, and nothing is sent anywhere.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Measurement:
    """What a row came to.

    Attributes:
        seconds: of the whole process from its start to its end; of the floor, of its arithmetic.
        is_estimate: `seconds` is scaled up from a part of the epochs.
        best_val_accuracy: `None` where not all epochs were trained.
        notes: how it was obtained, for people.
        figures: what else was measured.
    """

    row: RowName
    seconds: float
    is_estimate: bool = False
    best_val_accuracy: float | None = None
    notes: tuple[str, ...] = ()
    figures: Mapping[str, float | str] | None = None


@dataclass(frozen=True)
class Scratch:
    """Where the rows leave what they write."""

    folder: Path

    @property
    def task_file(self) -> Path:
        """The task, as the rows' processes read it."""
        return self.folder / "task.json"

    @property
    def cache(self) -> Path:
        """The cache of tune_inat's command."""
        return self.folder / "cache"

    @property
    def runs(self) -> Path:
        """The folder of its searches."""
        return self.folder / "runs"

    def output(self, row: RowName) -> Path:
        """A row's result."""
        return self.folder / f"{row}.json"


def measure(row: RowName, task: Task, scratch: Scratch) -> Measurement:
    """Run a row.

    Raises:
        RowError: its process failed.
    """
    scratch.task_file.write_text(task.model_dump_json())
    run: Mapping[RowName, Callable[[Task, Scratch], Measurement]] = {
        "a": lambda task, scratch: _measure_loop("a", "benchmarks.plain", task, scratch),
        "b": lambda task, scratch: _measure_loop("b", "benchmarks.by_hand", task, scratch),
        "c": _measure_search,
        "d": _measure_again,
        "e": _measure_floor,
    }
    return run[row](task, scratch)


def _measure_loop(row: RowName, module: str, task: Task, scratch: Scratch) -> Measurement:
    output = scratch.output(row)
    arguments = ["-m", module, str(scratch.task_file), str(output)]
    wall_seconds = RowProcess(arguments, ENVIRONMENT, output.with_suffix(".out")).run()
    timed = TimedTrials.model_validate_json(output.read_bytes())
    if task.epochs_timed is None:
        best = max(trial.best_val_accuracy for trial in timed.trials)
        return Measurement(row, wall_seconds, best_val_accuracy=best)
    n_epochs = sum(trial.epochs for trial in task.trials)
    n_kinds = len({kind(trial) for trial in task.trials})
    note = (
        f"~ {TITLES[row]}: of each pair of freeze and batch_size ({n_kinds} in all) the epochs run were "
        f"{task.epochs_timed}, in {wall_seconds:.1f} s with all around them; scaled up to the {n_epochs} "
        f"epochs and {len(task.trials)} trials asked for, since each epoch of a trial does the same work."
    )
    return Measurement(
        row,
        scale_up(wall_seconds, timed, task.trials),
        is_estimate=True,
        notes=(note,),
        figures={"measured_seconds": wall_seconds, "epochs_timed": task.epochs_timed},
    )


def _measure_search(task: Task, scratch: Scratch) -> Measurement:
    for folder in (scratch.cache, scratch.runs):
        shutil.rmtree(folder, ignore_errors=True)
    with trial_memory() as memory:
        return _run_search("c", task, scratch, watch=memory.sample, memory=memory)


def _measure_again(task: Task, scratch: Scratch) -> Measurement:
    return _run_search("d", task, scratch)


def _run_search(
    row: RowName,
    task: Task,
    scratch: Scratch,
    *,
    watch: Watch = lambda pid: None,
    memory: TrialMemory | None = None,
) -> Measurement:
    arguments = search_command(task, scratch)
    environment = ENVIRONMENT | {"TUNE_INAT_CACHE": str(scratch.cache)}
    seconds = RowProcess(arguments, environment, scratch.output(row)).run(watch)
    summary = json.loads(scratch.output(row).read_bytes())
    precision = precision_of(summary)
    figures: dict[str, float | str] = {
        "precision": precision,
        "epochs_trained": summary["reuse"]["epochs_trained"],
        "prefix_images": summary["reuse"]["prefix_images"],
    }
    notes: tuple[str, ...] = (f"{TITLES[row]}: {figures['epochs_trained']} epochs trained, in {precision}.",)
    if memory is not None:
        figures |= {
            "trial_pss_bytes": memory.pss,
            "trial_anonymous_bytes": memory.anonymous,
            "trials_at_a_time": memory.n_concurrent,
        }
        notes += (
            f"{TITLES[row]}: trials at a time: {memory.n_concurrent}; the largest had at its peak "
            f"{memory.pss / MIB:.0f} MiB (PSS) beyond a process with the same imports, "
            f"{memory.anonymous / MIB:.0f} MiB of it not of mapped files.",
        )
    best = summary["best"]["val_accuracy"]
    return Measurement(row, seconds, best_val_accuracy=best, notes=notes, figures=figures)


def precision_of(summary: Mapping[str, Any]) -> Literal["fp32", "bf16"]:
    """The precision in which a search has computed, from its `summary.json`."""
    return "bf16" if summary["trials"][0]["did"]["precision"] == "bf16" else "fp32"


def search_command(task: Task, scratch: Scratch) -> Sequence[str]:
    """The command that a user would type, as arguments of Python."""
    search = ["-m", "tune_inat.search", *command_arguments(task.settings)]
    return [*search, "--storage", str(scratch.runs), "--wandb", "offline", "--json"]


def _measure_floor(task: Task, scratch: Scratch) -> Measurement:
    output = scratch.output("e")
    precision = task.settings.precision
    if precision == "auto":  # what the search has chosen
        precision = precision_of(json.loads(scratch.output("c").read_bytes()))
    arguments = ["-m", "benchmarks.floor", str(scratch.task_file), str(output), precision]
    RowProcess(arguments, ENVIRONMENT, output.with_suffix(".out")).run()
    floor = FloorResult.model_validate_json(output.read_bytes())
    note = (
        f"{TITLES['e']}: {floor.prefix_seconds:.1f} s for the images of train and val through the frozen "
        f"layers, {floor.training_seconds:.1f} s for {floor.epochs} epochs behind them, in "
        f"{floor.precision}. Not counted: imports, decoding the images, loading the network."
    )
    return Measurement(
        "e",
        floor.prefix_seconds + floor.training_seconds,
        best_val_accuracy=floor.best_val_accuracy,
        notes=(note,),
        figures=floor.model_dump(exclude={"best_val_accuracy"}),
    )
