"""A trial is a pure function: whatever is kept, replayed or resumed, its numbers are the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.benches import IMAGE_SIZE, config_of, make_bench, numbers_of, reports_of
from tune_inat.cuts import KeptCuts
from tune_inat.freeze import trainable_state
from tune_inat.frozen import threads
from tune_inat.metrics import unpack_correct
from tune_inat.store import Store
from tune_inat.trial import EpochReport, NonFiniteLossError, Trainer, run_trial, weights_after

# Each cut of two networks, and all that could make an epoch depend on what ran before it.
VARIANTS: dict[str, dict[str, object]] = {
    "all trained": {"freeze": 0.0},
    "half frozen": {"freeze": 0.5},
    "a block by name": {"freeze": "layer3"},
    "linear probe": {"freeze": 1.0},
    "depthwise convolutions": {"model": "timm/mobilenetv3_small_050", "freeze": 0.6},
    "windows": {"model": "swin_t", "freeze": 0.6, "image_size": 64, "epochs": 1},
    "transformer": {"model": "timm/vit_tiny_patch16_224", "freeze": 0.5},
    "dropout": {"freeze": 0.8, "dropout": 0.5},
    "views": {"freeze": 0.8, "augment": "light", "views": 3},
    "fresh views": {"freeze": 0.8, "augment": "strong", "views": "fresh"},
    "mixup": {"freeze": 0.8, "mixup": 0.4},
    "everything else": {
        "freeze": 0.8,
        "optimizer": "sgd",
        "schedule": "onecycle",
        "layer_decay": 0.7,
        "label_smoothing": 0.1,
        "class_weights": "balanced",
        "weight_decay": 0.01,
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_reuse_and_no_reuse_give_the_same_numbers(name: str, images: Path, store: Store) -> None:
    config = config_of(**VARIANTS[name])
    kept = numbers_of(reports_of(make_bench(images, store), config))
    assert len(kept) == config.epochs
    assert kept == numbers_of(reports_of(make_bench(images, store, reuse=False), config))


def test_bf16_gives_the_same_numbers_with_reuse(images: Path, store: Store) -> None:
    config = config_of(freeze=0.8)
    kept = numbers_of(reports_of(make_bench(images, store, precision="bf16"), config))
    assert kept == numbers_of(reports_of(make_bench(images, store, precision="bf16", reuse=False), config))


def test_training_lowers_the_training_loss(images: Path, store: Store) -> None:
    first, *_, last = reports_of(make_bench(images, store), config_of(freeze=0.5, epochs=3))
    assert last.row["train_loss"] < 0.8 * first.row["train_loss"]


def test_follower_takes_its_leaders_epochs_and_trains_none(images: Path, store: Store) -> None:
    leader = reports_of(make_bench(images, store), config_of(epochs=3))
    follower = reports_of(make_bench(images, store), config_of(epochs=2))
    assert [report.trained for report in leader] == [True] * 3
    assert [report.trained for report in follower] == [False] * 2
    assert [report.row for report in follower] == [report.row for report in leader[:2]]
    assert follower[0].did == leader[0].did
    assert [report.correct for report in follower] == [report.correct for report in leader[:2]]


def test_an_epoch_says_which_validation_images_it_gets_right(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    (report,) = reports_of(bench, config_of(epochs=1))
    correct = unpack_correct(report.correct, len(bench.job.data.val.labels))
    assert correct.mean() == report.row["val_accuracy"]


def test_epochs_of_other_threads_are_another_trials(images: Path, store: Store) -> None:
    """Sums are rounded by the threads that share them."""
    config = config_of(epochs=1)
    reports_of(make_bench(images, store), config)
    bench = make_bench(images, store)
    bench.job = replace(bench.job, n_threads=2)
    with threads(2):
        (report,) = reports_of(bench, config)
    assert report.trained
    assert report.did["threads"] == 2


def test_weights_that_are_lost_come_again_as_the_trial_had_them(images: Path, store: Store) -> None:
    config = config_of(epochs=2, freeze=0.5)
    bench = make_bench(images, store)
    reports_of(bench, config)
    kept = {name: p.detach().clone() for name, p in weights_after(bench, config, 2).trainable.items()}
    shutil.rmtree(bench.states(config).folder)
    with threads(2):  # as the process that exports has them
        again = weights_after(bench, config, 2).trainable
        assert torch.get_num_threads() == 2
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_schedule_that_knows_the_last_epoch_shares_none(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    reports_of(bench, config_of(epochs=3, schedule="cosine"))
    assert [report.trained for report in reports_of(bench, config_of(epochs=2, schedule="cosine"))] == [
        True
    ] * 2


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_trial_that_was_stopped_goes_on_as_if_it_had_not_been(
    images: Path, store: Store, hostile_path: Path, dropout: float
) -> None:
    config = config_of(freeze=0.5, epochs=3, dropout=dropout)

    def stop_after_the_first(progress: EpochReport) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        reports_of(make_bench(images, store), config, stop=stop_after_the_first)
    resumed = reports_of(make_bench(images, store), config)
    assert [report.trained for report in resumed] == [False, True, True]
    whole = reports_of(make_bench(images, Store(hostile_path / "other")), config)
    assert numbers_of(resumed) == numbers_of(whole)  # to the last bit


def test_lost_state_is_trained_again_not_reported_again(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    reports_of(bench, config_of(epochs=2))
    for file in bench.states(config_of()).folder.glob("*.safetensors"):
        file.unlink()
    longer = reports_of(bench, config_of(epochs=3))
    assert [report.row["epoch"] for report in longer] == [1, 2, 3]
    assert [report.trained for report in longer] == [False, False, True]


def test_weights_of_an_epoch_are_those_that_it_left(images: Path, store: Store) -> None:
    config = config_of(epochs=2)
    bench = make_bench(images, store)
    trainer = Trainer(bench, config)
    trainer.train_epoch(1, lambda: False)
    first = trainer.weights()
    reports_of(bench, config)
    for epoch_store in (store, Store(store.root.parent / "empty")):  # from the store, or trained again
        network = weights_after(make_bench(images, epoch_store), config, 1)
        again = trainable_state(network.backbone)
        assert again.keys() == first.keys()
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_states_on_disk_are_bounded_by_what_is_asked_for(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    run_trial(bench, config_of(epochs=4), horizons=(2, 4), report=lambda report: None)
    files = sorted(file.name for file in bench.states(config_of()).folder.glob("*.safetensors"))
    optimizers = [name for name in files if name.startswith("optimizer")]
    assert optimizers == ["optimizer-00004.safetensors"]
    assert len(files) - len(optimizers) <= 1 + 2  # the last epoch's, and the best up to each horizon


def test_frozen_part_is_the_same_to_the_last_bit_after_training(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    trainer = Trainer(bench, config_of(freeze=0.5))
    state = trainer.network.backbone.model.state_dict()
    trains = set(trainable_state(trainer.network.backbone))
    before = {name: value.clone() for name, value in state.items()}
    trainer.train_epoch(1, lambda: False)
    changed = {name for name, value in state.items() if not torch.equal(value, before[name])}
    assert changed <= trains
    assert "layer4.1.bn2.running_mean" in changed
    assert "bn1.running_mean" not in trains


def test_loss_that_explodes_ends_the_trial_with_its_epoch_and_step(images: Path, store: Store) -> None:
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step \d+: the loss is (nan|inf)"):
        reports_of(make_bench(images, store), config_of(freeze=0.0, optimizer="sgd", lr=1e30, epochs=1))


def test_network_that_explodes_in_the_last_step_ends_the_trial_too(images: Path, store: Store) -> None:
    one_step = config_of(freeze=0.0, optimizer="sgd", lr=1e30, epochs=1, batch_size=64)
    with pytest.raises(NonFiniteLossError, match=r"epoch 1: .*validation.*not finite"):
        reports_of(make_bench(images, store), one_step)


def test_report_says_what_was_really_done(images: Path, store: Store) -> None:
    (report,) = reports_of(make_bench(images, store), config_of(freeze=1.0, epochs=1))
    assert report.did["trainable_tensors"] == 2
    assert report.did["trainable_parameters"] == 3 * 512 + 3  # ResNet-18's features to three classes
    assert report.row["steps"] == 4  # 33 of the 54 images train: three batches of 8 and one of 9
    assert report.row["lr"] == config_of().lr


def test_new_head_is_the_same_at_every_freezing(images: Path, store: Store) -> None:
    heads = []
    for freeze in (0.0, 0.5, 1.0):
        network = make_bench(images, store).network(config_of(freeze=freeze))
        heads.append(network.backbone.heads[0].weight.clone())
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])


def test_deeper_cut_is_computed_from_the_shallower_one(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    reports_of(bench, config_of(freeze="layer2", epochs=1))
    bench.take_work()
    deep = numbers_of(reports_of(bench, config_of(freeze="layer3", epochs=1)))
    assert bench.take_work().prefix_images == 54
    alone = make_bench(images, Store(store.root.parent / "alone"))
    assert deep == numbers_of(reports_of(alone, config_of(freeze="layer3", epochs=1)))


@pytest.mark.parametrize("model", ["resnet18", "timm/vit_tiny_patch16_224"])
def test_in_bf16_a_trial_does_not_depend_on_what_was_kept_before(
    model: str, images: Path, store: Store
) -> None:
    """A residual stream is fp32 under autocast: kept in bf16 it is not what deeper layers would have seen."""
    deep = config_of(model=model, freeze=0.9, epochs=1)
    bench = make_bench(images, store, precision="bf16")
    reports_of(bench, config_of(model=model, freeze=0.5, epochs=1))
    after_another = numbers_of(reports_of(bench, deep))
    alone = make_bench(images, Store(store.root.parent / "alone"), precision="bf16")
    assert after_another == numbers_of(reports_of(alone, deep))


@pytest.mark.parametrize("kept", [frozenset(), frozenset({"layer1.1.relu_1"}), None])
def test_what_is_kept_changes_no_number(kept: frozenset[str] | None, images: Path, store: Store) -> None:
    config = config_of(freeze="layer3", epochs=1)
    bench = make_bench(images, store)
    if kept is not None:
        key = bench.job.images_key(config, of_views=False)
        cut = bench.network(config).cut
        bench.job = replace(bench.job, kept={key: KeptCuts(kept, considered=frozenset({cut}))})
    rows = numbers_of(reports_of(bench, config))
    assert rows == numbers_of(reports_of(make_bench(images, store, reuse=False), config))
    n_kept = sum(1 for _ in (store.root / "features").glob("*")) if (store.root / "features").exists() else 0
    assert n_kept == (0 if kept == frozenset() else 1)


@pytest.mark.parametrize(("has_room", "n_kept"), [(True, 1), (False, 0)])
def test_a_cut_that_nobody_foresaw_is_kept_if_there_was_room(
    has_room: bool, n_kept: int, images: Path, store: Store
) -> None:
    config, foreseen = config_of(freeze="layer3", epochs=1), frozenset({"layer1.1.relu_1"})
    bench = make_bench(images, store)
    decided = KeptCuts(frozenset(), considered=foreseen)
    key = bench.job.images_key(config, of_views=False)
    bench.job = replace(bench.job, kept={key: decided}, has_room=has_room)
    reports_of(bench, config)
    assert len(list((store.root / "features").glob("*"))) == n_kept


def test_what_an_earlier_search_kept_is_read_whatever_was_decided(images: Path, store: Store) -> None:
    config = config_of(freeze="layer3", epochs=1)
    reports_of(make_bench(images, store), config)
    bench = make_bench(images, store)
    cut = bench.network(config).cut
    decided = KeptCuts(frozenset(), considered=frozenset({cut}))
    key = bench.job.images_key(config, of_views=False)
    bench.job = replace(bench.job, kept={key: decided}, has_room=False)
    reports_of(bench, config.model_copy(update={"lr": 0.01}))
    assert bench.take_work().prefix_images == 0
    assert bench.source(bench.network(config), config, "val").take(torch.arange(2), 1).shape[1] == 256


def test_image_size_of_the_trial_is_what_the_network_sees(images: Path, store: Store) -> None:
    bench = make_bench(images, store)
    config = config_of(image_size=2 * IMAGE_SIZE, freeze=0.0)
    source = bench.source(bench.network(config), config, "val")
    assert source.take(torch.tensor([0]), 1).shape == (1, 3, 64, 64)
