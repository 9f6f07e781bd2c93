"""The plan in figures, before any training: what is shared, how long it takes, what memory and disk."""

import heapq
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from tune_inat.config import TrialConfig
from tune_inat.cuts import Choice, Images, KeptCuts, Need, choose_cuts, read_at
from tune_inat.devices import Devices
from tune_inat.disk import size_of
from tune_inat.features import CutFeatures, has_features
from tune_inat.figures import CutFigures, StepModel
from tune_inat.frozen import STORED_TYPE
from tune_inat.graph import INPUT
from tune_inat.images import decode, has_pixels
from tune_inat.plan import PlannedTrial
from tune_inat.probe import Probe, StepTimes
from tune_inat.store import Store
from tune_inat.workbench import Workbench

# Measured on 2 cores (Ray 2.60, torch 2.14, 2026-11).
PROCESS_BYTES = 800 * 10**6  # of a process with torch, timm and Ray in it
STATE_RATE = 6e8  # bytes of weights and optimizer that are written in a second, while the next epoch trains
COPY_RATE = 4e9  # bytes of them that are set aside for it in a second
TRIAL_SECONDS = 0.15  # of a trial's start, replay, end and W&B run
ABOUT_AS_QUICK = 1.1
RESERVED_SHARE = 0.1  # of the free disk that activations leave alone
DECODED_IMAGES = 16  # to find out how long it takes


@dataclass(frozen=True)
class PixelsForecast:
    """The images at one size, plain or in some augmented views."""

    image_size: int
    views: int
    n_images: int
    n_to_decode: int
    n_bytes: int  # to be written


@dataclass(frozen=True)
class CutForecast:
    """Trials that are cut at one place, and the activations that they read.

    Attributes:
        reads: the crossing whose activations they read: the cut itself, one before it, or the input.
        n_images: how many images go through frozen layers for it once.
        n_bytes: the size of these activations, of which `n_new_bytes` are to be written.
    """

    model: str
    cut: str
    n_trials: int
    reads: str
    n_images: int
    n_bytes: int
    n_new_bytes: int


@dataclass(frozen=True)
class Forecast:
    """What is left of a search, in figures. Where trials are proposed as it goes, random ones stand for them.

    Attributes:
        seconds: by what they go to, and in `total`.
        memory: bytes of a trial's process in `trial`, of all in `total`; of a GPU in `gpu`.
        disk: bytes to be written, by what, in `total`, and what is `free`.
        notices: what the user should know.
        trial_seconds: what each trial should take, by its id; empty where trials are only represented.
    """

    n_trials: int
    n_finished: int
    n_families: int
    epochs_asked: int
    epochs_to_train: int
    is_representative: bool
    precision: str
    pixels: tuple[PixelsForecast, ...]
    cuts: tuple[CutForecast, ...]
    devices: Devices
    seconds: Mapping[str, float]
    memory: Mapping[str, int]
    disk: Mapping[str, int]
    notices: tuple[str, ...]
    trial_seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The forecast as JSON, without each trial's seconds."""
        content = asdict(self)
        del content["trial_seconds"]
        return {**content, "seconds": {name: round(value, 1) for name, value in self.seconds.items()}}


@dataclass(frozen=True)
class Leader:
    """The longest trial of a family, and how many of its epochs are left to train."""

    trial_id: str
    config: TrialConfig
    n_left: int
    n_horizons: int


class Forecaster:
    """Makes forecasts for the trials that are left.

    Args:
        bench: of the process that conducts the search. Its job says what is shared and in which precision.
        trials: those left, or such as stand for them.
        budget: bytes that the cache may hold, `None` for no limit.
        files: where the image of each content lies.
        probes: where times are kept that were measured.
    """

    def __init__(
        self,
        bench: Workbench,
        trials: Sequence[PlannedTrial],
        *,
        budget: int | None,
        files: Mapping[str, Path],
        probes: Store,
    ) -> None:
        self._bench = bench
        self._job = bench.job
        self._trials = tuple(trials)
        self._files = files
        self._budget = budget
        self._probe = Probe(bench, probes)
        self._networks: dict[tuple[str, float | str], CutFigures] = {}
        self._rates: dict[tuple[str, int], float] = {}
        self._decoding: dict[int, float] = {}
        for trial in sorted(self._trials, key=lambda trial: trial.config.model):  # each model loaded once
            self._cut_of(trial.config)
        self._leaders = self._find_leaders(shared=self._job.reuse)
        # How devices are shared out follows from what reuse would share, also without it: numbers depend on
        # the threads of a trial, and must not depend on reuse.
        families = self._leaders if self._job.reuse else self._find_leaders(shared=True)
        self._sharing = [leader for leader in families if leader.n_left > 0]
        self._steps: dict[int, StepModel] = {}
        self.n_families = len(self._leaders)
        self.n_training = sum(leader.n_left > 0 for leader in self._leaders)
        self.n_at_once = len(self._sharing) or len(self._trials)
        self._sets = self._find_sets()
        self.choice = self._choose()

    # ---- what there is to do

    def _find_leaders(self, *, shared: bool) -> list[Leader]:
        families: dict[str, list[PlannedTrial]] = defaultdict(list)
        for trial in self._trials:
            families[trial.family_key if shared else trial.trial_id].append(trial)
        leaders = []
        for trials in families.values():
            longest = max(trials, key=lambda trial: trial.config.epochs)
            n_recorded = self._n_recorded(longest.config) if self._job.reuse else 0
            n_left = max(0, longest.config.epochs - n_recorded)
            n_horizons = len({trial.config.epochs for trial in trials})
            leaders.append(Leader(longest.trial_id, longest.config, n_left, n_horizons))
        return leaders

    def _n_recorded(self, config: TrialConfig) -> int:
        """The epochs of a trial's family that are there already."""
        states = self._bench.states_of(config, self._cut_of(config).weights_key)
        return len(states.record().rows)

    def _cut_of(self, config: TrialConfig) -> CutFigures:
        key = (self._job.images_key(config, of_views=False), config.freeze)
        if key not in self._networks:
            network = self._bench.network(config)
            exact = self._bench.exact_crossings(network)
            self._networks[key] = CutFigures.of(network, config, exact)
        return self._networks[key]

    def _find_sets(self) -> list[Images]:
        """The sets of images whose activations trials read, and where."""
        data = self._job.data
        n_train, n_val = len(data.train.labels), len(data.val.labels)
        needs: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        examples: dict[str, TrialConfig] = {}
        for leader in self._leaders:
            config, cut = leader.config, self._cut_of(leader.config)
            is_plain = config.augment == "none"
            plain = self._job.images_key(config, of_views=False)
            examples.setdefault(plain, config)
            needs[plain][cut.name] += leader.n_left * (n_val + n_train * is_plain)
            if not is_plain and config.views != "fresh":
                views = self._job.images_key(config, of_views=True)
                examples.setdefault(views, config)
                needs[views][cut.name] += leader.n_left * n_train
        return [
            Images(
                key=key,
                points=self._cut_of(config).points(STORED_TYPE[self._job.precision][1].itemsize),
                n_rows=self._n_rows(config, of_views=self._is_of_views(key, config)),
                needs=[Need(cut, n_reads) for cut, n_reads in needs[key].items()],
                present=self._present(config, needs[key], of_views=self._is_of_views(key, config)),
            )
            for key, config in examples.items()
        ]

    def _is_of_views(self, key: str, config: TrialConfig) -> bool:
        return key != self._job.images_key(config, of_views=False)

    def _n_rows(self, config: TrialConfig, *, of_views: bool) -> int:
        return len(self._job.data.train.labels) * int(config.views) if of_views else len(self._files)

    def _present(self, config: TrialConfig, needs: Collection[str], *, of_views: bool) -> frozenset[str]:
        """The crossings, up to the deepest cut, at which the store has the activations of all images."""
        cut = self._cut_of(config)
        order = cut.crossings
        deepest = max((order.index(name) for name in needs), default=0)
        keys = self._bench.pixels_keys(config, of_views=of_views)

        def is_there(name: str) -> bool:
            return all(
                has_features(self._job.store, CutFeatures(key, cut.weights_key, name, self._job.precision))
                for key in keys
            )

        return frozenset(name for name in order[1 : deepest + 1] if is_there(name))

    # ---- what is kept

    def decisions(self) -> dict[str, KeptCuts]:
        """Where activations are kept, for the job."""
        return self.choice.decisions(self._sets) if self._job.reuse else {}

    def _choose(self) -> Choice:
        if not self._job.reuse:
            return Choice({images.key: frozenset() for images in self._sets})
        room = self._room()
        rate = min((self._rate_of(images.key) for images in self._sets), default=float("inf"))
        return choose_cuts(self._sets, budget=room, flops_rate=rate)

    def _room(self) -> int | None:
        """The bytes that new activations may take: what `--cache-gb` and the disk leave."""
        root = _existing(self._job.store.root)
        free = int(shutil.disk_usage(root).free * (1 - RESERVED_SHARE))
        pixels = self._pixels()
        free -= sum(part.n_bytes for part in pixels) + self._states_bytes()
        if self._budget is None:
            return max(0, free)
        used = sum(3 * part.image_size**2 * part.n_images for part in pixels)
        used += sum(images.size(name) for images in self._sets for name in images.present)
        downloaded = sum(size_of(self._job.store.root / name) for name in ("data", "remote"))
        return max(0, min(free, self._budget - used - downloaded - self._states_bytes()))

    def _rate_of(self, images_key: str) -> float:
        """The operations a second of the frozen layers that a set of images goes through."""
        config = next(
            leader.config
            for leader in self._leaders
            if images_key in {self._job.images_key(leader.config, of_views=each) for each in (False, True)}
        )
        return self._frozen_rate(config, len(os.sched_getaffinity(0)))

    def _frozen_rate(self, config: TrialConfig, n_threads: int) -> float:
        """The operations a second of a trial's frozen layers, measured up to its network's deepest cut."""
        network = self._job.images_key(config, of_views=False)
        if (network, n_threads) not in self._rates:
            mine = [
                leader.config
                for leader in self._leaders
                if self._job.images_key(leader.config, of_views=False) == network
            ]
            deepest = max(mine, key=lambda each: self._cut_of(each).depth)
            self._rates[network, n_threads] = self._probe.frozen_rate(deepest, n_threads=n_threads)
        return self._rates[network, n_threads]

    def _pixels(self) -> tuple[PixelsForecast, ...]:
        found: dict[tuple[int, str], PixelsForecast] = {}
        for leader in self._leaders:
            config = leader.config
            self._add_pixels(found, config, of_views=False)
            if config.augment != "none" and config.views != "fresh":
                self._add_pixels(found, config, of_views=True)
        return tuple(found.values())

    def _add_pixels(
        self, found: dict[tuple[int, str], PixelsForecast], config: TrialConfig, *, of_views: bool
    ) -> None:
        decodings = self._bench.decodings(config, of_views=of_views)
        n_images = sum(len(contents) for contents, _ in decodings)
        n_new = sum(
            len(contents)
            for contents, view in decodings
            if not has_pixels(self._job.store, contents, size=config.image_size, view=view)
        )
        views = len(decodings) if of_views else 0
        key = (config.image_size, f"{config.augment} {config.seed} {views}" if of_views else "")
        n_bytes = 3 * config.image_size**2 * n_new
        found[key] = PixelsForecast(config.image_size, views, n_images, n_new, n_bytes)

    def _states_bytes(self) -> int:
        """At most so many bytes of weights and optimizers: the last epoch's, and the best of each length."""
        return sum(
            (leader.n_horizons + 3) * self._cut_of(leader.config).trainable_bytes for leader in self._leaders
        )

    # ---- how long it takes

    def training_seconds(self, share: Devices) -> float:
        """How long the leaders take when so many of them train at a time."""
        load = self._probe.contention(n_threads=share.cpus_per_trial, n_concurrent=self._n_at_a_time(share))
        free_at = [0.0] * share.max_concurrent
        for leader in self._leaders:
            started = heapq.heappop(free_at)
            heapq.heappush(free_at, started + self._leader_seconds(leader, share, load))
        return max(free_at) + TRIAL_SECONDS * len(self._trials) / share.max_concurrent

    def _trial_seconds(self, share: Devices) -> dict[str, float]:
        leading = {leader.trial_id: self._leader_seconds(leader, share, 1.0) for leader in self._leaders}
        return {trial.trial_id: TRIAL_SECONDS + leading.get(trial.trial_id, 0.0) for trial in self._trials}

    def _n_at_a_time(self, share: Devices) -> int:
        return max(1, min(share.max_concurrent, self.n_training))

    def _leader_seconds(self, leader: Leader, share: Devices, load: float) -> float:
        config, data = leader.config, self._job.data
        if leader.n_left == 0:
            return 0.0
        cut, times = self._cut_of(config), self._step_times(config, share.cpus_per_trial)
        n_train, n_val = len(data.train.labels), len(data.val.labels)
        training = -(-n_train // config.batch_size) * times.step_seconds
        evaluating = n_val * times.image_seconds
        frozen = self._lead_seconds(config, n_train, n_val, share)
        n_bytes = 3 * cut.trainable_bytes
        epoch = (training + evaluating + frozen) * load + n_bytes / COPY_RATE
        writing = n_bytes / STATE_RATE
        return leader.n_left * max(epoch, writing) + writing

    def _lead_seconds(self, config: TrialConfig, n_train: int, n_val: int, share: Devices) -> float:
        """What an epoch spends on frozen layers behind what is kept, and on decoding where nothing is."""
        cut = self._cut_of(config)
        is_plain, is_fresh = config.augment == "none", config.augment != "none" and config.views == "fresh"
        base = {views: self._base(config, of_views=views) for views in (False, True)}
        flops = n_val * cut.flops_from(base[False])
        flops += n_train * cut.flops_from(INPUT if is_fresh else base[not is_plain])
        decoding = 0.0
        if is_fresh:
            n_cores = len(os.sched_getaffinity(0))
            decoding = n_train * self._image_seconds(config.image_size) * n_cores / share.cpus_per_trial
        if flops == 0:
            return decoding
        return flops / self._frozen_rate(config, share.cpus_per_trial) + decoding

    def _base(self, config: TrialConfig, *, of_views: bool) -> str:
        kept = self.choice.kept.get(self._job.images_key(config, of_views=of_views), frozenset())
        cut = self._cut_of(config)
        return read_at(cut.name, cut.crossings, kept, cut.exact)

    def _step_times(self, config: TrialConfig, n_threads: int) -> StepTimes:
        if n_threads not in self._steps:
            configs = [leader.config for leader in self._leaders if leader.n_left > 0]
            self._steps[n_threads] = StepModel(
                configs, self._cut_of, lambda each: self._measured_step(each, n_threads)
            )
        return self._steps[n_threads].times(config)

    def _measured_step(self, config: TrialConfig, n_threads: int) -> StepTimes:
        """What a step takes. One that fails counts for nothing: the trial itself will say why."""
        batch_size = min(config.batch_size, len(self._job.data.train.labels))
        try:
            return self._probe.step_times(
                config.model_copy(update={"batch_size": batch_size}), n_threads=n_threads
            )
        except (RuntimeError, ValueError):  # out of a GPU's memory, or a BatchNorm over a single value
            self._bench.rest()
            return StepTimes(0.0, 0.0, 0)

    def choose_devices(self, options: Sequence[Devices]) -> Devices:
        """Of several ways to share the devices out the one that is quickest, going by the costliest step.

        Of those that are about as quick it takes the one with the fewest threads, which leaves the least idle
        between steps and between trials.
        """
        if len(options) == 1 or not self._sharing:
            return options[0]
        heaviest = max(self._sharing, key=lambda leader: self._cut_of(leader.config).suffix_flops).config

        def seconds(share: Devices) -> float:
            step = self._measured_step(heaviest, share.cpus_per_trial).step_seconds
            at_a_time = max(1, min(share.max_concurrent, len(self._sharing)))
            load = self._probe.contention(n_threads=share.cpus_per_trial, n_concurrent=at_a_time)
            return step * load * self._rounds(self._sharing, at_a_time)

        took = [seconds(share) for share in options]
        quick = [
            share for share, each in zip(options, took, strict=True) if each < ABOUT_AS_QUICK * min(took)
        ]
        return min(quick, key=lambda share: share.cpus_per_trial)

    def _rounds(self, leaders: Sequence[Leader], n_at_a_time: int) -> float:
        """How much work the busiest of so many slots gets, in the order of the plan."""
        free_at = [0.0] * n_at_a_time
        for leader in leaders:
            flops = self._cut_of(leader.config).suffix_flops * leader.n_left
            heapq.heappush(free_at, heapq.heappop(free_at) + flops)
        return max(free_at)

    def _frozen_seconds(self) -> float:
        """What computing the kept activations takes, with all of the machine."""
        return sum(
            replace(images, needs=()).seconds(self.choice.kept[images.key], self._rate_of(images.key))
            for images in self._sets
            if self.choice.kept[images.key]
        )

    def _decode_seconds(self, pixels: Sequence[PixelsForecast]) -> float:
        return sum(
            part.n_to_decode * self._image_seconds(part.image_size) for part in pixels if part.n_to_decode
        )

    def _image_seconds(self, size: int) -> float:
        """What decoding an image takes, all cores together."""
        if size not in self._decoding:
            paths = list(self._files.values())[:: max(1, len(self._files) // DECODED_IMAGES)]
            started = perf_counter()
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                list(pool.map(lambda path: _try_to_decode(path, size), paths))
            self._decoding[size] = (perf_counter() - started) / len(paths)
        return self._decoding[size]

    # ---- all of it

    def forecast(
        self, share: Devices, *, n_finished: int, is_representative: bool, start_seconds: float
    ) -> Forecast:
        """The forecast with the devices shared out so.

        Args:
            n_finished: trials of the search that are done.
            is_representative: whether the trials are random ones that stand for those to be proposed.
            start_seconds: what comes before training and after it, whatever the trials are.
        """
        pixels, cuts = self._pixels(), self._cuts()
        seconds = {
            "decoding": self._decode_seconds(pixels),
            "frozen layers": self._frozen_seconds(),
            "training": self.training_seconds(share),
            "start and end": start_seconds,
        }
        disk = {
            "pixels": sum(part.n_bytes for part in pixels),
            "activations": sum(
                images.size(name)
                for images in self._sets
                for name in self.choice.kept[images.key] - images.present
            ),
            "states": self._states_bytes(),
        }
        free = shutil.disk_usage(_existing(self._job.store.root)).free
        return Forecast(
            n_trials=len(self._trials) + n_finished,
            n_finished=n_finished,
            n_families=self.n_families,
            epochs_asked=sum(trial.config.epochs for trial in self._trials),
            epochs_to_train=sum(leader.n_left for leader in self._leaders),
            is_representative=is_representative,
            precision=self._job.precision,
            pixels=pixels,
            cuts=cuts,
            devices=share,
            seconds={**seconds, "total": sum(seconds.values())},
            memory=self._memory(share),
            disk={**disk, "total": sum(disk.values()), "free": free},
            notices=self._notices(sum(disk.values()), free),
            trial_seconds={} if is_representative else self._trial_seconds(share),
        )

    def _cuts(self) -> tuple[CutForecast, ...]:
        by_key = {images.key: images for images in self._sets}
        found: dict[tuple[str, str, str], list[TrialConfig]] = defaultdict(list)
        for trial in self._trials:
            config = trial.config
            has_views = config.augment != "none" and config.views != "fresh"
            for of_views in (True, False) if has_views else (False,):  # validation has plain images
                key = self._job.images_key(config, of_views=of_views)
                found[config.model, key, self._cut_of(config).name].append(config)
        told: set[tuple[str, str]] = set()
        forecasts = []
        for (model, key, cut), configs in found.items():
            images = by_key[key]
            of_views = self._is_of_views(key, configs[0])
            reads = self._base(configs[0], of_views=of_views)
            is_new = reads != INPUT and reads not in images.present and (key, reads) not in told
            told.add((key, reads))
            n_bytes = 0 if reads == INPUT else images.size(reads)
            n_images = images.n_rows if is_new else 0
            forecasts.append(
                CutForecast(model, cut, len(configs), reads, n_images, n_bytes, n_bytes if is_new else 0)
            )
        order = {name: number for number, name in enumerate(dict.fromkeys(f.model for f in forecasts))}
        depth = {cut.name: cut.depth for cut in self._networks.values()}
        return tuple(sorted(forecasts, key=lambda each: (order[each.model], depth[each.cut])))

    def _memory(self, share: Devices) -> dict[str, int]:
        """What a trial's process takes; the images that it reads are mapped, and shared by all."""
        largest = 0
        for leader in self._leaders:
            cut = self._cut_of(leader.config)
            own = 2 * cut.model_bytes + 3 * cut.trainable_bytes
            if leader.n_left > 0:
                own += self._step_times(leader.config, share.cpus_per_trial).saved_bytes
            largest = max(largest, own)
        if self._bench.device.type == "cuda":
            return {"trial": PROCESS_BYTES, "total": share.max_concurrent * PROCESS_BYTES, "gpu": largest}
        trial = PROCESS_BYTES + largest
        return {"trial": trial, "total": self._n_at_a_time(share) * trial}

    def _notices(self, n_bytes: int, free: int) -> tuple[str, ...]:
        notices = []
        for images in self._sets:
            missing = self.choice.crowded_out.get(images.key, frozenset())
            if missing:
                n_missing = sum(images.size(name) for name in missing)
                names = ", ".join(sorted(missing, key=[p.name for p in images.points].index))
                why = "--cache-gb" if self._budget is not None else "the cache's disk"
                notices.append(
                    f"{why} has no room for the activations at {names} ({n_missing / 1e9:,.2f} GB): frozen "
                    "layers run again in every epoch from what is kept before."
                )
        if n_bytes > free:
            notices.append(
                f"The search may write {n_bytes / 1e9:,.2f} GB and {free / 1e9:,.2f} GB are free on the "
                "cache's disk."
            )
        return tuple(notices)


def _existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _try_to_decode(path: Path, size: int) -> None:
    from tune_inat.pictures import UnreadableImage

    with suppress(UnreadableImage):
        decode(path, size)
