"""The command: how long a search takes from Ctrl-C to its end, in each of its phases.

    python -m benchmarks.interrupts                 # about 5 minutes on two idle cores

Each round begins one search with an empty cache, on the bundled sample, and interrupts it in one phase after
the other; each command goes on from what the one before has left. Then it has given up what ran, closed W&B's
runs (offline), and written the table and the report.
"""

import signal
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from tests.faults.processes import Search
from tests.faults.test_signals import PHASES, interrupt
from tune_inat.errors import EXIT_INTERRUPTED, run_command

NAME = "interrupted"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="how often each phase is interrupted")] = 3,
    space: Annotated[str, typer.Option(help="the search space, on the bundled sample")] = "grid",
) -> None:
    """Tell, for each phase, the seconds from Ctrl-C to the end of the process."""
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for number in range(rounds):
        with TemporaryDirectory() as scratch:
            arguments = ("--space", space, "--wandb", "offline", "--name", NAME)
            search = Search(Path(scratch), Path(scratch) / "cache", arguments, NAME)
            for phase, measured in seconds.items():
                measured.append(_time_end(search, phase))
                sys.stderr.write(f"round {number + 1}: {phase}: {measured[-1]:.1f} s\n")
    for phase, measured in seconds.items():
        sys.stdout.write(f"{phase:<22} median {median(measured):5.1f} s   most {max(measured):5.1f} s\n")


def _time_end(search: Search, phase: str) -> float:
    is_there, _ = PHASES[phase]
    running = search.start()
    try:
        running.await_that(lambda: is_there(running, search))
        started = time.monotonic()
        interrupt(running, signal.SIGINT)
        code = running.wait()
        seconds = time.monotonic() - started
    finally:
        running.kill("all")
    if code != EXIT_INTERRUPTED:
        raise SystemExit(f"{phase}: exit code {code}.\n{running.text}")
    return seconds


if __name__ == "__main__":
    run_command(app)
