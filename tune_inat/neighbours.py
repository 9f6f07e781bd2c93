"""What a node of a cluster has from others: weights from the one that conducts, activations from any."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from safetensors.torch import load_file, save
from torch import Tensor

from tune_inat.config import TrialConfig
from tune_inat.features import FEATURES_KIND, CutFeatures
from tune_inat.frozen import STORED_TYPE
from tune_inat.handout import Rates, is_cheaper_to_fetch
from tune_inat.meter import Meter
from tune_inat.places import Caches
from tune_inat.shards import ARRAY_FILE, GrowingArray, Shard, cut_into_shards
from tune_inat.store import hash_of
from tune_inat.workbench import Workbench

WEIGHTS_KIND = "weights"
WEIGHTS_FILE = "backbone.safetensors"
ANSWER_SECONDS = 60.0  # a node's first process takes its time


@dataclass(frozen=True)
class HandedWeights:
    """A backbone's weights in Ray's object store: the bytes of a safetensors file, and what they hash to."""

    key: str
    content: ObjectRef[Any]


@dataclass(frozen=True)
class Neighbours:
    """What a process on some node can have from others (`workbench.Peers`)."""

    caches: Caches
    handed: Mapping[str, HandedWeights]
    rates: Rates

    def weights(self, config: TrialConfig) -> Mapping[str, Tensor] | None:
        """See `Peers`. They come to each node once, and stay in its cache."""
        handed = self.handed.get(_weights_id(config))
        if handed is None or self.caches.is_at_home:
            return None

        def build(folder: Path) -> None:
            (folder / WEIGHTS_FILE).write_bytes(memoryview(ray.get(handed.content)))

        folder = self.caches.here().get_or_build(WEIGHTS_KIND, handed.key, build)
        return load_file(folder / WEIGHTS_FILE)

    def fetch(self, cut: CutFeatures, folder: Path, n_rows: int, row_flops: int, meter: Meter) -> None:
        """See `Peers`. Of nodes that go away meanwhile it takes what came, and asks the others."""
        sources = self._who_has(cut)
        if not sources:
            return
        row_bytes = max(sources.values()) // n_rows
        if not is_cheaper_to_fetch(
            n_bytes=n_rows * row_bytes,
            flops=n_rows * row_flops,
            link_rate=self.rates.link_rate,
            flops_rate=self.rates.flops_rate,
        ):
            return
        array = GrowingArray(folder, n_rows, STORED_TYPE[cut.precision][0])
        shards = cut_into_shards(n_rows, bytes_per_row=row_bytes, n_devices=1)
        with meter.task(f"Activations at {cut.cut} from another node", n_rows, "images") as advance:
            for shard in shards:
                if array.has(shard):
                    continue
                part = self._read(cut, shard, sources)
                if part is None:
                    break
                array.write(shard.start, part)
                advance(len(shard))
        array.flush()

    def _who_has(self, cut: CutFeatures) -> dict[str, int]:
        """The nodes that have the activations whole, and how many bytes."""
        here = ray.get_runtime_context().get_node_id()
        asked = {
            node["NodeID"]: _size_of_features.options(scheduling_strategy=_on(node["NodeID"])).remote(
                self.caches, cut.key
            )
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"] and node["NodeID"] != here
        }
        deadline = time.monotonic() + ANSWER_SECONDS
        sizes = {node: _answer(ref, deadline) for node, ref in asked.items()}
        return {node: size for node, size in sizes.items() if size}

    def _read(
        self, cut: CutFeatures, shard: Shard, sources: dict[str, int]
    ) -> npt.NDArray[np.generic] | None:
        """A shard from the first of the sources that answers; those that do not are sources no more."""
        while sources:
            node = next(iter(sources))
            ref = _rows_of_features.options(scheduling_strategy=_on(node)).remote(self.caches, cut.key, shard)
            rows = _answer(ref, time.monotonic() + ANSWER_SECONDS)
            if rows is not None:
                part: npt.NDArray[np.generic] = rows
                return part
            del sources[node]
        return None


def hand_out_weights(bench: Workbench, configs: Iterable[TrialConfig]) -> dict[str, HandedWeights]:
    """Put the weights of these trials' backbones where all nodes can have them. Random ones need no hand."""
    handed: dict[str, HandedWeights] = {}
    for config in sorted(configs, key=lambda config: config.model):  # each model loaded once
        if config.weights != "none" and _weights_id(config) not in handed:
            loaded = bench.load(config)
            state = {name: value.cpu().contiguous() for name, value in loaded.pristine.items()}
            content = np.frombuffer(save(state), np.uint8)
            handed[_weights_id(config)] = HandedWeights(
                hash_of([loaded.backbone.weights_key, config.image_size]), ray.put(content)
            )
    return handed


def _weights_id(config: TrialConfig) -> str:
    return hash_of([config.model, config.weights, config.image_size])


def _on(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _answer(ref: Any, deadline: float) -> Any:
    """What a node answers; `None` from one that is gone or does not answer."""
    try:
        return ray.get(ref, timeout=max(0.1, deadline - time.monotonic()))
    except (RayError, GetTimeoutError):
        return None


@ray.remote(num_cpus=0, max_retries=0)
def _size_of_features(caches: Caches, key: str) -> int:
    store = caches.here()
    return (
        (store.path(FEATURES_KIND, key) / ARRAY_FILE).stat().st_size if store.has(FEATURES_KIND, key) else 0
    )


@ray.remote(num_cpus=0, max_retries=0)
def _rows_of_features(caches: Caches, key: str, shard: Shard) -> npt.NDArray[np.generic]:
    path = caches.here().path(FEATURES_KIND, key) / ARRAY_FILE
    return np.array(np.load(path, mmap_mode="r")[shard.start : shard.stop])
