"""The terminal says what goes on, on stderr, and what came out, on stdout."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.live_trials import FakeTrial
from tune_inat.board import DRAW_SECONDS
from tune_inat.meter import Meter
from tune_inat.progress import LOG_SECONDS, Terminal

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """Time that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A terminal, or a log, that remembers what it was sent."""

    def __init__(self, *, is_terminal: bool = False, width: int = 80) -> None:
        self.clock = Clock()
        self._err, self._out = io.StringIO(), io.StringIO()
        known: dict[str, Any] = {"force_terminal": is_terminal, "width": width, "color_system": "truecolor"}
        self.terminal = Terminal(
            console=Console(file=self._err, force_interactive=is_terminal, **known),
            results=Console(file=self._out, **known),
            clock=self.clock,
        )

    @property
    def sent(self) -> str:
        """What was sent to stderr, with every escape sequence."""
        return self._err.getvalue()

    @property
    def err(self) -> list[str]:
        return ESCAPES.sub("", self._err.getvalue()).splitlines()

    @property
    def out(self) -> list[str]:
        return ESCAPES.sub("", self._out.getvalue()).splitlines()


@pytest.fixture
def log() -> Screen:
    return Screen()


@pytest.fixture
def tty() -> Screen:
    return Screen(is_terminal=True)


BEST = {
    "trial_id": "3f2a91bc",
    "epoch": 4,
    "val_accuracy": 0.97312,
    "test_accuracy": 0.9694,
    "test_interval": [0.957, 0.979],
    "model": "best_model",
}
TRIAL = {
    "trial_id": "3f2a91bc",
    "config": {"epochs": 5, "lr": 0.001},
    "status": "TERMINATED",
    "epochs": 5,
    "val_accuracy": 0.97312,
    "val_loss": 0.1,
    "seconds": 3.2,
}
SUMMARY = {
    "status": "DONE",
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "trials": [TRIAL],
    "best": BEST,
    "reuse": {"epochs_asked": 72, "epochs_trained": 42},
    "wall_seconds": 203.0,
    "command": "python -m tune_inat.search --space grid",
}


# Lines


@pytest.mark.parametrize("is_terminal", [True, False])
def test_notice_is_one_line_on_stderr(is_terminal: bool) -> None:
    screen = Screen(is_terminal=is_terminal)
    screen.terminal.say("12 trials,\n5 of them done")
    assert (screen.err, screen.out) == (["12 trials, 5 of them done"], [])


def test_warning_is_marked(log: Screen) -> None:
    log.terminal.warn("bf16 is not supported: using fp32")
    assert log.err == ["Note: bf16 is not supported: using fp32"]


@pytest.mark.parametrize("hostile", ["\x1b[2Jgone", "\x07", "a\rb", "\u202e", "[red]text[/red]", ":smile:"])
def test_foreign_text_cannot_drive_the_terminal(tty: Screen, hostile: str) -> None:
    tty.terminal.say(hostile)
    assert ESCAPES.sub("", tty.sent).strip() == hostile.encode("unicode_escape").decode()


def test_line_in_a_log_is_not_broken(log: Screen) -> None:
    log.terminal.say("word " * 60)
    assert log.err == [("word " * 60).strip()]


def test_line_on_a_terminal_fits_it(tty: Screen) -> None:
    tty.terminal.say("word " * 60)
    assert max(len(line) for line in tty.err) <= 80


# Tasks


def test_terminal_is_a_meter(log: Screen) -> None:
    meter: Meter = log.terminal
    with meter.task("Reading images", 2, "images") as advance:
        advance(2)
    assert len(log.err) == 2


def test_task_in_a_log_is_a_line_at_its_start_and_one_at_its_end(log: Screen) -> None:
    with log.terminal.task("Reading images", 1797, "images") as advance:
        for _ in range(1797):
            advance(1)
        log.clock.now += 2.0
    assert log.err == [
        "Reading images: 1,797 images...",
        "Reading images: 1,797 images in 2.0 s (898 images/s)",
    ]


def test_long_task_in_a_log_says_now_and_then_how_far_it_is(log: Screen) -> None:
    with log.terminal.task("Reading images", 100, "images") as advance:
        for _ in range(50):
            log.clock.now += LOG_SECONDS / 10
            advance(1)
    assert log.err[1] == "Reading images: 10 of 100 images, 1.0 images/s, 2 min left"
    assert len(log.err) == 2 + 5


def test_task_of_nothing_says_nothing(log: Screen) -> None:
    with log.terminal.task("Reading images", 0, "images"):
        log.clock.now += 1
    assert log.err == []


def test_task_of_unknown_size_says_how_long_it_took(log: Screen) -> None:
    with log.terminal.task("Testing the best model", None, ""):
        log.clock.now += 3.2
    assert log.err == ["Testing the best model...", "Testing the best model: 3.2 s"]


def test_task_that_fails_is_not_said_to_be_done(log: Screen) -> None:
    with pytest.raises(ValueError, match="broken"), log.terminal.task("Reading images", 9, "images"):
        raise ValueError("broken")
    assert log.err == ["Reading images: 9 images..."]


def test_task_on_a_terminal_is_a_bar_and_then_a_line(tty: Screen) -> None:
    with tty.terminal.task("Downloading", 3_600_000_000, "bytes") as advance:
        tty.clock.now += 10
        advance(1_800_000_000)
        tty.clock.now += 10
        advance(1_800_000_000)
    assert "━" in tty.sent
    assert tty.err[-1] == "Downloading: 3.6 GB in 20 s (180.0 MB/s)"


def test_task_within_a_task_has_its_own_bar(tty: Screen) -> None:
    with tty.terminal.task("outer", 2, "files"):
        with tty.terminal.task("inner", 3, "images") as advance:
            advance(3)
        with tty.terminal.task("second", 1, "images"):
            pass
    assert [line for line in tty.err if line.startswith(("outer:", "inner:"))] == [
        "inner: 3 images in 0.0 s",
        "outer: 0.0 s",
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_bar_fits_the_terminal(width: int) -> None:
    screen = Screen(is_terminal=True, width=width)
    with screen.terminal.task("Downloading " + "name" * 30, 3_600_000_000, "bytes") as advance:
        screen.clock.now += 10
        advance(1_234_567_890)
        with screen.terminal.task("a part of it, which draws the bars anew", 1, "images"):
            pass
    bars = [line for line in screen.err if "━" in line]
    assert any("1.2 GB of 3.6 GB" in line for line in bars) or width == 40
    assert max(len(line) for line in bars) <= width


# Trials


def test_log_has_a_line_for_each_trial_that_ends(log: Screen) -> None:
    running, ended = FakeTrial("b", epoch=1), FakeTrial("a", epoch=5, status="TERMINATED")
    with log.terminal.trials(2) as board:
        board.update([FakeTrial("a", epoch=4), running])
        board.update([ended, running])
        board.update([ended, running])
        board.update([ended, FakeTrial("b", epoch=1, status="ERROR")])
    assert [line.partition(" epochs")[0] for line in log.err] == [
        "1/2 trials: a TERMINATED after 5 of 5",
        "2/2 trials: b ERROR after 1 of 5",
    ]


def test_trial_that_is_tried_again_says_why_at_once_and_how_often_at_its_end(log: Screen) -> None:
    with log.terminal.trials(1) as board:
        board.update([FakeTrial("a", epoch=2)])
        for status in ("WAITING", "RUNNING"):
            board.update([FakeTrial("a", epoch=2, status=status, failures=["killed"])])
        board.update([FakeTrial("a", epoch=5, status="TERMINATED", failures=["killed"])])
    told, ended = log.err
    assert told == "Note: Trial a failed and is tried again: killed"
    assert "2 tries" in ended


def test_table_says_which_try_it_is(tty: Screen) -> None:
    with tty.terminal.trials(2) as board:
        tty.clock.now += DRAW_SECONDS
        board.update([FakeTrial("a", epoch=2, failures=["killed"]), FakeTrial("b", epoch=3)])
    assert any("2/5 try 2" in line for line in tty.err)
    assert not any("3/5 try" in line for line in tty.err)


def test_trials_that_ended_before_count_in_a_log(log: Screen) -> None:
    with log.terminal.trials(10, 7) as board:
        board.update([FakeTrial("a", epoch=5, status="TERMINATED")])
    assert log.err[0].startswith("8/10 trials: ")


def test_table_is_drawn_at_most_twice_a_second(tty: Screen) -> None:
    with tty.terminal.trials(2) as board:
        before = tty.sent
        tty.clock.now += DRAW_SECONDS / 2
        board.update([FakeTrial("a", epoch=1)])
        assert tty.sent == before
        tty.clock.now += DRAW_SECONDS / 2
        board.update([FakeTrial("a", epoch=1)])
        assert "1 running" in tty.sent[len(before) :]


def test_step_that_nobody_counts_is_told_in_a_line_that_its_end_replaces(tty: Screen) -> None:
    with tty.terminal.task("Planning", None, ""):
        assert tty.sent.endswith("Planning...\x1b[0m\r")
        tty.terminal.say("Images are kept.")
        with tty.terminal.task("Decoding images", 4, "images") as advance:
            advance(4)
    assert "Planning...\x1b[0m\r\x1b[2KImages are kept.\n" in tty.sent
    assert tty.sent.endswith("Planning: 0.0 s\n")


def test_table_is_gone_and_the_cursor_back_when_trials_are_interrupted(tty: Screen) -> None:
    def interrupted_search() -> None:
        with tty.terminal.trials(2) as board:
            board.update([FakeTrial("a", epoch=1)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_search()
    assert tty.sent.rindex("\x1b[?25h") > tty.sent.rindex("\x1b[?25l")
    assert tty.sent.rindex("\x1b[2K") > tty.sent.rindex("running")


def test_notice_is_shown_while_trials_run(tty: Screen) -> None:
    with tty.terminal.trials(2) as board:
        board.update([FakeTrial("a", epoch=1)])
        tty.terminal.warn("W&B cannot be reached")
    assert any("W&B cannot be reached" in line for line in tty.err)


# Results


def test_results_go_to_stdout(log: Screen, hostile_path: Path) -> None:
    log.terminal.closing(hostile_path, SUMMARY, ["lr"])
    text = "\n".join(log.out)
    assert log.err == []
    assert "3f2a91bc" in text
    assert "72 epochs asked for, 42 trained now" in text
    assert "Best:   trial 3f2a91bc, val_accuracy 0.9731 at epoch 4" in text
    assert "Test:   accuracy 0.9694, 95 % interval 0.9570 to 0.9790" in text
    assert f"Model:  {hostile_path / 'best_model'}" in text


def test_next_command_can_be_pasted(log: Screen, hostile_path: Path) -> None:
    log.terminal.closing(hostile_path, SUMMARY, ["lr"])
    (line,) = [line for line in log.out if line.startswith("Next:")]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line.removeprefix('Next:')}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words == ["python", "-m", "tune_inat.predict", str(hostile_path), "IMAGE_OR_FOLDER..."]


def test_command_is_not_broken_on_a_narrow_terminal(hostile_path: Path) -> None:
    screen = Screen(is_terminal=True, width=40)
    screen.terminal.closing(hostile_path, SUMMARY, ["lr"], sync_line="wandb sync " + "long/" * 20)
    assert any(line.endswith("wandb sync " + "long/" * 20) for line in screen.out)


def test_failed_trial_is_named_with_its_reason(log: Screen, tmp_path: Path) -> None:
    failed = TRIAL | {"trial_id": "dead", "status": "ERROR", "error": "RuntimeError: loss is \x1b[1mnan"}
    log.terminal.closing(tmp_path, SUMMARY | {"trials": [TRIAL, failed]}, ["lr"])
    assert "Trial dead failed: RuntimeError: loss is \\x1b[1mnan" in log.out
    again = failed | {"failures": ["killed"], "error": "killed once more"}
    log.terminal.closing(tmp_path, SUMMARY | {"trials": [TRIAL, again]}, ["lr"])
    assert "Trial dead failed 2 times, at last: killed once more" in log.out


def test_long_leaderboard_says_where_the_rest_is(log: Screen, tmp_path: Path) -> None:
    log.terminal.closing(tmp_path, SUMMARY | {"trials": [TRIAL] * 2000}, ["lr"])
    assert "and 1,980 more" in log.out
    assert f"Table:  {tmp_path / 'trials.csv'}" in log.out
    assert len(log.out) < 40


def test_interrupted_search_says_how_to_go_on(log: Screen, tmp_path: Path) -> None:
    log.terminal.closing(tmp_path, SUMMARY | {"status": "INTERRUPTED"}, ["lr"])
    assert log.out[-1].endswith("python -m tune_inat.search --space grid")


def test_search_without_results_has_no_model_to_show(log: Screen, tmp_path: Path) -> None:
    log.terminal.closing(tmp_path, SUMMARY | {"trials": [], "best": None}, [])
    assert not [line for line in log.out if line.startswith(("Best", "Model", "Next"))]


# The real streams


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"import json\nfrom pathlib import Path\nfrom tune_inat.progress import Terminal\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=30
    )


CLOSING = f"terminal.closing(Path('runs/a'), json.loads({json.dumps(SUMMARY)!r}), ['lr'])"


def test_quiet_stdout_is_left_alone() -> None:
    done = run_python(f"terminal = Terminal(quiet_stdout=True)\nterminal.say('hello')\n{CLOSING}")
    assert done.stdout == ""
    assert "Best:" in done.stderr


def test_results_are_all_of_stdout() -> None:
    done = run_python(f"terminal = Terminal()\nterminal.say('hello')\n{CLOSING}")
    assert "Best:" in done.stdout
    assert done.stderr == "hello\n"


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"COLUMNS": "40"}])
def test_pipe_gets_no_cursor_movements(environment: dict[str, str]) -> None:
    code = "terminal = Terminal()\nwith terminal.task('Reading', 2, 'images') as advance: advance(2)"
    done = run_python(code, **environment)
    assert ESCAPES.sub("", done.stderr).splitlines() == ["Reading: 2 images...", "Reading: 2 images in 0.0 s"]
    assert not re.search(r"\x1b\[[0-9;?]*[A-LN-Za-ln-z]", done.stderr)  # colours end in m


def test_stdout_that_knows_ascii_only_gets_all_results() -> None:
    done = run_python(f"terminal = Terminal()\n{CLOSING}", PYTHONIOENCODING="ascii")
    assert "Best:" in done.stdout
    assert done.stdout.isascii()
