"""Gets a search ready to train: the workbench of this process, the plan in figures, what trials share."""

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from tune_inat.config import TrialConfig
from tune_inat.devices import Asked, Cluster, Devices
from tune_inat.figures import Cuts
from tune_inat.forecast import Forecast, Forecaster
from tune_inat.frozen import Precision
from tune_inat.gauge import heavy_configs
from tune_inat.inputs import Inputs, asked_budget
from tune_inat.job import Job
from tune_inat.meter import Meter
from tune_inat.places import found_everywhere, this_host
from tune_inat.plan import PlannedTrial, representative_plan
from tune_inat.precision import choose_precision
from tune_inat.pretended import n_pretended
from tune_inat.probe import Probe
from tune_inat.settings import SearchSettings
from tune_inat.shares import GpuShares, Measures, gauge_of, job_for
from tune_inat.sharing import Sharing
from tune_inat.storages import Storage
from tune_inat.store import Store, default_root
from tune_inat.workbench import Workbench, open_driver_bench

# What comes before training and after it on 2 cores, whatever the trials: Ray and its first workers, the test
# of the best model, Ray's end (2026-11).
START_SECONDS = 7.0
END_SECONDS = 3.0


def this_machine() -> Cluster:
    """The devices of this machine alone, those that are pretended included."""
    return Cluster(len(os.sched_getaffinity(0)), n_gpus=n_pretended() or torch.cuda.device_count())


def asked_of(settings: SearchSettings) -> Asked:
    """The devices that the user asks for."""
    gpus = None if settings.gpus_per_trial == "auto" else settings.gpus_per_trial
    return Asked(settings.cpus_per_trial, gpus, settings.max_concurrent, settings.cpu_trials)


def open_bench(
    inputs: Inputs,
    meter: Meter,
    *,
    gpus_per_trial: float,
    storage: Storage | None = None,
    search: str = "",
) -> Workbench:
    """The workbench of this process, and with it the job that all trials get.

    Args:
        storage: says where epochs are kept, if not in the store alone.
        search: names the search among those that keep them there.
    """
    settings, metric = inputs.settings, inputs.space.metric
    job = Job(
        store=inputs.store,
        data=inputs.data,
        files=inputs.files,
        source=found_everywhere(settings.data),
        host=this_host(),
        states_root=None if storage is None else storage.states_root,
        states=None if storage is None else storage.states,
        search=search,
        precision="fp32",
        device="cuda" if gpus_per_trial > 0 and not n_pretended() else "cpu",
        reuse=settings.reuse,
        metric=metric.name,
        goal=metric.goal,
        n_threads=len(os.sched_getaffinity(0)),
        budget_bytes=asked_budget(settings),
    )
    bench = open_driver_bench(job, meter)

    def seconds(precision: Precision) -> float:
        bench.job = replace(job, precision=precision)
        return Probe(bench, Store(default_root())).pass_seconds(_typical(first_config(inputs)))

    precision = choose_precision(settings.precision, bench.device, seconds)
    bench.job = replace(job, precision=precision)
    return bench


def first_config(inputs: Inputs) -> TrialConfig:
    """Some configuration of the search, to find out about its model."""
    if inputs.plan.trials:
        return inputs.plan.trials[0].config
    return representative_plan(inputs.space, inputs.fixed, n_trials=1, seed=inputs.seed).trials[0].config


def _typical(config: TrialConfig) -> TrialConfig:
    """The same for all searches with this model, so that they agree on the precision and share their work."""
    names = ("model", "weights", "image_size")
    return TrialConfig(**{name: getattr(config, name) for name in names})


class Preparation:
    """What is decided and done before trials run.

    Args:
        bench: of this process.
        trials: those of the plan that are left; of a search whose trials are not known, none.
        n_left: how many trials are left.
        n_finished: how many are done.
        cpus_so_far: the cores that each trial of this search got until now: it goes on with them, since
            numbers depend on them.
    """

    def __init__(
        self,
        inputs: Inputs,
        bench: Workbench,
        trials: Sequence[PlannedTrial],
        *,
        n_left: int,
        n_finished: int,
        cpus_so_far: int | None,
    ) -> None:
        self._inputs = inputs
        self._cpus_so_far = cpus_so_far
        self._bench = bench
        self._is_representative = n_left > 0 and not trials
        if self._is_representative:
            trials = representative_plan(inputs.space, inputs.fixed, n_trials=n_left, seed=inputs.seed).trials
        self._trials = tuple(trials)
        self._n_finished = n_finished

    def check(self) -> tuple[str, ...]:
        """Load what the trials train; returns what the user must be told. Raises `UserError`."""
        return self._bench.check([trial.config for trial in self._trials])

    def foresee(
        self, cluster: Cluster, *, seconds_so_far: float, measures: Measures | None = None
    ) -> tuple[Forecast, Devices]:
        """The plan in figures, and how devices are shared out; the bench's job follows it from now on.

        Args:
            measures: the GPUs of a node; without it, those of this machine are measured.

        Raises:
            ResourceError: devices are asked for that can never be there, or the disk is too small to train.
        """
        asked, notices = self._as_so_far(asked_of(self._inputs.settings), cluster)
        cuts, probe = Cuts(self._bench), Probe(self._bench, Store(default_root()))
        cuts.look_at([trial.config for trial in self._trials])
        n_images = len(self._inputs.data.train.labels)
        sharing = Sharing(self._trials, cuts=cuts, probe=probe, n_images=n_images)
        is_auto = asked.gpus_per_trial is None and asked.takes_gpu(cluster)
        configs = [trial.config for trial in self._trials] if is_auto else []
        heavy = heavy_configs(configs, cuts, n_images=n_images)
        self._bench.rest()  # what this process has of a GPU is not the measure of what is free
        shares = GpuShares(
            cluster,
            asked,
            lambda node: gauge_of(node, self._bench.job, probe, measures),
            heavy,
            n_trials=sharing.n_families,
        )
        devices = sharing.choose(shares.options(n_trials=sharing.n_families))
        self._bench.job = job_for(self._bench.job, devices, step_bytes=shares.step_bytes())
        forecaster = Forecaster(
            self._bench,
            self._trials,
            budget=asked_budget(self._inputs.settings),
            files=self._inputs.files,
            cuts=cuts,
            probe=probe,
        )
        forecaster.check_states(is_representative=self._is_representative)
        n_at_once = forecaster.n_training or len(self._trials)
        if devices.gpus_per_trial == 0:
            asked = replace(asked, cpus_per_trial=devices.cpus_per_trial)
        devices = shares.share(asked, n_trials=n_at_once)
        self._bench.job = job_for(self._bench.job, devices, step_bytes=shares.step_bytes())
        forecast = forecaster.forecast(
            devices.on_gpus(),
            n_finished=self._n_finished,
            is_representative=self._is_representative,
            start_seconds=seconds_so_far + END_SECONDS,
        )
        self._bench.job = replace(
            self._bench.job, kept=forecaster.decisions(), has_room=not forecaster.choice.crowded_out
        )
        self._bench.rest()
        return replace(
            forecast,
            notices=(*notices, *shares.notices, *forecast.notices),
            devices=devices,
            packings=tuple(shares.packings(n_at_once)),
        ), devices

    def _as_so_far(self, asked: Asked, cluster: Cluster) -> tuple[Asked, tuple[str, ...]]:
        """What is asked for with the cores that each trial of this search got until now; and notices."""
        so_far = self._cpus_so_far
        if so_far is None or asked.takes_gpu(cluster):
            return asked, ()
        most = max(node.n_cpus for node in cluster.machines)
        cpus = asked.cpus_per_trial or min(so_far, most)
        if cpus == so_far:
            return replace(asked, cpus_per_trial=cpus), ()
        return replace(asked, cpus_per_trial=cpus), (
            f"Trials of this search ran with CPU cores: {so_far} each so far; those to come run with {cpus}. "
            "Sums are rounded otherwise then, so their numbers are not quite comparable.",
        )

    @property
    def configs(self) -> list[TrialConfig]:
        """Those of the trials that are to run, or of such as stand for them."""
        return [trial.config for trial in self._trials]

    def compute(self) -> None:
        """Compute, with all of this machine, what the frozen layers give; trials then only read it."""
        self._bench.prepare(self.configs)
