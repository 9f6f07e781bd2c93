"""Why a trial failed, in words for people, from what Ray and the machine know of it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from tune_inat.micro_batches import is_out_of_memory

ERROR_PICKLE, ERROR_TEXT = "error.pkl", "error.txt"  # what Tune writes of a trial that failed
OF_RAYS_MONITOR = "running low on memory"  # in what Ray says of a process that its memory monitor killed
OF_A_KILL = "Worker unexpectedly exits"  # and of one that something else killed, or that crashed
MAX_REASON = 500  # characters
LESS_MEMORY = "Fewer trials at a time (--max-concurrent) or a smaller batch_size need less memory"
VM_STATISTICS = Path("/proc/vmstat")


@dataclass(frozen=True)
class Failure:
    """Why a try of a trial failed. `is_of_memory`: the machine had none left."""

    reason: str
    is_of_memory: bool = False


def take_memory_kills_for_deaths() -> None:
    """Have Tune treat a process that Ray's memory monitor has ended like any that died.

    Tune 2.60 does not know that error: it would end the whole search with it.
    """
    manager: Any = RayActorManager
    manager._actor_task_failed = _fail_task


_fail_task_as_ray_does: Callable[[Any, Any, Exception], None] = RayActorManager._actor_task_failed


def _fail_task(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
    if isinstance(exception, OutOfMemoryError):
        exception = RayActorError(error_msg=str(exception))
    _fail_task_as_ray_does(manager, tracked_actor_task, exception)


class OutOfMemoryKills:
    """Counts the processes that the kernel of this machine has killed for want of memory since the last look.

    Args:
        statistics: where they are counted, `VM_STATISTICS` if not given; off Linux there are none.
    """

    def __init__(self, statistics: Path | None = None) -> None:
        self._statistics = statistics or VM_STATISTICS
        self._seen = self._total()

    def take(self) -> int:
        """Those since this was last asked."""
        before, self._seen = self._seen, self._total()
        return self._seen - before

    def _total(self) -> int:
        with suppress(OSError, ValueError):
            for line in self._statistics.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        return 0


def read_failure(folder: Path, *, n_killed: int = 0) -> Failure:
    """Why a trial failed, from what Tune left in the trial's folder on this machine.

    (Ray 2.60's own `Trial.get_pickled_error` looks in the storage, where it is not yet.)

    Args:
        n_killed: processes that the kernel has killed for want of memory meanwhile.
    """
    error, text = None, ""
    with suppress(OSError):
        text = (folder / ERROR_TEXT).read_text(errors="replace")
    with suppress(Exception):  # what cannot be unpickled here still has its text
        error = cloudpickle.loads((folder / ERROR_PICKLE).read_bytes())
    if isinstance(error, RayTaskError):
        return _of_task(error.cause)
    if OF_RAYS_MONITOR in text:
        return Failure(f"Ray ended its process because the machine ran low on memory. {LESS_MEMORY}.", True)
    last = _last_line(text)
    if last and not isinstance(error, RayActorError):
        return Failure(_cut_short(last))
    if n_killed > 0:
        return Failure(f"the kernel killed its process because memory ran out. {LESS_MEMORY}.", True)
    if not last or OF_A_KILL in last:
        return Failure(f"its process was killed, or crashed. If memory ran out: {_as_clause(LESS_MEMORY)}.")
    return Failure(_cut_short(f"its process died: {last}"))


def _of_task(cause: Any) -> Failure:
    """The failure of a trial that raised."""
    reason = _cut_short(f"{type(cause).__name__}: {cause}")
    return Failure(reason, is_of_memory=is_out_of_memory(cause))


def _as_clause(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _cut_short(text: str) -> str:
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
