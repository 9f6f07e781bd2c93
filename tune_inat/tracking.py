"""Weights & Biases: every trial of a search as a run of one group, written while the search goes on."""

import hashlib
import json
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import wandb
from ray.air.integrations.wandb import WandbLoggerCallback
from ray.tune.result import AUTO_RESULT_KEYS, DEBUG_METRICS

from tune_inat.ledger import TrialRecord
from tune_inat.tries import Tries
from tune_inat.wandb_charts import BestTrial
from tune_inat.wandb_runs import DONE, FAILED, INTERRUPTED, RunStart, SearchRecord
from tune_inat.wandb_writer import Patience, RunWriter

Mode = Literal["online", "offline", "disabled"]

DEFAULT_PATIENCE = Patience()
BOOKKEEPING = frozenset((*AUTO_RESULT_KEYS, *DEBUG_METRICS, "done", "should_checkpoint", "experiment_tag"))


def _never() -> bool:
    return False


class TrialLike(Protocol):
    """What is read of Ray's trials. `config` has our stable `trial_id`, and `params`: the trial's values."""

    config: dict[str, Any]


def resolve_mode(asked: Mode | None) -> tuple[Mode, str | None]:
    """The mode to use, and a notice for the user where that is not what was asked for.

    Without a wish `WANDB_MODE` decides, else whether there is an API key.
    """
    mode = asked or _mode_of_environment() or "online"
    if mode != "online" or _has_credentials():
        return mode, None
    return (
        "offline",
        "No W&B API key found: runs stay on disk. `wandb login` or WANDB_API_KEY would send them.",
    )


class WandbTracker(WandbLoggerCallback):
    """Ray's W&B callback, with one process and one thread for all trials where Ray's has three a trial.

    It takes 0.04 s a trial instead of 2.0 (2 cores, Ray 2.60, wandb 0.31). Tune's hooks only put work on a
    queue; `RunWriter` says what happens to it, and what when W&B fails.

    Args:
        folder: of the search; runs land in `folder`/wandb.
        group: the search's name. With `project` and a trial's id it fixes the id of its run, so a search
            that is started again continues its runs.
        run_config: settings of the search, beside the trial's parameters in each run's config.
        varied: the parameters to name a run by.
        trained_before: the epochs that earlier runs of the command have trained, by trial.
        excludes: numbers in Tune's results that are no metrics.
        work: a hash of what the trials are about, images above all: the same trial id in a search of the same
            name on other images is another run.
        is_over: whether the search is being ended, by time or Ctrl-C: what ends short then was interrupted.
        tries: which trials that fail are tried again: such a trial's run goes on.
    """

    def __init__(
        self,
        *,
        folder: Path,
        project: str,
        entity: str | None = None,
        group: str,
        mode: Literal["online", "offline"],
        tags: Sequence[str] = (),
        notes: str | None = None,
        run_config: Mapping[str, Any] | None = None,
        varied: Sequence[str] = (),
        trained_before: Mapping[str, int] | None = None,
        excludes: Sequence[str] = (),
        work: str = "",
        is_over: Callable[[], bool] = _never,
        tries: Tries | None = None,
        patience: Patience = DEFAULT_PATIENCE,
    ) -> None:
        super().__init__(project=project, group=group, excludes=list(excludes))
        self._search = SearchRecord(folder.absolute(), project, entity, group, tuple(tags), notes)
        self._is_online = mode == "online"
        self._run_config = dict(run_config or {})
        self._varied = tuple(varied)
        self._trained = dict(trained_before or {})  # epochs by trial, as they are trained
        self._work = work
        self._is_over = is_over
        self._tries = tries or Tries()
        self._patience = patience
        self._writer: RunWriter | None = None
        self._notices: list[str] = []
        self._open: dict[
            str, int
        ] = {}  # the last epoch of each run that has started and not ended, by its id

    def __getstate__(self) -> dict[str, Any]:  # Tuner pickles its callbacks
        return {**self.__dict__, "_writer": None, "_open": {}, "_is_over": _never}

    def __del__(self) -> None:  # Ray's own speaks to actors, of which there are none
        return

    @property
    def problems(self) -> list[str]:
        """What went wrong with W&B so far, for the user."""
        return [*(self._writer.problems if self._writer else ()), *self._notices]

    def setup(self, *_: Any, **__: Any) -> None:
        """Start the writer; Tune calls this before the first trial."""
        self._open.clear()
        self._writer = RunWriter(self._search, is_online=self._is_online, patience=self._patience)

    def log_trial_start(self, trial: TrialLike) -> None:
        """Open the trial's run; a trial that goes on after a pause or a retry goes on in it."""
        start = self._start_of(trial.config["trial_id"], trial.config["params"])
        if start.id not in self._open:
            self._open[start.id] = 0
            self._put(partial(RunWriter.start, start=start))

    def log_trial_result(self, iteration: int, trial: TrialLike, result: Mapping[str, Any]) -> None:
        """Write the row of an epoch."""
        self.log_trial_start(trial)
        if "epoch" in result:
            trial_id = trial.config["trial_id"]
            run_id, epoch = self._run_id(trial_id), int(result["epoch"])
            self._open[run_id] = epoch
            self._trained[trial_id] = self._trained.get(trial_id, 0) + bool(result.get("trained"))
            facts = _reuse(self._trained[trial_id], result.get("did") or {})
            row = {
                name: _plain(value)
                for name, value in result.items()
                if name not in self.excludes and _is_metric(name, value)
            }
            self._put(partial(RunWriter.add_row, run_id=run_id, epoch=epoch, row=row, facts=facts))

    def log_trial_save(self, trial: TrialLike) -> None:
        """Nothing: checkpoints stay in the search's own storage."""

    def log_trial_end(self, trial: TrialLike, failed: bool = False) -> None:
        """Close the trial's run, unless it is tried again; a trial may fail before it has started."""
        trial_id = trial.config["trial_id"]
        self.log_trial_start(trial)
        has_given_up = self._tries.has_given_up(trial_id)
        if failed and self._tries.n_failed(trial_id) and not has_given_up:
            return
        failed = failed or has_given_up
        run_id = self._run_id(trial_id)
        is_short = self._open.pop(run_id) < trial.config["params"]["epochs"]
        exit_code = FAILED if failed else INTERRUPTED if is_short and self._is_over() else DONE
        self._put(partial(RunWriter.end, run_id=run_id, exit_code=exit_code))

    def on_experiment_end(self, trials: Sequence[TrialLike], **_: Any) -> None:
        """Close what is still open; Tune calls this at the end, and on Ctrl-C."""
        self.finish()

    def finish(self) -> None:
        """Write what is still to write and end all runs, in a bounded time; calling it again waits again.

        A trial that has not ended by now was interrupted: then the wait is short.
        """
        if self._writer is not None:
            self._writer.finish(is_interrupted=bool(self._open))
        self._open.clear()

    def show_best(
        self,
        record: TrialRecord,
        *,
        probabilities: npt.NDArray[np.floating[Any]],
        labels: npt.NDArray[np.int64],
        classes: Sequence[str],
        test_accuracy: float | None = None,
        model_folder: Path | None = None,
    ) -> list[str]:
        """Give the best trial's run charts of its predictions, and its model; to be called after `finish`.

        The run is opened again, where it is: on the server, or on disk in a further file. What it has
        already is not written again. It waits for a bounded time, longer with a model to send. A trial that
        may still go on gets no charts: they stand after its last epoch.

        Args:
            record: of the trial, from the ledger.
            probabilities: of the validation images at the best epoch, (N, K).
            labels: theirs, (N,), the true ones.
            classes: the K names. Of many, charts have only those with most errors: `wandb_charts.charts_of`.
            test_accuracy: for the run's summary, if there is one.
            model_folder: a folder to keep as an artifact of type model.

        Returns:
            What went wrong, for the user; it is among `problems`, too.
        """
        if not record.is_finished:
            self._notices.append(
                f"W&B: trial {record.trial_id} is the best, but has not ended. It has its charts when it has."
            )
            return self._notices[-1:]
        self.finish()  # two writers at a time would take each other's runs for remains
        if self._writer is not None and self._writer.is_busy:
            self._notices.append("W&B is still busy with earlier runs: the best one has no charts there.")
            return self._notices[-1:]
        writer = RunWriter(
            self._search,
            is_online=self._is_online if self._writer is None else self._writer.is_online,
            patience=self._patience,
        )
        self._trained[record.trial_id] = record.epochs_trained
        start = self._start_of(record.trial_id, record.config)
        facts = _reuse(record.epochs_trained, record.did)
        best = BestTrial(probabilities, labels, tuple(classes), model_folder, test_accuracy)
        writer.put(partial(writer.start, start))
        for row in record.rows:
            writer.put(partial(writer.add_row, start.id, int(row["epoch"]), row, facts))
        writer.put(partial(writer.show_best, start.id, best))
        writer.put(partial(writer.end, start.id, DONE))
        writer.finish(is_interrupted=False, extra_seconds=self._patience.upload if model_folder else 0.0)
        news = [problem for problem in writer.problems if problem not in self.problems]
        self._notices += news
        return news

    def _put(self, work: Callable[[RunWriter], None]) -> None:
        if self._writer is not None:
            self._writer.put(partial(work, self._writer))

    def _start_of(self, trial_id: str, params: Mapping[str, Any]) -> RunStart:
        """What is known of a trial's run from its start on. All of its config is plain, for W&B's panels."""
        named = [f"{name}={_short(params[name])}" for name in self._varied if name in params]
        reuse = {"reuse/epochs_asked": params["epochs"], **_reuse(self._trained.get(trial_id, 0), {})}
        return RunStart(
            id=self._run_id(trial_id),
            name=" ".join([trial_id, *named]),
            config={**self._run_config, **params, **reuse},
            epochs=params["epochs"],
        )

    def _run_id(self, trial_id: str) -> str:
        """The same for the same trial of the same search, on every machine."""
        search = [self._search.project, self._search.group, self._work]
        key = json.dumps([*search, trial_id])
        return hashlib.sha256(key.encode()).hexdigest()[:16]


def _reuse(epochs_trained: int, did: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's config says of the work that was shared."""
    known = {f"reuse/{name}": did[name] for name in ("cut", "precision") if did.get(name) is not None}
    return {"reuse/epochs_trained": epochs_trained, **known}


def _is_metric(name: str, value: Any) -> bool:
    return name not in BOOKKEEPING and isinstance(value, Real) and not isinstance(value, bool)


def _plain(value: Any) -> float:
    """A number of numpy's as one of Python's."""
    number: float = value.item() if isinstance(value, np.generic) else value
    return number


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _mode_of_environment() -> Mode | None:
    named = os.environ.get("WANDB_MODE", "").lower()
    modes: dict[str, Mode] = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}
    return "disabled" if named == "disabled" else modes.get(named)


def _has_credentials() -> bool:
    """Whether W&B would find credentials where it looks: the environment, its settings, `.netrc`."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.api_key:
        return True
    try:
        known = netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser())
    except (OSError, netrc.NetrcParseError):
        return False
    return known.authenticators(urlsplit(settings.base_url).netloc) is not None
