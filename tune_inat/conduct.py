"""Conducts a search from its settings to its folder of results."""

import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tune_inat.config import TrialConfig
from tune_inat.inputs import Inputs, open_store, read_inputs
from tune_inat.ledger import Ledger, TrialRecord
from tune_inat.objective import Metric
from tune_inat.plan import TrialNamer, complete_config, longest_trial
from tune_inat.progress import Terminal
from tune_inat.results import (
    Effort,
    TestResult,
    TrialResult,
    best_of,
    best_to_json,
    exported_trial,
    leaderboard,
    read_summary,
    recorded_test,
    trial_result,
    varied_parameters,
    write_leaderboard,
    write_summary,
)
from tune_inat.runs import find_run_folder, held
from tune_inat.settings import SearchSettings
from tune_inat.store import Store
from tune_inat.wandb_files import sync_line

if TYPE_CHECKING:
    from tune_inat.cluster import Devices
    from tune_inat.searchers import Proposer
    from tune_inat.tracking import WandbTracker
    from tune_inat.workbench import Job, Workbench

VERSIONED = ("tune_inat", "torch", "torchvision", "timm", "ray", "optuna", "wandb", "numpy", "pillow")
DEFAULT_PROJECT = "tune_inat"


def conduct_search(
    settings: SearchSettings, terminal: Terminal, *, started: float
) -> tuple[Path, dict[str, Any]]:
    """Run a search, or what is left of it, and write its results.

    Args:
        started: when the command began, by `time.monotonic()`.

    Returns:
        The search's folder and the content of its `summary.json`.

    Raises:
        UserError: whatever is wrong with the settings, the inputs or the machine.
    """
    with ExitStack() as stack:
        store = open_store(settings)
        if not settings.reuse:  # nothing from earlier searches, nothing for later ones
            store = Store(Path(stack.enter_context(TemporaryDirectory(prefix="tune_inat-"))))
        inputs = read_inputs(settings, terminal, store)
        identity = json.loads(json.dumps(inputs.identity()))
        proposed = f"{Path(inputs.space.source).stem}-{inputs.data.name}"
        folder = find_run_folder(Path(settings.storage), settings.name, proposed, identity)
        stack.enter_context(held(folder, identity))
        ledger = Ledger(folder)
        if not settings.reuse:
            ledger.forget()
        return folder, _Conductor(inputs, folder, ledger, terminal, started).run()


class _Conductor:
    """One run of the command on a search's folder."""

    def __init__(
        self, inputs: Inputs, folder: Path, ledger: Ledger, terminal: Terminal, started: float
    ) -> None:
        self._inputs = inputs
        self._settings = inputs.settings
        self._metric: Metric = inputs.space.metric
        self._folder = folder
        self._ledger = ledger
        self._terminal = terminal
        self._started = started
        self._effort = Effort(pixels_decoded=inputs.pixels.n_decoded)
        self._bench: Workbench | None = None  # of this process; heavy to import, so only when it is needed

    def run(self) -> dict[str, Any]:
        """Run what is left, then write the results; returns the summary."""
        for notice in (*self._inputs.space.notices, *self._inputs.data.notices):
            self._terminal.say(notice)
        n_left = max(
            0, self._inputs.plan.n_trials - self._n_finished()
        )  # fewer may be asked for than there are
        self._terminal.say(self._what_is_left(n_left))
        if n_left > 0:
            self._run_trials(n_left)
        ranked = leaderboard(self._results(), self._metric.name, self._metric.goal)
        best = best_of(ranked)
        test = None if best is None else self._export(best)
        summary = self._summary(ranked, best, test)
        write_leaderboard(self._folder, ranked)
        write_summary(self._folder, summary)
        self._terminal.closing(
            self._folder, summary, varied_parameters(ranked), sync_line=summary["wandb_sync"]
        )
        return summary

    # ---- the trials

    def _n_finished(self) -> int:
        finished = self._ledger.finished()
        if self._inputs.space.method == "bayes":
            return len(finished)
        return sum(trial.trial_id in finished for trial in self._inputs.plan.trials)

    def _planned_epochs(self) -> int | None:
        """The epochs to train for all trials with an empty cache; of bayes nobody knows."""
        plan = self._inputs.plan
        if not plan.trials:
            return None
        return plan.epochs_to_train if self._settings.reuse else plan.epochs_asked

    def _what_is_left(self, n_left: int) -> str:
        plan = self._inputs.plan
        if n_left == 0:
            return f"All {plan.n_trials} trials are done already."
        done = f", {plan.n_trials - n_left} of them done" if n_left < plan.n_trials else ""
        if not plan.trials:
            return f"{plan.n_trials} trials{done}."
        epochs = f"{plan.epochs_asked} epochs asked for"
        if self._settings.reuse:
            epochs += f", at most {plan.epochs_to_train} to train"
        return f"{plan.n_trials} trials{done}: {epochs}."

    def _run_trials(self, n_left: int) -> None:
        """Start Ray, compute what trials share, run the trials."""
        from tune_inat.cluster import ray_session, share_devices

        settings, space = self._settings, self._inputs.space
        with ray_session(settings.address) as cluster:
            from tune_inat.tuning import TrialRun, run_trials  # torch, while Ray starts

            devices = share_devices(
                cluster(),
                n_trials=n_left,
                cpus_per_trial=settings.cpus_per_trial,
                gpus_per_trial=None if settings.gpus_per_trial == "auto" else settings.gpus_per_trial,
                max_concurrent=settings.max_concurrent,
            )
            job = self._prepare(self._open_bench(devices))
            tracker = self._tracker()
            with self._terminal.trials(self._inputs.plan.n_trials, self._n_finished(), self._metric) as board:
                run = TrialRun(
                    job=job,
                    devices=devices,
                    n_trials=n_left,
                    horizons=self._inputs.plan.horizons(),
                    early_stopping=space.early_stopping,
                    longest=longest_trial(space, self._inputs.fixed),
                    max_seconds=None if settings.max_hours is None else settings.max_hours * 3600,
                )
                run_trials(
                    run,
                    self._proposer(n_left),
                    effort=self._effort,
                    ledger=self._ledger,
                    observer=board.update,
                    callbacks=[tracker] if tracker is not None else [],
                )
        for problem in tracker.problems if tracker is not None else ():
            self._terminal.warn(problem)

    def _open_bench(self, devices: "Devices | None") -> "Workbench":
        """The workbench of this process, and with it the job that all trials get."""
        if self._bench is not None:
            return self._bench
        import torch

        from tune_inat.precision import choose_precision
        from tune_inat.workbench import Job, open_driver_bench

        gpus = devices.gpus_per_trial if devices is not None else float(torch.cuda.is_available())
        job = Job(
            store=self._inputs.store,
            data=self._inputs.data,
            files=self._inputs.files,
            precision="fp32",
            device="cuda" if gpus > 0 and self._settings.gpus_per_trial != 0 else "cpu",
            reuse=self._settings.reuse,
            metric=self._metric.name,
            goal=self._metric.goal,
            n_threads=1 if devices is None else devices.cpus_per_trial,
            memory_fraction=gpus if 0 < gpus < 1 else None,
        )
        bench = open_driver_bench(job, self._terminal)
        config = self._first_config()
        precision = choose_precision(
            self._settings.precision,
            bench.device,
            self._inputs.store,
            model=config.model,
            image_size=config.image_size,
            network=lambda: bench.whole(config),
        )
        bench.job = replace(job, precision=precision)
        self._bench = bench
        return bench

    def _first_config(self) -> TrialConfig:
        """Some configuration of the search, to find out about its model."""
        if self._inputs.plan.trials:
            return self._inputs.plan.trials[0].config
        point = {name: spread.ppf(0.5) for name, spread in self._inputs.space.parameters.items()}
        return complete_config(point, self._inputs.fixed)

    def _prepare(self, bench: "Workbench") -> "Job":
        """Compute, with all of this machine, what the frozen layers give; trials then only read it.

        Trials that are not known beforehand, or run on other machines, compute what they miss.
        """
        finished = self._ledger.finished()
        left = [trial.config for trial in self._inputs.plan.trials if trial.trial_id not in finished]
        if self._settings.address is None:
            for notice in bench.prepare(left or [self._first_config()]):
                self._terminal.warn(notice)
        work = bench.take_work()
        self._effort.prefix_images += work.prefix_images
        self._effort.pixels_decoded += work.pixels_decoded
        return bench.job

    def _proposer(self, n_left: int) -> "Proposer":
        from tune_inat.searchers import OptunaProposer, PlannedProposer

        finished = self._ledger.finished()
        space, fixed = self._inputs.space, self._inputs.fixed
        if space.method != "bayes":
            return PlannedProposer(
                [trial for trial in self._inputs.plan.trials if trial.trial_id not in finished]
            )
        namer = TrialNamer()
        for record in finished.values():
            namer.name(TrialConfig(**record.config))
        return OptunaProposer(
            space,
            self._folder,
            study_name=self._folder.name,
            n_trials=n_left,
            seed=self._inputs.seed,
            complete=lambda point: namer.name(complete_config(point, fixed)),
        )

    def _tracker(self) -> "WandbTracker | None":
        from tune_inat.tracking import WandbTracker, resolve_mode

        mode, notice = resolve_mode(self._settings.wandb)
        if notice is not None:
            self._terminal.say(notice)
        if mode == "disabled":
            return None
        space = self._inputs.space
        return WandbTracker(
            folder=self._folder,
            project=self._settings.wandb_project or space.project or DEFAULT_PROJECT,
            entity=space.entity,
            group=self._folder.name,
            mode=mode,
            tags=(space.method, self._inputs.data.name),
            notes=space.description,
            run_config={"search": self._folder.name, "data": self._inputs.data.name},
            varied=tuple(space.parameters),
            excludes=("rung_metric",),
        )

    # ---- the results

    def _results(self) -> list[TrialResult]:
        """All trials of the plan, also those that did not come to run; of bayes, all that were proposed."""
        records = self._ledger.records()
        if self._inputs.plan.trials:
            wanted = [
                records.get(trial.trial_id, TrialRecord(trial.trial_id, trial.config.model_dump()))
                for trial in self._inputs.plan.trials
            ]
        else:
            wanted = list(records.values())
        return [trial_result(record, self._metric.name, self._metric.goal) for record in wanted]

    def _export(self, best: TrialResult) -> TestResult | None:
        """Test and export the best model, unless an earlier run of the command has done it."""
        earlier = read_summary(self._folder)
        if earlier is not None and exported_trial(self._folder) == (best.trial_id, best.best_epoch):
            return recorded_test(earlier)
        from tune_inat.outcome import export_best

        bench = self._open_bench(None)
        with self._terminal.task("Testing and exporting the best model", None, ""):
            return export_best(self._folder, bench, best, data_name=self._inputs.data.name)

    def _summary(
        self, ranked: Sequence[TrialResult], best: TrialResult | None, test: TestResult | None
    ) -> dict[str, Any]:
        """The content of `summary.json`."""
        inputs, effort = self._inputs, self._effort
        failed = [result.trial_id for result in ranked if result.status == "ERROR"]
        wall_seconds = time.monotonic() - self._started
        return {
            "status": "INTERRUPTED" if effort.is_interrupted else "FAILURES" if failed else "DONE",
            "name": self._folder.name,
            "space": inputs.space.source,
            "method": inputs.space.method,
            "metric": {"name": self._metric.name, "goal": self._metric.goal},
            "data": {
                "name": inputs.data.name,
                "classes": len(inputs.data.classes),
                "train": len(inputs.data.train.labels),
                "val": len(inputs.data.val.labels),
                "test": 0 if inputs.data.test is None else len(inputs.data.test.labels),
                "skipped": len(inputs.data.skipped),
                "fingerprint": inputs.data.fingerprint,
            },
            "trials": [result.to_json() for result in ranked],
            "best": None if best is None else best_to_json(best, test),
            "failed": failed,
            "reuse": {
                "epochs_asked": sum(int(result.config["epochs"]) for result in ranked),
                "epochs_trained": effort.epochs_trained,
                "prefix_images": effort.prefix_images,
                "pixels_decoded": effort.pixels_decoded,
            },
            "planned": {"epochs": self._planned_epochs()},
            "measured": {"seconds": round(wall_seconds, 3), "epochs": effort.epochs_trained},
            "wall_seconds": round(wall_seconds, 3),
            "wandb_sync": sync_line(self._folder),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}},
            "command": shlex.join(["python", "-m", "tune_inat.search", *sys.argv[1:]]),
        }
