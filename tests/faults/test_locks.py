"""Locks: two searches at once never write over each other, and no lock outlives its owner."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.processes import PROBES, new_search, reported_twice, table_of
from tune_inat.errors import EXIT_DONE, EXIT_USAGE, ResourceError
from tune_inat.runs import held, keep_identity
from tune_inat.scratch import PREFIX, scratch_folder
from tune_inat.states import FamilyStates
from tune_inat.store import Store

HOLDER = """
import sys, time
from pathlib import Path
from tune_inat.runs import held
from tune_inat.scratch import scratch_folder
from tune_inat.states import FamilyStates
from tune_inat.store import Store

def build(folder):
    print("held", flush=True)
    time.sleep(600)

place = Path(sys.argv[2])
match sys.argv[1]:
    case "search": holding = held(place / "run")
    case "family": holding = FamilyStates(place, "family").exclusively()
    case "scratch": holding = scratch_folder()
    case "build": Store(place).get_or_build("things", "a", build)
with holding as held_folder:
    print("held", held_folder, flush=True)
    time.sleep(600)
"""


@contextmanager
def holder_of(what: str, place: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds something, until it is killed."""
    environment = os.environ | {"TMPDIR": str(place)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, what, str(place)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("held")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def hold_search(place: Path) -> None:
    with held(place / "run"):
        keep_identity(place / "run", {})


def hold_family(place: Path) -> None:
    def give_up() -> None:
        raise ResourceError("another search trains this family")

    with FamilyStates(place, "family").exclusively(give_up):
        pass


@pytest.mark.parametrize(("what", "hold"), [("search", hold_search), ("family", hold_family)])
def test_what_another_process_holds_is_refused_until_that_is_killed(
    hostile_path: Path, what: str, hold: Callable[[Path], None]
) -> None:
    with holder_of(what, hostile_path) as holder:
        with pytest.raises(ResourceError, match="another search"):
            hold(hostile_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        hold(hostile_path)


def test_build_of_a_killed_process_is_taken_over(hostile_path: Path) -> None:
    with holder_of("build", hostile_path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        folder = Store(hostile_path).get_or_build("things", "a", lambda folder: (folder / "x").touch())
    assert (folder / "x").exists()


def test_scratch_folder_of_a_killed_process_goes_with_the_next_and_one_in_use_stays(
    hostile_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(hostile_path))
    (hostile_path / f"{PREFIX}of-others").mkdir()
    with holder_of("scratch", hostile_path), holder_of("scratch", hostile_path) as killed:
        assert len(list(hostile_path.glob(f"{PREFIX}*"))) == 3
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with scratch_folder() as own:
            left = set(hostile_path.glob(f"{PREFIX}*")) - {own, hostile_path / f"{PREFIX}of-others"}
            assert len(left) == 1
        assert not own.exists()


@pytest.mark.end_to_end
def test_two_searches_at_once_share_the_cache_and_a_third_of_the_same_name_is_refused(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    first = new_search(tmp_path, PROBES, "--wandb", "disabled")
    second = replace(first, arguments=(*first.arguments, "--name", "second"), name="second")
    running = first.start(), second.start()
    running[0].await_that(lambda: bool(first.events()))
    refused = first.run()
    assert refused.popen.returncode == EXIT_USAGE
    assert "runs/tiny-photos: another search is writing here" in refused.text
    for one, search in zip(running, (first, second), strict=True):
        assert one.wait() == EXIT_DONE, one.text
        assert table_of(search.summary) == table_of(undisturbed(PROBES))
    assert reported_twice([*first.events(), *second.events()]) == []
