"""Frozen layers on several nodes: each image once in the cluster, the same bits on each node, whoever is lost."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from tests.benches import config_of, make_bench, write_images
from tune_inat.config import TrialConfig
from tune_inat.features import CutFeatures, open_features
from tune_inat.meter import SilentMeter
from tune_inat.places import this_host
from tune_inat.prefixes import find_passes
from tune_inat.spread import Spread, spread, trial_nodes
from tune_inat.store import CACHE_VARIABLE, Store
from tune_inat.workbench import Workbench

N_OF_EACH = 90  # images of three classes: five shards for two nodes


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("many"), n_of_each=N_OF_EACH)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Nodes"]:
    """A head that takes no trials and two nodes that do, each with a cache of its own, on this machine."""
    with ExitStack() as stack:
        yield Nodes(tmp_path_factory.mktemp("nodes"), stack)


class Nodes:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        stack.callback(self.cluster.shutdown)
        self._raylets = [self.add(name) for name in ("first", "second")]
        ray.init(self.cluster.address, log_to_driver=False)
        stack.callback(ray.shutdown)

    def add(self, name: str) -> Any:
        """One more node, whose cache is the folder of this name."""
        raylet = self.cluster.add_node(
            num_cpus=1, env_vars={CACHE_VARIABLE: str(self.folder / name)}, object_store_memory=100 * 2**20
        )
        self.cluster.wait_for_nodes()
        return raylet

    def store(self, name: str) -> Store:
        return Store(self.folder / name)


def bench_on(images: Path, store: Store) -> Workbench:
    """The workbench of the process that conducts a search with all that trials read kept."""
    bench = make_bench(images, store)
    bench.job = replace(bench.job, source=str(images), host=this_host())
    return bench


def features_of(bench: Workbench, configs: list[TrialConfig]) -> list[CutFeatures]:
    return [cut for work in find_passes(bench, configs) for cut in work.cuts]


def test_each_image_is_computed_once_and_all_nodes_have_the_bits_of_one_machine(
    nodes: Nodes, many: Path, own_cache: Path, tmp_path: Path
) -> None:
    configs = [config_of(freeze=0.5), config_of(freeze=1.0), config_of(freeze=0.5, augment="flip", views=2)]
    alone = make_bench(many, Store(tmp_path / "alone"))
    alone.prepare(configs)
    bench = bench_on(many, Store(own_cache))
    done = spread(bench, configs, SilentMeter())
    assert done.notices == []
    assert done.work.prefix_images == alone.take_work().prefix_images
    cuts = features_of(alone, configs)
    assert len(cuts) == 4
    for cut in cuts:
        expected = open_features(alone.job.store, cut)
        for name in ("first", "second"):
            assert np.array_equal(open_features(nodes.store(name), cut), expected)
