"""Measuring: the real processes and questions, with the CPU's memory in the place of a GPU's."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from tests.benches import config_of, make_bench
from tune_inat import gauge
from tune_inat.config import TrialConfig
from tune_inat.errors import ResourceError
from tune_inat.gauge import LocalProcesses, ProcessGauge
from tune_inat.packing import Card, pack
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


class Room:
    """Processes that have room for so many trials at a time, and measure nothing."""

    def __init__(self, n: int) -> None:
        self.n = n

    def card(self) -> Card:
        return Card("a card", 16 * 10**9, 16 * 10**9)

    def memory(self, config: TrialConfig) -> dict[str, float]:
        return {"step_bytes": 10**9, "process_bytes": 0} if self.n else {}

    def rate(self, config: TrialConfig, count: int) -> dict[str, float]:
        return {"rate": 100.0 * count} if count <= self.n else {}


def test_want_of_room_is_not_kept_for_it_may_pass(images: Path, store: Store) -> None:
    bench, room = make_bench(images, store), Room(0)
    measuring = ProcessGauge(Probe(bench, store), lambda: nullcontext(room))
    full = pack(room.card(), measuring.measure([HEAVY], 8), n_gpus=1, n_by_cores=8, n_wanted=8)
    assert (full.per_gpu, full.limit) == (1, "memory")
    room.n = 2
    assert measuring.measure([HEAVY], 8).throughput == {1: 100.0, 2: 200.0}
    room.n = 8
    assert set(measuring.measure([HEAVY], 8).throughput) == {1, 2, 4, 8}
