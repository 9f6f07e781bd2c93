"""The command: what W&B costs a search, whatever W&B does meanwhile, as ratios of searches run in turn.

    python -m benchmarks.wandb_faults                 # about 10 minutes on two idle cores
    python -m benchmarks.wandb_faults --rounds 5      # for a machine that others use, too

Each round runs the same search once without W&B, once offline, and once against each of three servers of
our own on loopback: one that takes its time for each answer, one that never answers, one that refuses. Each
search has an empty cache and is timed from its start to its end. A ratio is the median over the rounds of a
search's time by that of the search without W&B in the same round.
"""

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.processes import RowProcess
from tests.wandb_server import API_KEY, WandbServer
from tune_inat.errors import run_command

WITHOUT, OFFLINE, SLOW, MUTE, REFUSING = (
    "without W&B",
    "offline",
    "slow server",
    "mute server",
    "refusing server",
)
SERVED = (SLOW, MUTE, REFUSING)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="how often each search runs")] = 2,
    delay: Annotated[
        float, typer.Option(min=0, help="seconds that the slow server takes for an answer")
    ] = 2.0,
    space: Annotated[str, typer.Option(help="the search space, on the bundled sample")] = "grid",
) -> None:
    """Compare a search's time with W&B in all states with its time without."""
    seconds: dict[str, list[float]] = {kind: [] for kind in (WITHOUT, OFFLINE, *SERVED)}
    for number in range(rounds):
        for kind, measured in seconds.items():
            with _server(kind, delay) as environment:
                measured.append(_time_search(kind, space, environment))
            sys.stderr.write(f"round {number + 1}: {kind}: {measured[-1]:.1f} s\n")
    for kind, measured in seconds.items():
        ratio = median(mine / plain for mine, plain in zip(measured, seconds[WITHOUT], strict=True))
        sys.stdout.write(f"{kind:<16} {median(measured):7.1f} s   {ratio:.3f}\n")


@contextmanager
def _server(kind: str, delay: float) -> Iterator[Mapping[str, str]]:
    """What a search's environment says of a server, which runs meanwhile."""
    if kind == MUTE:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            yield _environment(f"http://127.0.0.1:{listening.getsockname()[1]}")
    elif kind in SERVED:
        with WandbServer(
            delay=delay if kind == SLOW else 0.0, refusal=403 if kind == REFUSING else None
        ) as server:
            yield _environment(server.url)
    else:
        yield {}


def _environment(url: str) -> Mapping[str, str]:
    return {"WANDB_BASE_URL": url, "WANDB_API_KEY": API_KEY}


def _time_search(kind: str, space: str, environment: Mapping[str, str]) -> float:
    mode = {WITHOUT: "disabled", OFFLINE: "offline"}.get(kind, "online")
    with TemporaryDirectory(prefix="tune_inat-benchmark-") as name:
        folder = Path(name)
        arguments = ("--space", space, "--wandb", mode, "--storage", str(folder / "runs"), "--json")
        return RowProcess(
            ("-m", "tune_inat.search", *arguments),
            {**environment, "TUNE_INAT_CACHE": str(folder / "cache")},
            folder / "summary.json",
        ).run()


if __name__ == "__main__":
    run_command(app)
