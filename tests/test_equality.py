"""The central promise: whatever the architecture and the cut, kept activations change no number."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.benches import config_of, make_bench, write_images
from tune_inat.config import TrialConfig
from tune_inat.cuts import KeptCuts
from tune_inat.store import Store
from tune_inat.trial import Trainer
from tune_inat.workbench import Workbench

FREEZINGS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
ACCURACIES = ("train_accuracy", "val_accuracy")
LOSSES = ("train_loss", "val_loss")

# Without AVX-512, the rounding of a product depends on its number of rows, however large. These networks,
# with random weights, make more than 1e-5 of a loss of that: BatchNorm divides by spreads next to none.
PRODUCTS_ARE_STABLE = torch.backends.cpu.get_cpu_capability() == "AVX512"
AMPLIFIERS = ("shufflenet_v2_x0_5", "timm/tf_efficientnet_lite0")

# At image sizes where the last maps are as small as each network allows, and some are not 1 x 1.
ARCHITECTURES = {
    "resnet18": 32,
    "mobilenet_v3_small": 32,
    "shufflenet_v2_x0_5": 32,
    "timm/tf_efficientnet_lite0": 64,  # pads as TensorFlow does; depthwise kernels of 5 x 5
    "timm/convnext_atto": 32,
    "timm/vit_tiny_patch16_224": 32,  # tokens: (N, T, C)
    "swin_t": 32,  # (N, H, W, C) by itself, which is kept as if it were (N, C, H, W)
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "few", n_of_each=12)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def one_epoch(model: str, **values: object) -> TrialConfig:
    """A trial of one epoch by plain SGD.

    Adam's first steps know only signs: of a gradient that is zero but for rounding (a bias before a
    BatchNorm), they make a difference as large as the learning rate.
    """
    small = {"epochs": 1, "optimizer": "sgd", "lr": 0.01, "image_size": ARCHITECTURES[model]}
    return config_of(model=model, **{**small, **values})


def one_for_each_cut(bench: Workbench, model: str) -> list[TrialConfig]:
    """Trials whose freezings cut the network at all the places at which these freezings cut it."""
    by_cut: dict[str, TrialConfig] = {}
    for freeze in FREEZINGS:
        config = one_epoch(model, freeze=freeze)
        by_cut.setdefault(bench.network(config).cut, config)
    return list(by_cut.values())


def row_of(bench: Workbench, config: TrialConfig) -> Mapping[str, float]:
    """The metrics of a trial's only epoch; nothing of it is kept, which takes longer than to train it."""
    return Trainer(bench, config).train_epoch(1, lambda: False)


def what_is_read(bench: Workbench, config: TrialConfig) -> torch.Tensor:
    """The first batch of training images as it is at the cut."""
    network = bench.network(config)
    return bench.source(network, config, "train").take(torch.arange(8), 1).clone()


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_each_cut_gives_the_same_numbers_with_and_without_reuse(
    model: str, images: Path, store: Store
) -> None:
    kept, plain = make_bench(images, store), make_bench(images, store, reuse=False)
    configs = one_for_each_cut(kept, model)
    assert len(configs) >= 5
    for config in configs:
        mine, theirs = what_is_read(kept, config), what_is_read(plain, config)
        scale = float(theirs.float().abs().max())
        assert scale > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * scale)
        if model in AMPLIFIERS and not PRODUCTS_ARE_STABLE:
            continue
        row, other = row_of(kept, config), row_of(plain, config)
        assert [row[name] for name in ACCURACIES] == [other[name] for name in ACCURACIES], config.freeze
        for name in LOSSES:  # frozen layers run in other batch sizes, so sums may round otherwise
            assert row[name] == pytest.approx(other[name], abs=1e-5), config.freeze


@pytest.mark.skipif(not PRODUCTS_ARE_STABLE, reason="this CPU's products round by their number of rows")
def test_adam_gives_the_same_numbers_where_maps_are_a_single_position(images: Path, store: Store) -> None:
    config = one_epoch(
        "timm/tf_efficientnet_lite0", freeze=0.8, optimizer="adam", lr=0.001, image_size=32, weights="default"
    )
    bench = make_bench(images, store)
    assert what_is_read(bench, config).shape[2:] == (1, 1)
    row, other = row_of(bench, config), row_of(make_bench(images, store, reuse=False), config)
    for name in (*ACCURACIES, *LOSSES):
        assert row[name] == pytest.approx(other[name], abs=1e-5)


@pytest.mark.parametrize("model", ["resnet18", "timm/vit_tiny_patch16_224", "swin_t"])
def test_activations_kept_before_the_cut_give_the_same_numbers(
    model: str, images: Path, store: Store
) -> None:
    config = one_epoch(model, freeze=0.8)
    bench = make_bench(images, store)
    shallower = bench.network(one_epoch(model, freeze=0.4)).cut
    bench.job = replace(
        bench.job,
        kept={
            bench.job.images_key(config, of_views=False): KeptCuts(
                frozenset({shallower}), frozenset({bench.network(config).cut})
            )
        },
    )
    row, other = row_of(bench, config), row_of(make_bench(images, store, reuse=False), config)
    assert len(list((store.root / "features").iterdir())) == 1
    assert [row[name] for name in ACCURACIES] == [other[name] for name in ACCURACIES]
    for name in LOSSES:
        assert row[name] == pytest.approx(other[name], abs=1e-5)


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "timm/vit_tiny_patch16_224"])
@pytest.mark.parametrize("freeze", [0.4, 0.95])
def test_in_bf16_losses_differ_by_their_rounding_at_most(
    model: str, freeze: float, images: Path, store: Store
) -> None:
    config = one_epoch(model, freeze=freeze)
    row = row_of(make_bench(images, store, precision="bf16"), config)
    other = row_of(make_bench(images, store, precision="bf16", reuse=False), config)
    for name in LOSSES:  # 8 bits: see the like test of trials
        assert row[name] == pytest.approx(other[name], rel=2**-6)
