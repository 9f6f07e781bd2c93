"""What `python -m tune_inat` says, which is no command itself."""

import subprocess
import sys
from pathlib import Path

import pytest

import tune_inat


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tune_inat", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_every_command_is_listed(arguments: tuple[str, ...]) -> None:
    files = Path(tune_inat.__file__).parent.glob("*.py")
    commands = {file.stem for file in files if "run_command(app)" in file.read_text()}
    done = ran(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("  python -m ")]
    assert sorted(listed) == sorted(f"tune_inat.{name}" for name in commands)
    assert "search" in commands


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("search", "python -m tune_inat.search"),
        ("serach", "python -m tune_inat.search"),
        ("--dry-run", "options belong to a command"),
        ("zzz", "tune_inat.predict"),
        ("\x1b[31m", "there is no such command"),
    ],
)
def test_an_argument_is_refused_with_what_to_type(argument: str, hint: str) -> None:
    done = ran(argument)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert hint in done.stderr
    assert "\x1b" not in done.stderr
