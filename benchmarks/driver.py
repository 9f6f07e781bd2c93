"""What the driver of a search costs for each trial, and how long the plan of many takes: the real command.

A row is a grid of so many one-epoch trials whose epochs are on record already: they are planned, handed out
by Ray Tune, replayed, journalled, ranked and reported, but nothing is trained.
"""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.memory import anonymous_bytes
from benchmarks.processes import RowProcess
from tune_inat.inputs import Inputs, open_store, read_inputs
from tune_inat.meter import SilentMeter
from tune_inat.preparation import open_bench
from tune_inat.settings import SearchSettings, make_settings
from tune_inat.store import CACHE_VARIABLE
from tune_inat.trial import ROW_NAMES

IMAGE_SIZE = 32
THREADS = 1
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class DriverRow:
    """A search of `n_trials`, or its plan: wall and CPU seconds of its driver, and its memory in bytes.

    Attributes:
        anonymous: the most that the driver had allocated.
    """

    n_trials: int
    seconds: float
    cpu_seconds: float
    anonymous: int


def measure_search(n_trials: int, scratch: Path) -> DriverRow:
    """Run a search of trials that do nothing, in a cache and a folder of its own."""
    with _Row(scratch / f"search of {n_trials}", _rates(n_trials)) as row:
        row.record_epochs()
        measured = row.run(n_trials, ["--storage", str(row.folder / "runs")])
        summary = json.loads(next((row.folder / "runs").glob("*/summary.json")).read_text())
    if summary["reuse"]["epochs_trained"] != 0 or len(summary["trials"]) != n_trials:
        raise SystemExit(f"{n_trials} trials: {summary['reuse']}: the epochs on record were not found.")
    return measured


def measure_plan(n_trials: int, scratch: Path) -> DriverRow:
    """Run `--dry-run` for a grid of leaders and followers at several cuts, with an empty cache."""
    parameters: dict[str, Sequence[Any]] = {"freeze": [0.5, 0.7, 0.8, 0.9, 1.0], "epochs": [5, 10]}
    n_each = -(-n_trials // (len(parameters["freeze"]) * len(parameters["epochs"])))
    with _Row(scratch / f"plan of {n_trials}", {**_rates(n_each), **parameters}) as row:
        measured = row.run(n_trials, ["--dry-run", "--json", "--trials", str(n_trials)])
        plan = json.loads(row.output.read_text())
    if plan["n_trials"] != n_trials:
        raise SystemExit(f"{n_trials} trials: the plan has {plan['n_trials']}.")
    return measured


def _rates(n: int) -> dict[str, Sequence[float]]:
    return {"lr": [round(1e-4 * (1 + number / 1000), 9) for number in range(n)]}


class _Row:
    """A folder with a space and a cache, removed at the end."""

    def __init__(self, folder: Path, parameters: dict[str, Sequence[Any]]) -> None:
        self.folder = folder
        self.output = folder / "out.txt"
        self._space = folder / "scale.yaml"
        self._parameters: dict[str, Sequence[Any]] = {"freeze": [1.0], "epochs": [1], **parameters}

    def __enter__(self) -> "_Row":
        self.folder.mkdir()
        os.environ[CACHE_VARIABLE] = str(self.folder / "cache")
        varied = {name: {"values": list(values)} for name, values in self._parameters.items()}
        self._space.write_text(json.dumps({"method": "grid", "parameters": varied}))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _settings(self) -> SearchSettings:
        return make_settings(
            space=str(self._space), image_size=IMAGE_SIZE, cpus_per_trial=THREADS, precision="fp32"
        )

    def record_epochs(self) -> None:
        """Put an epoch of each trial on record, as if it had been trained: its numbers are made up."""
        settings = self._settings()
        inputs: Inputs = read_inputs(settings, SilentMeter(), open_store(settings))
        bench = open_bench(inputs, SilentMeter(), gpus_per_trial=0)
        bench.job = replace(bench.job, n_threads=THREADS)  # epochs know the threads of their trial
        for number, trial in enumerate(inputs.plan.trials):
            states = bench.states(trial.config)
            row = {**dict.fromkeys(ROW_NAMES, 0.5), "epoch": 1, "val_accuracy": number % 997 / 1000}
            with states.exclusively():
                states.append(row, {"cut": "made up", "threads": THREADS})

    def run(self, n_trials: int, arguments: Sequence[str]) -> DriverRow:
        """Run the command and watch its process."""
        command = ["-m", "tune_inat.search", "--space", str(self._space), "--image-size", str(IMAGE_SIZE)]
        command += ["--cpus-per-trial", str(THREADS), "--precision", "fp32", *arguments]
        seen = _Seen()
        seconds = RowProcess(command, {"WANDB_MODE": "disabled"}, self.output).run(seen.look)
        return DriverRow(n_trials, seconds, seen.cpu_seconds, seen.anonymous)


class _Seen:
    """What was seen of a driver: its CPU time up to the last look, and the most memory."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.anonymous = 0

    def look(self, pid: int) -> None:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.cpu_seconds = (int(fields[11]) + int(fields[12])) / TICKS
            self.anonymous = max(self.anonymous, anonymous_bytes(pid))
