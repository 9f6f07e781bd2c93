"""Tables show what fits, and nothing that could drive a terminal."""

import io
from typing import Any

import pytest
from rich.console import Console

from tests.live_trials import FakeTrial
from tune_inat.standings import Standings
from tune_inat.tables import LiveTable, amount, duration, ended_line, estimate, leaderboard_table, rate, short


def lines_of(renderable: Any, width: int, height: int = 30) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, markup=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def live_lines(*trials: FakeTrial, width: int = 80, height: int = 30, total: int = 12) -> list[str]:
    standings = Standings(total=total)
    standings.update(trials)
    return lines_of(LiveTable(standings, elapsed=60.0), width, height)


def record(trial_id: str = "3f2a91bc", **values: Any) -> dict[str, Any]:
    known = {"status": "TERMINATED", "epochs": 5, "val_accuracy": 0.9, "val_loss": 0.1, "seconds": 3.2}
    config = {"epochs": 5, "freeze": 0.8, "lr": 0.001, "optimizer": "adam", "batch_size": 32}
    return {"trial_id": trial_id, "config": config} | known | values


VARIED = ("freeze", "epochs", "lr", "optimizer", "batch_size")


def board_lines(*trials: dict[str, Any], width: int = 80, metric: str = "val_accuracy") -> list[str]:
    return lines_of(leaderboard_table(trials, VARIED, metric, width), width)


# While a search runs


def test_live_table_says_how_far_the_search_is() -> None:
    headline = live_lines(FakeTrial("a", status="TERMINATED", epoch=5), FakeTrial("b", epoch=1))[0]
    assert "1/12" in headline
    assert "1 running" in headline
    assert "6.0 epochs/min  about 9 min left" in headline  # 10 s an epoch: 4 of b, 10 trials of 5


def test_live_table_says_that_all_have_ended() -> None:
    trials = [FakeTrial(str(number), status="TERMINATED", epoch=5) for number in range(12)]
    headline = live_lines(*trials)[0]
    assert "12/12  all ended" in headline
    assert "left" not in headline


def test_live_table_says_that_trials_are_yet_to_start() -> None:
    assert "0/12  starting" in live_lines()[0]


@pytest.mark.parametrize(
    ("n", "seconds", "unit", "said"),
    [
        (622, 1, "images", "622 images/s"),
        (3, 2, "epochs", "1.5 epochs/s"),
        (1, 25, "epochs", "2.4 epochs/min"),
        (30_000_000, 20, "bytes", "1.5 MB/s"),
    ],
)
def test_rate_is_in_a_unit_that_suits_it(n: int, seconds: float, unit: str, said: str) -> None:
    assert rate(n, seconds, unit) == said


def test_running_trial_has_its_epochs_and_last_value() -> None:
    (line,) = [
        line for line in live_lines(FakeTrial("3f2a91bc", epoch=3, val_accuracy=0.91234)) if "12 s" in line
    ][:1]
    assert "3f2a91bc" in line
    assert "3/5" in line
    assert "0.9123" in line


def test_best_trials_stay_in_sight_after_their_end() -> None:
    ended = FakeTrial("3f2a91bc", status="TERMINATED", epoch=5, val_accuracy=0.97)
    lines = live_lines(ended, FakeTrial("other", epoch=1, val_accuracy=0.5))
    assert "0.9700" in lines[lines.index(next(line for line in lines if line.startswith("best"))) + 1]


@pytest.mark.parametrize("width", [30, 40, 80, 200])
@pytest.mark.parametrize("n_running", [0, 1, 300])
def test_live_table_fits_the_terminal(width: int, n_running: int) -> None:
    parameters: dict[str, Any] = {f"parameter_{index}": "a long value" * index for index in range(9)}
    trials = [
        FakeTrial(f"{index:08x}", epoch=1, val_accuracy=0.5, lr=index, **parameters)
        for index in range(n_running)
    ]
    lines = live_lines(*trials, width=width, height=24)
    assert max(len(line) for line in lines) <= width
    assert len(lines) <= 24


def test_trials_that_do_not_fit_are_counted() -> None:
    lines = live_lines(*(FakeTrial(f"{index:08x}", epoch=1) for index in range(300)), height=24)
    shown = sum("1/5" in line for line in lines)
    assert f"+{300 - shown} more" in "\n".join(lines)


def test_line_of_an_ended_trial_says_all_about_it() -> None:
    standings = Standings(total=4)
    trials = [
        FakeTrial("a", lr=0.1, status="STOPPED", epoch=2, val_accuracy=0.75),
        FakeTrial("b", lr=0.2, epoch=2),
    ]
    standings.update(trials)
    line = ended_line(standings, trials[0], n_done=1, elapsed=8.0)
    assert line == (
        "1/4 trials: a STOPPED after 2 of 5 epochs, val_accuracy 0.7500, 12 s, lr 0.1, about 26 s left"
    )


# At the end


def test_leaderboard_has_a_row_for_each_trial_in_their_order() -> None:
    lines = board_lines(record("first"), record("second", val_accuracy=0.8))
    assert [line.split()[:2] for line in lines[2:]] == [["1", "first"], ["2", "second"]]


def test_leaderboard_shows_what_varied_and_the_results() -> None:
    lines = board_lines(record(), width=200)
    assert lines[0].split("  ")[0].strip() == "#"
    assert lines[2].split() == [
        "1", "3f2a91bc", "0.8", "0.001", "adam", "32", "5", "0.9000", "0.1000", "TERMINATED", "3.2", "s",
    ]  # fmt: skip


def test_trial_cut_short_shows_epochs_done_and_asked() -> None:
    assert "3/5" in board_lines(record(status="STOPPED", epochs=3))[2]


def test_trial_without_an_epoch_shows_no_numbers() -> None:
    line = board_lines(record(status="ERROR", epochs=0, val_accuracy=None, val_loss=None))[2]
    assert "ERROR" in line
    assert "0/5" in line


def test_metric_of_the_search_comes_first() -> None:
    lines = board_lines(record(val_ece=0.0312), metric="val_ece", width=200)
    assert lines[0].index("val ece") < lines[0].index("val acc")


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_leaderboard_fits_the_terminal_without_cutting_a_number(width: int) -> None:
    lines = board_lines(*(record(f"{index:08x}", val_accuracy=0.9123) for index in range(40)), width=width)
    assert max(len(line) for line in lines) <= width
    assert all("0.9123" in line for line in lines[2:])


@pytest.mark.parametrize("hostile", ["\x1b[31mred", "a\rb", "\u202eevil", "[bold]not bold[/bold]"])
def test_value_cannot_drive_the_terminal(hostile: str) -> None:
    trial = record()
    trial["config"] = trial["config"] | {"freeze": hostile}
    text = "\n".join(board_lines(trial, width=200))
    assert not any(character in text for character in "\x1b\r\u202e")
    assert "[bold]" in text or "\\" in text


# Words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3900, "1 h 05 min"),
    ],
)
def test_duration_is_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (5000, "83 min"), (7000, "2 h")]
)
def test_estimate_is_rough(seconds: float, text: str) -> None:
    assert estimate(seconds) == text


@pytest.mark.parametrize(
    ("n", "unit", "text"),
    [(1797, "images", "1,797 images"), (3.6e9, "bytes", "3.6 GB"), (999, "bytes", "999 B"), (7, "", "7")],
)
def test_amount_has_its_unit(n: float, unit: str, text: str) -> None:
    assert amount(n, unit) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00012345, "0.000123"),
        (1e-6, "1e-06"),
        (32, "32"),
        ("layer3", "layer3"),
        ("a\nb", "a b"),
        ("x" * 30, "x" * 17 + "..."),
    ],
)
def test_value_is_short(value: Any, text: str) -> None:
    assert short(value) == text
