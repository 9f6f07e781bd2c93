"""The clock of a report's timeline: it stands still while a search pauses."""

import json
from dataclasses import replace
from pathlib import Path

from tests.report_searches import write_journal, write_search
from tests.test_report import page_of
from tune_inat.report_facts import ReportedTrial, read_search_to_report
from tune_inat.report_times import WorkingTime

HOUR = 3600.0


def _trials(folder: Path, *spans: tuple[float, float | None]) -> list[ReportedTrial]:
    write_journal(folder, len(spans))
    trials = read_search_to_report(folder).trials
    return [replace(it, started=start, ended=end) for it, (start, end) in zip(trials, spans, strict=True)]


def test_long_gap_between_two_commands_is_left_out(tmp_path: Path) -> None:
    trials = _trials(tmp_path, (100, 160), (130, 200), (200 + HOUR, 250 + HOUR))
    time = WorkingTime(trials)
    assert [(pause.start, pause.end) for pause in time.pauses] == [(200, 200 + HOUR)]
    assert time.seconds == 150
    assert [[time.at(moment) for moment in time.span(trial)] for trial in trials] == [
        [0, 60],
        [30, 100],
        [100, 150],
    ]


def test_gap_under_a_trial_that_runs_is_none(tmp_path: Path) -> None:
    time = WorkingTime(_trials(tmp_path, (0, 10), (5, 2 * HOUR), (HOUR, HOUR + 10)))
    assert (time.pauses, time.seconds) == ((), 2 * HOUR)


def test_short_gap_stays(tmp_path: Path) -> None:
    assert WorkingTime(_trials(tmp_path, (0, 10), (60, 70))).pauses == ()
    assert WorkingTime(_trials(tmp_path, (0, 10 * HOUR), (10.5 * HOUR, 11 * HOUR))).pauses == ()


def test_trial_that_has_reported_nothing_takes_no_time(tmp_path: Path) -> None:
    trials = _trials(tmp_path, (20, None), (10, 50))
    time = WorkingTime(trials)
    assert (time.span(trials[0]), time.seconds) == ((20, 20), 40)


def test_report_says_how_long_a_search_paused(tmp_path: Path) -> None:
    folder = write_search(tmp_path, 6, 3)
    journal = folder / "trials.jsonl"
    assert "a pause of" not in page_of(folder).text
    late = "".join(_later(line) if '"t00005"' in line and '"at"' in line else line for line in journal.open())
    journal.write_text(late)
    assert "of work, with a pause of 1 h 59 min" in page_of(folder).text


def _later(line: str) -> str:
    event = json.loads(line)
    event["at"] += 2 * HOUR
    return json.dumps(event) + "\n"
