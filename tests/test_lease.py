"""One search at a time writes to a folder in a bucket, and a dead one keeps it from nobody."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.buckets import Bucket
from tune_inat.bucket import RemoteFolder
from tune_inat.errors import ResourceError
from tune_inat.interrupts import interruptible
from tune_inat.lease import CLAIMS_FOLDER, Lease, LostLeaseError, _this_process

pytest_plugins = ["tests.bucket_fixtures"]


def quiet(text: str) -> None:
    pass


@pytest.fixture
def folder(bucket: Bucket) -> RemoteFolder:
    return RemoteFolder(bucket.uri("runs"), "grid")


def leave_claim(folder: RemoteFolder, **differs: object) -> None:
    """The claim of a search that was killed."""
    (folder / CLAIMS_FOLDER).write("dead", json.dumps({**_this_process(), **differs}).encode())


def test_second_search_is_refused_while_the_first_lives(folder: RemoteFolder) -> None:
    with (
        Lease(folder, beat_seconds=0.3).held(quiet),
        pytest.raises(
            ResourceError, match=r"s3://a-bucket/runs/grid: another search is writing here \(process"
        ),
        Lease(folder).held(quiet),
    ):
        pass


def test_nothing_is_left_when_it_is_let_go(bucket: Bucket, folder: RemoteFolder) -> None:
    with Lease(folder).held(quiet):
        assert len(bucket.files("runs/grid")) == 1
    assert bucket.files("runs/grid") == {}
    with Lease(folder).held(quiet):
        pass


def test_it_is_let_go_though_the_storage_does_not_answer_when_the_user_wants_the_end(
    bucket: Bucket, folder: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_inat.lease.RELEASE_SECONDS", 0.5)
    lease = Lease(folder, beat_seconds=0.1)
    with ExitStack() as later, interruptible() as interruption:
        with lease.held(quiet):
            later.enter_context(bucket.silent())
            interruption.is_requested = True
        with pytest.raises(LostLeaseError, match="this search has let it go"):
            lease.ensure()  # what was left behind writes nothing more


def test_search_of_this_machine_that_has_died_is_not_waited_for(folder: RemoteFolder) -> None:
    leave_claim(folder, process=2**22 + 1)  # no process has so high a number
    said: list[str] = []
    with Lease(folder, timeout_seconds=3600.0).held(said.append):
        assert said == []


def test_search_of_a_lost_machine_is_waited_for_and_then_taken_over(folder: RemoteFolder) -> None:
    leave_claim(folder, machine="another", host="lost-head")
    said: list[str] = []
    with Lease(folder, timeout_seconds=2.0).held(said.append):
        assert len(said) == 1
        assert "lost-head" in said[0]
        assert (folder / CLAIMS_FOLDER).read("dead") is None


def test_who_was_taken_over_notices_before_it_writes(folder: RemoteFolder) -> None:
    cut_off = Lease(folder, beat_seconds=3600.0, timeout_seconds=2.0)
    with cut_off.held(quiet):
        cut_off.ensure()
        with (
            Lease(folder, timeout_seconds=2.0).held(quiet),
            pytest.raises(LostLeaseError, match="another search has taken over"),
        ):
            cut_off.ensure()


def test_who_slept_while_another_took_over_notices_before_it_writes(
    folder: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep, read = 0.0, time.clock_gettime
    monkeypatch.setattr(
        "time.clock_gettime", lambda clock: read(clock) + (asleep if clock == time.CLOCK_BOOTTIME else 0.0)
    )
    laptop = Lease(folder, beat_seconds=3600.0)
    with laptop.held(quiet):
        (own,) = (folder / CLAIMS_FOLDER).files()
        asleep = 3600.0
        leave_claim(folder, machine="another")
        (folder / CLAIMS_FOLDER).remove(own)
        for _ in range(2):
            with pytest.raises(LostLeaseError, match="another search has taken over"):
                laptop.ensure()
        assert (folder / CLAIMS_FOLDER).files().keys() == {"dead"}


def test_who_was_taken_over_by_a_search_that_has_ended_does_not_go_on(folder: RemoteFolder) -> None:
    cut_off = Lease(folder, beat_seconds=3600.0, timeout_seconds=0.0)
    with cut_off.held(quiet):
        for name in (folder / CLAIMS_FOLDER).files():
            (folder / CLAIMS_FOLDER).remove(name)
        with pytest.raises(LostLeaseError, match="another search has taken over"):
            cut_off.ensure()


def test_sign_of_life_that_another_search_has_removed_is_not_given_again(folder: RemoteFolder) -> None:
    lease = Lease(folder, beat_seconds=0.05)
    with lease.held(quiet):
        (own,) = (folder / CLAIMS_FOLDER).files()
        (folder / CLAIMS_FOLDER).remove(own)
        with pytest.raises(LostLeaseError, match="another search has taken over"):
            _ensure_for(lease, seconds=30)
        assert (folder / CLAIMS_FOLDER).files() == {}


def test_who_was_not_heard_for_long_goes_on_if_nobody_came(folder: RemoteFolder) -> None:
    lease = Lease(folder, beat_seconds=3600.0, timeout_seconds=0.0)
    with lease.held(quiet):
        lease.ensure()
        lease.ensure()
        assert len((folder / CLAIMS_FOLDER).files()) == 1


def test_of_searches_that_come_at_once_one_at_a_time_holds_it(
    folder: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_INAT_STORAGE_SECONDS", "60")  # what another removes while it is read
    n_holding, most, n_held = 0, 0, 0
    guard = threading.Lock()

    def hold_once() -> None:
        nonlocal n_holding, most, n_held
        try:
            with Lease(folder, beat_seconds=3600.0).held(quiet):
                with guard:
                    n_holding += 1
                    most, n_held = max(most, n_holding), n_held + 1
                folder.files()
                with guard:
                    n_holding -= 1
        except ResourceError:
            pass

    _together(hold_once, 4)
    assert most == 1
    assert n_held >= 1


def _ensure_for(lease: Lease, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        lease.ensure()


def _together(act: Callable[[], None], n: int) -> None:
    threads = [threading.Thread(target=act) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
