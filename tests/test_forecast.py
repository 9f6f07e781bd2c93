"""The plan in figures: what it says of work, time, memory and disk is what a search then does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benches import IMAGE_SIZE, config_of, make_bench, reports_of
from tune_inat.config import TrialConfig
from tune_inat.devices import Devices
from tune_inat.disk import size_of
from tune_inat.figures import Cuts
from tune_inat.forecast import Forecast, Forecaster
from tune_inat.plan import PlannedTrial, TrialNamer
from tune_inat.probe import Probe
from tune_inat.store import Store
from tune_inat.workbench import Workbench

ONE_AT_A_TIME = Devices(n_cpus=1, n_gpus=0, cpus_per_trial=1, gpus_per_trial=0, max_concurrent=1)
N_IMAGES, N_TRAIN = 54, 33


def trials_of(configs: Sequence[TrialConfig]) -> list[PlannedTrial]:
    namer = TrialNamer()
    return [namer.name(config) for config in configs]


def forecaster_of(bench: Workbench, *configs: TrialConfig, budget: int | None = None) -> Forecaster:
    cuts, probe = Cuts(bench), Probe(bench, bench.job.store)
    return Forecaster(bench, trials_of(configs), budget=budget, files=bench.job.files, cuts=cuts, probe=probe)


def forecast_of(bench: Workbench, *configs: TrialConfig, budget: int | None = None) -> Forecast:
    return forecaster_of(bench, *configs, budget=budget).forecast(
        ONE_AT_A_TIME, n_finished=0, is_representative=False, start_seconds=0.0
    )


def test_families_train_their_longest_trial_only(images: Path, store: Store) -> None:
    grid = [config_of(freeze=freeze, epochs=epochs) for freeze in (0.5, 0.9) for epochs in (1, 3)]
    forecast = forecast_of(make_bench(images, store), *grid)
    assert (forecast.n_trials, forecast.n_families) == (4, 2)
    assert (forecast.epochs_asked, forecast.epochs_to_train) == (8, 6)


def test_without_reuse_nothing_is_shared_or_kept(images: Path, store: Store) -> None:
    grid = [config_of(freeze=0.5, epochs=epochs) for epochs in (1, 3)]
    forecast = forecast_of(make_bench(images, store, reuse=False), *grid)
    assert (forecast.n_families, forecast.epochs_to_train) == (2, 4)
    assert forecast.disk["activations"] == 0
    assert [cut.reads for cut in forecast.cuts] == ["input"]


def test_what_is_done_already_is_not_planned_again(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    first = forecast_of(bench, config_of(epochs=2))
    assert (first.epochs_to_train, first.cuts[0].n_images) == (2, N_IMAGES)
    reports_of(bench, config_of(epochs=2))
    again = forecast_of(make_bench(images, store), config_of(epochs=3))
    assert (again.epochs_to_train, again.cuts[0].n_images, again.disk["activations"]) == (1, 0, 0)


def test_disk_is_what_the_search_then_writes(images: Path, store: Store) -> None:
    configs = [config_of(freeze=freeze, epochs=2) for freeze in ("layer1", "layer3")]
    bench = make_bench(images, store)
    forecast = forecast_of(bench, *configs)
    for config in configs:
        reports_of(bench, config)
    activations = size_of(store.root / "features")
    assert forecast.disk["activations"] == pytest.approx(activations, rel=0.02)
    assert size_of(store.root / "states") <= 1.01 * forecast.disk["states"]


def test_views_are_decoded_and_kept_each(images: Path, store: Store) -> None:
    forecast = forecast_of(make_bench(images, store), config_of(augment="flip", views=3, epochs=40))
    assert [(part.views, part.n_images, part.n_to_decode) for part in forecast.pixels] == [
        (0, N_IMAGES, 0),
        (3, 3 * N_TRAIN, 3 * N_TRAIN),
    ]
    assert [cut.n_images for cut in forecast.cuts] == [3 * N_TRAIN, N_IMAGES]  # validation sees plain ones
    assert forecast.disk["activations"] == sum(cut.n_bytes for cut in forecast.cuts)
    assert forecast.disk["pixels"] == 3 * N_TRAIN * 3 * IMAGE_SIZE**2


def test_fresh_views_run_the_frozen_layers_in_every_epoch(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    kept, fresh = (
        forecast_of(bench, config_of(augment="flip", views=views, epochs=50)) for views in (1, "fresh")
    )
    assert fresh.seconds["training"] > kept.seconds["training"]
    assert len(fresh.pixels) == 1


def test_without_room_frozen_layers_run_again_and_the_plan_says_so(images: Path, store: Store) -> None:
    config = config_of(freeze="layer3", epochs=200)
    bench = make_bench(images, store)
    roomy = forecaster_of(bench, config)
    assert roomy.choice.kept[bench.job.images_key(config, of_views=False)]
    tight = forecast_of(bench, config, budget=200_000)  # the decoded images take most of it
    assert tight.cuts[0].reads == "input"
    assert tight.disk["activations"] == 0
    assert "--cache-gb has no room" in tight.notices[0]
    assert forecast_of(bench, config).notices == ()


def test_a_narrow_budget_keeps_what_fits(images: Path, store: Store) -> None:
    config = config_of(freeze="layer1", epochs=200)  # 64 channels at 8 x 8; deeper ones are smaller
    bench = make_bench(images, store)
    whole = forecast_of(bench, config).cuts[0]
    assert whole.reads == whole.cut
    pixels = N_IMAGES * 3 * IMAGE_SIZE**2
    tight = forecaster_of(bench, config, budget=pixels + whole.n_bytes - 1)
    forecast = tight.forecast(ONE_AT_A_TIME, n_finished=0, is_representative=False, start_seconds=0.0)
    assert forecast.disk["activations"] < whole.n_bytes
    bench.job = replace(bench.job, kept=tight.decisions())
    reports_of(bench, config.model_copy(update={"epochs": 1}))
    assert size_of(store.root / "features") < whole.n_bytes


def test_activations_have_room_before_what_finished_trials_leave(images: Path, store: Store) -> None:
    """Those are read in each epoch of each trial; of finished trials hardly anybody asks again."""
    configs = [config_of(freeze="layer3", epochs=200, lr=0.001 * number) for number in range(1, 21)]
    bench = make_bench(images, store)
    roomy = forecast_of(bench, *configs)
    n_bytes = roomy.disk["pixels"] + roomy.disk["activations"] + roomy.disk["states"] // 2
    tight = forecast_of(bench, *configs, budget=n_bytes)
    assert tight.cuts[0].reads == tight.cuts[0].cut
    assert 0 < tight.disk["states"] < roomy.disk["states"]
    assert tight.disk["total"] <= n_bytes
    assert "what was unused for longest goes" in "".join(tight.notices)


def test_more_trials_at_a_time_need_less_time_and_more_memory(
    images: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "contention", lambda *_, **__: 1.2)
    forecaster = forecaster_of(
        make_bench(images, store), *(config_of(freeze=0.5, lr=lr, epochs=20) for lr in (0.1, 0.2, 0.3, 0.4))
    )
    one, two = (
        forecaster.forecast(
            replace(ONE_AT_A_TIME, n_cpus=n, max_concurrent=n),
            n_finished=0,
            is_representative=False,
            start_seconds=0.0,
        )
        for n in (1, 2)
    )
    assert two.seconds["training"] < one.seconds["training"]
    assert two.memory["total"] == 2 * one.memory["total"]


def test_a_step_that_fails_does_not_end_the_search(images: Path, store: Store) -> None:
    """BatchNorm refuses a single value; the trial of that batch size will say so, the others run."""
    bench = make_bench(images, store)
    forecast = forecast_of(bench, config_of(freeze=0.0, batch_size=1), config_of(freeze=0.0, batch_size=8))
    assert forecast.seconds["training"] > 0


def test_batches_larger_than_the_data_are_reckoned_as_large_as_it_is(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    whole, larger = (forecast_of(bench, config_of(batch_size=size)) for size in (N_TRAIN, 1000))
    assert larger.memory == whole.memory


def test_a_forecast_is_json(images: Path, store: Store) -> None:
    content = forecast_of(make_bench(images, store), config_of()).to_json()
    assert content["devices"]["max_concurrent"] == 1
    assert content["seconds"]["total"] == pytest.approx(sum(content["seconds"].values()) / 2, abs=0.5)
    assert set(content["disk"]) == {"pixels", "activations", "states", "total", "free"}
