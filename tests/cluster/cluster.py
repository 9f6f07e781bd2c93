"""A Ray cluster on the test bed: `ray up` has made it of three machines, and searches run on it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.cluster.testbed import REPOSITORY, Node, TestBed, test_bed

UP_SECONDS = 240.0
CLIENT = {"RAY_UP_enable_autoscaler_v2": "0", "RAY_USAGE_STATS_ENABLED": "0"}
ARGUMENTS = "--precision fp32 --gpus-per-trial 0 --cpus-per-trial 1"
START = "ray start --object-store-memory=200000000"


@dataclass(frozen=True)
class Search:
    """A search that runs on a node, in the shared folder."""

    process: "subprocess.Popen[str]"
    folder: Path

    def events(self) -> list[dict[str, Any]]:
        """The whole lines of its journal."""
        path = self.folder / "trials.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def await_that(self, holds: Callable[[list[dict[str, Any]]], bool], seconds: float = 300) -> None:
        """Wait until its journal is as asked for."""
        deadline = time.monotonic() + seconds
        while not holds(self.events()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, self.events()
            time.sleep(0.1)

    def ran(self, seconds: float = 400) -> CompletedProcess[str]:
        """What came of it, once it has ended."""
        out, err = self.process.communicate(timeout=seconds)
        return CompletedProcess(self.process.args, self.process.returncode, out, err)

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary."""
        read: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return read


@dataclass(frozen=True)
class Cluster:
    """Three machines on which Ray is up: a head that takes no trials, and two workers with a core each."""

    bed: TestBed

    def on(self, node: str, command: str, *, timeout: float = 300) -> CompletedProcess[str]:
        """Run a shell command in a node's home, as `ray exec` does."""
        return self.bed.nodes[node].run("bash", "-c", f". ~/.bashrc; {command}", timeout=timeout)

    def search(self, arguments: str, *, node: str = "head", timeout: float = 300) -> CompletedProcess[str]:
        """Run a search from a node to its end."""
        command = f"{sys.executable} -m tune_inat.search {ARGUMENTS} --wandb disabled {arguments}"
        return self.on(node, command, timeout=timeout)

    def start_search(self, arguments: str, folder: Path, *, node: str = "head") -> Search:
        """Start a search from a node; `folder` is where it will have its results."""
        command = f"{sys.executable} -m tune_inat.search {ARGUMENTS} --wandb disabled {arguments}"
        words = self.bed.nodes[node].command("bash", "-c", f". ~/.bashrc; exec {command}")
        pipe = subprocess.PIPE
        return Search(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True), folder)

    def n_nodes(self, node: str = "head") -> int:
        """How many nodes are alive."""
        listed = (
            "import ray; ray.init('auto', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        )
        done = self.on(node, f'{sys.executable} -c "{listed}"')
        return int(done.stdout.split()[-1]) if done.returncode == 0 else 0

    def await_nodes(self, n: int, node: str = "head") -> None:
        """Wait until so many nodes are alive."""
        started = time.monotonic()
        while self.n_nodes(node) != n:
            assert time.monotonic() < started + UP_SECONDS, f"there are not {n} nodes"

    def start_ray(self, node: str, head: str) -> None:
        """Have a machine join the cluster of a head, or begin one, as a worker of one core."""
        joins = "--head --port=6379" if node == head else f"--address={self.bed.nodes[head].address}:6379"
        done = self.on(node, f"ray stop --force; {START} --num-cpus=1 {joins}")
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self, node: str, pattern: str) -> list[str]:
        """The ids, on a node, of the processes whose command has a pattern."""
        return self.bed.nodes[node].run("pgrep", "-f", pattern).stdout.split()

    def kill_raylet(self, node: str) -> None:
        """End what Ray runs on a machine, without a word."""
        self.bed.nodes[node].run("kill", "-9", *self.processes(node, "raylet/raylet"))


@contextmanager
def ray_cluster(folder: Path) -> Iterator[Cluster]:
    """Machines, and Ray on them by `ray up`; all of it is gone at the end."""
    with test_bed(folder, workers=2) as bed:
        laptop, head = bed.nodes["laptop"], bed.nodes["head"]
        write_settings(laptop, bed)
        token = laptop.run("ray", "get-auth-token", "--generate")
        assert token.returncode == 0, token.stderr
        up = laptop.run("ray", "up", "-y", "--no-config-cache", "bed.yaml", timeout=UP_SECONDS, **CLIENT)
        assert up.returncode == 0, up.stdout + up.stderr
        cluster = Cluster(bed)
        assert head.folder.exists()
        cluster.await_nodes(3)
        yield cluster


def write_settings(laptop: Node, bed: TestBed) -> None:
    """Put the cluster's file on the laptop."""
    workers = [node.address for name, node in bed.nodes.items() if name.startswith("worker")]
    text = (Path(__file__).parent / "local.yaml").read_text()
    for name, value in {
        "HEAD": bed.nodes["head"].address,
        "WORKERS": ", ".join(workers),
        "BIN": str(Path(sys.executable).parent),
        "REPOSITORY": str(REPOSITORY),
    }.items():
        text = text.replace(f"@{name}@", value)
    (laptop.folder / "root" / "bed.yaml").write_text(text)


def summary_in(folder: Path) -> dict[str, Any]:
    """The summary of a search in its folder."""
    read: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return read
