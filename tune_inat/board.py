"""Tells of a search's trials while they run: as a table that is drawn over, or line by line."""

from collections import Counter
from collections.abc import Callable, Sequence

from tune_inat.standings import ENDED, LiveTrial, Standings
from tune_inat.tables import LiveTable, ended_line

DRAW_SECONDS = 0.5  # between two drawings of the trials; each takes 13 ms of a core that could train

Clock = Callable[[], float]


class TrialBoard:
    """Shows trials: at most twice a second as a table, or each that has ended as a line.

    A failure after which a trial is tried again is told at once, those for good at the end of the search.
    """

    def __init__(
        self,
        standings: Standings,
        clock: Clock,
        *,
        warn: Callable[[str], None],
        draw: Callable[[LiveTable], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._standings = standings
        self._clock = clock
        self._draw = draw
        self._warn = warn
        self._say = say
        self._started = clock()
        self._drawn: float | None = None
        self._told: set[str] = set()
        self._n_warned: Counter[str] = Counter()

    def update(self, trials: Sequence[LiveTrial]) -> None:
        """Show how trials stand now: those that may have changed, or all; may be called at any rate."""
        now = self._clock()
        self._standings.update(trials)
        for trial in trials:
            self._tell_failures(trial)
        if self._draw is not None and (self._drawn is None or now - self._drawn >= DRAW_SECONDS):
            self._drawn = now
            self._draw(LiveTable(self._standings, now - self._started))
        if self._say is not None:
            for trial in trials:
                if trial.status in ENDED and trial.trial_id not in self._told:
                    self._told.add(trial.trial_id)
                    n_done = self._standings.n_earlier + len(self._told)
                    self._say(ended_line(self._standings, trial, n_done, now - self._started))

    def _tell_failures(self, trial: LiveTrial) -> None:
        first = self._n_warned[trial.trial_id]
        self._n_warned[trial.trial_id] = len(trial.failures)
        for reason in trial.failures[first:]:
            if trial.status != "ERROR":
                self._warn(f"Trial {trial.trial_id} failed and is tried again: {reason}")
