"""Searches on GPUs that are pretended: Ray hands them out as it does real ones, trials compute on the CPU."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.end_to_end.command import run, run_python
from tune_inat.pretended import PRETENDED_VARIABLE

pytestmark = pytest.mark.end_to_end

SWEEP = """
method: grid
metric: {name: val_accuracy, goal: maximize}
parameters:
  freeze: {value: 1.0}
  epochs: {value: 1}
  batch_size: {values: [32, 64]}
  lr: {values: [0.001, 0.002, 0.003]}
  image_size: {value: 32}
"""
ONE = {"": {"n": 1, "gb": 16, "step_gb": 3, "images_per_second": {"1": 100, "2": 190, "4": 195}}}
TWO_TYPES = {
    "T4": {"gb": 16, "step_gb": 8, "images_per_second": {"1": 100, "2": 190}},
    "A100": {"gb": 40, "step_gb": 8, "images_per_second": {"1": 300, "2": 570}},
}
STORE_BYTES = 80 * 2**20


def pretend(gpus: dict[str, Any]) -> dict[str, str]:
    return {PRETENDED_VARIABLE: json.dumps(gpus), "RAY_USAGE_STATS_ENABLED": "0"}


def dids(summary: dict[str, Any]) -> list[dict[str, Any]]:
    assert {trial["status"] for trial in summary["trials"]} == {"TERMINATED"}
    return [trial["did"] for trial in summary["trials"]]


def test_trials_share_a_gpu_as_the_plan_says(tmp_path: Path, own_cache: Path) -> None:
    sweep = tmp_path / "small.yaml"
    sweep.write_text(SWEEP)
    command = (
        "search",
        "--space",
        sweep,
        "--precision",
        "fp32",
        "--cpus-per-trial",
        "1",
        "--wandb",
        "disabled",
    )
    environment = pretend(ONE)
    dry = run(*command, "--dry-run", cwd=tmp_path, cache=own_cache, environment=environment)
    assert dry.code == 0, dry.err
    said = " ".join(dry.out.split())
    for words in (
        "1 x pretended, 16.0 GB: 2 trials on each",
        "heaviest step takes 3.0 GB",
        "--gpus-per-trial",
    ):
        assert words in said
    assert "2 trials at a time with 0.5 of a GPU" in said
    assert "trials run on the CPU" in " ".join(dry.err.split())

    ran = run(*command, "--json", cwd=tmp_path, cache=own_cache, environment=environment)
    assert ran.code == 0, ran.err
    (packing,) = ran.json()["planned"]["plan"]["packings"]
    assert (packing["per_gpu"], packing["share"]) == (2, 0.5)
    found = {(did["gpus"], did["gpu"], did["memory_fraction"]) for did in dids(ran.json())}
    assert found == {(0.5, "0", round(packing["memory_fraction"], 4))}


@pytest.fixture
def cluster(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without cores, a node with a small GPU, one with a larger GPU, and one with neither."""
    for name, value in pretend(TWO_TYPES).items():
        monkeypatch.setenv(name, value)
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, num_gpus=0, object_store_memory=STORE_BYTES)
        for card, n_cpus in (("T4", 2), ("A100", 2), ("", 1)):
            resources = {f"accelerator_type:{card}": 1} if card else {}
            cluster.add_node(
                num_cpus=n_cpus, num_gpus=len(resources), resources=resources, object_store_memory=STORE_BYTES
            )
        yield cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


MEASURE = """
import sys
from pathlib import Path
import ray
from tests.benches import config_of, make_bench, write_images
from tune_inat.cluster import cluster_of
from tune_inat.gauges import processes_on
from tune_inat.store import Store

ray.init(sys.argv[1], log_to_driver=False)
bench = make_bench(write_images(Path("images")), Store(Path("cache")))
(node,) = [node for node in cluster_of(ray.nodes()).machines if node.card == "A100"]
with processes_on(node, bench.job, device="cpu") as processes:
    print(processes.card().n_bytes > 0, processes.rate(config_of(freeze=1.0), 1)["rate"] > 0)
"""


def test_nodes_take_trials_by_what_they_have(cluster: Cluster, tmp_path: Path, own_cache: Path) -> None:
    sweep = tmp_path / "small.yaml"
    sweep.write_text(SWEEP)
    asked = ("--address", cluster.address, "--cpu-trials", "--cpus-per-trial", "1", "--precision", "fp32")
    environment = pretend(TWO_TYPES)
    command = ("search", "--space", sweep, *asked, "--wandb", "disabled", "--json")
    ran = run(*command, cwd=tmp_path, cache=own_cache, environment=environment)
    assert ran.code == 0, ran.err
    summary = ran.json()
    devices = summary["planned"]["plan"]["devices"]
    places = {place["kind"]: (place["gpus"], place["n_trials"]) for place in devices["places"]}
    assert places == {"gpu T4": (1.0, 1), "gpu A100": (0.5, 2), "cpu": (0.0, 1)}
    assert devices["max_concurrent"] == 4
    ran_on = [(did.get("gpus"), "memory_fraction" in did) for did in dids(summary)]
    assert len(ran_on) == 6
    assert set(ran_on) == {(1.0, False), (0.5, True), (None, False)}
    assert ran_on.count((0.5, True)) >= 2

    inherited = os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), inherited]))
    measured = run_python(
        "-c", MEASURE, cluster.address, cwd=tmp_path, cache=own_cache, environment={"PYTHONPATH": paths}
    )
    assert measured.out.split() == ["True", "True"], measured.err
