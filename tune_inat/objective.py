"""What a search optimizes: our metrics by any of the names that people give them."""

import re
from dataclasses import dataclass
from typing import Literal

Goal = Literal["minimize", "maximize"]

GOALS: dict[str, Goal] = {
    "train_loss": "minimize",
    "train_accuracy": "maximize",
    "val_loss": "minimize",
    "val_accuracy": "maximize",
    "val_macro_f1": "maximize",
    "val_balanced_accuracy": "maximize",
    "val_ece": "minimize",
}
METRICS = tuple(GOALS)

_SPLITS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "eval", "dev"),
    "test": ("test", "testing"),
}
_QUANTITIES = {
    "loss": ("loss", "ce", "cross entropy", "cross entropy loss", "nll"),
    "accuracy": ("accuracy", "acc", "top1", "top 1", "acc1", "acc 1", "top1 acc", "top1 accuracy"),
    "macro_f1": ("macro f1", "f1 macro", "macro f1 score", "f1 score macro", "f1", "f1 score"),
    "balanced_accuracy": ("balanced accuracy", "balanced acc", "bal acc", "bacc"),
    "ece": ("ece", "expected calibration error", "calibration error"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_QUANTITY_OF = {words: quantity for quantity, spellings in _QUANTITIES.items() for words in spellings}


@dataclass(frozen=True)
class Metric:
    """One of `METRICS` and whether it should be low or high."""

    name: str
    goal: Goal


DEFAULT_METRIC = Metric("val_accuracy", "maximize")


def metric_name(spelling: str) -> str | None:
    """The metric of ours that is meant by `Val Accuracy`, `valid/loss`, `valAcc`, ...; `None`: none of ours.

    Without a split's name it is the validation images' metric. None is of the test images: they are read
    once, for the best trial.
    """
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", spelling)
    words = re.findall(r"[a-z0-9]+", parted.lower())
    splits = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
    quantity = _QUANTITY_OF.get(" ".join(word for word in words if word not in _SPLIT_OF))
    if quantity is None or len(splits) > 1:
        return None
    name = f"{splits[0] if splits else 'val'}_{quantity}"
    return name if name in GOALS else None
