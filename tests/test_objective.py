"""Tests of `objective`."""

import pytest

from tune_inat.objective import METRICS, metric_name


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_goes_by_its_own_name(name: str) -> None:
    assert metric_name(name) == name
    assert metric_name(name.replace("_", "/").upper()) == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Val Accuracy", "val_accuracy"),
        ("val_acc", "val_accuracy"),
        ("valAcc", "val_accuracy"),
        ("validation/accuracy", "val_accuracy"),
        ("Eval|acc", "val_accuracy"),
        ("accuracy", "val_accuracy"),
        ("Top-1", "val_accuracy"),
        ("valid.loss", "val_loss"),
        ("loss", "val_loss"),
        ("training loss", "train_loss"),
        ("train/acc", "train_accuracy"),
        ("val/macro_f1", "val_macro_f1"),
        ("f1", "val_macro_f1"),
        ("balanced accuracy", "val_balanced_accuracy"),
        ("val_ECE", "val_ece"),
    ],
)
def test_other_spellings_are_understood(spelling: str, name: str) -> None:
    assert metric_name(spelling) == name


@pytest.mark.parametrize(
    "spelling", ["", "test_accuracy", "train_ece", "train_val_loss", "auc", "val", "lossy"]
)
def test_what_we_do_not_measure_is_none_of_ours(spelling: str) -> None:
    assert metric_name(spelling) is None
