"""Runs the package's commands as a user does, each in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
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


def run(
    module: str,
    *arguments: str | Path,
    cwd: Path,
    cache: Path,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Ran:
    """Run `python -m tune_inat.MODULE` in a folder, with a cache of its own and no W&B key but one given."""
    return run_python("-m", f"tune_inat.{module}", *arguments, cwd=cwd, cache=cache, environment=environment)


def run_python(
    *arguments: str | Path, cwd: Path, cache: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> Ran:
    """Run Python in a folder, with a cache of its own and no W&B key but a given one."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**inherited, **environment, "TUNE_INAT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return Ran(process.returncode, process.stdout, process.stderr)
