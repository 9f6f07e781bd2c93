"""The plan in figures, before any training: what is shared, how long it takes, what memory and disk."""

import heapq
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from tune_inat.config import TrialConfig
from tune_inat.cuts import Choice, KeptCuts, choose_cuts, read_at
from tune_inat.devices import Devices
from tune_inat.disk import how_to_move, nearest_folder, size_of, size_text
from tune_inat.errors import ResourceError
from tune_inat.figures import Cuts, StepModel
from tune_inat.graph import INPUT
from tune_inat.images import decode
from tune_inat.packing import Packing
from tune_inat.plan import PlannedTrial
from tune_inat.probe import Probe, StepTimes
from tune_inat.workbench import Workbench
from tune_inat.workload import Leader, PixelsForecast, Workload

# Measured on 2 cores (Ray 2.60, torch 2.14, 2026-11).
PROCESS_BYTES = 800 * 10**6  # of a process with torch, timm and Ray in it
STATE_RATE = 6e8  # bytes of weights and optimizer that are written in a second, while the next epoch trains
COPY_RATE = 4e9  # bytes of them that are set aside for it in a second
TRIAL_SECONDS = 0.15  # of a trial's start, replay, end and W&B run
RESERVED_SHARE = 0.1  # of the free disk that activations leave alone
DECODED_IMAGES = 16  # to find out how long it takes


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
        packings: how GPUs are shared, each type of them, where that was measured.
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
    packings: tuple[Packing, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The forecast as JSON, without each trial's seconds."""
        content = asdict(self)
        del content["trial_seconds"]
        content["packings"] = [packing.to_json() for packing in self.packings]
        return {**content, "seconds": {name: round(value, 1) for name, value in self.seconds.items()}}


class Forecaster:
    """Makes forecasts for the trials that are left.

    Args:
        bench: of the process that conducts the search. Its job says what is shared and in which precision.
        trials: those left, or such as stand for them.
        budget: bytes that the cache may hold, `None` for no limit.
        files: where the image of each content lies.
        cuts: what is known of networks already.
        probe: times what trials do.
    """

    def __init__(
        self,
        bench: Workbench,
        trials: Sequence[PlannedTrial],
        *,
        budget: int | None,
        files: Mapping[str, Path],
        cuts: Cuts,
        probe: Probe,
    ) -> None:
        self._bench = bench
        self._job = bench.job
        self._trials = tuple(trials)
        self._files = files
        self._budget = budget
        self._probe = probe
        self._rates: dict[tuple[str, int], float] = {}
        self._decoding: dict[int, float] = {}
        self._steps: dict[int, StepModel] = {}
        self._work = Workload(bench, self._trials, files, cuts)
        self.n_training = sum(leader.n_left > 0 for leader in self._work.leaders)
        self.choice = self._choose()

    # ---- what is kept

    def decisions(self) -> dict[str, KeptCuts]:
        """Where activations are kept, for the job."""
        return self.choice.decisions(self._work.sets) if self._job.reuse else {}

    def _choose(self) -> Choice:
        if not self._job.reuse:
            return Choice({images.key: frozenset() for images in self._work.sets})
        room = self._room()
        rate = min((self._rate_of(images.key) for images in self._work.sets), default=float("inf"))
        return choose_cuts(self._work.sets, budget=room, flops_rate=rate)

    def _room(self) -> int:
        """The bytes that new activations may take, beside what the trials that run leave."""
        return max(0, self._spare() - self._work.running_states_bytes(len(os.sched_getaffinity(0))))

    def _spare(self) -> int:
        """The bytes that the cache may still grow by, once the images are decoded."""
        root, pixels = self._job.store.root, self._work.pixels
        free = int(shutil.disk_usage(nearest_folder(root)).free * (1 - RESERVED_SHARE))
        spare = free - sum(part.n_bytes for part in pixels)
        if self._budget is not None:
            used = sum(3 * part.image_size**2 * part.n_images for part in pixels)
            used += sum(images.size(name) for images in self._work.sets for name in images.present)
            downloaded = sum(size_of(root / name) for name in ("data", "remote"))
            spare = min(spare, self._budget - used - downloaded)
        return max(0, spare)

    def _rate_of(self, images_key: str) -> float:
        """The operations a second of the frozen layers that a set of images goes through."""
        return self._frozen_rate(self._work.leader_with(images_key), len(os.sched_getaffinity(0)))

    def _frozen_rate(self, config: TrialConfig, n_threads: int) -> float:
        """The operations a second of a trial's frozen layers, measured up to its network's deepest cut."""
        key = (self._job.images_key(config, of_views=False), n_threads)
        if key not in self._rates:
            deepest = self._work.deepest_like(config)
            self._rates[key] = self._probe.frozen_rate(deepest, n_threads=n_threads)
        return self._rates[key]

    def check_states(self, *, is_representative: bool = False) -> None:
        """Refuse trials that can never keep what an epoch leaves: each of them would fail, once trained.

        Args:
            is_representative: see `forecast`. Then others may be proposed, unless none of these fits.

        Raises:
            ResourceError: says which trial needs how much, and what is free.
        """
        job = self._job
        if job.states is not None:  # in a bucket
            return
        choose = min if is_representative else max
        leader = choose(self._work.leaders, key=self._work.epoch_bytes, default=None)
        if leader is None:
            return
        n_bytes = self._work.epoch_bytes(leader)
        folder = job.states_root or job.store.root
        free = shutil.disk_usage(nearest_folder(folder)).free
        if job.states_root is None:
            free -= sum(part.n_bytes for part in self._work.pixels)
            if job.store.budget_bytes is not None:  # what was unused for longest goes
                free += max(0, size_of(folder) - job.store.budget_bytes)
        if n_bytes > free:
            raise ResourceError(
                f"{folder}: {size_text(n_bytes)} are needed for the weights and optimizer that epochs of a "
                f"trial leave (model {leader.config.model}, freeze {leader.config.freeze}), and "
                f"{size_text(max(0, free))} are free beside the images. Make room, freeze more, or "
                f"{how_to_move(folder)}."
            )

    # ---- how long it takes

    def training_seconds(self, share: Devices) -> float:
        """How long the leaders take when so many of them train at a time."""
        load = self._probe.contention(n_threads=share.cpus_per_trial, n_concurrent=self._n_at_a_time(share))
        load *= share.load
        free_at = [0.0] * share.max_concurrent
        seconds = (self._leader_seconds(leader, share, load) for leader in self._work.leaders)
        for longest in sorted(seconds, reverse=True):  # as they are handed out
            heapq.heappush(free_at, heapq.heappop(free_at) + longest)
        return max(free_at) + TRIAL_SECONDS * len(self._trials) / share.max_concurrent

    def _trial_seconds(self, share: Devices) -> dict[str, float]:
        leading = {leader.trial_id: self._leader_seconds(leader, share, 1.0) for leader in self._work.leaders}
        return {trial.trial_id: TRIAL_SECONDS + leading.get(trial.trial_id, 0.0) for trial in self._trials}

    def _n_at_a_time(self, share: Devices) -> int:
        return max(1, min(share.max_concurrent, self.n_training))

    def _leader_seconds(self, leader: Leader, share: Devices, load: float) -> float:
        config, data = leader.config, self._job.data
        if leader.n_left == 0:
            return 0.0
        cut, times = self._work.cuts.of(config), self._step_times(config, share.cpus_per_trial)
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
        cut = self._work.cuts.of(config)
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
        cut = self._work.cuts.of(config)
        return read_at(cut.name, cut.crossings, kept, cut.exact)

    def _step_times(self, config: TrialConfig, n_threads: int) -> StepTimes:
        if n_threads not in self._steps:
            n_images = len(self._job.data.train.labels)
            configs = [leader.config for leader in self._work.leaders if leader.n_left > 0]
            self._steps[n_threads] = StepModel(
                configs,
                self._work.cuts.of,
                lambda each: self._probe.possible_step_times(each, n_threads=n_threads, n_images=n_images),
            )
        return self._steps[n_threads].times(config)

    def _frozen_seconds(self) -> float:
        """What computing the kept activations takes, with all of the machine."""
        return sum(
            replace(images, needs=()).seconds(self.choice.kept[images.key], self._rate_of(images.key))
            for images in self._work.sets
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
        pixels, cuts = self._work.pixels, self._cuts()
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
                for images in self._work.sets
                for name in self.choice.kept[images.key] - images.present
            ),
        }
        left = self._work.states_bytes()
        disk["states"] = min(left, max(0, self._spare() - disk["activations"]))
        free = shutil.disk_usage(nearest_folder(self._job.store.root)).free
        return Forecast(
            n_trials=len(self._trials) + n_finished,
            n_finished=n_finished,
            n_families=len(self._work.leaders),
            epochs_asked=sum(trial.config.epochs for trial in self._trials),
            epochs_to_train=sum(leader.n_left for leader in self._work.leaders),
            is_representative=is_representative,
            precision=self._job.precision,
            pixels=pixels,
            cuts=cuts,
            devices=share,
            seconds={**seconds, "total": sum(seconds.values())},
            memory=self._memory(share),
            disk={**disk, "total": sum(disk.values()), "free": free},
            notices=self._notices(sum(disk.values()), free, left, disk["states"]),
            trial_seconds={} if is_representative else self._trial_seconds(share),
        )

    def _cuts(self) -> tuple[CutForecast, ...]:
        by_key = {images.key: images for images in self._work.sets}
        found: dict[tuple[str, str, str], list[TrialConfig]] = defaultdict(list)
        for trial in self._trials:
            config = trial.config
            has_views = config.augment != "none" and config.views != "fresh"
            for of_views in (True, False) if has_views else (False,):  # validation has plain images
                key = self._job.images_key(config, of_views=of_views)
                found[config.model, key, self._work.cuts.of(config).name].append(config)
        told: set[tuple[str, str]] = set()
        forecasts = []
        for (model, key, cut), configs in found.items():
            images = by_key[key]
            of_views = self._work.is_of_views(key, configs[0])
            reads = self._base(configs[0], of_views=of_views)
            is_new = reads != INPUT and reads not in images.present and (key, reads) not in told
            told.add((key, reads))
            n_bytes = 0 if reads == INPUT else images.size(reads)
            n_images = images.n_rows if is_new else 0
            forecasts.append(
                CutForecast(model, cut, len(configs), reads, n_images, n_bytes, n_bytes if is_new else 0)
            )
        order = {name: number for number, name in enumerate(dict.fromkeys(f.model for f in forecasts))}
        depth = {cut.name: cut.depth for cut in self._work.cuts.all()}
        return tuple(sorted(forecasts, key=lambda each: (order[each.model], depth[each.cut])))

    def _memory(self, share: Devices) -> dict[str, int]:
        """What a trial's process takes; the images that it reads are mapped, and shared by all."""
        largest = 0
        for leader in self._work.leaders:
            cut = self._work.cuts.of(leader.config)
            # Gradients and Adam's two moments; then weights and moments again, while they are written.
            own = 2 * cut.model_bytes + 6 * cut.trainable_bytes
            if leader.n_left > 0:
                own += self._step_times(leader.config, share.cpus_per_trial).saved_bytes
            largest = max(largest, own)
        if self._bench.device.type == "cuda":
            return {"trial": PROCESS_BYTES, "total": share.max_concurrent * PROCESS_BYTES, "gpu": largest}
        trial = PROCESS_BYTES + largest
        return {"trial": trial, "total": self._n_at_a_time(share) * trial}

    def _notices(self, n_bytes: int, free: int, left: int, kept: int) -> tuple[str, ...]:
        notices = []
        for images in self._work.sets:
            missing = self.choice.crowded_out.get(images.key, frozenset())
            if missing:
                n_missing = sum(images.size(name) for name in missing)
                names = ", ".join(sorted(missing, key=[p.name for p in images.points].index))
                why = "--cache-gb" if self._budget is not None else "the cache's disk"
                notices.append(
                    f"{why} has no room for the activations at {names} ({size_text(n_missing)}): frozen "
                    "layers run again in every epoch from what is kept before."
                )
        if kept < left:
            notices.append(
                f"Trials would leave {size_text(left)} to go on from, and there is room for "
                f"{size_text(kept)}: what was unused for longest goes."
            )
        if n_bytes > free:
            notices.append(
                f"The search may write {size_text(n_bytes)} and {size_text(free)} are free on the "
                "cache's disk."
            )
        return tuple(notices)


def _try_to_decode(path: Path, size: int) -> None:
    from tune_inat.pictures import UnreadableImage

    with suppress(UnreadableImage):
        decode(path, size)
