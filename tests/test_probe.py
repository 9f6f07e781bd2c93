"""Probes: what is timed once is kept, and timing leaves no trace in a trial."""

from pathlib import Path

import pytest
import torch

from tests.benches import config_of, make_bench, numbers_of, reports_of
from tune_inat.errors import ResourceError
from tune_inat.frozen import Precision
from tune_inat.precision import choose_precision
from tune_inat.probe import PROBES_KIND, Probe
from tune_inat.store import Store

CPU = torch.device("cpu")


def not_timed(precision: Precision) -> float:
    raise AssertionError("nothing is timed")


def n_probes(store: Store) -> int:
    return len(list((store.root / PROBES_KIND).glob("*")))


def test_a_step_is_timed_once_for_all_trials_that_take_the_same(images: Path, store: Store) -> None:
    probe = Probe(make_bench(images, store), store)
    times = probe.step_times(config_of(lr=0.1), n_threads=1)
    assert times.step_seconds > 0
    assert times.image_seconds > 0
    again = Probe(make_bench(images, store), store).step_times(config_of(lr=0.2, epochs=9), n_threads=1)
    assert again == times
    assert n_probes(store) == 1
    for other in (config_of(batch_size=4), config_of(freeze=0.5), config_of(optimizer="sgd")):
        probe.step_times(other, n_threads=1)
    probe.step_times(config_of(), n_threads=2)
    assert n_probes(store) == 5


def test_a_step_keeps_more_for_its_backward_pass_the_more_trains(images: Path, store: Store) -> None:
    probe = Probe(make_bench(images, store), store)
    saved = [
        probe.step_times(config_of(freeze=freeze, batch_size=size), n_threads=1).saved_bytes
        for freeze, size in ((1.0, 8), ("layer3", 8), ("layer3", 16), (0.0, 16))
    ]
    assert saved == sorted(saved)
    assert len(set(saved)) == 4


def test_timing_changes_no_trial(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    Probe(bench, store).step_times(config_of(freeze=0.5, dropout=0.3), n_threads=2)
    timed = numbers_of(reports_of(bench, config_of(freeze=0.5, dropout=0.3)))
    alone = make_bench(images, Store(store.root.parent / "alone"))
    assert timed == numbers_of(reports_of(alone, config_of(freeze=0.5, dropout=0.3)))
    assert torch.get_num_threads() == 1


def test_one_trial_at_a_time_is_not_slowed_by_others(images: Path, store: Store) -> None:
    probe = Probe(make_bench(images, store), store)
    assert probe.contention(n_threads=1, n_concurrent=1) == 1.0
    assert 1.0 <= probe.contention(n_threads=1, n_concurrent=2) <= 2.0
    assert n_probes(store) == 1


def test_frozen_layers_have_a_rate_where_there_are_any(images: Path, store: Store) -> None:
    probe = Probe(make_bench(images, store), store)
    assert 0 < probe.frozen_rate(config_of(freeze=0.9), n_threads=1) < float("inf")
    assert probe.frozen_rate(config_of(freeze=0.0), n_threads=1) == float("inf")


@pytest.mark.parametrize(("bf16", "chosen"), [(1.0, "bf16"), (2.9, "fp32"), (9.0, "fp32")])
def test_bf16_is_chosen_where_it_is_clearly_faster(
    bf16: float, chosen: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    seconds: dict[Precision, float] = {"fp32": 3.0, "bf16": bf16}
    assert choose_precision("auto", CPU, seconds.__getitem__) == chosen


def test_a_cpu_without_bf16_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert choose_precision("auto", CPU, not_timed) == "fp32"


def test_what_is_asked_for_is_not_timed() -> None:
    assert choose_precision("bf16", CPU, not_timed) == "bf16"


def test_bf16_on_a_gpu_that_has_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla K80")
    with pytest.raises(ResourceError, match="Tesla K80 cannot"):
        choose_precision("bf16", torch.device("cuda", 0), not_timed)
