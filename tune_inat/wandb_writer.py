"""The one thread that owns a search's W&B runs: opens, fills and closes them, and survives W&B's failures."""

import logging
import os
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb

from tune_inat.objective import GOALS
from tune_inat.wandb_charts import BestTrial, charts_of, data_kept_in, model_artifact
from tune_inat.wandb_faults import SLOW, is_torn, reason_of, why_broken, why_offline, why_torn
from tune_inat.wandb_files import has_ended, read_recorded
from tune_inat.wandb_runs import BEST_OF, INTERRUPTED, Run, RunStart, SearchRecord, status_of, summary_of

FLUSH_SECONDS = 1.0  # W&B's 15 s lose whole short runs to a `kill -9`; 1 s costs nothing measurable
N_UNFLUSHED = 100  # more runs do not end while W&B writes out the last of them
LAST_SECONDS = 2.0  # after patience has ended: what is left goes offline, some 20 ms a run
DISK_SECONDS = 60.0  # to open or close an offline run; 20 ms, but trials may leave W&B's process no core
MAX_RESTARTS = 3  # of W&B's process for the same work

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How many seconds W&B may take: online to open and to close a run, and for all when a search ends.

    `upload` is what closing a run with a model may take. A server that takes longer than `brisk` to open or
    close a run is slow: what falls behind the search by `behind` stays on disk, and at the end it is waited
    for no longer than that.
    """

    opening: float = 8.0
    closing: float = 5.0
    end: float = 30.0
    interrupted: float = 1.5
    upload: float = 600.0
    brisk: float = 3.0
    behind: float = 5.0


class RunWriter:
    """Does work in its own thread, in order. Nothing that goes wrong with W&B comes back to the caller.

    Of a run that an earlier search of the same name has left on disk only new rows are written, to a further
    file, and if nothing is new, nothing is: `wandb sync` would add the same rows again as further steps.

    The first failure online (no connection, a refusal, a time-out) puts this run and all later ones offline.
    Those of its rows that had arrived are then sent twice; as each is plotted at its epoch, they draw over
    themselves.

    Attributes:
        problems: what went wrong, for the user; of each kind the first.
    """

    def __init__(self, search: SearchRecord, *, is_online: bool, patience: Patience) -> None:
        self.problems: list[str] = []
        self._said: set[str] = set()
        self._search = search
        self._place = "/".join(filter(None, (search.entity, search.project)))
        self._is_online = is_online
        self._patience = patience
        self._runs: dict[str, Run] = {}
        self._ended: deque[Path] = deque()
        self._torn: list[Path] = []
        self._slowest = 0.0  # seconds that the server took to open or close a run
        self._waited = 0.0  # seconds that the work in hand has waited for its turn
        self._restarts = 0
        self._has_given_up = False
        self._must_hurry = threading.Event()
        self._work: queue.SimpleQueue[tuple[float, Callable[[], None] | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="wandb-writer", daemon=True)
        self._thread.start()

    @property
    def is_online(self) -> bool:
        """Whether runs are still sent."""
        return self._is_online

    @property
    def is_busy(self) -> bool:
        """Whether it has not done all its work, though `finish` may have waited."""
        return self._thread.is_alive()

    def put(self, work: Callable[[], None]) -> None:
        """Have one of the methods `start`, `add_row`, `show_best` and `end` called when its turn comes."""
        self._work.put((time.monotonic(), work))

    def finish(self, *, is_interrupted: bool, extra_seconds: float = 0.0) -> None:
        """Wait, for a bounded time, until all work is done. What is still open then ends as interrupted."""
        for work in (self._end_open_runs, self._await_files, None):
            self._work.put((time.monotonic(), work))
        seconds = self._patience.interrupted if is_interrupted else self._patience.end
        if self._is_slow():
            seconds = min(seconds, self._patience.behind)
        self._thread.join(seconds + extra_seconds)
        self._must_hurry.set()
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            self._say("late", "W&B did not close all runs in time; the rows they had are on disk.")

    # What `put` takes. After a failure each is called again.

    def start(self, start: RunStart) -> None:
        """Open a run, or wait with that for a new row if there are rows of it from an earlier search."""
        if start.id not in self._runs:
            recorded = read_recorded(self._search.folder, start.id)
            self._runs[start.id] = Run(
                start,
                earlier=frozenset(self._folders_of(start.id)),
                known=recorded.steps,
                exit_code=recorded.exit_code,
                stays_offline=recorded.is_waiting,
                has_model=recorded.has_model,
            )
        run = self._runs[start.id]
        if run.handle is None and not run.known:
            self._open(run)

    def add_row(self, run_id: str, epoch: int, row: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write the row of an epoch, unless it is known, and what the config has to say by then."""
        run = self._runs[run_id]
        run.rows.setdefault(epoch, row)
        news = facts.items() - run.facts.items()
        run.facts |= facts
        if epoch in run.known:
            return
        if run.handle is None:
            self._open(run)
        else:
            self._log(run, epoch)
            if news:
                run.handle.config.update(run.facts, allow_val_change=True)

    def show_best(self, run_id: str, best: BestTrial) -> None:
        """Add the charts and the model of a best trial to its run, unless it has them."""
        run = self._runs[run_id]
        run.best = best
        if not (run.lacks_charts or run.lacks_model):
            return
        if run.handle is None:
            self._open(run)
        else:
            self._log_best(run, best)

    def end(self, run_id: str, exit_code: int) -> None:
        """Close a run with its best and last values."""
        run = self._runs[run_id]
        if run.handle is None and run.exit_code is not None and exit_code in (run.exit_code, INTERRUPTED):
            del self._runs[run_id]
            return
        if run.handle is None:
            self._open(run)
        run.handle.summary.update(summary_of(run, exit_code))
        run.handle.tags = (*self._search.tags, status_of(run, exit_code))
        with self._timed(run):
            run.handle.finish(exit_code=exit_code)
        self._ended.append(Path(run.handle.sync_dir, f"run-{run_id}.wandb"))
        if len(self._ended) > N_UNFLUSHED:
            self._torn += filter(is_torn, [self._ended.popleft()])
        del self._runs[run_id]

    def _end_open_runs(self) -> None:
        """End all runs at once: online each may take its time to close."""
        failures: list[Exception] = []

        def end(run_id: str) -> None:
            try:
                self.end(run_id, INTERRUPTED)
            except Exception as error:  # noqa: BLE001  raised below, in the thread that can mend it
                failures.append(error)

        threads = [threading.Thread(target=end, args=(run_id,), daemon=True) for run_id in self._runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _await_files(self) -> None:
        """Wait until the files of the runs that ended last are whole: W&B closes them a little later."""
        deadline = time.monotonic() + 2 * FLUSH_SECONDS
        while time.monotonic() < deadline and not all(has_ended(path) for path in self._ended):
            time.sleep(0.01)
        self._torn += filter(is_torn, self._ended)
        if self._torn:
            self._say("torn", why_torn(self._torn, self._search.folder / "wandb"))

    # The thread, and how it recovers.

    def _serve(self) -> None:
        self._do(self._silence)
        while True:
            put_at, work = self._work.get()
            if work is None:
                return
            self._waited = time.monotonic() - put_at
            self._do(work)

    def _silence(self) -> None:
        logging.getLogger("wandb").setLevel(logging.CRITICAL)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else its retries print, and delay the exit
        wandb.setup(wandb.Settings(silent=True))

    def _do(self, work: Callable[[], None]) -> None:
        while not self._has_given_up:
            try:
                work()
            except Exception as error:  # noqa: BLE001  whatever it is, the search goes on
                self._recover(error)
            else:
                self._restarts = 0
                return

    def _recover(self, error: Exception) -> None:
        """Start W&B's process anew, offline if the failure was online, and write the open runs again."""
        logger.debug("W&B failed", exc_info=error)
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            self._has_given_up = True
            self._say("broken", why_broken(error))
            return
        was_online = self._is_online or any(run.is_online for run in self._runs.values())
        self._is_online = False
        try:
            self._restart()
        except Exception as again:  # noqa: BLE001  as in `_do`
            self._recover(again)
        if was_online:
            self._say("unreachable", why_offline(error, self._place))
        elif not self._has_given_up:
            self._say("restarted", f"W&B's process failed ({reason_of(error)}) and was started anew.")

    def _restart(self) -> None:
        """End W&B's process and open the open runs in a new one. (Runs that others have open end, too.)"""
        try:
            wandb.teardown()  # also frees the id of a run that could not be opened
        except (Exception, SystemExit) as error:
            logger.debug("W&B's process did not end well", exc_info=error)
        wandb.setup(wandb.Settings(silent=True))
        for run in list(self._runs.values()):
            if run.is_online:  # what was begun online is written again, whole
                for folder in self._folders_of(run.start.id) - run.earlier:
                    shutil.rmtree(folder, ignore_errors=True)
            recorded = read_recorded(self._search.folder, run.start.id)
            run.known, run.has_model = recorded.steps, recorded.has_model
            if run.handle is not None:
                self._open(run)

    def _is_slow(self) -> bool:
        return self._slowest > self._patience.brisk

    @contextmanager
    def _timed(self, run: Run) -> Iterator[None]:
        """Around what waits for the server. One that fails is not slow: it is not asked again."""
        began = time.monotonic()
        yield
        if run.is_online:
            self._slowest = max(self._slowest, time.monotonic() - began)

    # W&B's own calls.

    def _open(self, run: Run) -> None:
        falls_behind = self._is_slow() and self._waited > self._patience.behind
        if self._is_online and (falls_behind or self._must_hurry.is_set()):
            self._is_online = False
            self._say("slow", SLOW)
        run.is_online = self._is_online and not run.stays_offline
        run.handle = None
        with self._timed(run):
            run.handle = self._init(run)
        if run.is_online:  # the server knows best what it has
            run.known = set(range(run.handle.starting_step)) if run.handle.resumed else set()
        run.handle.define_metric("*", step_metric="epoch")
        for name, goal in GOALS.items():
            run.handle.define_metric(name, step_metric="epoch", summary=f"{BEST_OF[goal].__name__},last")
        if run.is_online and run.handle.resumed:  # the server's values would stay
            run.handle.config.update(run.facts, allow_val_change=True)
        for epoch in sorted(run.rows.keys() - run.known):
            self._log(run, epoch)
        if run.best is not None:
            self._log_best(run, run.best)

    def _init(self, run: Run) -> Any:
        return wandb.init(
            id=run.start.id,
            name=run.start.name,
            config={**run.start.config, **run.facts},
            project=self._search.project,
            entity=self._search.entity,
            group=self._search.group,
            tags=self._search.tags,
            notes=self._search.notes,
            dir=self._search.folder,
            mode="online" if run.is_online else "offline",
            resume="allow",
            reinit="create_new",
            settings=self._settings(run),
        )

    def _log(self, run: Run, epoch: int) -> None:
        run.handle.log(dict(run.rows[epoch]), step=epoch, commit=True)
        run.known.add(epoch)

    def _log_best(self, run: Run, best: BestTrial) -> None:
        folder = Path(run.handle.sync_dir)
        with data_kept_in(folder):
            if best.model_folder is not None and run.lacks_model:
                artifact = model_artifact(
                    best.model_folder, search=self._search.group, aside=folder / "model"
                )
                run.handle.log_artifact(artifact, aliases=["latest", "best"])
                run.has_model = True
            if run.lacks_charts:
                row = {"epoch": max(run.rows, default=0), **charts_of(best)}  # else W&B takes epoch 0
                run.handle.log(row, step=run.charts_step, commit=True)
                run.known.add(run.charts_step)

    def _settings(self, run: Run) -> wandb.Settings:
        """No output, no code, nothing about the machine, no long waits."""
        has_model = run.best is not None and run.best.model_folder is not None
        closing = self._patience.upload if has_model else self._patience.closing
        return wandb.Settings(
            console="off",
            silent=True,
            symlink=False,
            host="",
            program="",
            disable_git=True,
            label_disable=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=FLUSH_SECONDS,
            init_timeout=self._patience.opening if run.is_online else DISK_SECONDS,
            finish_timeout=closing if run.is_online else DISK_SECONDS,
            finish_timeout_raises=True,
        )

    def _folders_of(self, run_id: str) -> set[Path]:
        return set(self._search.folder.glob(f"wandb/*run-*-{run_id}*"))

    def _say(self, kind: str, problem: str) -> None:
        """Note a problem, the first of its kind."""
        if kind not in self._said:
            self._said.add(kind)
            self.problems.append(problem)
