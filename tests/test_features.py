"""Activations at a cut: the same values as the network gives, whatever happened on the way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tune_inat.features import (
    BATCH_SIZE,
    FEATURES_KIND,
    CutFeatures,
    Rows,
    load_features,
)
from tune_inat.frozen import PART_SIZE, Precision, run_frozen
from tune_inat.meter import SilentMeter
from tune_inat.shards import PROGRESS_FILE
from tune_inat.store import Store

CPU = torch.device("cpu")
N_ROWS = 2 * BATCH_SIZE + 5


@pytest.fixture
def store(hostile_path: Path) -> Store:
    return Store(hostile_path / "cache")


@pytest.fixture
def pixels() -> Rows:
    random = np.random.default_rng(0)
    return Rows(random.random((N_ROWS, 6, 6, 3), np.float32), CPU)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    return network.to(memory_format=torch.channels_last)


def cut(precision: Precision = "fp32") -> CutFeatures:
    return CutFeatures("pixels", "weights", "relu", precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_rows_are_what_the_network_gives_to_the_last_bit(
    store: Store, pixels: Rows, network: nn.Module, precision: Precision
) -> None:
    array = load_features(
        store, cut(precision), lambda: (pixels, network), n_rows=N_ROWS, meter=SilentMeter()
    )
    picked = torch.arange(BATCH_SIZE, 2 * BATCH_SIZE)
    kept = Rows(array, CPU).take(picked)
    direct = run_frozen(network, pixels.take(picked), precision, rows=picked)
    assert kept.shape == (BATCH_SIZE, 4, 4, 4)
    assert kept.dtype == direct.dtype
    assert torch.equal(kept, direct)


def test_rows_come_in_the_order_asked_for_and_channels_last(pixels: Rows) -> None:
    batch = pixels.take(torch.tensor([3, 1, 3]))
    assert torch.equal(batch[0], batch[2])
    assert torch.equal(batch[1], pixels.take(torch.tensor([1]))[0])
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_vectors_and_token_sequences_keep_their_shape(store: Store, pixels: Rows) -> None:
    for name, network, shape in [
        ("pooled", nn.Flatten(), (108,)),
        ("tokens", nn.Flatten(start_dim=2), (3, 36)),
    ]:
        key = CutFeatures("pixels", "weights", name, "fp32")
        array = load_features(store, key, lambda n=network: (pixels, n), n_rows=N_ROWS, meter=SilentMeter())  # type: ignore[misc]
        assert array.shape == (N_ROWS, *shape)


def test_second_call_computes_nothing(store: Store, pixels: Rows, network: nn.Module) -> None:
    load_features(store, cut(), lambda: (pixels, network), n_rows=N_ROWS, meter=SilentMeter())
    again = load_features(
        store, cut(), lambda: pytest.fail("computed again"), n_rows=N_ROWS, meter=SilentMeter()
    )
    assert again.shape == (N_ROWS, 4, 4, 4)


@pytest.mark.parametrize("field", ["pixels_key", "weights_key", "cut", "precision"])
def test_key_depends_on_all_that_the_values_depend_on(field: str) -> None:
    values = {"pixels_key": "p", "weights_key": "w", "cut": "c", "precision": "fp32"}
    changed = {**values, field: "bf16" if field == "precision" else "other"}
    assert CutFeatures(**values).key != CutFeatures(**changed).key  # type: ignore[arg-type]


class KilledError(Exception):
    pass


class DiesAfter(nn.Module):
    """Stands for a process that is killed after so many images, but for the last part's empty places."""

    def __init__(self, network: nn.Module, n_images: int) -> None:
        super().__init__()
        self.network, self.n_left = network, -(-n_images // PART_SIZE)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if self.n_left == 0:
            raise KilledError
        self.n_left -= 1
        result: torch.Tensor = self.network(batch)
        return result


def test_killed_computation_goes_on_after_the_last_rows_it_flushed(
    store: Store, pixels: Rows, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_inat.shards.FLUSH_BYTES", 1)
    with pytest.raises(KilledError):
        load_features(
            store, cut(), lambda: (pixels, DiesAfter(network, BATCH_SIZE)), n_rows=N_ROWS, meter=SilentMeter()
        )
    aside = store.path(FEATURES_KIND, f".{cut().key}.part")
    assert (aside / PROGRESS_FILE).read_text() == str(BATCH_SIZE)
    resumed = load_features(
        store,
        cut(),
        lambda: (pixels, DiesAfter(network, N_ROWS - BATCH_SIZE)),
        n_rows=N_ROWS,
        meter=SilentMeter(),
    )
    whole = load_features(
        Store(store.root.parent / "other"),
        cut(),
        lambda: (pixels, network),
        n_rows=N_ROWS,
        meter=SilentMeter(),
    )
    assert np.array_equal(resumed, whole)
