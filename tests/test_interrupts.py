"""Ctrl-C and SIGTERM: the first lets what runs come to an end, the second ends the process."""

import importlib
import os
import pty
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tune_inat.interrupts import EXIT_CODE, call_apart, interruptible, worker_threads

LONG_SECONDS = 60.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_raised_in_the_main_thread(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert interruption.is_requested
    assert signal.getsignal(number) == before


def test_gently_lets_a_block_end_by_itself() -> None:
    ended: list[str] = []
    with interruptible() as interruption:
        with interruption.gently(lambda: ended.append("asked"), within_seconds=60):
            signal.raise_signal(signal.SIGINT)
            ended.append("by itself")
        assert interruption.is_requested
    assert ended == ["asked", "by itself"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_block_that_does_not_end_by_itself_is_interrupted_after_all() -> None:
    def go_on() -> None:
        with interruptible() as interruption, interruption.gently(lambda: None, within_seconds=0.05):
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        go_on()


def test_block_that_settles_may_take_its_time() -> None:
    came_to_its_end = False
    with interruptible() as interruption, interruption.gently(interruption.settle, within_seconds=0.05):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)
        came_to_its_end = True
    assert came_to_its_end


def test_second_signal_in_a_notebook_ends_the_search_and_not_the_kernel() -> None:
    raised = 0
    with interruptible() as interruption, interruption.gently(lambda: None, within_seconds=60):
        signal.raise_signal(signal.SIGINT)
        for _ in range(2):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raised += 1
    assert raised == 2


def test_first_signal_is_answered_at_once_and_only_once() -> None:
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    with interruptible() as interruption, interruption.announced(lambda: answers.put("ending")):
        with interruption.gently(lambda: None, within_seconds=60):
            signal.raise_signal(signal.SIGINT)
            assert answers.get(timeout=30) == "ending"  # though the block goes on
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)
    assert answers.empty()


def test_answer_is_out_before_what_was_ended_is_left() -> None:
    answers: list[str] = []

    def say() -> None:
        time.sleep(0.2)  # as a terminal may that is busy
        answers.append("ending")

    with interruptible() as interruption, pytest.raises(KeyboardInterrupt), interruption.announced(say):
        signal.raise_signal(signal.SIGINT)
    assert answers == ["ending"]


def test_inner_listener_is_the_outer_one() -> None:
    with interruptible() as outer, interruptible() as inner:
        assert inner is outer


def test_other_threads_hear_nothing_and_change_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    heard: list[bool] = []

    def listen() -> None:
        with interruptible() as interruption, interruption.gently(lambda: None, within_seconds=1):
            heard.append(interruption.is_requested)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [False]
    assert signal.getsignal(signal.SIGINT) == before


IGNORED = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for its background jobs
from tune_inat.interrupts import interruptible
with interruptible() as interruption:
    signal.raise_signal(signal.SIGINT)
    print(interruption.is_requested)
"""
TWICE = """
import signal
from tune_inat.interrupts import interruptible
with interruptible(ends_process=True) as outer, interruptible() as interruption:
  with interruption.gently(lambda: None, within_seconds=60):
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    print("still here")
"""


@pytest.mark.parametrize(("script", "code", "said"), [(IGNORED, 0, "False\n"), (TWICE, EXIT_CODE, "")])
def test_ignored_signals_stay_ignored_and_a_second_one_ends_the_process(
    script: str, code: int, said: str
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout) == (code, said)


def test_second_signal_leaves_a_terminal_its_cursor() -> None:
    terminal, end = pty.openpty()
    ran = subprocess.run([sys.executable, "-c", TWICE], stdout=end, timeout=60, check=False)
    os.close(end)
    assert ran.returncode == EXIT_CODE
    assert b"\x1b[?25h" in os.read(terminal, 1000)
    os.close(terminal)


def test_work_that_has_not_begun_is_dropped_when_its_block_is_interrupted() -> None:
    done: list[int] = []
    has_begun = threading.Event()

    def work(number: int) -> None:
        has_begun.set()
        time.sleep(0.05)
        done.append(number)

    def interrupt(results: object) -> None:
        has_begun.wait()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), worker_threads(1, "test") as pool:
        interrupt(pool.map(work, range(1000)))
    assert len(done) < 10


def test_ctrl_c_leaves_behind_what_waits_for_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, has_ended = threading.Event(), threading.Event()

    def wait() -> None:
        signal.raise_signal(signal.SIGINT)  # comes to the main thread
        may_end.wait()
        has_ended.set()

    monkeypatch.setattr("tune_inat.interrupts._has_left_thread", False)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        call_apart(wait)
    assert not has_ended.is_set()
    may_end.set()
    assert has_ended.wait(LONG_SECONDS)  # so it was not this thread that has waited


def test_what_is_called_apart_returns_and_raises_as_if_it_were_not() -> None:
    with interruptible():
        assert call_apart(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            call_apart(lambda: 1 // 0)


IS_INTERRUPTED = """
import signal, time
signal.raise_signal(signal.SIGINT)
time.sleep({seconds})
is_whole = True
"""


def import_module(folder: Path, name: str, *, seconds: float) -> list[str]:
    """Import a module in the middle of which Ctrl-C is pressed, and go on; returns that it did."""
    (folder / f"{name}.py").write_text(IS_INTERRUPTED.format(seconds=seconds))
    importlib.import_module(name)
    went_on = ["past the import"]
    time.sleep(1)
    return went_on


def test_import_comes_to_its_end_before_ctrl_c_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.gettrace() is not None:
        pytest.skip("a debugger, or what measures coverage, traces this")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("tune_inat.interrupts.IMPORT_SECONDS", LONG_SECONDS)
    went_on: list[str] = []
    with interruptible(), pytest.raises(KeyboardInterrupt):
        went_on += import_module(tmp_path, "interrupted_on_the_way", seconds=0.2)
    assert sys.modules["interrupted_on_the_way"].is_whole
    assert not went_on


def test_program_that_runs_while_it_is_imported_is_interrupted_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("tune_inat.interrupts.IMPORT_SECONDS", 0.1)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        import_module(tmp_path, "never_ends", seconds=LONG_SECONDS)
    assert "never_ends" not in sys.modules
