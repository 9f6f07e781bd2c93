"""How the devices are shared out over trials: few threads for many of them, or many for few, by timing."""

import heapq
from collections import defaultdict
from collections.abc import Sequence

from tune_inat.config import TrialConfig
from tune_inat.devices import Devices
from tune_inat.figures import Cuts
from tune_inat.plan import PlannedTrial
from tune_inat.probe import Probe

ABOUT_AS_QUICK = 1.1


class Sharing:
    """Chooses how many threads a trial gets.

    On a CPU the numbers of a trial depend on its threads. So the choice follows from the families of all
    trials, whole: not from what the cache holds already, nor from whether work is shared.

    Args:
        trials: of the search, or such as stand for them.
        n_images: the training images.
    """

    def __init__(self, trials: Sequence[PlannedTrial], *, cuts: Cuts, probe: Probe, n_images: int) -> None:
        self._cuts = cuts
        self._probe = probe
        self._n_images = n_images
        families: dict[str, list[TrialConfig]] = defaultdict(list)
        for trial in trials:
            families[trial.family_key].append(trial.config)
        self._longest = [max(family, key=lambda config: config.epochs) for family in families.values()]

    @property
    def n_families(self) -> int:
        """How many trials could train at a time, as far as they are concerned."""
        return len(self._longest)

    def choose(self, options: Sequence[Devices]) -> Devices:
        """Of several ways to share the devices out the one that is quickest, going by the costliest step.

        Of those that are about as quick it takes the one with the fewest threads, which leaves the least idle
        between steps and between trials.
        """
        if len(options) == 1 or not self._longest:
            return options[0]
        heaviest = max(self._longest, key=lambda config: self._cuts.of(config).suffix_flops)
        took = {option: self._seconds(option, heaviest) for option in options}
        quick = [option for option in options if took[option] < ABOUT_AS_QUICK * min(took.values())]
        return min(quick or options, key=lambda option: option.cpus_per_trial)

    def _seconds(self, option: Devices, heaviest: TrialConfig) -> float:
        """In proportion to how long all families take."""
        n_threads = option.cpus_per_trial
        times = self._probe.possible_step_times(heaviest, n_threads=n_threads, n_images=self._n_images)
        at_a_time = max(1, min(option.max_concurrent, len(self._longest)))
        load = self._probe.contention(n_threads=n_threads, n_concurrent=at_a_time)
        return times.step_seconds * load * self._rounds(at_a_time)

    def _rounds(self, n_at_a_time: int) -> float:
        """How much work the busiest of so many slots gets, the longest trials first."""
        free_at = [0.0] * n_at_a_time
        work = (self._cuts.of(config).suffix_flops * config.epochs for config in self._longest)
        for flops in sorted(work, reverse=True):
            heapq.heappush(free_at, heapq.heappop(free_at) + flops)
        return max(free_at)
