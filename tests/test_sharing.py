"""How many threads a trial gets: what is quicker, whatever the cache holds and whether work is shared."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.benches import config_of, make_bench, reports_of
from tune_inat.config import TrialConfig
from tune_inat.devices import Devices
from tune_inat.figures import Cuts
from tune_inat.plan import TrialNamer
from tune_inat.probe import Probe, StepTimes
from tune_inat.sharing import Sharing
from tune_inat.store import Store
from tune_inat.workbench import Workbench

MANY = Devices(n_cpus=2, n_gpus=0, cpus_per_trial=1, gpus_per_trial=0, max_concurrent=2)
FEW = Devices(n_cpus=2, n_gpus=0, cpus_per_trial=2, gpus_per_trial=0, max_concurrent=1)


@pytest.fixture
def quicker_by(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """How much quicker a step is with a second thread, in place of what this machine would say."""
    by = {"factor": 1.5}
    monkeypatch.setattr(Probe, "contention", lambda *_, **__: 1.0)
    monkeypatch.setattr(
        Probe, "step_times", lambda *_, n_threads: StepTimes(by["factor"] ** (1 - n_threads), 0.0, 0)
    )
    return by


def sharing_of(bench: Workbench, configs: Sequence[TrialConfig]) -> Sharing:
    namer = TrialNamer()
    trials = [namer.name(config) for config in configs]
    return Sharing(trials, cuts=Cuts(bench), probe=Probe(bench, bench.job.store), n_images=33)


def test_devices_are_shared_out_by_what_is_quicker(
    images: Path, store: Store, quicker_by: dict[str, float]
) -> None:
    """Four trials: with two threads a step is hardly quicker, or much quicker."""
    sharing = sharing_of(make_bench(images, store), [config_of(lr=lr) for lr in (0.1, 0.2, 0.3, 0.4)])
    for factor, chosen in ((1.1, MANY), (3.0, FEW)):
        quicker_by["factor"] = factor
        assert sharing.choose([MANY, FEW]) == chosen


def test_of_what_is_about_as_quick_the_fewest_threads_are_taken(
    images: Path, store: Store, quicker_by: dict[str, float]
) -> None:
    quicker_by["factor"] = 2.1
    sharing = sharing_of(make_bench(images, store), [config_of(lr=lr) for lr in (0.1, 0.2)])
    assert sharing.choose([FEW, MANY]) == MANY


@pytest.mark.usefixtures("quicker_by")
@pytest.mark.parametrize("reuse", [True, False])
def test_a_family_runs_one_trial_at_a_time_also_without_reuse(
    reuse: bool, images: Path, store: Store
) -> None:
    configs = [config_of(epochs=epochs) for epochs in (1, 2, 3)]
    sharing = sharing_of(make_bench(images, store, reuse=reuse), configs)
    assert sharing.n_families == 1
    assert sharing.choose([MANY, FEW]) == FEW


@pytest.mark.usefixtures("quicker_by")
def test_what_the_cache_holds_does_not_matter(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    configs = [config_of(lr=lr, epochs=1) for lr in (0.1, 0.2)]
    before = sharing_of(bench, configs).choose([MANY, FEW])
    reports_of(bench, configs[0])
    assert sharing_of(bench, configs).choose([MANY, FEW]) == before == MANY
