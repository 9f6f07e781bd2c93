"""What a search has to do: families and their leaders, images and where they are cut, pixels, states."""

import heapq
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tune_inat.config import TrialConfig
from tune_inat.cuts import Images, Need
from tune_inat.features import CutFeatures, has_features
from tune_inat.figures import Cuts
from tune_inat.frozen import STORED_TYPE
from tune_inat.images import has_pixels
from tune_inat.plan import PlannedTrial
from tune_inat.workbench import Workbench


@dataclass(frozen=True)
class PixelsForecast:
    """The images at one size, plain or in some augmented views."""

    image_size: int
    views: int
    n_images: int
    n_to_decode: int
    n_bytes: int  # to be written


@dataclass(frozen=True)
class Leader:
    """The longest trial of a family, and how many of its epochs are left to train."""

    trial_id: str
    config: TrialConfig
    n_left: int
    n_horizons: int


class Workload:
    """The work that trials leave to do, as reuse shares it.

    Args:
        bench: of the process that conducts the search. Its job says what is shared, in which precision, and
            with how many threads trials train: epochs on record count only if they were trained so.
        trials: those left, or such as stand for them.
        files: where the image of each content lies.
        cuts: what is known of networks already.

    Attributes:
        leaders: of all families; without reuse each trial is one of its own.
        sets: the sets of images whose activations trials read, and where.
    """

    def __init__(
        self, bench: Workbench, trials: Sequence[PlannedTrial], files: Mapping[str, Path], cuts: Cuts
    ) -> None:
        self._bench = bench
        self._job = bench.job
        self._trials = tuple(trials)
        self._files = files
        self.cuts = cuts
        cuts.look_at([trial.config for trial in self._trials])
        self.leaders = self._find_leaders()
        self.sets = self._find_sets()

    def leader_with(self, images_key: str) -> TrialConfig:
        """The configuration of some leader that reads a set of images."""
        return next(
            leader.config
            for leader in self.leaders
            if images_key in {self._job.images_key(leader.config, of_views=each) for each in (False, True)}
        )

    def deepest_like(self, config: TrialConfig) -> TrialConfig:
        """Of the leaders with a trial's network the one that is cut deepest."""
        network = self._job.images_key(config, of_views=False)
        alike = [
            leader.config
            for leader in self.leaders
            if self._job.images_key(leader.config, of_views=False) == network
        ]
        return max(alike, key=lambda each: self.cuts.of(each).depth)

    def is_of_views(self, images_key: str, config: TrialConfig) -> bool:
        """Whether a set of images that a trial reads is of its augmented views."""
        return images_key != self._job.images_key(config, of_views=False)

    def _find_leaders(self) -> list[Leader]:
        families: dict[str, list[PlannedTrial]] = defaultdict(list)
        for trial in self._trials:
            families[trial.family_key if self._job.reuse else trial.trial_id].append(trial)
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
        states = self._bench.states_of(config, self.cuts.of(config).weights_key)
        return len(states.record().rows)

    def _find_sets(self) -> list[Images]:
        """The sets of images whose activations trials read, and where."""
        data = self._job.data
        n_train, n_val = len(data.train.labels), len(data.val.labels)
        needs: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        examples: dict[str, TrialConfig] = {}
        for leader in self.leaders:
            config, cut = leader.config, self.cuts.of(leader.config)
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
                points=self.cuts.of(config).points(STORED_TYPE[self._job.precision][1].itemsize),
                n_rows=self._n_rows(config, of_views=self.is_of_views(key, config)),
                needs=[Need(cut, n_reads) for cut, n_reads in needs[key].items()],
                present=self._present(config, needs[key], of_views=self.is_of_views(key, config)),
            )
            for key, config in examples.items()
        ]

    def _n_rows(self, config: TrialConfig, *, of_views: bool) -> int:
        return len(self._job.data.train.labels) * int(config.views) if of_views else len(self._files)

    def _present(self, config: TrialConfig, needs: Collection[str], *, of_views: bool) -> frozenset[str]:
        """The crossings, up to the deepest cut, at which the store has the activations of all images."""
        cut = self.cuts.of(config)
        order = cut.crossings
        deepest = max((order.index(name) for name in needs), default=0)
        keys = self._bench.pixels_keys(config, of_views=of_views)

        def is_there(name: str) -> bool:
            return all(
                has_features(self._job.store, CutFeatures(key, cut.weights_key, name, self._job.precision))
                for key in keys
            )

        return frozenset(name for name in order[1 : deepest + 1] if is_there(name))

    @cached_property
    def pixels(self) -> tuple[PixelsForecast, ...]:
        """The images that are decoded, by size and views."""
        found: dict[tuple[int, str], PixelsForecast] = {}
        for leader in self.leaders:
            config = leader.config
            self._add_pixels(found, config, of_views=False)
            if config.augment != "none" and config.views != "fresh":
                self._add_pixels(found, config, of_views=True)
        return tuple(found.values())

    def _add_pixels(
        self, found: dict[tuple[int, str], PixelsForecast], config: TrialConfig, *, of_views: bool
    ) -> None:
        key = (config.image_size, f"{config.augment} {config.seed} {config.views}" if of_views else "")
        if key in found:
            return
        decodings = self._bench.decodings(config, of_views=of_views)
        n_images = sum(len(contents) for contents, _ in decodings)
        n_new = sum(
            len(contents)
            for contents, view in decodings
            if not has_pixels(self._job.store, contents, size=config.image_size, view=view)
        )
        views = len(decodings) if of_views else 0
        n_bytes = 3 * config.image_size**2 * n_new
        found[key] = PixelsForecast(config.image_size, views, n_images, n_new, n_bytes)

    def states_bytes(self) -> int:
        """At most so many bytes of weights and optimizers: the last epoch's, and the best of each length."""
        return sum(self._states_of(leader) for leader in self.leaders)

    def running_states_bytes(self, n_at_a_time: int) -> int:
        """What so many trials that run at a time need of it: of what is not in use, the rest may go again."""
        return sum(heapq.nlargest(n_at_a_time, (self._states_of(leader) for leader in self.leaders)))

    def epoch_bytes(self, leader: Leader) -> int:
        """The bytes of weights and optimizer for which the disk must have room for a leader to train on.

        An epoch's go when the next one's are written; what it goes on from is there already.
        """
        config, trainable = leader.config, self.cuts.of(leader.config).trainable_bytes
        n_moments = 2 if config.optimizer != "sgd" else int(config.momentum > 0)
        n_at_once = 2 if leader.n_left == config.epochs > 1 else min(1, leader.n_left)
        return n_at_once * (1 + n_moments) * trainable

    def _states_of(self, leader: Leader) -> int:
        return (leader.n_horizons + 3) * self.cuts.of(leader.config).trainable_bytes
