"""How a command ends: with a word and an exit code, never with a traceback for a user's mistake."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from tune_inat.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USAGE, UserError, run_command


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["command"])


@pytest.fixture(autouse=True)
def _own_interrupts() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_while_the_command_itself_is_imported_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ran = subprocess.run(
        [sys.executable, "-m", "tune_inat.search"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (EXIT_INTERRUPTED, "Interrupted.\n")


def test_reader_that_has_gone_changes_no_exit_code() -> None:
    body = "import sys; sys.stdout.write('x'); raise UserError('wrong')"
    command = f"from tune_inat.errors import *; import typer\ndef body(): {body}\nrun_command(body)"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            [sys.executable, "-c", command],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (EXIT_USAGE, "wrong\n")


def command_of(body: Callable[[], None]) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(body)
    return app


def ending_of(body: Callable[[], None]) -> int | str | None:
    """The exit code of a command that does this."""
    with pytest.raises(SystemExit) as ended:
        run_command(command_of(body))
    return ended.value.code


def test_a_mistake_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise UserError(["one", "two\x1b[31m"])

    assert ending_of(body) == EXIT_USAGE
    assert capsys.readouterr().err == "one\ntwo\\x1b[31m\n2 problems, nothing was started.\n"


def test_ctrl_c_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise KeyboardInterrupt

    assert ending_of(body) == EXIT_INTERRUPTED
    assert capsys.readouterr().err.strip() == "Interrupted."


def test_an_end_of_its_own_is_kept_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted_search() -> None:
        raise typer.Exit(EXIT_INTERRUPTED)

    assert ending_of(interrupted_search) == EXIT_INTERRUPTED
    assert ending_of(lambda: None) == EXIT_DONE
    assert capsys.readouterr().err == ""


def test_a_bug_keeps_its_traceback() -> None:
    def body() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(command_of(body))


UNFINISHED = """
import signal, threading, time
from tune_inat.errors import UserError, run_command
from tune_inat.interrupts import interruptible

def command():
    threading.Thread(target=time.sleep, args=(60,)).start()  # as a library that waits for a network
    with interruptible() as interruption, interruption.gently(lambda: None, within_seconds=60):
        signal.raise_signal(signal.SIGINT)
    raise UserError("It could not be sent.")

run_command(command)
"""


def test_a_mistake_that_shows_after_ctrl_c_is_said_and_the_code_is_that_of_interrupts() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", UNFINISHED], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stderr) == (EXIT_INTERRUPTED, "It could not be sent.\n")


BACKGROUND = """
import threading, time
from tune_inat.errors import run_command

def command():
    threading.Thread(target=time.sleep, args=(60,)).start()  # as Ray that ends
    raise KeyboardInterrupt

run_command(command)
"""


def test_a_second_interrupt_leaves_at_once_without_a_traceback() -> None:
    process = subprocess.Popen([sys.executable, "-c", BACKGROUND], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "Interrupted.\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == EXIT_INTERRUPTED
    assert process.stderr.read() == ""
