"""How far from the ideal a search's schedule is: the product's own order of trials, on simulated devices.

Trials are handed out by `FamilySearcher` and stopped by the search's ASHA, as in a search; what they take,
what they report and which devices are lost is made up from a seed. Nothing is trained.
"""

import heapq
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tune_inat.config import TrialConfig
from tune_inat.families import FamilySearcher
from tune_inat.objective import DEFAULT_METRIC
from tune_inat.plan import PlannedTrial, TrialNamer
from tune_inat.searchers import PlannedProposer
from tune_inat.sweep import EarlyStopping
from tune_inat.tries import Tries
from tune_inat.tuning import RUNG_METRIC, make_scheduler

EPOCH_SECONDS = {0.0: 80.0, 0.5: 40.0, 0.8: 15.0, 1.0: 5.0}  # of a trial that freezes so much
SPREAD = 0.1  # standard deviation of the logarithm: between trials, and half of it between epochs
START_SECONDS = 0.15  # of a trial in a process that is there, as plans reckon (`forecast.TRIAL_SECONDS`)
DRIVER_SECONDS = 0.02  # that the driver is busy with a trial, one after the other (`benchmarks.scale`)
ASHA = EarlyStopping(1, None, 3.0, 1, strict=False)
EPOCHS_OF_ASHA = 27
EPOCHS_OF_GRID = (5, 10)


@dataclass(frozen=True)
class Losses:
    """Spot devices: each is lost after a time with this mean, and another comes after `away` seconds."""

    mean_seconds: float = 3600.0
    away_seconds: float = 300.0


@dataclass(frozen=True)
class Workload:
    """What a search has to do.

    Attributes:
        expected: what a trial should take, by its id, as the plan foresees it; empty for the plan's order.
        epoch_seconds: what an epoch really takes.
        value: what a trial reports after an epoch, the same for all trials of its family.
    """

    trials: tuple[PlannedTrial, ...]
    epoch_seconds: Callable[[PlannedTrial, int], float]
    value: Callable[[PlannedTrial, int], float]
    expected: Mapping[str, float] = field(default_factory=dict)
    early_stopping: EarlyStopping | None = None


@dataclass(frozen=True)
class Schedule:
    """What became of a search, in seconds of its devices where nothing else is said.

    Attributes:
        makespan: from the start to the end of the last trial.
        ideal: no schedule is shorter: the work shared out evenly, or the longest family that one device
            trained after another.
        trained: epochs, each once; `repeated` those that were lost in the middle.
        starting: of trials.
        away: devices that were lost, until another came.
    """

    n_devices: int
    n_trials: int
    n_epochs: int
    n_losses: int
    makespan: float
    ideal: float
    trained: float
    repeated: float
    starting: float
    away: float

    @property
    def over_ideal(self) -> float:
        """By which share of the ideal the search took longer."""
        return self.makespan / self.ideal - 1

    @property
    def idle(self) -> float:
        """Devices that were there and had nothing to do."""
        spent = self.trained + self.repeated + self.starting + self.away
        return self.n_devices * self.makespan - spent


def grid_workload(n_trials: int, *, seed: int = 0, longest_first: bool = True) -> Workload:
    """A grid of leaders and followers, whose epochs take 5 to 80 s."""
    combinations = itertools.product(range(-(-n_trials // 8)), EPOCH_SECONDS, EPOCHS_OF_GRID)
    points = [
        {"lr": 1e-4 * (1 + number / 1000), "freeze": share, "epochs": epochs}
        for number, share, epochs in itertools.islice(combinations, n_trials)
    ]
    workload = _workload(points, seed)
    return Workload(
        workload.trials,
        workload.epoch_seconds,
        workload.value,
        expected=_expected(workload.trials) if longest_first else {},
    )


def asha_workload(n_trials: int, *, seed: int = 0) -> Workload:
    """A random search that early stopping thins out."""
    draw = random.Random(seed)
    points = [
        {
            "lr": 10 ** draw.uniform(-5, -2),
            "freeze": draw.choice(list(EPOCH_SECONDS)),
            "epochs": EPOCHS_OF_ASHA,
        }
        for _ in range(n_trials)
    ]
    workload = _workload(points, seed)
    return Workload(workload.trials, workload.epoch_seconds, workload.value, early_stopping=ASHA)


def simulate(workload: Workload, n_devices: int, *, losses: Losses | None = None, seed: int = 0) -> Schedule:
    """The schedule of a search on so many devices that run one trial each."""
    return _Simulation(workload, n_devices, losses, seed).run()


def _workload(points: Sequence[Mapping[str, Any]], seed: int) -> Workload:
    namer = TrialNamer()
    trials = tuple(namer.name(TrialConfig(**point)) for point in points)

    def epoch_seconds(trial: PlannedTrial, epoch: int) -> float:
        of_trial = random.Random(f"{seed} {trial.family_key}").gauss(0, SPREAD)
        of_epoch = random.Random(f"{seed} {trial.family_key} {epoch}").gauss(0, SPREAD / 2)
        return EPOCH_SECONDS[float(trial.config.freeze)] * math.exp(of_trial + of_epoch)

    def value(trial: PlannedTrial, epoch: int) -> float:
        draw = random.Random(f"{seed} {trial.family_key} value")
        last, speed = draw.uniform(0.5, 0.95), draw.uniform(0.5, 5.0)
        noise = random.Random(f"{seed} {trial.family_key} {epoch} value").gauss(0, 0.01)
        return last * (1 - math.exp(-epoch / speed)) + noise

    return Workload(trials, epoch_seconds, value)


def _expected(trials: Sequence[PlannedTrial]) -> dict[str, float]:
    """What a plan foresees: of each family the longest trains, the others replay it."""
    leaders: dict[str, PlannedTrial] = {}
    for trial in trials:
        leader = leaders.setdefault(trial.family_key, trial)
        if trial.config.epochs > leader.config.epochs:
            leaders[trial.family_key] = trial
    seconds = dict.fromkeys((trial.trial_id for trial in trials), START_SECONDS)
    for leader in leaders.values():
        seconds[leader.trial_id] += leader.config.epochs * EPOCH_SECONDS[float(leader.config.freeze)]
    return seconds


@dataclass(frozen=True)
class _RayTrial:
    """What Tune's schedulers read of a trial."""

    trial_id: str


@dataclass
class _Run:
    """A try of a trial on a device: when its epoch in progress began."""

    ray_trial: _RayTrial
    trial: PlannedTrial
    started: float
    epoch: int = 0


class _Simulation:
    def __init__(self, workload: Workload, n_devices: int, losses: Losses | None, seed: int) -> None:
        self._workload = workload
        self._n_devices = n_devices
        self._losses = losses
        self._draw = random.Random(seed)
        self._searcher = FamilySearcher(
            PlannedProposer(workload.trials),
            metric=DEFAULT_METRIC.name,
            goal=DEFAULT_METRIC.goal,
            n_ahead=len(workload.trials),
            max_concurrent=n_devices,
            seconds=workload.expected,
            tries=Tries(max_failures=10**9),
        )
        longest = max(trial.config.epochs for trial in workload.trials)
        self._scheduler: TrialScheduler = make_scheduler(
            workload.early_stopping, longest, DEFAULT_METRIC, finished=()
        )
        self._trials = {trial.trial_id: trial for trial in workload.trials}
        self._recorded: dict[str, int] = defaultdict(int)  # epochs, by family
        self._chains: dict[str, float] = defaultdict(float)  # seconds of them
        self._now = self._driver_free = self._last_end = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._free = list(range(n_devices))
        self._runs: dict[int, _Run] = {}  # by device
        self._n_epochs = self._n_losses = self._n_trials = 0
        self._repeated = self._starting = self._away = 0.0

    def run(self) -> Schedule:
        for device in range(self._n_devices):
            self._await_loss(device)
        self._hand_out()
        while self._runs:
            self._now, _, happen = heapq.heappop(self._events)
            happen()
            self._hand_out()
        trained = sum(self._chains.values())
        return Schedule(
            n_devices=self._n_devices,
            n_trials=self._n_trials,
            n_epochs=self._n_epochs,
            n_losses=self._n_losses,
            makespan=self._last_end,
            ideal=max(trained / self._n_devices, *self._chains.values()),
            trained=trained,
            repeated=self._repeated,
            starting=self._starting,
            away=self._away,
        )

    def _at(self, moment: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), happen))

    def _hand_out(self) -> None:
        while self._free:
            ray_id = str(next(self._numbers))
            suggestion = self._searcher.suggest(ray_id)
            if not isinstance(suggestion, dict):
                assert (
                    suggestion == Searcher.FINISHED or self._runs or self._free != [*range(self._n_devices)]
                ), "nothing runs, and nothing is handed out"
                return
            self._start(self._free.pop(), _RayTrial(ray_id), self._trials[suggestion["trial_id"]])

    def _start(self, device: int, ray_trial: _RayTrial, trial: PlannedTrial) -> None:
        """The driver tells a device of a trial, which first reports what is on record."""
        self._scheduler.on_trial_add(None, ray_trial)  # type: ignore[arg-type]
        self._driver_free = max(self._now, self._driver_free) + DRIVER_SECONDS
        run = self._runs[device] = _Run(ray_trial, trial, self._now)

        def begin() -> None:
            if self._runs.get(device) is not run:
                return  # the device was lost
            self._starting += self._now - run.started
            for _ in range(min(self._recorded[trial.family_key], trial.config.epochs)):
                if not self._report(device, run):
                    return
            self._train(device, run)

        self._at(self._driver_free + START_SECONDS, begin)

    def _train(self, device: int, run: _Run) -> None:
        run.started = self._now
        seconds = self._workload.epoch_seconds(run.trial, run.epoch + 1)

        def end() -> None:
            if self._runs.get(device) is not run:
                return
            self._n_epochs += 1
            self._recorded[run.trial.family_key] += 1
            self._chains[run.trial.family_key] += seconds
            if self._report(device, run):
                self._train(device, run)

        self._at(self._now + seconds, end)

    def _report(self, device: int, run: _Run) -> bool:
        """Report an epoch to ASHA and the searcher, as Tune does; returns whether the trial goes on."""
        run.epoch += 1
        value = self._workload.value(run.trial, run.epoch)
        result = {DEFAULT_METRIC.name: value, RUNG_METRIC: value, "epoch": run.epoch}
        decision = self._scheduler.on_trial_result(None, run.ray_trial, result)  # type: ignore[arg-type]
        if decision != TrialScheduler.STOP and run.epoch < run.trial.config.epochs:
            self._searcher.on_trial_result(run.ray_trial.trial_id, result)
            return True
        self._scheduler.on_trial_complete(None, run.ray_trial, result)  # type: ignore[arg-type]
        self._searcher.on_trial_complete(run.ray_trial.trial_id, result)
        self._n_trials += 1
        self._last_end = self._now
        del self._runs[device]
        self._free.append(device)
        return False

    def _await_loss(self, device: int) -> None:
        if self._losses is not None:
            self._at(
                self._now + self._draw.expovariate(1 / self._losses.mean_seconds), lambda: self._lose(device)
            )

    def _lose(self, device: int) -> None:
        losses = self._losses
        assert losses is not None, "there are losses"
        self._n_losses += 1
        left = self._now
        run = self._runs.pop(device, None)
        if run is None:
            self._free.remove(device)
        else:
            self._repeated += self._now - run.started
            self._searcher.on_trial_complete(run.ray_trial.trial_id, error=True)

        def come_back() -> None:
            self._away += self._now - left
            self._free.append(device)
            self._await_loss(device)

        self._at(self._now + losses.away_seconds, come_back)
