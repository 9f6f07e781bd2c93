"""Shares of GPUs: by their type, with CPUs beside them or not, said in the plan, kept to in each process."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benches import config_of, make_bench, reports_of
from tune_inat import workbench
from tune_inat.config import TrialConfig
from tune_inat.devices import Asked, Cluster, Devices, Node
from tune_inat.errors import ResourceError, UserError
from tune_inat.figures import Cuts
from tune_inat.gauge import Gauge, PretendedGauge, heavy_configs
from tune_inat.gpu_lines import gpu_lines
from tune_inat.packing import Card, Measured
from tune_inat.pretended import PRETENDED_VARIABLE, pretended_gpus
from tune_inat.shares import GpuShares, job_at, job_for
from tune_inat.slots import Slots
from tune_inat.store import Store
from tune_inat.tuning import resources_at
from tune_inat.workbench import open_worker_bench

GB = 10**9
SMALL, LARGE, CPU = Node(8, 2, "T4", "small"), Node(16, 1, "A100", "large"), Node(4, 0, "", "plain")
RATES = {1: 100.0, 2: 190.0, 4: 360.0, 8: 700.0}
HEAVY = (config_of(),)


def gauge_of(node: Node) -> Gauge:
    """A T4 with room for two trials, an A100 with room for more than gain."""
    size = 16 * GB if node.card == "T4" else 80 * GB
    return PretendedGauge(Card(node.card, size, size), Measured(5 * GB, GB, RATES))


def cluster_of(*nodes: Node) -> Cluster:
    return Cluster(sum(node.n_cpus for node in nodes), sum(node.n_gpus for node in nodes), nodes)


def shares_of(*nodes: Node, n_trials: int = 100, **asked: Any) -> tuple[GpuShares, Devices]:
    wishes = Asked(**asked)
    shares = GpuShares(cluster_of(*nodes), wishes, gauge_of, HEAVY, n_trials=n_trials)
    return shares, shares.share(wishes, n_trials=n_trials)


def test_gpus_of_one_type_are_shared_alike_wherever_they_are() -> None:
    _, devices = shares_of(SMALL, replace(SMALL, node_id="second"))
    assert (devices.gpus_per_trial, devices.max_concurrent, devices.places) == (0.5, 8, ())
    assert devices.memory_fraction == pytest.approx((0.95 * 16 / 2 - 1) / 16)


def test_larger_gpus_take_more_trials_than_smaller_ones() -> None:
    shares, devices = shares_of(SMALL, LARGE)
    by_kind = {place.kind: place for place in devices.places}
    assert (by_kind["gpu T4"].gpus, by_kind["gpu T4"].n_trials) == (0.5, 4)
    assert (by_kind["gpu A100"].gpus, by_kind["gpu A100"].n_trials) == (0.1250, 8)
    assert devices.max_concurrent == 12
    assert [packing.limit for packing in shares.packings(100)] == ["throughput", "memory"]


def test_few_trials_are_spread_over_all_gpus() -> None:
    for n_trials, share, n_places in ((3, 1.0, 0), (6, 0.5, 0), (7, 0.5, 2)):
        _, devices = shares_of(SMALL, LARGE, n_trials=n_trials)
        assert devices.max_concurrent == n_trials
        if n_places == 0:
            assert (devices.gpus_per_trial, devices.places) == (share, ())
        else:  # the small ones are full: the large one takes one more
            assert sorted(place.gpus for place in devices.places) == [0.3333, 0.5]


def test_cores_beside_gpus_limit_how_many_share_one() -> None:
    shares, devices = shares_of(Node(3, 1, "A100", "few"))
    assert (devices.max_concurrent, devices.cpus_per_trial) == (3, 1)
    assert shares.packings(100)[0].limit == "cores"
    _, devices = shares_of(LARGE, cpus_per_trial=8)
    assert (devices.max_concurrent, devices.gpus_per_trial) == (2, 0.5)


def test_cpus_take_trials_only_if_asked_to() -> None:
    _, without = shares_of(SMALL, CPU)
    assert (without.max_concurrent, without.places) == (4, ())
    shares, devices = shares_of(SMALL, CPU, cpu_trials=True)
    gpu, cpu = devices.places
    assert (gpu.gpus, gpu.n_trials) == (0.5, 4)
    assert (cpu.gpus, cpu.cpus, cpu.n_trials) == (0.0, 4, 1)
    assert devices.max_concurrent == 5
    assert "not quite comparable" in " ".join(shares.notices)


def test_cpus_help_beside_a_share_that_was_asked_for() -> None:
    shares, devices = shares_of(SMALL, CPU, cpu_trials=True, gpus_per_trial=0.25)
    assert [(place.gpus, place.n_trials) for place in devices.places] == [(0.25, 8), (0.0, 1)]
    assert shares.packings(100) == []


@pytest.mark.parametrize(
    ("node", "asked", "said"),
    [(SMALL, {}, "no machines without GPUs"), (CPU, {}, "on CPUs anyway")],
)
def test_cpu_trials_that_change_nothing_say_so(node: Node, asked: dict[str, Any], said: str) -> None:
    shares, devices = shares_of(node, cpu_trials=True, **asked)
    assert said in " ".join(shares.notices)
    assert devices.places == ()


def test_one_trial_for_each_gpu_measures_nothing() -> None:
    def not_asked(node: Node) -> Gauge:
        raise AssertionError("nothing is measured")

    asked = Asked()
    shares = GpuShares(cluster_of(SMALL), asked, not_asked, HEAVY, n_trials=2)
    assert shares.share(asked, n_trials=2).gpus_per_trial == 1.0


def test_gpu_that_cannot_be_measured_is_given_whole_and_that_is_said() -> None:
    def busy(node: Node) -> Gauge:
        raise ResourceError("Somebody has it.")

    asked = Asked()
    shares = GpuShares(cluster_of(SMALL), asked, busy, HEAVY, n_trials=50)
    devices = shares.share(asked, n_trials=50)
    assert (devices.gpus_per_trial, devices.max_concurrent) == (1.0, 2)
    assert shares.notices == [
        "Somebody has it. So each trial gets a whole T4; --gpus-per-trial 0.25, for one, would put four on "
        "each."
    ]


# ---- places


def test_trial_gets_the_first_place_that_is_free_and_gives_it_back() -> None:
    _, devices = shares_of(SMALL, CPU, cpu_trials=True)
    there = [SMALL, CPU]
    slots = Slots(devices.places, lambda: cluster_of(*there))
    taken = [slots.take(str(number)) for number in range(6)]
    assert [place and place["kind"] for place in taken] == [*4 * ["gpu T4"], "cpu", None]
    slots.release("2")
    again = slots.take("6")
    assert again == {"kind": "gpu T4", "cpus": 2, "gpus": 0.5, "nodes": ["small"]}
    slots.release("6")
    there.remove(SMALL)  # its node is lost
    assert slots.take("7") is None
    there.append(replace(SMALL, node_id="new"))  # and replaced: the old one's three trials have not ended
    joined = slots.take("8")
    assert joined is not None
    assert joined["nodes"] == ["new"]


def test_gpu_of_a_type_that_nobody_knew_before_it_came_is_used() -> None:
    there = [replace(SMALL, card="", node_id=""), replace(CPU, node_id="")]  # as they may come on demand
    _, devices = shares_of(*there, cpu_trials=True)
    there[:] = [SMALL, CPU]
    slots = Slots(devices.places, lambda: cluster_of(*there))
    first = slots.take("0")
    assert first is not None
    assert first["gpus"] > 0
    assert first["nodes"] == ["small"]


def test_ray_is_asked_for_the_place_by_its_nodes() -> None:
    place = {"kind": "gpu T4", "cpus": 2, "gpus": 0.5, "nodes": ["a", "b"]}
    gpu, cpu = resources_at({"place": place}), resources_at({"place": {**place, "gpus": 0.0}})
    assert gpu.required_resources == {"CPU": 2, "GPU": 0.5}
    assert cpu.required_resources == {"CPU": 2}
    assert gpu == resources_at({"place": dict(place)})  # so that Tune uses its process again
    assert gpu != resources_at({"place": {**place, "nodes": ["a"]}})


# ---- what a trial's process gets


def test_each_process_is_held_to_its_part_of_the_memory(
    images: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, devices = shares_of(SMALL, LARGE, CPU, cpu_trials=True)
    job = job_for(make_bench(images, store).job, devices, step_bytes=6 * GB)
    capped: list[float] = []
    monkeypatch.setattr(workbench, "_open_device", lambda kind: torch.device(kind, 0))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: capped.append(share)
    )
    for place in devices.places:
        open_worker_bench(job_at(job, place))
    assert capped == [place.memory_fraction for place in devices.places if place.gpus > 0]
    assert len(capped) == 2
    assert job.runs_on == job_at(job, devices.places[-1]).runs_on == "cpu or cuda"  # they share epochs


@pytest.mark.parametrize("place", [0, 1])
def test_a_trial_says_where_it_ran(
    place: int, images: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    bench = make_bench(images, store)
    _, devices = shares_of(SMALL, CPU, cpu_trials=True)
    bench.job = job_at(replace(bench.job, device="cpu"), devices.places[place])
    did = reports_of(bench, config_of(epochs=1))[0].did
    expected = {"gpus": 0.5, "gpu": "3", "memory_fraction": 0.4125} if place == 0 else {}
    assert {name: did[name] for name in ("gpus", "gpu", "memory_fraction") if name in did} == expected


# ---- which trials are measured


def heavy_of(bench: Any, configs: Sequence[TrialConfig]) -> list[tuple[Any, int, str]]:
    found = heavy_configs(configs, Cuts(bench), n_images=24)
    return [(config.freeze, config.batch_size, config.optimizer) for config in found]


def test_only_trials_that_none_exceeds_are_measured(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    configs = [
        config_of(freeze=freeze, batch_size=size, optimizer="sgd")
        for freeze, size in ((0.0, 4), (1.0, 16), (1.0, 8), ("layer3", 8), ("layer3", 4))
    ]
    assert sorted(heavy_of(bench, configs), key=lambda each: each[1]) == [
        (0.0, 4, "sgd"),
        ("layer3", 8, "sgd"),
        (1.0, 16, "sgd"),
    ]
    mixed = [config_of(batch_size=64, optimizer="sgd"), config_of(batch_size=4, optimizer="adamw")]
    assert heavy_of(bench, mixed) == [(config_of().freeze, 24, "adam")]


# ---- the plan, and pretended GPUs


def test_the_plan_says_the_share_and_why() -> None:
    shares, devices = shares_of(SMALL, CPU, cpu_trials=True)
    packings = [packing.to_json() for packing in shares.packings(100)]
    assert json.loads(json.dumps(packings)) == packings
    lines = gpu_lines({"packings": packings, "devices": {"places": [vars(p) for p in devices.places]}})
    assert lines[0] == (
        "2 x T4, 16.0 GB: 2 trials on each, at most 6.6 GB of tensors in each. Its memory holds no more. "
        "Measured: the heaviest step takes 5.0 GB and a process 1.0 GB, so 2 would fit; images/s: "
        "1 at a time 100, 2 at a time 190."
    )
    assert lines[1] == "Nodes without GPUs: 1 trial, each on 4 CPU cores."
    assert "--gpus-per-trial" in lines[2]


def test_pretended_gpus_are_told_by_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretended_gpus() == {}
    monkeypatch.setenv(PRETENDED_VARIABLE, '{"T4": {"n": 2, "gb": 16}}')
    assert pretended_gpus()["T4"].n == 2
    for wrong, why in (
        ("-2", "-2 stands where a mapping"),
        ('{"T4": {"gb": 0}}', '"T4": "gb": 0 is not above 0'),
        ("T4", '"T4" is no JSON'),
        ('{"T4": {"size": 3}}', '"T4": "size": 3: Extra inputs'),
    ):
        monkeypatch.setenv(PRETENDED_VARIABLE, wrong)
        with pytest.raises(UserError, match=f"{PRETENDED_VARIABLE}: {why}.* It describes GPUs by their type"):
            pretended_gpus()
