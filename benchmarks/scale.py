"""How a search scales: `python -m benchmarks.scale`.

- driver: what a search itself costs for each trial, apart from training. Time and memory for each should not
  depend on how many there are.
- plan: how long `--dry-run` takes for many trials.
- images: decoding and frozen layers for many images. Memory should not depend on how many there are.
- schedule: how far from the ideal the order of trials is on many devices, simulated.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.driver import DriverRow, measure_plan, measure_search
from benchmarks.machine import describe_machine
from benchmarks.many_images import PassRow
from benchmarks.processes import RowProcess
from benchmarks.schedule import Losses, Schedule, asha_workload, grid_workload, simulate

SECTIONS = ("driver", "plan", "images", "schedule")
COUNTS = {  # of trials, trials, images, devices
    "driver": (100, 1_000, 5_000),
    "plan": (10_000,),
    "images": (10_000, 50_000),
    "schedule": (8, 64, 512),
}
QUICK = {"driver": (6,), "plan": (200,), "images": (300,), "schedule": (8,)}
TRIALS_A_DEVICE = 10


def driver_table(counts: Sequence[int], scratch: Path) -> Table:
    """Searches of trials that do nothing; of each what a trial more has cost than in the row before."""
    table = Table("trials", "seconds", "CPU seconds", "ms a trial", "CPU ms a trial", "memory", "KB a trial")
    before: DriverRow | None = None
    for count in counts:
        row = measure_search(count, scratch)
        more = ["-"] * 3 if before is None else _more(before, row)
        memory = f"{row.anonymous / 1e6:,.0f} MB"
        table.add_row(
            f"{count:,}", f"{row.seconds:.1f}", f"{row.cpu_seconds:.1f}", *more[:2], memory, more[2]
        )
        before = row
    return table


def plan_table(counts: Sequence[int], scratch: Path) -> Table:
    """Plans of grids, with all that is measured for them."""
    table = Table("trials", "seconds", "CPU seconds", "memory")
    for count in counts:
        row = measure_plan(count, scratch)
        memory = f"{row.anonymous / 1e6:,.0f} MB"
        table.add_row(f"{count:,}", f"{row.seconds:.1f}", f"{row.cpu_seconds:.1f}", memory)
    return table


def images_table(counts: Sequence[int], scratch: Path) -> Table:
    """Passes over generated images, each in a process of its own."""
    table = Table(
        "images",
        "decoded",
        "frozen layers",
        "activations",
        "memory: decoding, at most",
        "memory: names, hashes",
        "memory: pass, at most",
    )
    for count in counts:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            output = scratch / "images.json"
            RowProcess(["-m", "benchmarks.many_images", str(count), folder], {}, output).run()
            row = PassRow(**json.loads(output.read_text()))
        sizes = (row.activation_bytes, row.decode_peak_bytes, row.read_bytes, row.pass_peak_bytes)
        times = (f"{row.decode_seconds:.1f} s", f"{row.pass_seconds:.1f} s")
        table.add_row(f"{count:,}", *times, *(f"{size / 1e6:,.0f} MB" for size in sizes))
    return table


def schedule_table(counts: Sequence[int], scratch: Path) -> Table:
    """Simulated searches; shares are of the time of all devices."""
    table = Table("devices", "search", "trials", "hours", "ideal", "longer by", "idle", "repeated", "away")
    for n_devices in counts:
        n_trials = TRIALS_A_DEVICE * n_devices
        for name, workload, losses in (
            ("grid", grid_workload(n_trials), None),
            ("grid, in the plan's order", grid_workload(n_trials, longest_first=False), None),
            ("grid, spot", grid_workload(n_trials), Losses()),
            ("ASHA", asha_workload(n_trials), None),
            ("ASHA, spot", asha_workload(n_trials), Losses()),
        ):
            table.add_row(*_schedule_cells(name, simulate(workload, n_devices, losses=losses)))
    return table


def _schedule_cells(name: str, schedule: Schedule) -> list[str]:
    spent = schedule.n_devices * schedule.makespan
    hours = (f"{seconds / 3600:.2f}" for seconds in (schedule.makespan, schedule.ideal))
    shares = (f"{100 * part / spent:.1f} %" for part in (schedule.idle, schedule.repeated, schedule.away))
    counts = (f"{schedule.n_devices}", name, f"{schedule.n_trials:,}")
    return [*counts, *hours, f"{100 * schedule.over_ideal:.1f} %", *shares]


def _more(before: DriverRow, row: DriverRow) -> list[str]:
    n = row.n_trials - before.n_trials
    wall, cpu = row.seconds - before.seconds, row.cpu_seconds - before.cpu_seconds
    memory = (row.anonymous - before.anonymous) / n / 1e3
    return [f"{1000 * wall / n:.1f}", f"{1000 * cpu / n:.1f}", f"{memory:.1f}"]


TABLES: dict[str, Callable[[Sequence[int], Path], Table]] = {
    "driver": driver_table,
    "plan": plan_table,
    "images": images_table,
    "schedule": schedule_table,
}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="some of the tables")
    parser.add_argument("--counts", type=int, nargs="+", help="the rows of the tables, in place of their own")
    parser.add_argument("--quick", action="store_true", help="small rows: whether all of it works")
    asked = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as scratch:
        for section in asked.only:
            sys.stderr.write(f"{section}...\n")
            counts = asked.counts or (QUICK if asked.quick else COUNTS)[section]
            table = TABLES[section](sorted(counts), Path(scratch))
            table.title = section
            console.print(table)
    console.print(str(describe_machine()))


if __name__ == "__main__":
    main()
