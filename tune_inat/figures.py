"""Networks and their steps in figures, as a forecast needs them."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from tune_inat.config import TrialConfig
from tune_inat.cuts import Point
from tune_inat.graph import INPUT
from tune_inat.network import Network
from tune_inat.probe import SLOW_SECONDS, StepTimes
from tune_inat.workbench import Workbench

MAX_PROBED_CUTS = 6  # of a model with quick steps; times at the others lie between


@dataclass(frozen=True)
class CutFigures:
    """A network as a freezing cuts it, in figures: the network itself is let go."""

    name: str
    depth: int
    crossings: tuple[str, ...]
    sizes: tuple[tuple[str, int, int], ...]  # name, values, operations from the pixels
    flops: int
    suffix_flops: int
    weights_key: str
    trainable_bytes: int
    model_bytes: int
    exact: frozenset[str]

    @staticmethod
    def of(network: Network, config: TrialConfig, exact: frozenset[str]) -> "CutFigures":
        """The figures of a network for images of its trial's size."""
        traced, size = network.traced, config.image_size
        points = [(name, traced.at(name, size)) for name in traced.crossings]
        parameters = list(network.backbone.model.parameters())
        return CutFigures(
            name=network.cut,
            depth=traced.crossings.index(network.cut),
            crossings=traced.crossings,
            sizes=tuple((name, point.n_bytes // point.dtype.itemsize, point.flops) for name, point in points),
            flops=traced.at(network.cut, size).flops,
            suffix_flops=traced.flops_between(network.cut, None, size),
            weights_key=network.backbone.weights_key,
            trainable_bytes=sum(parameter.nbytes for parameter in network.trainable.values()),
            model_bytes=sum(parameter.nbytes for parameter in parameters),
            exact=exact,
        )

    def points(self, itemsize: int) -> tuple[Point, ...]:
        """The crossings with what an image takes there when a value takes so many bytes; pixels take one."""
        return tuple(
            Point(name, n_values * (1 if name == INPUT else itemsize), flops, name in self.exact)
            for name, n_values, flops in self.sizes
        )

    def flops_from(self, base: str) -> int:
        """The operations from a crossing before the cut to the cut."""
        return self.flops - next(flops for name, _, flops in self.sizes if name == base)


class Cuts:
    """The networks of trials as their freezings cut them, in figures: each is loaded and traced once."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._known: dict[tuple[str, float | str], CutFigures] = {}

    def look_at(self, configs: Collection[TrialConfig]) -> None:
        """Find out about these trials, model by model: only one is loaded at a time."""
        for config in sorted(configs, key=lambda config: config.model):
            self.of(config)

    def of(self, config: TrialConfig) -> CutFigures:
        """A trial's network."""
        key = (self._bench.job.images_key(config, of_views=False), config.freeze)
        if key not in self._known:
            network = self._bench.network(config)
            self._known[key] = CutFigures.of(network, config, self._bench.exact_crossings(network))
        return self._known[key]

    def all(self) -> Collection[CutFigures]:
        """Those that were looked at."""
        return self._known.values()


class StepModel:
    """The times of all trials' steps, from a few that are measured: some cuts, smallest and largest batch."""

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        cut_of: Callable[[TrialConfig], CutFigures],
        measure: Callable[[TrialConfig], StepTimes],
    ) -> None:
        self._cut_of = cut_of
        self._measure = measure
        self._known: dict[tuple[str, int, int, str], StepTimes] = {}
        self._times: dict[tuple[str, int, int, str], StepTimes] = {}
        by_model: dict[str, dict[int, TrialConfig]] = defaultdict(dict)
        batch_sizes: dict[str, set[int]] = defaultdict(set)
        for config in configs:
            key = self._model_key(config)
            by_model[key].setdefault(cut_of(config).suffix_flops, config)
            batch_sizes[key].add(config.batch_size)
        self._batch_sizes = {key: sorted({min(sizes), max(sizes)}) for key, sizes in batch_sizes.items()}
        self._probed = {
            key: self._worth_probing(sorted(by_model[key].items(), key=lambda item: item[0]))
            for key in sorted(by_model)  # each model loaded once
        }
        for config in sorted(configs, key=lambda config: config.model):  # each model loaded once
            self.times(config)

    def times(self, config: TrialConfig) -> StepTimes:
        """The times of a trial's steps, linear in between what is measured."""
        key, at = self._model_key(config), self._cut_of(config).suffix_flops
        alike = (key, at, config.batch_size, config.optimizer)
        if alike not in self._times:
            self._times[alike] = self._interpolated(config, key, at)
        return self._times[alike]

    def _interpolated(self, config: TrialConfig, key: str, at: int) -> StepTimes:
        flops = [flops for flops, _ in self._probed[key]]
        by_size = {
            size: [self._at_size(probed, size, config.optimizer) for _, probed in self._probed[key]]
            for size in self._batch_sizes[key]
        }

        def between(name: str) -> float:
            values = [
                float(np.interp(at, flops, [getattr(times, name) for times in measured]))
                for measured in by_size.values()
            ]
            return float(np.interp(config.batch_size, list(by_size), values))

        return StepTimes(between("step_seconds"), between("image_seconds"), int(between("saved_bytes")))

    def _worth_probing(self, cuts: Sequence[tuple[int, TrialConfig]]) -> list[tuple[int, TrialConfig]]:
        """The cuts whose steps are measured: both ends, and where a step is quick some between them.

        What a slow step takes goes by its operations.
        """
        ends = _spread(cuts, 2)
        smallest = self._batch_sizes[self._model_key(ends[0][1])][0]
        times = [self._measured(config, smallest, config.optimizer) for _, config in ends]
        is_quick = any(each.step_seconds < SLOW_SECONDS for each in times)
        return _spread(cuts, MAX_PROBED_CUTS) if is_quick else ends

    def _at_size(self, config: TrialConfig, batch_size: int, optimizer: str) -> StepTimes:
        """What steps of this size take; where small ones are slow, large ones are so many times slower."""
        smallest = self._batch_sizes[self._model_key(config)][0]
        times = self._measured(config, smallest, optimizer)
        if batch_size == smallest:
            return times
        if times.step_seconds < SLOW_SECONDS:
            return self._measured(config, batch_size, optimizer)
        ratio = batch_size / smallest
        return StepTimes(times.step_seconds * ratio, times.image_seconds, int(times.saved_bytes * ratio))

    def _measured(self, config: TrialConfig, batch_size: int, optimizer: str) -> StepTimes:
        key = (self._model_key(config), self._cut_of(config).suffix_flops, batch_size, optimizer)
        if key not in self._known:
            asked = config.model_copy(update={"batch_size": batch_size, "optimizer": optimizer})
            self._known[key] = self._measure(asked)
        return self._known[key]

    def _model_key(self, config: TrialConfig) -> str:
        return f"{config.model} {config.weights} {config.image_size}"


def _spread(items: Sequence[tuple[int, TrialConfig]], n: int) -> list[tuple[int, TrialConfig]]:
    """At most `n` of them, the first and the last included."""
    if len(items) <= n:
        return list(items)
    return [items[round(number * (len(items) - 1) / (n - 1))] for number in range(n)]
