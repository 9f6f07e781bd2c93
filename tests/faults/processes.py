"""Runs searches that are to be killed, and finds every process that belongs to one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.benches import write_images
from tune_inat.ledger import LEDGER_FILE
from tune_inat.store import hash_of

MARK = "TUNE_INAT_TEST_MARK"  # in the environment of a search, which all of its processes inherit
END_SECONDS = 300.0
LOOK_SECONDS = 0.02
SESSION = re.compile(r"/tmp/ray/(session_[\d_-]+)")
AGENT = re.compile(r"ray::(Dashboard|RuntimeEnv)Agent|/agent\.py|/runtime_env/agent/main\.py")
Kind = Literal["driver", "worker", "raylet", "all"]

# Numbers that the clock gives, how the work was spread over runs of the command, and which tries failed.
NOT_COMPARED = {"seconds", "epochs_trained", "failures"}


@dataclass(frozen=True)
class Process:
    """A process of a search."""

    pid: int
    command: str
    mark: str
    sessions: frozenset[str]  # of Ray, by its open files: processes with a title of their own lose their mark

    @property
    def kind(self) -> str:
        """What it is: a worker that trains, the raylet, or something else."""
        if self.command.startswith("ray::") and not AGENT.search(self.command):  # Ray dies with its agents
            return "worker"
        return "raylet" if "raylet/raylet" in self.command else "other"


@dataclass
class Search:
    """A search's command, in a folder and with a cache of its own; it may be started many times."""

    cwd: Path
    cache: Path
    arguments: tuple[str, ...]
    name: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The search's folder."""
        return self.cwd / "runs" / self.name

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary."""
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary

    def start(self) -> "Running":
        """Start the command."""
        mark = uuid.uuid4().hex
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        environment |= {"TUNE_INAT_CACHE": str(self.cache), MARK: mark, **self.environment}
        log = (self.cwd / f"{mark}.log").open("w+")
        popen = subprocess.Popen(
            [sys.executable, "-m", "tune_inat.search", *self.arguments],
            cwd=self.cwd,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        return Running(popen, mark, self.cwd / f"{mark}.log")

    def run(self) -> "Running":
        """Run the command to its end."""
        running = self.start()
        running.wait()
        return running

    def events(self) -> list[dict[str, Any]]:
        """The whole lines of its journal."""
        path = self.folder / LEDGER_FILE
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events


@dataclass(frozen=True)
class Running:
    """A command that was started."""

    popen: "subprocess.Popen[bytes]"
    mark: str
    log: Path
    sessions: set[str] = field(default_factory=set)  # of Ray, as far as they were seen

    @property
    def text(self) -> str:
        """All that it has said so far."""
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = END_SECONDS) -> int:
        """Its exit code."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill("all")
            raise

    def await_text(self, *texts: str) -> None:
        """Wait until it has said one of these."""
        self.await_that(lambda: any(text in self.text for text in texts))

    def await_that(self, holds: Callable[[], bool], seconds: float = END_SECONDS) -> None:
        """Wait for something, for as long as it runs."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"it has not come to that:\n{self.text}"
            assert self.popen.poll() is None, f"it has ended before:\n{self.text}"
            time.sleep(LOOK_SECONDS)

    def processes(self) -> list[Process]:
        """Its processes that are alive, the driver among them."""
        alive = list(all_processes())
        for process in alive:
            if process.mark == self.mark:
                self.sessions.update(SESSION.findall(process.command))
        return [process for process in alive if process.mark == self.mark or self.sessions & process.sessions]

    def kill(self, kind: Kind, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to all of its processes of a kind; returns to how many."""
        targets = {
            "driver": lambda process: process.pid == self.popen.pid,
            "worker": lambda process: process.kind == "worker",
            "raylet": lambda process: process.kind == "raylet",
            "all": lambda process: True,
        }
        n_sent = 0
        for process in filter(targets[kind], self.processes()):
            try:
                os.kill(process.pid, how)
            except ProcessLookupError:
                continue
            n_sent += 1
        return n_sent

    def seconds_until_idle(self, seconds: float = 60.0) -> float:
        """How long until none of its processes is left that does anything.

        Ray's two agents stay a minute longer: they have nothing but a message to send, to nobody.
        """
        started = time.monotonic()
        while (left := self._working()) and time.monotonic() - started < seconds:
            time.sleep(LOOK_SECONDS)
        assert not left, left
        return time.monotonic() - started

    def _working(self) -> list[Process]:
        return [process for process in self.processes() if not AGENT.search(process.command)]


def all_processes() -> Iterator[Process]:
    """The living processes of tests."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = dict(
                entry.partition(b"=")[::2] for entry in (folder / "environ").read_bytes().split(b"\0")
            )
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            opened = " ".join(str(link.readlink()) for link in (folder / "fd").iterdir())
        except OSError:  # gone, or another user's
            continue
        if state != "Z" and int(folder.name) != os.getpid():
            mark = environment.get(MARK.encode(), b"").decode()
            yield Process(int(folder.name), command.strip(), mark, frozenset(SESSION.findall(opened)))


def reported_twice(events: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """The epochs, by family, that a journal has as trained more than once."""
    configs = {event["trial_id"]: event["config"] for event in events if event["event"] == "start"}
    trained = Counter(
        (hash_of({**configs[event["trial_id"]], "epochs": None}), int(event["row"]["epoch"]))
        for event in events
        if event["event"] == "epoch" and event["trained"]
    )
    return [epoch for epoch, times in trained.items() if times > 1]


def table_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The final table, without what the clock says."""
    return [
        {name: value for name, value in trial.items() if name not in NOT_COMPARED}
        for trial in summary["trials"]
    ]


GRID = """
method: grid
metric: {name: val_accuracy, goal: maximize}
parameters:
  model: {value: shufflenet_v2_x0_5}
  weights: {value: none}
  image_size: {value: 32}
  batch_size: {value: 4}
  epochs: {values: [4, 8]}
  freeze: {values: [0.5, 0.9]}
  lr: {values: [1.0e-2, 1.0e-3]}
"""
PROBES = """
method: grid
metric: {name: val_accuracy, goal: maximize}
parameters:
  model: {value: resnet18}
  weights: {value: none}
  image_size: {value: 224}
  batch_size: {value: 4}
  epochs: {values: [20, 40]}
  freeze: {value: 1.0}
  lr: {values: [1.0e-2, 1.0e-3]}
"""
BAYES = """
method: bayes
metric: {name: val_accuracy, goal: maximize}
run_cap: 6
parameters:
  model: {value: shufflenet_v2_x0_5}
  weights: {value: none}
  image_size: {value: 32}
  batch_size: {value: 4}
  epochs: {value: 6}
  freeze: {values: [0.5, 0.9]}
  lr: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-1}
"""


def new_search(folder: Path, text: str = GRID, *arguments: str, cache: Path | None = None) -> Search:
    """A small search of a sweep's text on a few coloured images, where nothing was done yet."""
    write_images(folder / "photos")
    (folder / "tiny.yaml").write_text(text)
    fixed = ("--space", "tiny.yaml", "--data", "photos", "--precision", "fp32", "--cpus-per-trial", "1")
    return Search(folder, cache or folder / "cache", (*fixed, *arguments), "tiny-photos")
