"""What a process keeps between trials: pixels, activations and networks, each loaded once."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tune_inat.backbone import Normalize, load_backbone, pristine_state, restore
from tune_inat.config import TrialConfig
from tune_inat.convolutions import speed_up
from tune_inat.cuts import read_at
from tune_inat.data import Split
from tune_inat.disk import has_room
from tune_inat.errors import UserError
from tune_inat.features import CutFeatures, Rows, has_features, load_features, open_features
from tune_inat.frozen import STORED_TYPE
from tune_inat.graph import INPUT
from tune_inat.images import (
    Pixels,
    View,
    decode_batch,
    decode_rows,
    has_pixels,
    load_pixels,
    pixels_key,
)
from tune_inat.job import Job
from tune_inat.life import SigningMeter
from tune_inat.meter import Meter
from tune_inat.mps import take_part
from tune_inat.network import LoadedBackbone, Network
from tune_inat.places import at_this_host, this_host
from tune_inat.recipe import recipe_key
from tune_inat.shards import Shard
from tune_inat.shared_states import SharedStates
from tune_inat.sources import FreshSource, PlainSource, Source, ViewSource
from tune_inat.states import FamilyStates
from tune_inat.store import claim_root, hash_of
from tune_inat.tracing import trace

STATES_KIND = "states"
FIRST_FRESH_VIEW = 1000  # fresh views are numbered from here, kept ones below
Part = Literal["train", "val", "test"]


@dataclass
class Work:
    """What a process has done that reuse would spare: images decoded, and run through frozen layers."""

    pixels_decoded: int = 0
    prefix_images: int = 0


class Peers(Protocol):
    """What other nodes of a cluster have, as a process sees it that works on one of them."""

    def weights(self, config: TrialConfig) -> Mapping[str, Tensor] | None:
        """A trial's backbone as the node that conducts the search has loaded it; `None` to load it here."""
        ...

    def fetch(self, cut: CutFeatures, folder: Path, n_rows: int, row_flops: int, meter: Meter) -> None:
        """Fill an array with what other nodes have of it, if that is cheaper than computing it."""
        ...


@dataclass(frozen=True)
class _Pictures:
    """A set of images as they are decoded for trials; `load` decodes them, unless that is done already."""

    key: str
    n_images: int
    load: Callable[[], Pixels]


class Workbench:
    """The inputs of trials in one process, on one device.

    Networks share one backbone for each model: a new `network` takes it away from the one before.

    Args:
        n_threads: to decode with; those of the job, if not given.
        peers: what other nodes of a cluster have.
    """

    def __init__(
        self,
        job: Job,
        device: torch.device,
        meter: Meter,
        *,
        n_threads: int | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._peers = peers
        self._n_threads = n_threads or job.n_threads  # to decode with
        self.job = job
        self.device = device
        self._work = Work()
        self._meter = meter
        self._keys: dict[tuple[int, View | None], str] = {}  # of pixels
        self._pixels: dict[tuple[int, View | None], Pixels] = {}
        self._rows: dict[str, Rows] = {}
        self._loaded: LoadedBackbone | None = None
        self._shared = None if job.states is None else SharedStates(job.states)

    @property
    def where(self) -> str:
        """The node and the device: `worker1 cpu`, `worker2 cuda:0 NVIDIA H100`."""
        if self.device.type == "cpu":
            return f"{this_host()} cpu"
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # Ray shows a process its own alone
        index = self.device.index or 0
        number = seen[index] if index < len(seen) and seen[index] else str(index)
        return f"{this_host()} cuda:{number} {torch.cuda.get_device_name(self.device)}"

    def take_work(self) -> Work:
        """The work done since this was last asked."""
        done, self._work = self._work, Work()
        return done

    def autocast(self) -> torch.autocast:
        """The context in which networks compute."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision == "bf16")

    def states(self, config: TrialConfig) -> FamilyStates:
        """Where the epochs of a trial's family are kept: found again by every search that trains the same.

        Without reuse, each configuration is a family of its own.
        """
        return self.states_of(config, self.load(config).backbone.weights_key)

    def states_of(self, config: TrialConfig, weights_key: str) -> FamilyStates:
        """The same where it is known which weights a trial starts from."""
        family = config.family() if self.job.reuse else config.model_dump()
        job = self.job
        work = [family, job.data.fingerprint, weights_key, job.precision, recipe_key(), job.runs_on]
        if self._shared is not None:
            return self._shared.family(job.store.root / STATES_KIND, hash_of(work))
        if job.states_root is None:
            return FamilyStates(job.store.root / STATES_KIND, hash_of(work))
        return FamilyStates(job.states_root, hash_of(work), job.search)

    def network(self, config: TrialConfig) -> Network:
        """A trial's network as it is before the first step."""
        if self.device.type == "cuda":
            self._rows.clear()  # those of the trial before would keep its memory
        loaded = self.load(config)
        restore(loaded.backbone, loaded.pristine, seed=config.seed, dropout=config.dropout)
        return loaded.cut(config.freeze)

    def check(self, configs: Sequence[TrialConfig]) -> tuple[str, ...]:
        """Load, once each, what these trials train.

        Returns:
            What the user must be told.

        Raises:
            UserError: everything that is wrong with a model, its weights or a point of freezing.
        """
        notices: dict[str, None] = {}
        problems: dict[str, None] = {}
        for config in self._distinct(configs):
            try:
                network = self.network(config)
            except UserError as error:
                problems.update(dict.fromkeys(error.problems))
                continue
            notices.update(dict.fromkeys(network.backbone.notices))
            if network.traced.reason is not None:
                notices[
                    f"model {config.model} cannot be traced ({network.traced.reason}): its frozen layers run "
                    "again in every epoch."
                ] = None
        if problems:
            raise UserError(tuple(problems))
        return tuple(notices)

    def prepare(self, configs: Sequence[TrialConfig]) -> None:
        """Compute what the frozen layers of these trials give, where it is kept: shallow cuts first."""
        if not self.job.reuse:
            return
        for config in self.in_order_of_depth(configs):
            network = self.network(config)
            for part in ("train", "val"):
                self.source(network, config, part)
        self.rest()

    def in_order_of_depth(self, configs: Sequence[TrialConfig]) -> list[TrialConfig]:
        """One configuration for each that reads something else, model by model, shallow cuts first."""
        depths = []
        for config in self._distinct(configs):
            network = self.network(config)
            depths.append((config.model, network.traced.crossings.index(network.cut), config))
        return [config for _, _, config in sorted(depths, key=lambda depth: depth[:2])]

    def rest(self) -> None:
        """Let go of a GPU's memory, so that trials have it."""
        if self.device.type == "cuda":
            self._loaded = None
            self._rows.clear()
            torch.cuda.empty_cache()

    def _distinct(self, configs: Sequence[TrialConfig]) -> list[TrialConfig]:
        """One configuration for each network and freezing and set of views, model by model."""
        seen: dict[str, TrialConfig] = {}
        for config in configs:
            asked = [config.model, config.weights, config.freeze, config.image_size]
            views = [config.augment, config.views, config.seed] if config.augment != "none" else []
            seen.setdefault(hash_of([asked, views]), config)
        return sorted(seen.values(), key=lambda config: config.model)

    def source(self, network: Network, config: TrialConfig, part: Part) -> Source:
        """Where a trial reads a part of the images. Only training images have views."""
        split = {"train": self.job.data.train, "val": self.job.data.val, "test": self.job.data.test}[part]
        assert split is not None, "a part that is read is there"
        if part != "train" or config.augment == "none":
            pictures = self._pictures(config.image_size)
            return self._plain_source(
                network, pictures, split.rows, self.base(network, config, of_views=False)
            )
        if config.views == "fresh":
            return self._fresh_source(network, config, split)
        contents = self.contents_of(split)
        base = self.base(network, config, of_views=True)
        views = []
        row_of = {content: row for row, content in enumerate(sorted(set(contents)))}
        rows = np.array([row_of[content] for content in contents])
        for index in range(config.views):
            pictures = self._pictures(
                config.image_size, View(config.augment, config.seed, index), sorted(row_of)
            )
            views.append(self._plain_source(network, pictures, rows, base))
        return ViewSource(views, len(contents), config.seed)

    def base(self, network: Network, config: TrialConfig, *, of_views: bool) -> str:
        """Where a trial reads: the deepest crossing up to its cut at which activations are kept."""
        if not self.job.reuse:
            return INPUT
        cut, decided = network.cut, self.job.kept.get(self.job.images_key(config, of_views=of_views))
        if decided is not None and self.job.is_guest:  # of this machine's disk nobody knew
            decided = replace(decided, kept=self._fitting(network, config, decided.kept, of_views=of_views))
        if decided is not None and cut in decided.kept:
            return cut
        is_new = decided is None or cut not in decided.considered  # as Optuna proposes what nobody foresaw
        if (is_new and self.job.has_room) or self._is_there(network, config, of_views=of_views):
            return cut
        if decided is None:
            return INPUT
        return read_at(cut, network.traced.crossings, decided.kept, self.exact_crossings(network))

    def _fitting(
        self, network: Network, config: TrialConfig, kept: frozenset[str], *, of_views: bool
    ) -> frozenset[str]:
        """Those of some crossings whose activations are here, or have room here."""
        keys, size = self.pixels_keys(config, of_views=of_views), network.backbone.image_size
        n_images = (
            len(set(self.contents_of(self.job.data.train))) * len(keys) if of_views else len(self.job.files)
        )

        def fits(crossing: str) -> bool:
            point = network.traced.at(crossing, size)
            itemsize = np.dtype(STORED_TYPE[self.job.precision][0]).itemsize
            return has_room(
                self.job.store.root, n_images * point.n_bytes // point.dtype.itemsize * itemsize
            ) or all(
                has_features(
                    self.job.store,
                    CutFeatures(key, network.backbone.weights_key, crossing, self.job.precision),
                )
                for key in keys
            )

        return frozenset(filter(fits, kept))

    def _is_there(self, network: Network, config: TrialConfig, *, of_views: bool) -> bool:
        """Whether an earlier search has left the activations at a trial's cut."""
        weights_key, precision = network.backbone.weights_key, self.job.precision
        return all(
            has_features(self.job.store, CutFeatures(key, weights_key, network.cut, precision))
            for key in self.pixels_keys(config, of_views=of_views)
        )

    def decodings(self, config: TrialConfig, *, of_views: bool) -> list[tuple[Sequence[str], View | None]]:
        """The contents that are decoded for a trial, plain or once for each of its views that are kept."""
        if not of_views:
            return [(list(self.job.files), None)]
        assert config.augment != "none", "there are views"
        assert config.views != "fresh", "they are kept"
        contents = self.contents_of(self.job.data.train)
        return [(contents, View(config.augment, config.seed, index)) for index in range(config.views)]

    def pixels_keys(self, config: TrialConfig, *, of_views: bool) -> list[str]:
        """The store's keys of what `decodings` names."""
        return [
            pixels_key(sorted(set(contents)), size=config.image_size, view=view)
            for contents, view in self.decodings(config, of_views=of_views)
        ]

    def _plain_source(
        self, network: Network, pictures: _Pictures, rows: npt.NDArray[np.int64], base: str
    ) -> PlainSource:
        picked, precision = torch.from_numpy(rows), self.job.precision
        if network.prefix is None or base == INPUT:
            pixels = pictures.load()
            return PlainSource(self._rows_of(pixels.key, pixels.array), picked, network.prefix, precision)
        kept = CutFeatures(pictures.key, network.backbone.weights_key, base, precision)
        if kept.key not in self._rows:
            array = self._load_features(network, pictures, kept)
            self._rows[kept.key] = Rows(array, self.device, step_bytes=self.job.step_bytes)
        lead = None if base == network.cut else network.traced.segment(base, network.cut)
        return PlainSource(self._rows[kept.key], picked, lead, precision)

    def _load_features(
        self, network: Network, pictures: _Pictures, cut: CutFeatures
    ) -> npt.NDArray[np.generic]:
        n_images = pictures.n_images

        def compute() -> tuple[Rows, nn.Module]:
            self._work.prefix_images += n_images
            return self._nearest(network, pictures, cut)

        def fetch(folder: Path) -> None:
            if self._peers is not None:
                flops = network.traced.at(cut.cut, network.backbone.image_size).flops
                self._peers.fetch(cut, folder, n_images, flops, self._meter)

        return load_features(self.job.store, cut, compute, n_rows=n_images, meter=self._meter, fetch=fetch)

    def _nearest(self, network: Network, pictures: _Pictures, cut: CutFeatures) -> tuple[Rows, nn.Module]:
        """The deepest activations before a cut that are there already, and the layers from them to it."""
        crossings = network.traced.crossings
        exact = self.exact_crossings(network)
        for crossing in reversed(crossings[1 : crossings.index(cut.cut)]):
            shallower = replace(cut, cut=crossing)
            if crossing in exact and has_features(self.job.store, shallower):
                array = open_features(self.job.store, shallower)
                return Rows(array, self.device), network.traced.segment(crossing, cut.cut)
        pixels = pictures.load()
        return self._rows_of(pixels.key, pixels.array), network.to_crossing(cut.cut)

    def exact_crossings(self, network: Network) -> frozenset[str]:
        """The crossings whose values are kept as they are, so that layers behind them see no difference.

        In bf16 some layers compute in fp32 all the same (residual streams, LayerNorm). What is kept of those
        is rounded, which is right at a trial's own cut and nowhere else.
        """
        crossings = network.traced.crossings
        if self.job.precision == "fp32":
            return frozenset(crossings)
        loaded = self._loaded
        assert loaded is not None, "a network's backbone is loaded"
        if loaded.exact is None:
            size = network.backbone.image_size
            pixels = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=self.device)
            with torch.no_grad(), self.autocast():
                types = network.traced.types(network.normalize(pixels))
            loaded.exact = frozenset(name for name in crossings if types[name] == torch.bfloat16)
        return loaded.exact

    def _fresh_source(self, network: Network, config: TrialConfig, split: Split) -> FreshSource:
        assert config.augment != "none"
        augment = config.augment
        files = [(content, self.job.files[content]) for content in self.contents_of(split)]
        pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="decode")

        def draw(picked: Sequence[int], epoch: int) -> npt.NDArray[np.uint8]:
            view = View(augment, config.seed, FIRST_FRESH_VIEW + epoch)
            self._work.pixels_decoded += len(picked)
            return decode_batch([files[n] for n in picked], config.image_size, view, pool=pool)

        return FreshSource(draw, network.prefix, self.job.precision, self.device)

    def load(self, config: TrialConfig) -> LoadedBackbone:
        """A trial's backbone on its device, as it was last left; the one before is let go."""
        key = (
            config.model,
            config.weights,
            config.image_size,
            config.seed if config.weights == "none" else None,
        )
        if self._loaded is None or self._loaded.key != key:
            self._loaded = None  # one at a time: let go of its memory first
            backbone = load_backbone(
                config.model,
                weights=config.weights,
                n_classes=len(self.job.data.classes),
                seed=config.seed,
                image_size=config.image_size,
                state=None if self._peers is None else self._peers.weights(config),
            )
            # Channels last: what the convolutions of oneDNN and cuDNN are fastest with.
            backbone.model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            normalize = Normalize(backbone.mean, backbone.std).to(self.device)
            self._loaded = LoadedBackbone(
                key, backbone, normalize, trace(backbone, refine=speed_up), pristine_state(backbone)
            )
        return self._loaded

    def contents_of(self, split: Split) -> list[str]:
        """What names the images of a split, in its order."""
        contents = sorted(self.job.files)  # the order of the pixels' rows
        return [contents[row] for row in split.rows]

    def _pictures(
        self, image_size: int, view: View | None = None, contents: Sequence[str] | None = None
    ) -> _Pictures:
        """All images, or a view of those of these contents (sorted, each once)."""
        named = sorted(self.job.files) if contents is None else contents
        if (image_size, view) not in self._keys:  # their hash takes a while, of many
            self._keys[image_size, view] = pixels_key(named, size=image_size, view=view)
        return _Pictures(
            self._keys[image_size, view], len(named), lambda: self._load_pixels(image_size, view, named)
        )

    def decoded(self, config: TrialConfig, view: View | None, shard: Shard) -> npt.NDArray[np.uint8]:
        """The pixels (n, S, S, 3) of some rows of all images, or of a view; decoded for now, unless kept."""
        named = sorted(self.job.files if view is None else set(self.contents_of(self.job.data.train)))
        if has_pixels(self.job.store, named, size=config.image_size, view=view):
            return self._load_pixels(config.image_size, view, named).array[shard.start : shard.stop]
        files = [(content, self.job.files[content]) for content in named[shard.start : shard.stop]]
        self._work.pixels_decoded += len(files)
        return decode_rows(files, config.image_size, view, n_workers=self._n_threads)

    def note_frozen(self, n_images: int) -> None:
        """Count images that went through frozen layers."""
        self._work.prefix_images += n_images

    def _load_pixels(self, image_size: int, view: View | None, contents: Sequence[str]) -> Pixels:
        if (image_size, view) not in self._pixels:
            pixels = load_pixels(
                self.job.store,
                {content: self.job.files[content] for content in contents},
                size=image_size,
                view=view,
                n_workers=self._n_threads,
                meter=self._meter,
            )
            self._work.pixels_decoded += pixels.n_decoded
            self._pixels[image_size, view] = pixels
        return self._pixels[image_size, view]

    def _rows_of(self, key: str, array: npt.NDArray[np.generic]) -> Rows:
        if key not in self._rows:
            self._rows[key] = Rows(array, self.device, step_bytes=self.job.step_bytes)
        return self._rows[key]


def open_worker_bench(job: Job, peers: Peers | None = None) -> Workbench:
    """The workbench of a process that trains: its share of the cores, and of a GPU if it was given one."""
    job = at_this_host(job)
    torch.set_num_threads(job.n_threads)
    claim_root(job.store.root)  # on another machine nobody has yet
    if job.device == "cuda" and 0 < job.gpus < 1:
        take_part(int(1 / job.gpus + 1e-9), os.environ)
    device = _open_device(job.device)
    if device.type == "cuda" and job.memory_fraction is not None:
        torch.cuda.set_per_process_memory_fraction(job.memory_fraction, device)
    return Workbench(job, device, SigningMeter(), peers=peers)


def open_driver_bench(
    job: Job, meter: Meter, *, n_threads: int | None = None, peers: Peers | None = None
) -> Workbench:
    """The workbench of a process with all of a device: the cores, and the first GPU if there is one."""
    n_threads = n_threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(n_threads)
    device = _open_device(job.device if torch.cuda.is_available() else "cpu")
    return Workbench(job, device, meter, n_threads=n_threads, peers=peers)


def _open_device(kind: Literal["cpu", "cuda"]) -> torch.device:
    """The device by its number, which some of torch's functions insist on."""
    if kind == "cpu":
        return torch.device("cpu")
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda", torch.cuda.current_device())
