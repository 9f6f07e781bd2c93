"""How a trial trains: schedules, optimizers, losses and draws, held against torch's own."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from tests.benches import config_of, make_bench, reports_of, write_images
from tune_inat.backbone import Normalize
from tune_inat.config import TrialConfig
from tune_inat.graph import INPUT
from tune_inat.recipe import (
    RECIPE_VERSION,
    Mix,
    Optimizer,
    batches,
    class_weights,
    draw_epoch,
    draw_mix,
    learning_rate_factor,
    recipe_key,
    training_loss,
)
from tune_inat.store import Store


def factors(config: TrialConfig, steps_per_epoch: int) -> list[float]:
    n_steps = config.epochs * steps_per_epoch
    return [learning_rate_factor(config, step, steps_per_epoch) for step in range(n_steps)]


def test_constant_schedule_stays_at_the_peak() -> None:
    assert set(factors(TrialConfig(epochs=3), 4)) == {1.0}


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    rates = factors(TrialConfig(epochs=3, warmup_epochs=2), 4)
    assert rates[:8] == pytest.approx([step / 8 for step in range(1, 9)])
    assert rates[8:] == [1.0] * 4


def torch_rates(make: Callable[[torch.optim.Optimizer], LRScheduler], n_steps: int) -> list[float]:
    """The learning rate that torch's own scheduler has at each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_agrees_with_torch() -> None:
    expected = torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, T_max=20), 20)
    assert factors(TrialConfig(epochs=5, schedule="cosine"), 4) == pytest.approx(expected, abs=1e-6)


def test_onecycle_agrees_with_torch() -> None:
    expected = torch_rates(lambda optimizer: OneCycleLR(optimizer, max_lr=1.0, total_steps=20), 20)
    assert factors(TrialConfig(epochs=5, schedule="onecycle"), 4) == pytest.approx(expected, abs=1e-6)


def test_warm_up_sets_the_rise_of_onecycle() -> None:
    rates = factors(TrialConfig(epochs=10, schedule="onecycle", warmup_epochs=5), 2)
    assert rates.index(max(rates)) == 9  # the last step of epoch 5


def test_epoch_draws_depend_on_seed_and_epoch_alone() -> None:
    first = draw_epoch(1, 2, 50)
    torch.rand(3)
    again = draw_epoch(1, 2, 50)
    assert torch.equal(first.order, again.order)
    assert first.torch_seed == again.torch_seed
    assert not torch.equal(first.order, draw_epoch(1, 3, 50).order)
    assert not torch.equal(first.order, draw_epoch(2, 2, 50).order)


@pytest.mark.parametrize(("n", "sizes"), [(10, [4, 4, 2]), (9, [4, 5]), (8, [4, 4]), (1, [1])])
def test_last_batch_of_one_joins_the_one_before(n: int, sizes: list[int]) -> None:
    parts = batches(torch.arange(n), 4)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), torch.arange(n))


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def train_step(network: nn.Module, optimizer: Optimizer, step: int) -> None:
    images = torch.arange(24.0).reshape(6, 4).sin()
    network(images).square().sum().backward()
    optimizer.step(step, 1)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizer_goes_on_from_its_state_to_the_last_bit(name: str) -> None:
    config = TrialConfig(optimizer=name, weight_decay=0.01)
    network = small_network()
    blocks = {parameter: "all" for parameter, _ in network.named_parameters()}
    optimizer = Optimizer(config, dict(network.named_parameters()), blocks)
    train_step(network, optimizer, 0)
    state, resumed = copy.deepcopy(optimizer.state()), copy.deepcopy(network)
    train_step(network, optimizer, 1)

    other = Optimizer(config, dict(resumed.named_parameters()), blocks)
    other.load_state(state)
    train_step(resumed, other, 1)
    for mine, theirs in zip(network.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_weight_decay_spares_biases_and_norms() -> None:
    network = small_network()
    before = copy.deepcopy(network.state_dict())
    blocks = {parameter: "all" for parameter, _ in network.named_parameters()}
    optimizer = Optimizer(
        TrialConfig(optimizer="sgd", momentum=0, lr=0.1, weight_decay=0.5),
        dict(network.named_parameters()),
        blocks,
    )
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0, 1)
    after = network.state_dict()
    assert torch.allclose(after["0.weight"], before["0.weight"] * 0.95)
    assert torch.equal(after["0.bias"], before["0.bias"])
    assert torch.equal(after["1.weight"], before["1.weight"])


def test_layer_decay_lowers_the_rate_of_each_block_below_the_head() -> None:
    network = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    )
    before = [parameter.item() for parameter in network.parameters()]
    blocks = {"0.weight": "a", "1.weight": "b", "2.weight": "head"}
    config = TrialConfig(optimizer="sgd", momentum=0, lr=1.0, layer_decay=0.5)
    optimizer = Optimizer(config, dict(network.named_parameters()), blocks)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert optimizer.step(0, 1) == 1.0
    moved = [old - new.item() for old, new in zip(before, network.parameters(), strict=True)]
    assert moved == pytest.approx([0.25, 0.5, 1.0])


def test_balanced_class_weights_weigh_every_class_the_same() -> None:
    labels = np.array([0, 0, 0, 1])
    weights = class_weights(TrialConfig(class_weights="balanced"), labels, 2)
    assert weights is not None
    assert (weights * torch.tensor([3.0, 1.0])).tolist() == pytest.approx([2.0, 2.0])
    assert class_weights(TrialConfig(), labels, 2) is None


def test_loss_smooths_labels_as_torch_does() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(logits, labels)
    assert torch.equal(training_loss(logits, labels, TrialConfig(label_smoothing=0.2), None), expected)


def test_mixup_mixes_features_and_losses_by_the_same_share() -> None:
    config = TrialConfig(mixup=0.4)
    mix = draw_mix(config, 1, 0, 5, torch.device("cpu"))
    assert mix is not None
    features = torch.eye(5)
    mixed = mix.features(features)
    assert torch.allclose(mixed.sum(dim=1), torch.ones(5))
    expected = features * mix.share + features[mix.partner] * (1 - mix.share)
    assert torch.allclose(mixed, expected)
    logits, labels = torch.randn(5, 5), torch.arange(5)
    own = training_loss(logits, labels, config, None)
    other = training_loss(logits, mix.partner, config, None)
    whole = mix.share_of_loss(logits, labels, slice(0, 5), config, None)
    assert torch.allclose(whole, own * mix.share + other * (1 - mix.share))
    assert draw_mix(TrialConfig(), 1, 0, 5, torch.device("cpu")) is None


def test_mixup_of_pixels_is_that_of_the_same_pixels_as_floats() -> None:
    mix = Mix(torch.tensor([1, 0]), share=0.25)
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mixed = mix.features(pixels)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, mix.features(pixels.float()))
    normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    before = mixed.clone()
    # Normalisation is affine, so it does not matter whether it comes before the mixing or after it.
    assert torch.allclose(normalize(mixed), mix.features(normalize(pixels)), atol=1e-5)
    assert torch.equal(mixed, before)


def test_trial_that_freezes_nothing_mixes_pixels(hostile_path: Path) -> None:
    bench = make_bench(write_images(hostile_path / "images"), Store(hostile_path / "cache"))
    reports = reports_of(bench, config_of(freeze=0.0, mixup=0.2, epochs=1))
    assert [report.did["cut"] for report in reports] == [INPUT]
    assert math.isfinite(reports[0].row["train_loss"])


def test_recipe_key_names_the_version_of_torch_as_well() -> None:
    assert recipe_key() == [RECIPE_VERSION, torch.__version__]
