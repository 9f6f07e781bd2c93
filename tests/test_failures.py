"""Why a trial failed is said in words that help."""

from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError

from tune_inat.failures import OutOfMemoryKills, read_failure
from tune_inat.micro_batches import StepTooLargeError

# Ray 2.60's own words: of a worker that was sent SIGKILL, and of one that its memory monitor ended.
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
    "detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes ..."
)
MONITORED = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was "
    "5.42GB used / 23.54GB limit (0.230298)\nRefer to the documentation on how to address the issue."
)


def write_error(folder: Path, error: Any) -> Path:
    """What Ray's `Trial.handle_error` writes."""
    pickle: Any = cloudpickle  # Ray leaves it untyped
    (folder / "error.pkl").write_bytes(pickle.dumps(error))
    (folder / "error.txt").write_text(f"Failure # 1 (occurred at 2026-11-25)\n{error}\n")
    return folder


def task_error(cause: Exception) -> Any:
    """An error of a trial as it arrives from its process."""
    make: Any = RayTaskError  # untyped, too
    return make("_train", f"Traceback ...\n{type(cause).__name__}: {cause}", cause).as_instanceof_cause()


def test_reason_of_a_failure_is_the_error_of_the_trial_itself(hostile_path: Path) -> None:
    failure = read_failure(write_error(hostile_path, task_error(ValueError("out of luck"))))
    assert (failure.reason, failure.is_of_memory) == ("ValueError: out of luck", False)


def test_step_that_is_too_large_is_a_failure_of_memory(hostile_path: Path) -> None:
    cause = StepTooLargeError("8 images do not fit in memory, not even 1 at a time")
    failure = read_failure(write_error(hostile_path, task_error(cause)))
    assert failure.reason == f"StepTooLargeError: {cause}"
    assert failure.is_of_memory


@pytest.mark.parametrize(
    ("error", "n_killed", "said", "is_of_memory"),
    [
        (KILLED, 0, "its process was killed, or crashed. If memory ran out: fewer trials at a time", False),
        (KILLED, 1, "the kernel killed its process because memory ran out. Fewer trials at a time", True),
        (MONITORED, 0, "Ray ended its process because the machine ran low on memory. Fewer trials", True),
        ("its node has died", 0, "its process died: its node has died", False),
    ],
    ids=["killed", "killed by the kernel", "ended by Ray's monitor", "lost with its machine"],
)
def test_process_that_died_says_why_as_far_as_is_known(
    error: str, n_killed: int, said: str, is_of_memory: bool, hostile_path: Path
) -> None:
    failure = read_failure(write_error(hostile_path, RayActorError(error_msg=error)), n_killed=n_killed)
    assert failure.reason.startswith(said)
    assert failure.is_of_memory == is_of_memory
    assert ("--max-concurrent" in failure.reason) == ("memory" in failure.reason)


def test_reason_that_cannot_be_unpickled_is_read_from_its_text(hostile_path: Path) -> None:
    write_error(hostile_path, task_error(ValueError("out of luck")))
    (hostile_path / "error.pkl").write_bytes(b"torn")
    assert read_failure(hostile_path).reason.endswith("ValueError: out of luck")
    assert read_failure(hostile_path / "nowhere").reason.startswith("its process was killed, or crashed")


def test_kills_of_the_kernel_are_counted_from_one_look_to_the_next(tmp_path: Path) -> None:
    statistics = tmp_path / "vmstat"
    statistics.write_text("nr_free_pages 9\noom_kill 3\n")
    kills = OutOfMemoryKills(statistics)
    assert kills.take() == 0
    statistics.write_text("nr_free_pages 9\noom_kill 5\n")
    assert [kills.take(), kills.take()] == [2, 0]
    assert OutOfMemoryKills(tmp_path / "nowhere").take() == 0
