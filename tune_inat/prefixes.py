"""What frozen layers give, shard by shard: which activations trials will read, and the rows of a shard."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tune_inat.config import TrialConfig
from tune_inat.features import BATCH_SIZE, CutFeatures, Rows, as_stored
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
        row_flops: the operations for one image, all crossings together.
    """

    config: TrialConfig
    view: View | None
    cuts: tuple[CutFeatures, ...]
    n_rows: int
    row_bytes: tuple[int, ...]
    row_flops: int


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
                    config, view, (), len(set(contents)), (), 0
                )
                found[key, cut.weights_key] = _with(so_far, cut, bench, network)
    return list(found.values())


def compute_shard(bench: Workbench, work: PrefixPass, shard: Shard) -> list[npt.NDArray[np.generic]]:
    """The activations of a shard's rows at each cut, as they are kept: the bits of a whole pass."""
    network = bench.network(work.config)
    pixels = Rows(bench.decoded(work.config, work.view, shard), bench.device)
    exact = bench.exact_crossings(network)
    computed: list[npt.NDArray[np.generic]] = []
    for number, cut in enumerate(work.cuts):
        source, layers = pixels, network.to_crossing(cut.cut)
        for before in reversed(range(number)):
            if work.cuts[before].cut in exact:
                source = Rows(computed[before], bench.device)
                layers = network.traced.segment(work.cuts[before].cut, cut.cut)
                break
        computed.append(_run(source, layers, cut, shard))
        bench.note_frozen(len(shard))
    return computed


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
    flops, before = 0, 0
    for name in names:
        point = traced.at(name, size)
        flops += point.flops - before
        before = point.flops if name in exact else before
    return replace(
        work,
        cuts=tuple(replace(cut, cut=name) for name in names),
        row_bytes=tuple(
            traced.at(name, size).n_bytes // traced.at(name, size).dtype.itemsize * itemsize for name in names
        ),
        row_flops=flops,
    )
