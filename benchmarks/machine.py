"""What the comparison ran on: machine, date, versions and commit."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Machine:
    """Where and when, and with which versions. `commit` says so if the tree differs from it."""

    cpu: str
    n_cores: int
    memory_gb: float
    date: str
    python: str
    torch: str
    ray: str
    commit: str

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.n_cores} cores, {self.memory_gb:.0f} GB; {self.date}\n"
            f"Python {self.python}, torch {self.torch}, ray {self.ray}, tune_inat {self.commit}"
        )


def describe_machine() -> Machine:
    """This machine, now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=_cpu_model(),
        n_cores=len(os.sched_getaffinity(0)),
        memory_gb=memory / 2**30,
        date=datetime.now().astimezone().isoformat(timespec="minutes"),
        python=platform.python_version(),
        torch=version("torch"),
        ray=version("ray"),
        commit=_commit(),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()  # not all architectures name theirs


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return f"{commit} with changes" if _git("status", "--porcelain", "tune_inat") else commit
    except (OSError, subprocess.CalledProcessError):
        return "of an unknown commit"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return done.stdout.strip()
