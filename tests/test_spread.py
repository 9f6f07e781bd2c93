"""Frozen layers on several nodes: each image once in the cluster, the same bits on each, whoever is lost."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tests.benches import config_of, make_bench, write_images
from tests.slow import slow
from tune_inat.arrivals import NoMachineError, await_demanded, await_members
from tune_inat.config import TrialConfig
from tune_inat.cuts import KeptCuts
from tune_inat.devices import Devices
from tune_inat.errors import EXIT_FAILED
from tune_inat.features import CutFeatures, has_features, open_features
from tune_inat.graph import INPUT
from tune_inat.handout import Rates
from tune_inat.job import Job
from tune_inat.meter import Advance, SilentMeter
from tune_inat.neighbours import WEIGHTS_KIND, Neighbours, hand_out_weights
from tune_inat.places import Caches, this_host
from tune_inat.prefixes import find_passes
from tune_inat.spread import Spread, spread
from tune_inat.store import CACHE_VARIABLE, Store
from tune_inat.workbench import Work, Workbench, open_worker_bench

LONG_SECONDS = 300.0
N_OF_EACH = 90  # images of three classes: five shards for two nodes


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("many"), n_of_each=N_OF_EACH)


class Nodes:
    NAMES = ("first", "second")

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        stack.callback(self.cluster.shutdown)
        for name in self.NAMES:
            self.add(name)
        ray.init(self.cluster.address, log_to_driver=False)
        stack.callback(ray.shutdown)

    def add(self, name: str, *, n_cpus: int = 1) -> Any:
        """One more node, whose cache is the folder of this name."""
        raylet = self.cluster.add_node(
            num_cpus=n_cpus,
            env_vars={CACHE_VARIABLE: str(self.folder / name)},
            object_store_memory=100 * 2**20,
        )
        self.cluster.wait_for_nodes()
        return raylet

    def store(self, name: str) -> Store:
        return Store(self.folder / name)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head that takes no trials and two nodes that do, each with a cache of its own, on this machine."""
    with ExitStack() as stack:
        yield Nodes(tmp_path_factory.mktemp("nodes"), stack)


def bench_on(images: Path, store: Store) -> Workbench:
    """The workbench of the process that conducts a search with all that trials read kept."""
    bench = make_bench(images, store)
    bench.job = replace(bench.job, source=str(images), host=this_host())
    return bench


def features_of(bench: Workbench, configs: list[TrialConfig]) -> list[CutFeatures]:
    return [cut for work in find_passes(bench, configs) for cut in work.cuts]


class LosingMeter:
    """Has something happen as soon as some images are done."""

    def __init__(self, happen: Callable[[], None]) -> None:
        self._happen: Callable[[], None] | None = happen

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        yield self._advance

    def _advance(self, amount: int) -> None:
        if self._happen is not None and amount:
            self._happen()
            self._happen = None


DEVICES = Devices(n_cpus=2, n_gpus=0, cpus_per_trial=1, gpus_per_trial=0.0, max_concurrent=2)
CONFIGS = [config_of(freeze=0.5), config_of(freeze=1.0), config_of(freeze=0.5, augment="flip", views=2)]


@pytest.fixture(scope="module")
def alone(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A machine that has computed all by itself."""
    bench = make_bench(many, Store(tmp_path_factory.mktemp("alone")))
    bench.prepare(CONFIGS)
    return bench


@pytest.fixture(scope="module")
def together(
    nodes: Nodes, many: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Spread, Workbench, dict[str, list[str]]]:
    """What two nodes have computed together, and what was in their caches then."""
    root = tmp_path_factory.mktemp("driver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(root))
        bench = bench_on(many, Store(root))
        done = spread(bench, CONFIGS, SilentMeter())
    kept = {name: [path.parent.name for path, *_ in nodes.store(name).entries()] for name in nodes.NAMES}
    return done, bench, kept


def test_each_image_is_computed_once_in_the_whole_cluster(
    together: tuple[Spread, Workbench, dict[str, list[str]]], alone: Workbench, nodes: Nodes
) -> None:
    done, bench, kept = together
    assert done.notices == []
    n_images, n_train = len(alone.job.files), len(alone.job.data.train.labels)
    assert done.work.prefix_images == 2 * n_images + 2 * n_train == alone.take_work().prefix_images
    assert done.work.pixels_decoded == n_images + 2 * n_train
    # Nobody keeps what no trial will read: decoded images on the nodes, activations on the head.
    assert {name: set(kinds) for name, kinds in kept.items()} == {name: {"features"} for name in nodes.NAMES}
    assert not (bench.job.store.root / "features").exists()


def test_all_nodes_have_the_bits_of_one_machine(
    together: tuple[Spread, Workbench, dict[str, list[str]]], alone: Workbench, nodes: Nodes
) -> None:
    cuts = features_of(alone, CONFIGS)
    assert len(cuts) == 4
    for cut in cuts:
        expected = open_features(alone.job.store, cut)
        for name in nodes.NAMES:
            assert np.array_equal(open_features(nodes.store(name), cut), expected)


@slow
def test_later_search_runs_what_is_new_and_no_more(
    together: tuple[Spread, Workbench, dict[str, list[str]]], alone: Workbench, nodes: Nodes
) -> None:
    _, bench, _ = together
    alone.take_work()
    deeper = config_of(freeze=0.8)
    done = spread(bench, [*CONFIGS, deeper], SilentMeter())
    alone.prepare([deeper])
    assert done.work == alone.take_work() == Work(pixels_decoded=0, prefix_images=len(bench.job.files))
    (cut,) = features_of(alone, [deeper])
    for name in nodes.NAMES:
        assert np.array_equal(open_features(nodes.store(name), cut), open_features(alone.job.store, cut))


class TellingMeter:
    """Says when a pass begins, and has something happen as soon as some of its images are done."""

    def __init__(self, happen: Callable[[], object] = lambda: None) -> None:
        self._happen: Callable[[], object] | None = happen
        self.has_begun = threading.Event()
        self.has_to_wait = threading.Event()

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        self.has_begun.set()
        if title.startswith("Waiting for devices"):
            self.has_to_wait.set()
        yield self._advance

    def _advance(self, amount: int) -> None:
        happen, self._happen = self._happen, None
        if happen is not None:
            happen()


class Search(threading.Thread):
    """A search that computes what its trials will read; other ones may do so at the same time."""

    def __init__(self, bench: Workbench, configs: list[TrialConfig], meter: TellingMeter) -> None:
        super().__init__(daemon=True)  # one that waits for ever is no reason for the tests to do so
        self._bench, self._configs, self.meter = bench, configs, meter
        self._done: list[Spread] = []
        find_passes(bench, configs)  # networks are traced here: torch does that in one thread at a time

    def run(self) -> None:
        self._done.append(spread(self._bench, self._configs, self.meter))

    def done(self) -> Spread:
        self.join(LONG_SECONDS)
        assert not self.is_alive(), "it still waits"
        (done,) = self._done
        return done


def prepared_alone(many: Path, folder: Path, configs: list[TrialConfig]) -> Workbench:
    """One machine that has computed what these trials read."""
    alone = make_bench(many, Store(folder / "alone"))
    alone.prepare(configs)
    return alone


def assert_nodes_have_the_bits_of(alone: Workbench, configs: list[TrialConfig], nodes: Nodes) -> None:
    for cut in features_of(alone, configs):
        expected = open_features(alone.job.store, cut)
        for name in nodes.NAMES:
            assert np.array_equal(open_features(nodes.store(name), cut), expected)


@slow
def test_search_goes_on_with_what_another_waits_for_devices_to_compute(
    nodes: Nodes, many: Path, own_cache: Path, tmp_path: Path
) -> None:
    """The first has all devices when the second one comes, for what the first needs next."""
    configs = [config_of(freeze=0.5, image_size=40), config_of(freeze=1.0, image_size=48)]
    alone = prepared_alone(many, tmp_path, configs)
    second = Search(bench_on(many, Store(own_cache)), configs[1:], TellingMeter())

    def start_second() -> None:
        second.start()
        assert second.meter.has_begun.wait(LONG_SECONDS)
        time.sleep(2.0)  # it would have taken the arrays by then

    first = Search(bench_on(many, Store(own_cache)), configs, TellingMeter(start_second))
    first.start()
    done = first.done(), second.done()
    assert [each.notices for each in done] == [[], []]
    assert sum(each.work.prefix_images for each in done) == 2 * len(alone.job.files)
    assert_nodes_have_the_bits_of(alone, configs, nodes)


@slow
def test_searches_for_the_same_that_begin_at_once_both_end(
    nodes: Nodes, many: Path, own_cache: Path, tmp_path: Path
) -> None:
    configs = [config_of(freeze=0.5, image_size=56)]
    alone = prepared_alone(many, tmp_path, configs)
    searches = [Search(bench_on(many, Store(own_cache)), configs, TellingMeter()) for _ in range(2)]
    for search in searches:
        search.start()
    assert [search.done().notices for search in searches] == [[], []]
    assert_nodes_have_the_bits_of(alone, configs, nodes)


@slow
def test_search_that_waits_for_devices_says_so(
    nodes: Nodes, many: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_inat.spread.START_SECONDS", 0.5)
    configs = [config_of(freeze=0.5, image_size=72)]
    other: Any = ray.remote(num_cpus=1)(threading.Event)
    users = [other.remote() for _ in nodes.NAMES]
    ray.get([user.is_set.remote() for user in users])
    search = Search(bench_on(many, Store(own_cache)), configs, TellingMeter())
    search.start()
    try:
        assert search.meter.has_to_wait.wait(LONG_SECONDS)
    finally:
        for user in users:
            ray.kill(user)
    assert search.done().notices == []
    assert_nodes_have_the_bits_of(prepared_alone(many, tmp_path, configs), configs, nodes)


@slow
def test_node_whose_devices_others_use_fetches_all_without_waiting_for_them(
    nodes: Nodes, many: Path, own_cache: Path, tmp_path: Path
) -> None:
    configs = [config_of(freeze=0.5, image_size=64)]
    alone = prepared_alone(many, tmp_path, configs)
    other: Any = ray.remote(num_cpus=1)(threading.Event)
    user = other.remote()
    ray.get(user.is_set.remote())
    try:
        done = spread(bench_on(many, Store(own_cache)), configs, SilentMeter())
    finally:
        ray.kill(user)
    assert (done.notices, done.work.prefix_images) == ([], len(alone.job.files))
    assert_nodes_have_the_bits_of(alone, configs, nodes)


@slow
def test_node_that_joins_late_fetches_and_computes_nothing(
    together: tuple[Spread, Workbench, dict[str, list[str]]], alone: Workbench, nodes: Nodes
) -> None:
    done, bench, _ = together
    late = nodes.add("late")
    pinned = NodeAffinitySchedulingStrategy(late.node_id, soft=False)
    read = ray.remote(read_there).options(num_cpus=1, scheduling_strategy=pinned)
    assert ray.get(read.remote(bench.job, done.neighbours, CONFIGS[:2])) == 0
    nodes.cluster.remove_node(late)
    for cut in features_of(alone, CONFIGS[:2]):
        assert np.array_equal(open_features(nodes.store("late"), cut), open_features(alone.job.store, cut))


def read_there(job: Job, neighbours: Neighbours, configs: list[TrialConfig]) -> int:
    """What a trial does on a node; returns how many images it runs through frozen layers."""
    bench = open_worker_bench(job, neighbours)
    for config in configs:
        bench.source(bench.network(config), config, "train")
    return bench.take_work().prefix_images


def test_nodes_get_the_weights_from_the_node_that_conducts_as_they_were_published(
    nodes: Nodes, many: Path, own_cache: Path
) -> None:
    """Also after it has timed steps of training on its own copy."""
    config = config_of(model="timm/tf_efficientnet_lite0", weights="default", freeze=1.0)
    bench = bench_on(many, Store(own_cache))
    backbone = bench.network(config).backbone
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.zero_()
    handed = Neighbours(Caches.of(bench.job), hand_out_weights(bench, [config]), Rates(1e11))
    (weights,) = handed.handed.values()
    asked = ray.remote(weights_there).options(num_cpus=1)
    assert ray.get(asked.remote(bench.job, handed, config)) == backbone.weights_key
    held = [nodes.store(name).has(WEIGHTS_KIND, weights.key) for name in nodes.NAMES]
    assert sum(held) == 1  # by the node that asked
    assert not Store(own_cache).has(WEIGHTS_KIND, weights.key)


def weights_there(job: Job, neighbours: Neighbours, config: TrialConfig) -> str:
    """The hash of what a trial on a node starts from, where published weights cannot be had."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune_inat.architectures._packaged_file", lambda: Path("/nowhere"))
        return open_worker_bench(job, neighbours).load(config).backbone.weights_key


@slow
def test_node_that_is_lost_leaves_its_shards_to_others(
    nodes: Nodes, many: Path, own_cache: Path, tmp_path: Path
) -> None:
    configs = [config_of(freeze=0.8, seed=1)]  # other random weights: nobody has these
    alone = prepared_alone(many, tmp_path, configs)
    doomed = nodes.add("doomed")
    meter = LosingMeter(lambda: nodes.cluster.remove_node(doomed, allow_graceful=False))
    done = spread(bench_on(many, Store(own_cache)), configs, meter)
    assert any("was lost" in notice for notice in done.notices)
    (cut,) = features_of(alone, configs)
    for name in nodes.NAMES:
        assert np.array_equal(open_features(nodes.store(name), cut), open_features(alone.job.store, cut))


class AddingMeter:
    """Has something happen when the search waits."""

    def __init__(self, happen: Callable[[], None]) -> None:
        self._happen = happen

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        if "Waiting" in title:
            self._happen()
        yield lambda amount: None


def test_machines_that_come_on_demand_are_waited_for(nodes: Nodes, many: Path, own_cache: Path) -> None:
    config = config_of(freeze=1.0, seed=2)
    bench = bench_on(many, Store(own_cache))
    bench.job = replace(bench.job, n_threads=2)  # no node has as many yet
    devices = replace(DEVICES, cpus_per_trial=2)
    meter = AddingMeter(lambda: nodes.add("demanded", n_cpus=2))
    assert await_demanded(bench.job, devices, meter, lambda: False)
    assert not await_demanded(bench.job, devices, meter, lambda: False)  # it is up by now
    done = spread(bench, [config], SilentMeter())
    assert done.notices == []
    (cut,) = features_of(bench, [config])
    assert done.work.prefix_images == len(bench.job.files)
    assert has_features(nodes.store("demanded"), cut)
    assert not any(has_features(nodes.store(name), cut) for name in nodes.NAMES)


def test_search_without_time_waits_for_no_machine(nodes: Nodes, many: Path, own_cache: Path) -> None:
    job = replace(bench_on(many, Store(own_cache)).job, n_threads=1000)
    with pytest.raises(NoMachineError, match="--max-hours is over") as raised:
        await_demanded(job, replace(DEVICES, cpus_per_trial=1000), SilentMeter(), lambda: True)
    assert raised.value.exit_code == EXIT_FAILED


def test_machines_that_are_to_be_there_are_waited_for(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await_members(SilentMeter(), lambda: False) is None  # of this cluster nobody knows of more
    n_workers = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]  # the head and one that is still to come
    monkeypatch.setattr("tune_inat.arrivals.n_kept_up", lambda address: n_workers)
    notice = await_members(SilentMeter(), lambda: False, join_seconds=0.0)
    assert notice is not None
    assert f"{n_workers} of the cluster's {n_workers + 1} machines are up" in notice
    assert await_members(AddingMeter(lambda: nodes.add("late member")), lambda: False) is None


def test_node_whose_disk_has_no_room_runs_frozen_layers_in_each_epoch(
    images: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(images, store)
    config = config_of(freeze=1.0)
    network = bench.network(config)
    decided = KeptCuts(frozenset({network.cut}), frozenset({network.cut}))
    kept = {bench.job.images_key(config, of_views=False): decided}
    bench.job = replace(bench.job, is_guest=True, kept=kept)
    assert bench.base(network, config, of_views=False) == network.cut
    monkeypatch.setattr("tune_inat.disk.shutil.disk_usage", lambda path: Usage(10**9, 10**9 - 1, 1))
    assert bench.base(network, config, of_views=False) == INPUT


class Usage(NamedTuple):
    """As `shutil.disk_usage` has it."""

    total: int
    used: int
    free: int
