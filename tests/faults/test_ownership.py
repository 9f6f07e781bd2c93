"""What machines share has one owner at a time, also where an owner lives on that nobody reaches."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from tune_inat import ownership
from tune_inat.errors import ResourceError
from tune_inat.ownership import LostOwnershipError
from tune_inat.states import RECORD_FILE, FamilyStates
from tune_inat.store import write_atomically

# Owns a family and trains it, epoch after epoch, for as long as it owns it.
OWNER = """
import sys, time
from pathlib import Path
import torch
from tune_inat.ownership import LostOwnershipError
from tune_inat.states import FamilyStates

states = FamilyStates(Path(sys.argv[1]), "family", sys.argv[2])
try:
    with states.exclusively():
        for epoch in range(1, 10_000):
            value = torch.full((1000,), float(epoch))
            states.save(epoch, {"w": value}, {"m": value})
            states.append({"epoch": epoch, "by": 1}, {"cut": "layer3"})
            states.prune(resume_epochs={epoch}, weight_epochs=())
            print(epoch, flush=True)
            time.sleep(0.01)
except LostOwnershipError as error:
    print("lost, to the same search:", error.is_to_same_search, flush=True)
"""


@contextmanager
def owner_of(place: Path, search: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that owns the family and has trained some epochs."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(place), search], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        for _ in range(3):
            process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def cut_off(process: "subprocess.Popen[str]") -> None:
    """Nobody hears of it any more; it goes on when it is sent SIGCONT."""
    process.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


def train(states: FamilyStates, n: int, by: int = 2) -> None:
    """Some more epochs."""
    first = len(states.record().rows) + 1
    for epoch in range(first, first + n):
        value = torch.full((1000,), float(epoch))
        states.save(epoch, {"w": value}, {"m": value})
        states.append({"epoch": epoch, "by": by}, {"cut": "layer3"})
        states.prune(resume_epochs={epoch}, weight_epochs=())


def give_up() -> None:
    raise ResourceError("the family is another search's")


def test_owner_that_lives_on_after_its_search_gave_it_up_changes_nothing_any_more(hostile_path: Path) -> None:
    with owner_of(hostile_path, "search") as old:
        cut_off(old)
        states = FamilyStates(hostile_path, "family", "search")
        with states.exclusively(give_up):  # at once: nobody is waited for
            n_before = len(states.record().rows)
            train(states, 2)
            old.send_signal(signal.SIGCONT)
            assert old.stdout is not None
            assert old.stdout.read().splitlines()[-1] == "lost, to the same search: True"
            train(states, 2)
        rows = states.record().rows
        assert [row["epoch"] for row in rows] == list(range(1, n_before + 5))
        assert [row["by"] for row in rows[n_before:]] == [2, 2, 2, 2]
        assert states.load(n_before + 4) is not None
        names = {path.name.split("-")[0] for path in states.folder.iterdir()}
        assert names == {"weights", "optimizer", RECORD_FILE, ownership.OWNER_FILE}


def test_late_write_of_an_earlier_owner_loses_no_epoch(hostile_path: Path) -> None:
    """It comes between that one's last look and its renaming of a file."""
    states = FamilyStates(hostile_path, "family", "search")
    with states.exclusively():
        train(states, 2)
        late = (states.folder / RECORD_FILE).read_bytes()
        weights = (states.folder / "weights-00002.safetensors").read_bytes()
    states = FamilyStates(hostile_path, "family", "search")
    with states.exclusively():
        train(states, 1)
        (states.folder / RECORD_FILE).write_bytes(late)
        states.append({"epoch": 4, "by": 2}, {})
        assert [row["epoch"] for row in states.record().rows] == [1, 2, 3, 4]
        (states.folder / "weights-00003.safetensors").write_bytes(weights)
        assert states.load(3) is None  # weights of one owner, an optimizer of another


def test_another_search_waits_for_an_owner_that_lives(
    hostile_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.2)
    waited = threading.Event()
    with FamilyStates(hostile_path, "family", "first").exclusively():
        thread = threading.Thread(target=own_and_tell, args=(hostile_path, waited))
        thread.start()
        assert not waited.wait(3.0)
    assert waited.wait(10.0)
    thread.join()


def own_and_tell(place: Path, event: threading.Event) -> None:
    with FamilyStates(place, "family", "second").exclusively():
        event.set()


def test_another_search_takes_over_from_an_owner_without_signs_of_life_which_may_wait_in_turn(
    hostile_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 0.5)
    with owner_of(hostile_path, "first") as old:
        second = FamilyStates(hostile_path, "family", "second")
        with pytest.raises(ResourceError, match="another search's"), second.exclusively(give_up):
            pass
        cut_off(old)
        with FamilyStates(hostile_path, "family", "second").exclusively():
            old.send_signal(signal.SIGCONT)
            assert old.stdout is not None
            assert old.stdout.read().splitlines()[-1] == "lost, to the same search: False"


def test_who_claims_a_folder_last_gives_signs_of_life_though_another_claims_it_at_the_same_time(
    hostile_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one claims it when the first has just written its name."""
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 0.2)
    last = FamilyStates(hostile_path, "family", "last")
    with ExitStack() as stack:

        def write(path: Path, content: bytes) -> None:
            write_atomically(path, content)
            monkeypatch.setattr(ownership, "write_atomically", write_atomically)
            stack.enter_context(last.exclusively())

        monkeypatch.setattr(ownership, "write_atomically", write)
        with FamilyStates(hostile_path, "family", "first").exclusively():
            pass
        third = FamilyStates(hostile_path, "family", "third")
        with pytest.raises(ResourceError, match="another search's"), third.exclusively(give_up):
            pass


def test_family_of_a_killed_owner_says_whose_it_was(hostile_path: Path) -> None:
    with owner_of(hostile_path, "search") as old:
        old.kill()
        old.wait()
        said = json.loads((hostile_path / "family" / ownership.OWNER_FILE).read_text())
        assert (said["search"], said["pid"]) == ("search", old.pid)
        with FamilyStates(hostile_path, "family", "search").exclusively(give_up):
            pass


def test_owner_of_a_folder_that_was_removed_notices(hostile_path: Path) -> None:
    states = FamilyStates(hostile_path, "family", "search")
    with states.exclusively():
        train(states, 1)
        (states.folder / ownership.OWNER_FILE).unlink()
        with pytest.raises(LostOwnershipError) as lost:
            train(states, 1)
        assert not lost.value.is_to_same_search


def test_machine_that_does_not_see_the_share_says_so_and_makes_none_of_its_own(hostile_path: Path) -> None:
    states = FamilyStates(hostile_path / "share", "family", "search")
    with pytest.raises(ResourceError, match="does not see"), states.exclusively():
        pass
    assert not (hostile_path / "share").exists()
