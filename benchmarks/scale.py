"""What a search itself costs, apart from training: `python -m benchmarks.scale`.

Each row is the real command on a grid of so many one-epoch trials, whose epochs are on record already: they
are planned, handed out by Ray Tune, replayed, journalled, ranked and reported, but nothing is trained. Time
and memory for each trial should not depend on how many there are.
"""

import argparse
import json
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.processes import RowProcess
from tune_inat.inputs import Inputs, open_store, read_inputs
from tune_inat.meter import SilentMeter
from tune_inat.preparation import open_bench
from tune_inat.settings import SearchSettings, make_settings
from tune_inat.store import CACHE_VARIABLE

COUNTS = (100, 1_000, 5_000)
IMAGE_SIZE = 32
THREADS = 1


@dataclass(frozen=True)
class ScaleRow:
    """A search of `n_trials`: seconds from its start to its end, and the most memory its driver took."""

    n_trials: int
    seconds: float
    driver_bytes: int


def settings_of(space: Path) -> SearchSettings:
    """The arguments of a row's command."""
    return make_settings(space=str(space), image_size=IMAGE_SIZE, cpus_per_trial=THREADS, precision="fp32")


def write_space(path: Path, n_trials: int) -> None:
    """A sweep of one-epoch linear probes that differ in the learning rate alone."""
    rates = [round(1e-4 * (1 + number / 1000), 9) for number in range(n_trials)]
    sweep = {
        "method": "grid",
        "parameters": {"lr": {"values": rates}, "freeze": {"value": 1.0}, "epochs": {"value": 1}},
    }
    path.write_text(json.dumps(sweep))


def record_epochs(space: Path) -> None:
    """Put an epoch of each trial on record, as if it had been trained: its numbers are made up."""
    settings = settings_of(space)
    inputs: Inputs = read_inputs(settings, SilentMeter(), open_store(settings))
    bench = open_bench(inputs, SilentMeter(), gpus_per_trial=0)
    bench.job = replace(bench.job, n_threads=THREADS)  # epochs know the threads of their trial
    for number, trial in enumerate(inputs.plan.trials):
        states = bench.states(trial.config)
        with states.exclusively():
            states.append(made_up_row(number), {"cut": "made up", "threads": THREADS})


def made_up_row(number: int) -> dict[str, Any]:
    """An epoch's row as a trial reports it."""
    from tune_inat.trial import ROW_NAMES

    return {**dict.fromkeys(ROW_NAMES, 0.5), "epoch": 1, "steps": 1, "val_accuracy": number % 997 / 1000}


def measure(n_trials: int, scratch: Path) -> ScaleRow:
    """Run one row in a cache and a folder of its own."""
    folder = scratch / str(n_trials)
    folder.mkdir()
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    space = folder / "scale.yaml"
    write_space(space, n_trials)
    record_epochs(space)
    command = ["-m", "tune_inat.search", "--space", str(space), "--storage", str(folder / "runs")]
    command += ["--image-size", str(IMAGE_SIZE), "--cpus-per-trial", str(THREADS), "--precision", "fp32"]
    peak = 0

    def watch(pid: int) -> None:
        nonlocal peak
        with suppress(OSError, StopIteration):
            status = Path(f"/proc/{pid}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
            peak = max(peak, int(line.split()[1]) * 1024)

    seconds = RowProcess(command, {"WANDB_MODE": "disabled"}, folder / "out.txt").run(watch)
    summary = json.loads(next((folder / "runs").glob("*/summary.json")).read_text())
    if summary["reuse"]["epochs_trained"] != 0 or len(summary["trials"]) != n_trials:
        raise SystemExit(f"{n_trials} trials: {summary['reuse']}: the epochs on record were not found.")
    return ScaleRow(n_trials, seconds, peak)


def main() -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=COUNTS, help="how many trials each row has")
    rows: list[ScaleRow] = []
    with tempfile.TemporaryDirectory() as scratch:
        for n_trials in sorted(parser.parse_args().trials):
            rows.append(measure(n_trials, Path(scratch)))
            sys.stderr.write(f"{n_trials:,} trials: {rows[-1].seconds:.1f} s\n")
    table = Table("trials", "seconds", "ms for each more", "driver's memory")
    for before, row in zip([None, *rows], rows, strict=False):
        more = (
            "-"
            if before is None
            else f"{1000 * (row.seconds - before.seconds) / (row.n_trials - before.n_trials):.0f}"
        )
        table.add_row(f"{row.n_trials:,}", f"{row.seconds:.1f}", more, f"{row.driver_bytes / 1e6:,.0f} MB")
    console = Console()
    console.print(table)
    console.print(describe_machine())


if __name__ == "__main__":
    main()
