"""A search that runs as a user's does, while a test does to its processes what machines do."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.end_to_end.command import TIMEOUT_SECONDS, Ran
from tune_inat.ledger import LEDGER_FILE

START = "from tune_inat.errors import run_command; from tune_inat.search import app; run_command(app)"


@dataclass
class Seen:
    """A trial as its search's journal has it so far."""

    config: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the latest try
    n_starts: int = 0
    pid: int = 0  # of the process that reported last
    status: str | None = None


class RunningSearch:
    """A search in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self._folder = folder

    def trials(self) -> dict[str, Seen]:
        """What the journal says by now; a line that is being written counts as none."""
        seen: dict[str, Seen] = {}
        path = self._folder / LEDGER_FILE
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                event = json.loads(line)
            except ValueError:
                break
            match event["event"]:
                case "start":
                    trial = seen.setdefault(event["trial_id"], Seen(event["config"]))
                    trial.rows, trial.n_starts, trial.status = [], trial.n_starts + 1, None
                case "epoch":
                    seen[event["trial_id"]].rows.append(event["row"])
                    seen[event["trial_id"]].pid = int(event["worker"].split()[-1])
                case "end":
                    seen[event["trial_id"]].status = event["status"]
        return seen

    def wait_for(self, is_it: Callable[[Seen], bool]) -> tuple[str, Seen]:
        """The first trial that is as asked for, as soon as there is one."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            for trial_id, trial in self.trials().items():
                if is_it(trial):
                    return trial_id, trial
            time.sleep(0.02)
        raise AssertionError(f"no trial was as asked for: {self.trials()}")

    def in_epoch(self, n_done: int, **params: Any) -> tuple[str, Seen]:
        """A trial with these parameters that has done so many epochs and is in the next one."""

        def is_it(trial: Seen) -> bool:
            is_meant = all(trial.config[name] == value for name, value in params.items())
            return is_meant and len(trial.rows) >= n_done and trial.status is None

        return self.wait_for(is_it)

    def signal(self, trial: Seen, number: signal.Signals) -> None:
        """Send the process of a trial a signal."""
        os.kill(trial.pid, number)

    def ran(self) -> Ran:
        """What came of it, once it has ended."""
        out, err = self._process.communicate(timeout=TIMEOUT_SECONDS)
        return Ran(self._process.returncode, out, err)


@contextmanager
def running_search(
    *arguments: str | Path,
    cwd: Path,
    cache: Path,
    name: str,
    before: str = "",
    python_path: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningSearch]:
    """Start a search of this name in a folder.

    Args:
        before: Python that the command's process does first.
        python_path: a folder to find modules in, for all processes of the search.
        environment: more variables of theirs.
    """
    known = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    known |= {"TUNE_INAT_CACHE": str(cache), **(environment or {})}
    if python_path is not None:
        paths = [str(python_path), *filter(None, [known.get("PYTHONPATH")])]
        known["PYTHONPATH"] = os.pathsep.join(paths)
    process = subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{START}", *map(str, arguments), "--name", name],
        cwd=cwd,
        env=known,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield RunningSearch(process, cwd / "runs" / name)
    finally:
        process.kill()  # has ended, unless the test failed
        process.wait()


def parse_strictly(text: str) -> Any:
    """JSON as every parser takes it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)
