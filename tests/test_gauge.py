"""Measuring: the real processes and questions, with the CPU's memory in the place of a GPU's."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.benches import config_of, make_bench
from tune_inat import gauge
from tune_inat.errors import ResourceError
from tune_inat.gauge import LocalProcesses, ProcessGauge
from tune_inat.probe import Probe
from tune_inat.store import Store
from tune_inat.workbench import Workbench

LIGHT = config_of(model="resnet18", freeze=1.0, batch_size=2)
HEAVY = config_of(model="resnet18", freeze=0.0, batch_size=16)


def gauge_on(bench: Workbench, store: Store) -> ProcessGauge:
    def processes() -> AbstractContextManager[LocalProcesses]:
        return LocalProcesses(bench.job)

    return ProcessGauge(Probe(bench, store), processes)


def test_what_trials_take_is_measured_once_in_processes_of_their_own(
    images: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(images, store)
    measured = gauge_on(bench, store).measure([LIGHT, HEAVY], 2)
    # ResNet-18 has 45 MB of parameters: as many gradients, twice as many of Adam's moments.
    assert measured.step_bytes > 4 * 44_000_000
    assert set(measured.throughput) == {1, 2}
    assert all(rate > 0 for rate in measured.throughput.values())

    def not_started(*_: object) -> None:
        raise AssertionError("it is known already")

    monkeypatch.setattr(gauge, "gauge_process", not_started)
    assert gauge_on(bench, store).measure([LIGHT, HEAVY], 2) == measured
    with pytest.raises(AssertionError, match="known already"):
        gauge_on(bench, store).measure([config_of(batch_size=4)], 1)


def test_step_that_fails_is_said_and_ends_nothing_else(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    one_value = config_of(model="resnet18", freeze=0.0, batch_size=1)
    with (
        LocalProcesses(bench.job) as processes,
        pytest.raises(ResourceError, match=r"could not be measured \(ValueError: Expected more than 1 value"),
    ):
        processes.rate(one_value, 1)
