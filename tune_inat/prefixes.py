"""What frozen layers give, shard by shard: which activations trials will read, and the rows of a shard."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tune_inat.config import TrialConfig
from tune_inat.features import BATCH_SIZE, CutFeatures, Rows, as_stored, has_features, open_features
from tune_inat.frozen import PART_SIZE, STORED_TYPE, run_frozen
from tune_inat.graph import INPUT
from tune_inat.images import View
from tune_inat.network import Network
from tune_inat.shards import Shard
from tune_inat.workbench import Workbench


@dataclass(frozen=True)
class PrefixPass:
    """A set of images that goes through one network once, and the crossings at which activations are kept.

    Attributes:
        config: of some trial with that network and these images.
        view: which view of the training images; `None` for all images, plain.
        cuts: what is kept, shallow crossings first.
        row_bytes: of each, what one image takes.
        row_flops: of each, the operations for one image from what is kept before it, else from the pixels.
    """

    config: TrialConfig
    view: View | None
    cuts: tuple[CutFeatures, ...]
    n_rows: int
    row_bytes: tuple[int, ...]
    row_flops: tuple[int, ...]

    def without(self, keys: Collection[str]) -> "PrefixPass | None":
        """What is left when the activations under these keys are there; `None` if nothing is."""
        left = [number for number, cut in enumerate(self.cuts) if cut.key not in keys]
        if not left:
            return None
        return replace(
            self,
            cuts=tuple(self.cuts[n] for n in left),
            row_bytes=tuple(self.row_bytes[n] for n in left),
            row_flops=tuple(self.row_flops[n] for n in left),
        )


def find_passes(bench: Workbench, configs: Sequence[TrialConfig]) -> list[PrefixPass]:
    """All that trials will read, each set of images and network once; nothing where nothing is kept."""
    found: dict[tuple[str, str], PrefixPass] = {}
    for config in bench.in_order_of_depth(configs):
        network = bench.network(config)
        has_views = config.augment != "none" and config.views != "fresh"
        for of_views in (False, True) if has_views else (False,):
            base = bench.base(network, config, of_views=of_views)
            if base == INPUT:
                continue
            decodings = bench.decodings(config, of_views=of_views)
            for (contents, view), key in zip(
                decodings, bench.pixels_keys(config, of_views=of_views), strict=True
            ):
                cut = CutFeatures(key, network.backbone.weights_key, base, bench.job.precision)
                so_far = found.get((key, cut.weights_key)) or PrefixPass(
                    config, view, (), len(set(contents)), (), ()
                )
                found[key, cut.weights_key] = _with(so_far, cut, bench, network)
    return list(found.values())


def compute_shard(bench: Workbench, work: PrefixPass, shard: Shard) -> list[npt.NDArray[np.generic]]:
    """The activations of a shard's rows at each cut, as they are kept: the bits of a whole pass."""
    network = bench.network(work.config)
    pixels = cache(lambda: Rows(bench.decoded(work.config, work.view, shard), bench.device))
    computed: dict[str, npt.NDArray[np.generic]] = {}
    for cut in work.cuts:
        source, layers = _nearest(bench, network, shard, cut, computed, pixels)
        computed[cut.cut] = _run(source, layers, cut, shard)
        bench.note_frozen(len(shard))
    return list(computed.values())


def _nearest(
    bench: Workbench,
    network: Network,
    shard: Shard,
    cut: CutFeatures,
    computed: Mapping[str, npt.NDArray[np.generic]],
    pixels: Callable[[], Rows],
) -> tuple[Rows, nn.Module]:
    """The deepest activations of a shard before a cut that are at hand, and the layers from them to it."""
    crossings, exact, store = network.traced.crossings, bench.exact_crossings(network), bench.job.store
    for crossing in reversed(crossings[1 : crossings.index(cut.cut)]):
        shallower = replace(cut, cut=crossing)
        if crossing not in exact:
            continue
        if crossing in computed:
            return Rows(computed[crossing], bench.device), network.traced.segment(crossing, cut.cut)
        if has_features(store, shallower):
            rows = open_features(store, shallower)[shard.start : shard.stop]
            return Rows(rows, bench.device), network.traced.segment(crossing, cut.cut)
    return pixels(), network.to_crossing(cut.cut)


def _run(source: Rows, layers: nn.Module, cut: CutFeatures, shard: Shard) -> npt.NDArray[np.generic]:
    size = max(BATCH_SIZE, PART_SIZE * torch.get_num_threads())
    parts = [
        as_stored(run_frozen(layers, source.take(rows), cut.precision, rows=rows + shard.start))
        for rows in torch.split(torch.arange(len(shard)), size)
    ]
    return np.concatenate(parts)


def _with(work: PrefixPass, cut: CutFeatures, bench: Workbench, network: Network) -> PrefixPass:
    """The pass with one more cut."""
    if cut in work.cuts:
        return work
    traced, size = network.traced, work.config.image_size
    exact = bench.exact_crossings(network)
    names = sorted({cut.cut, *(known.cut for known in work.cuts)}, key=traced.crossings.index)
    itemsize = np.dtype(STORED_TYPE[cut.precision][0]).itemsize
    flops: list[int] = []
    before = 0
    for name in names:
        point = traced.at(name, size)
        flops.append(point.flops - before)
        before = point.flops if name in exact else before
    return replace(
        work,
        cuts=tuple(replace(cut, cut=name) for name in names),
        row_bytes=tuple(
            traced.at(name, size).n_bytes // traced.at(name, size).dtype.itemsize * itemsize for name in names
        ),
        row_flops=tuple(flops),
    )
