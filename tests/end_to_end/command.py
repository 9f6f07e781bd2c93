"""Runs the package's commands as a user does, each in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed on stdout."""
        return json.loads(self.out)


def run(module: str, *arguments: str | Path, cwd: Path, cache: Path) -> Ran:
    """Run `python -m tune_inat.MODULE` in a folder, with a cache of its own and no W&B key."""
    return run_python("-m", f"tune_inat.{module}", *arguments, cwd=cwd, cache=cache)


def run_python(*arguments: str | Path, cwd: Path, cache: Path) -> Ran:
    """Run Python in a folder, with a cache of its own and no W&B key."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**environment, "TUNE_INAT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return Ran(process.returncode, process.stdout, process.stderr)
