"""The central promise: whatever the architecture and the cut, kept activations change no bit of a number."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.benches import config_of, make_bench, write_images
from tests.slow import slow
from tune_inat.config import TrialConfig
from tune_inat.cuts import KeptCuts
from tune_inat.frozen import PART_SIZE, Precision
from tune_inat.store import Store
from tune_inat.trial import Trainer
from tune_inat.workbench import Workbench

FREEZINGS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
CLOCK = {"images_per_second", "train_seconds", "epoch_seconds"}

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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Each test starts and ends with one thread, however many it takes in between."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def one_epoch(model: str, **values: object) -> TrialConfig:
    """A trial of one epoch by Adam, whose first steps know only signs: it makes much of the least bit."""
    return config_of(model=model, **{"epochs": 1, "image_size": ARCHITECTURES[model], **values})


def one_for_each_cut(bench: Workbench, model: str) -> list[TrialConfig]:
    """Trials whose freezings cut the network at all the places at which these freezings cut it."""
    by_cut: dict[str, TrialConfig] = {}
    for freeze in FREEZINGS:
        config = one_epoch(model, freeze=freeze)
        by_cut.setdefault(bench.network(config).cut, config)
    return list(by_cut.values())


def row_of(bench: Workbench, config: TrialConfig) -> Mapping[str, float]:
    """The metrics of a trial's only epoch; nothing of it is kept, which takes longer than to train it."""
    row = Trainer(bench, config).train_epoch(1, lambda: False)
    return {name: value for name, value in row.items() if name not in CLOCK}


def what_is_read(bench: Workbench, config: TrialConfig, *, n: int = PART_SIZE) -> torch.Tensor:
    """Some training images out of order, as they are at the cut."""
    network = bench.network(config)
    picked = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:n]
    return bench.source(network, config, "train").take(picked, 1).clone()


def compute_with(bench: Workbench, config: TrialConfig, n_threads: int) -> None:
    """Compute what is kept, as the process that conducts a search does: with other threads than trials."""
    torch.set_num_threads(n_threads)
    bench.prepare([config])
    torch.set_num_threads(1)


# Machines without bf16 take minutes for the other networks.
@pytest.mark.parametrize(
    ("model", "precision"),
    [
        *((model, "fp32") for model in ARCHITECTURES if model != "swin_t"),
        pytest.param("swin_t", "fp32", marks=slow),
        *(
            (model, "bf16")
            for model in ("mobilenet_v3_small", "timm/convnext_atto", "timm/vit_tiny_patch16_224")
        ),
    ],
)
def test_each_cut_gives_the_same_bits_with_and_without_reuse(
    model: str, precision: Precision, images: Path, store: Store
) -> None:
    kept = make_bench(images, store, precision=precision)
    plain = make_bench(images, store, precision=precision, reuse=False)
    configs = one_for_each_cut(kept, model)
    assert len(configs) >= 5
    for config in configs:
        compute_with(kept, config, n_threads=2)
        mine, theirs = what_is_read(kept, config), what_is_read(plain, config)
        assert mine.abs().max() > 0
        assert torch.equal(mine, theirs), config.freeze
        assert mine.stride() == theirs.stride(), config.freeze
        assert row_of(kept, config) == row_of(plain, config), config.freeze


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "timm/vit_tiny_patch16_224"])
def test_an_image_has_the_same_bits_in_batches_of_any_size(model: str, images: Path, store: Store) -> None:
    bench = make_bench(images, store, reuse=False)
    config = one_epoch(model, freeze=0.95)
    whole = what_is_read(bench, config, n=20)
    for n in (1, 3, PART_SIZE + 1):
        assert torch.equal(what_is_read(bench, config, n=n), whole[:n]), n


@pytest.mark.parametrize("model", ["timm/tf_efficientnet_lite0", "shufflenet_v2_x0_5"])
def test_maps_of_a_single_position_give_the_same_bits(model: str, images: Path, store: Store) -> None:
    config = one_epoch(model, freeze=0.9, image_size=32)
    bench = make_bench(images, store)
    assert what_is_read(bench, config).shape[2:] == (1, 1)
    assert row_of(bench, config) == row_of(make_bench(images, store, reuse=False), config)


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("resnet18", "fp32"),
        ("timm/vit_tiny_patch16_224", "fp32"),
        ("timm/vit_tiny_patch16_224", "bf16"),
        ("swin_t", "fp32"),
    ],
)
def test_activations_kept_before_the_cut_give_the_same_bits(
    model: str, precision: Precision, images: Path, store: Store
) -> None:
    config = one_epoch(model, freeze=0.8)
    bench = make_bench(images, store, precision=precision)
    network = bench.network(config)
    before = network.traced.crossings[1 : network.traced.crossings.index(network.cut)]
    shallower = [name for name in before if name in bench.exact_crossings(network)][-1]
    bench.job = replace(
        bench.job,
        kept={
            bench.job.images_key(config, of_views=False): KeptCuts(
                frozenset({shallower}), frozenset({network.cut})
            )
        },
    )
    row = row_of(bench, config)
    assert len(list((store.root / "features").iterdir())) == 1
    assert row == row_of(make_bench(images, store, precision=precision, reuse=False), config)
