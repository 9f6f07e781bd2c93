"""What a search comes to: its best model, calibrated, tested once and exported, with its predictions."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tune_inat.calibration import calibrated, fit_temperature
from tune_inat.config import TrialConfig
from tune_inat.data import DataSet, Split
from tune_inat.disk import writing
from tune_inat.export import ModelConfig, save_classifier
from tune_inat.freeze import load_trainable_state, trainable_state
from tune_inat.leaderboard import (
    BEST_MODEL_FOLDER,
    LEADERBOARD_METRICS,
    PREDICTION_COLUMNS,
    PREDICTIONS_FILE,
    TestResult,
    TrialResult,
    safe_cell,
)
from tune_inat.metrics import Evaluation, evaluate, log_softmax, wilson_interval
from tune_inat.model_card import DataFacts, compose_card
from tune_inat.network import Network
from tune_inat.states import to_cpu
from tune_inat.store import write_atomically
from tune_inat.trial import predict, weights_after
from tune_inat.workbench import Part, Workbench


@dataclass(frozen=True)
class _Outputs:
    """What the best model says of a part: `logits` (N, K) float32 in the order of `split`."""

    part: Part
    split: Split
    logits: npt.NDArray[np.float32]

    def evaluate(self, temperature: float = 1.0) -> Evaluation:
        return evaluate(calibrated(self.logits, temperature), self.split.labels)


@dataclass(frozen=True)
class Exported:
    """What came of exporting a model.

    Attributes:
        test: `None` where there are no test images.
        val_probabilities: of the validation images (N, K) float64, before temperature.
    """

    test: TestResult | None
    val_probabilities: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Examined:
    """A trial's model and what it says, as another machine has found it.

    Attributes:
        weights: what trained, by name, on the CPU.
        val: the logits (N, K) float32 of the validation images, `test` of the test images if there are any.
    """

    weights: Mapping[str, Tensor]
    val: npt.NDArray[np.float32]
    test: npt.NDArray[np.float32] | None


def examine(bench: Workbench, best: TrialResult) -> Examined:
    """The best trial's model, and what it says of validation and test images."""
    assert best.best_epoch is not None, "a best trial has an epoch"
    config, data = TrialConfig(**best.config), bench.job.data
    network = weights_after(bench, config, best.best_epoch)
    return Examined(
        to_cpu(trainable_state(network.backbone)),
        _outputs(bench, network, config, "val", data.val).logits,
        None if data.test is None else _outputs(bench, network, config, "test", data.test).logits,
    )


def export_best(
    folder: Path,
    bench: Workbench,
    best: TrialResult,
    *,
    data_name: str,
    examined: Examined | None = None,
) -> Exported:
    """Write the best trial's model to `best_model/` and test it.

    Its temperature is fitted on the validation images. What it says of each validation and test image goes
    to `predictions.csv`. This is the one place where test labels are read.

    Args:
        examined: the model, where another machine has examined it already.
    """
    assert best.best_epoch is not None, "a best trial has an epoch"
    config = TrialConfig(**best.config)
    examined = examined or examine(bench, best)
    network = bench.network(config)
    load_trainable_state(network.backbone, examined.weights)
    data = bench.job.data
    val = _Outputs("val", data.val, examined.val)
    test = None
    if data.test is not None and examined.test is not None:
        test = _Outputs("test", data.test, examined.test)
    temperature = fit_temperature(val.logits, val.split.labels)
    model = ModelConfig(
        model=config.model,
        classes=data.classes,
        image_size=config.image_size,
        mean=network.backbone.mean,
        std=network.backbone.std,
        trial_id=best.trial_id,
        epoch=best.best_epoch,
        config=config.model_dump(),
        temperature=temperature,
    )
    tested = None if test is None else _test_result(test)
    metrics: dict[str, Any] = {
        "data": data_name,
        **{name: best.metric(name) for name in LEADERBOARD_METRICS},
        "temperature": temperature,
        **_calibrated_metrics(val, temperature),
        **(_test_metrics(tested, test, temperature) if tested is not None and test is not None else {}),
    }
    card = compose_card(model, metrics, data_facts(data, data_name))
    with writing(folder):
        write_predictions(folder, data.classes, [val, *([test] if test is not None else [])], temperature)
        save_classifier(folder / BEST_MODEL_FOLDER, network.backbone, model, metrics, card=card)
    return Exported(tested, np.exp(log_softmax(val.logits)))


def validation_probabilities(bench: Workbench, best: TrialResult) -> npt.NDArray[np.float64]:
    """The best trial's probabilities (N, K) of the validation images in their order, without temperature."""
    assert best.best_epoch is not None, "a best trial has an epoch"
    config = TrialConfig(**best.config)
    network = weights_after(bench, config, best.best_epoch)
    probabilities: npt.NDArray[np.float64] = np.exp(
        log_softmax(_outputs(bench, network, config, "val", bench.job.data.val).logits)
    )
    return probabilities


def write_predictions(
    folder: Path, classes: Sequence[str], outputs: Sequence[_Outputs], temperature: float
) -> None:
    """Write `predictions.csv`: a row for each image, parts in turn, each in the order of its split."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PREDICTION_COLUMNS)
    for output in outputs:
        predicted = output.logits.argmax(axis=1)
        confidence = np.exp(log_softmax(output.logits).max(axis=1))
        after = np.exp(log_softmax(calibrated(output.logits, temperature)).max(axis=1))
        for row, path in enumerate(output.split.paths):
            names = (str(path), classes[output.split.labels[row]], classes[predicted[row]])
            values = (f"{confidence[row]:.6f}", f"{after[row]:.6f}")
            writer.writerow([output.part, *map(safe_cell, names), *values])
    # A name need not be UTF-8: it is written byte for byte.
    write_atomically(folder / PREDICTIONS_FILE, text.getvalue().encode(errors="surrogateescape"))


def data_facts(data: DataSet, name: str) -> DataFacts:
    """What the model card says of a data set: the images of each class in each part."""
    parts = {"train": data.train, "val": data.val, **({} if data.test is None else {"test": data.test})}
    counts = {
        part: tuple(int(n) for n in np.bincount(split.labels, minlength=len(data.classes)))
        for part, split in parts.items()
    }
    return DataFacts(name, counts)


def _outputs(bench: Workbench, network: Network, config: TrialConfig, part: Part, split: Split) -> _Outputs:
    source = bench.source(network, config, part)
    return _Outputs(part, split, predict(bench, network, source, len(split.labels)))


def _test_result(test: _Outputs) -> TestResult:
    evaluation = test.evaluate()
    n_correct = int((test.logits.argmax(axis=1) == test.split.labels).sum())
    return TestResult(
        test_accuracy=evaluation.accuracy,
        test_loss=evaluation.loss,
        test_interval=wilson_interval(n_correct, len(test.split.labels)),
        n_test=len(test.split.labels),
    )


def _calibrated_metrics(outputs: _Outputs, temperature: float) -> dict[str, float]:
    """The loss and calibration error at a temperature; all else stays as it is."""
    after = outputs.evaluate(temperature)
    return {f"{outputs.part}_loss_calibrated": after.loss, f"{outputs.part}_ece_calibrated": after.ece}


def _test_metrics(result: TestResult, test: _Outputs, temperature: float) -> dict[str, Any]:
    before = test.evaluate()
    return {
        "test_accuracy": result.test_accuracy,
        "test_interval": result.test_interval,
        "n_test": result.n_test,
        "test_loss": result.test_loss,
        "test_macro_f1": before.macro_f1,
        "test_balanced_accuracy": before.balanced_accuracy,
        "test_ece": before.ece,
        **_calibrated_metrics(test, temperature),
    }
