"""A search on three machines that `ray up` has made a cluster of: the same command, the same numbers.

Machines are lost in the middle. `TUNE_INAT_LOSSES=1` also cuts a link, which Ray takes a minute to
notice, and has a machine take the place of a lost one.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.benches import write_images
from tests.cluster.cluster import Cluster, Search, ray_cluster, summary_in
from tests.cluster.testbed import why_not
from tests.faults.processes import probes, reported_twice
from tests.slow import slow
from tune_inat.watcher import LOST_MACHINE

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(why_not() is not None, reason=f"no test bed: {why_not()}"),
]
all_losses = pytest.mark.skipif(
    "TUNE_INAT_LOSSES" not in os.environ, reason="set TUNE_INAT_LOSSES=1: 3 minutes"
)

S3_PORT = 5555
SPACE = "method: grid\nparameters:\n  freeze: {values: [0.9, 1.0]}\n  epochs: {values: [1, 2]}\n"
FEATURES = ".cache/tune_inat/features/*/entry.json"
SMALL = "--address auto --space small.yaml --image-size 32"
PROBES = probes(80)
N_EPOCHS = 160  # that it trains
S3_PORT = 5555


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ray_cluster(tmp_path_factory.mktemp("bed")) as cluster:
        (cluster.bed.nodes["head"].folder / "root" / "small.yaml").write_text(SPACE)
        (cluster.bed.shared / "probes.yaml").write_text(PROBES)
        write_images(cluster.bed.shared / "photos")
        yield cluster


def probing(cluster: Cluster, storage: str) -> str:
    """The arguments of the search that loses machines: that is no failure of its trials."""
    shared = cluster.bed.shared
    return (
        f"--space {shared}/probes.yaml --data {shared}/photos --storage {shared}/{storage} --max-failures 0"
    )


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> dict[str, Any]:
    """What comes of it on one machine that nothing happens to."""
    alone = cluster.search(probing(cluster, "undisturbed"))
    assert alone.returncode == 0, alone.stderr
    return summary_in(cluster.bed.shared / "undisturbed" / "probes-photos")


def start(cluster: Cluster, storage: str, *, node: str = "head") -> Search:
    folder = cluster.bed.shared / storage / "probes-photos"
    return cluster.start_search(f"--address auto {probing(cluster, storage)}", folder, node=node)


def has_trained(n: int, worker: str) -> Callable[[list[dict[str, Any]]], bool]:
    """Whether a machine has trained so many epochs."""

    def holds(events: list[dict[str, Any]]) -> bool:
        return len([event for event in events if event["event"] == "epoch" and is_on(worker, event)]) >= n

    return holds


def is_on(worker: str, event: dict[str, Any]) -> bool:
    return str(event["worker"]).split(" ")[0] == worker


def numbers(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for name, value in trial.items()
            if name.startswith("val_") or name in ("trial_id", "status", "epochs", "best_epoch", "config")
        }
        for trial in summary["trials"]
    ]


def assert_undisturbed(search: Search, undisturbed: dict[str, Any]) -> None:
    """It ended as if nothing had happened, and nothing that was reported was trained again."""
    ran = search.ran()
    assert ran.returncode == 0, ran.stderr
    assert numbers(search.summary) == numbers(undisturbed)
    assert search.summary["best"]["test_accuracy"] == undisturbed["best"]["test_accuracy"]
    assert reported_twice(search.events()) == []
    # An epoch that was written and not yet reported is taken over from the share.
    trained = sum(event["event"] == "epoch" and event["trained"] for event in search.events())
    assert N_EPOCHS - 4 <= trained <= N_EPOCHS


def test_storage_that_only_the_head_sees_is_refused_before_anything_runs(cluster: Cluster) -> None:
    ran = cluster.search(f"{SMALL} --storage runs")
    assert ran.returncode == 2, ran.stderr
    assert "10.79.0.12, 10.79.0.13 of the cluster do not see" in ran.stderr.replace("\n", " ")
    assert "share" in ran.stderr
    assert not list((cluster.bed.nodes["head"].folder / "root" / "runs").glob("*/trials.jsonl"))


def test_search_on_all_nodes_has_the_numbers_of_a_search_on_one(cluster: Cluster) -> None:
    shared = cluster.bed.shared
    ran = cluster.search(f"{SMALL} --storage {shared}/runs")
    assert ran.returncode == 0, ran.stderr
    summary = summary_in(shared / "runs" / "small-sample")
    assert summary["reuse"]["epochs_trained"] == 4  # of 6: what one node has trained, the other takes over
    journal = (shared / "runs" / "small-sample" / "trials.jsonl").read_text()
    assert "worker1" in journal
    assert "worker2" in journal
    assert not list((cluster.bed.nodes["head"].folder / "root").glob(FEATURES))  # it takes no trials
    alone = cluster.search("--space small.yaml --image-size 32 --storage alone")
    assert alone.returncode == 0, alone.stderr
    expected = summary_in(cluster.bed.nodes["head"].folder / "root" / "alone" / "small-sample")
    assert numbers(summary) == numbers(expected)
    assert summary["best"]["test_accuracy"] == expected["best"]["test_accuracy"]
    assert_work_was_shared_out(cluster, summary, expected)
    assert list((shared / "runs" / ".states").glob("*/epochs.json"))


def assert_work_was_shared_out(cluster: Cluster, summary: dict[str, Any], alone: dict[str, Any]) -> None:
    """Each image went through frozen layers once in the whole cluster, and each epoch says where it ran."""
    assert summary["reuse"]["prefix_images"] == alone["reuse"]["prefix_images"] > 0
    # Nodes decode those that each of them computes; the head all, to look at them, unless a test before did.
    n_images = summary["reuse"]["prefix_images"] // 2
    assert summary["reuse"]["pixels_decoded"] in (n_images, 2 * n_images)
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
    ran = cluster.search(f"{SMALL} --storage {cluster.bed.shared}/runs")
    assert ran.returncode == 0, ran.stderr
    assert summary_in(cluster.bed.shared / "runs" / "small-sample")["reuse"]["epochs_trained"] == 0


@pytest.fixture(scope="module")
def bucket(cluster: Cluster) -> Iterator[str]:
    """An S3 server on the head, with the bucket `runs`; the options of a URI by which all nodes reach it."""
    head = cluster.bed.nodes["head"]
    server = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(S3_PORT)]
    process = subprocess.Popen(
        head.command(*server), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        started = time.monotonic()
        while in_bucket(cluster, "client.create_bucket(Bucket='runs')").returncode != 0:
            assert time.monotonic() < started + 60, "the server did not start"
        yield f"endpoint_override={head.address}:{S3_PORT}&scheme=http&region=us-east-1"
    finally:
        process.kill()
        process.wait()


def in_bucket(cluster: Cluster, statement: str) -> CompletedProcess[str]:
    """Ask the S3 server of the head."""
    made = (
        f"import boto3; client = boto3.client('s3', endpoint_url='http://127.0.0.1:{S3_PORT}', "
        "region_name='us-east-1', aws_access_key_id='key', aws_secret_access_key='secret')"
    )
    return cluster.on("head", f'{sys.executable} -c "{made}; {statement}"')


def summary_in_bucket(cluster: Cluster) -> dict[str, Any]:
    key = "small-sample/summary.json"
    read = in_bucket(cluster, f"print(client.get_object(Bucket='runs', Key='{key}')['Body'].read().decode())")
    summary: dict[str, Any] = json.loads(read.stdout)
    return summary


@slow
def test_bucket_that_some_nodes_do_not_reach_is_refused(cluster: Cluster, bucket: str) -> None:
    here = f"endpoint_override=127.0.0.1:{S3_PORT}&scheme=http&region=us-east-1"
    ran = cluster.search(f"{SMALL} --storage 's3://key:secret@runs?{here}'")
    assert ran.returncode == 2, ran.stderr
    for address in ("10.79.0.12", "10.79.0.13"):
        assert f"on node {address}: s3://runs" in ran.stderr
    assert "secret" not in ran.stderr


@slow
def test_search_in_a_bucket_has_the_same_numbers_and_outlives_the_disk_of_its_head(
    cluster: Cluster, bucket: str
) -> None:
    command = f"{SMALL} --storage 's3://key:secret@runs?{bucket}'"
    ran = cluster.search(command)
    assert ran.returncode == 0, ran.stderr
    summary = summary_in_bucket(cluster)
    assert summary["reuse"]["epochs_trained"] == 4  # of 6: what one node has trained, the other takes over
    assert numbers(summary) == numbers(summary_in(cluster.bed.shared / "runs" / "small-sample"))
    assert cluster.on("head", "rm -r ~/.cache/tune_inat").returncode == 0
    again = cluster.search(command)
    assert again.returncode == 0, again.stderr
    assert summary_in_bucket(cluster)["reuse"]["epochs_trained"] == 0
    assert numbers(summary_in_bucket(cluster)) == numbers(summary)


@all_losses
def test_trial_of_a_machine_whose_link_is_cut_is_trained_elsewhere_though_that_machine_goes_on_writing(
    cluster: Cluster, undisturbed: dict[str, Any]
) -> None:
    search = start(cluster, "cut")
    search.await_that(has_trained(5, "worker1"))
    cluster.bed.nodes["worker1"].cut_off()
    try:
        assert_undisturbed(search, undisturbed)
        assert [e["reason"] for e in search.events() if e["event"] == "failure"] == [LOST_MACHINE]
    finally:
        cluster.bed.nodes["worker1"].plug_in()
        cluster.start_ray("worker1", "head")
        cluster.await_nodes(3)


@all_losses
def test_machine_that_takes_the_place_of_a_lost_one_is_given_trials(cluster: Cluster) -> None:
    shared = cluster.bed.shared
    (shared / "long.yaml").write_text(probes(1200))
    arguments = f"--space {shared}/long.yaml --data {shared}/photos --max-failures 0"
    alone = cluster.search(f"{arguments} --storage {shared}/unreplaced")
    assert alone.returncode == 0, alone.stderr
    folder = shared / "replaced" / "long-photos"
    search = cluster.start_search(f"--address auto {arguments} --storage {shared}/replaced", folder)
    search.await_that(has_trained(5, "worker1"))
    cluster.kill_raylet("worker1")
    search.await_that(lambda events: any(event["event"] == "failure" for event in events))
    n_before = len(search.events())
    cluster.start_ray("worker1", "head")
    search.await_that(lambda events: has_trained(1, "worker1")(events[n_before:]))
    ran = search.ran()
    assert ran.returncode == 0, ran.stderr
    assert numbers(search.summary) == numbers(summary_in(shared / "unreplaced" / "long-photos"))
    assert reported_twice(search.events()) == []


@slow
def test_worker_that_is_lost_costs_at_most_the_epochs_in_flight(
    cluster: Cluster, undisturbed: dict[str, Any]
) -> None:
    search = start(cluster, "lost")
    search.await_that(has_trained(5, "worker1"))
    cluster.kill_raylet("worker1")
    assert_undisturbed(search, undisturbed)
    assert [event["reason"] for event in search.events() if event["event"] == "failure"] == [LOST_MACHINE]


@slow
def test_head_is_lost_and_the_same_command_goes_on_on_another_cluster(
    cluster: Cluster, undisturbed: dict[str, Any]
) -> None:
    search = start(cluster, "headless")
    search.await_that(has_trained(5, "worker2"))
    cluster.bed.nodes["head"].power_off()
    search.process.wait(60)
    cluster.start_ray("worker2", "worker2")
    assert_undisturbed(start(cluster, "headless", node="worker2"), undisturbed)
