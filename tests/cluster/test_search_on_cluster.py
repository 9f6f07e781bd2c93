"""A search on three machines that `ray up` has made a cluster of: the same command, the same numbers."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.cluster.testbed import REPOSITORY, TestBed, test_bed, why_not

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(why_not() is not None, reason=f"no test bed: {why_not()}"),
]

UP_SECONDS = 240.0
CLIENT = {"RAY_UP_enable_autoscaler_v2": "0", "RAY_USAGE_STATS_ENABLED": "0"}
SPACE = "method: grid\nparameters:\n  freeze: {values: [0.9, 1.0]}\n  epochs: {values: [1, 2]}\n"
FEATURES = ".cache/tune_inat/features/*/entry.json"
ARGUMENTS = "--space small.yaml --image-size 32 --precision fp32 --cpus-per-trial 1 --wandb disabled"


@dataclass(frozen=True)
class Cluster:
    """Three machines on which Ray is up: a head that takes no trials, and two workers with a core each."""

    bed: TestBed

    def on_head(self, command: str, *, timeout: float = 300) -> CompletedProcess[str]:
        """Run a shell command in the head's home, as `ray exec` does."""
        return self.bed.nodes["head"].run("bash", "-c", f". ~/.bashrc; {command}", timeout=timeout)

    def search(self, arguments: str, *, timeout: float = 300) -> CompletedProcess[str]:
        """Run a search from the head."""
        command = f"{sys.executable} -m tune_inat.search {ARGUMENTS} {arguments}"
        return self.on_head(command, timeout=timeout)

    def n_nodes(self) -> int:
        """How many nodes are alive."""
        listed = (
            "import ray; ray.init('auto', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        )
        done = self.on_head(f'{sys.executable} -c "{listed}"')
        return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with test_bed(tmp_path_factory.mktemp("bed"), workers=2) as bed:
        laptop, head = bed.nodes["laptop"], bed.nodes["head"]
        workers = [node.address for name, node in bed.nodes.items() if name.startswith("worker")]
        text = (Path(__file__).parent / "local.yaml").read_text()
        for name, value in {
            "HEAD": head.address,
            "WORKERS": ", ".join(workers),
            "BIN": str(Path(sys.executable).parent),
            "REPOSITORY": str(REPOSITORY),
        }.items():
            text = text.replace(f"@{name}@", value)
        (laptop.folder / "root" / "bed.yaml").write_text(text)
        (head.folder / "root" / "small.yaml").write_text(SPACE)
        token = laptop.run("ray", "get-auth-token", "--generate")
        assert token.returncode == 0, token.stderr
        up = laptop.run("ray", "up", "-y", "--no-config-cache", "bed.yaml", timeout=UP_SECONDS, **CLIENT)
        assert up.returncode == 0, up.stdout + up.stderr
        started, cluster = time.monotonic(), Cluster(bed)
        while cluster.n_nodes() < 3:
            assert time.monotonic() < started + UP_SECONDS, "the workers did not join"
        yield cluster


def summary_in(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return read


def numbers(summary: dict[str, Any]) -> list[tuple[Any, ...]]:
    names = ("trial_id", "epochs", "val_accuracy", "val_loss", "best_epoch")
    return [tuple(trial[name] for name in names) for trial in summary["trials"]]


def test_storage_that_only_the_head_sees_is_refused_before_anything_runs(cluster: Cluster) -> None:
    ran = cluster.search("--address auto --storage runs")
    assert ran.returncode == 2, ran.stderr
    assert "10.79.0.12, 10.79.0.13 of the cluster do not see" in ran.stderr.replace("\n", " ")
    assert "share" in ran.stderr
    assert not list((cluster.bed.nodes["head"].folder / "root" / "runs").glob("*/trials.jsonl"))


def test_search_on_all_nodes_has_the_numbers_of_a_search_on_one(cluster: Cluster) -> None:
    shared = cluster.bed.shared
    ran = cluster.search(f"--address auto --storage {shared}/runs")
    assert ran.returncode == 0, ran.stderr
    summary = summary_in(shared / "runs" / "small-sample")
    assert summary["reuse"]["epochs_trained"] == 4  # of 6: what one node has trained, the other takes over
    journal = (shared / "runs" / "small-sample" / "trials.jsonl").read_text()
    workers = {json.loads(line).get("worker", "").split(" ")[0] for line in journal.splitlines()} - {""}
    assert workers == {"worker1", "worker2"}
    assert not list((cluster.bed.nodes["head"].folder / "root").glob(FEATURES))  # it takes no trials
    alone = cluster.search("--storage alone")
    assert alone.returncode == 0, alone.stderr
    expected = summary_in(cluster.bed.nodes["head"].folder / "root" / "alone" / "small-sample")
    assert numbers(summary) == numbers(expected)
    assert summary["best"]["test_accuracy"] == expected["best"]["test_accuracy"]
    assert_work_was_shared_out(cluster, summary, expected)
    assert list((shared / "runs" / ".states").glob("*/epochs.json"))


def assert_work_was_shared_out(cluster: Cluster, summary: dict[str, Any], alone: dict[str, Any]) -> None:
    """Each image went through frozen layers once in the whole cluster, and each epoch says where it ran."""
    assert summary["reuse"]["prefix_images"] == alone["reuse"]["prefix_images"] > 0
    # The head has decoded all to look at them, in the search before; nodes those that each of them computes.
    assert summary["reuse"]["pixels_decoded"] == summary["reuse"]["prefix_images"] // 2
    roots = {name: cluster.bed.nodes[name].folder / "root" for name in ("head", "worker1", "worker2")}
    keys = {name: {it.parent.name for it in root.glob(FEATURES)} for name, root in roots.items()}
    assert keys["worker1"] == keys["worker2"]
    assert len(keys["worker1"]) == 2  # cuts
    for key in keys["worker1"]:
        arrays = {
            (root / ".cache/tune_inat/features" / key / "features.npy").read_bytes()
            for root in roots.values()
        }
        assert len(arrays) == 1  # as the head has it, which was alone in the second search
    ran_on = {where for trial in summary["trials"] for where, _ in trial["did"]["ran_on"]}
    assert ran_on == {"worker1 cpu", "worker2 cpu"}
    for trial in summary["trials"]:
        assert sum(n for _, n in trial["did"]["ran_on"]) == trial["epochs"]


def test_same_command_again_trains_nothing(cluster: Cluster) -> None:
    ran = cluster.search(f"--address auto --storage {cluster.bed.shared}/runs")
    assert ran.returncode == 0, ran.stderr
    assert summary_in(cluster.bed.shared / "runs" / "small-sample")["reuse"]["epochs_trained"] == 0
