"""When the trials of a report ran, with the pauses left out that a search makes between two commands."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tune_inat.report_facts import ReportedTrial

MIN_PAUSE_SECONDS = 60.0  # shorter ones are Ray's start, or machines that come
MIN_PAUSE_SHARE = 0.1  # of the time in which trials ran: shorter ones do not hurt a chart


@dataclass(frozen=True)
class Pause:
    """A time in which no trial ran, in seconds since 1970."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end - self.start


class WorkingTime:
    """A clock that stands still in the pauses of a search.

    Args:
        trials: with the time at which each began, and ended or reported last; one that has reported nothing
            has just begun.
    """

    def __init__(self, trials: Sequence[ReportedTrial]) -> None:
        starts = [trial.started or 0.0 for trial in trials]
        self._start = min(starts)
        spans = [self.span(trial) for trial in trials]
        self.pauses = tuple(_pauses(spans))
        self.paused_seconds = sum(pause.seconds for pause in self.pauses)
        self.seconds = max(end for _, end in spans) - self._start - self.paused_seconds

    def span(self, trial: ReportedTrial) -> tuple[float, float]:
        """When a trial began and ended, in seconds since 1970; never ended before it began."""
        start = self._start if trial.started is None else trial.started
        return start, max(start, trial.ended or start)

    def at(self, moment: float) -> float:
        """The seconds of work from the first trial's start to a moment, which is in seconds since 1970."""
        paused = sum(max(0.0, min(moment, pause.end) - pause.start) for pause in self.pauses)
        return moment - self._start - paused


def _pauses(spans: Iterable[tuple[float, float]]) -> Iterable[Pause]:
    """The gaps between spans that are long, also beside all the time that spans cover."""
    in_order = sorted(spans)
    ends = list(accumulate((end for _, end in in_order), max))
    gaps = [
        Pause(end, start)
        for end, (start, _) in zip(ends, in_order[1:], strict=False)
        if start - end > MIN_PAUSE_SECONDS
    ]
    covered = ends[-1] - in_order[0][0] - sum(gap.seconds for gap in gaps)
    return [gap for gap in gaps if gap.seconds > MIN_PAUSE_SHARE * covered]
