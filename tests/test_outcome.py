"""The best model is exported with its temperature, its test and its predictions, which all agree."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.benches import COLOURS, config_of, make_bench, reports_of
from tune_inat.export import (
    CARD_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    load_classifier,
)
from tune_inat.images import decode
from tune_inat.leaderboard import BEST_MODEL_FOLDER, PREDICTIONS_FILE, TestResult, TrialResult
from tune_inat.metrics import expected_calibration_error
from tune_inat.outcome import export_best, validation_probabilities
from tune_inat.store import Store
from tune_inat.workbench import Workbench

CONFIG = config_of(freeze=0.5, epochs=3, lr=3e-3)


class Exported:
    """A search's folder after its best model was exported."""

    def __init__(self, folder: Path, bench: Workbench, best: TrialResult) -> None:
        self.bench = bench
        self.folder = folder
        self.best = best
        self.test: TestResult | None = export_best(folder, bench, best, data_name="photos").test
        self.model = folder / BEST_MODEL_FOLDER

    def rows(self, part: str) -> list[dict[str, str]]:
        with (self.folder / PREDICTIONS_FILE).open(newline="") as file:
            return [row for row in csv.DictReader(file) if row["part"] == part]

    def read(self, name: str) -> Any:
        return json.loads((self.model / name).read_text())


def best_of(bench: Workbench) -> TrialResult:
    reports = reports_of(bench, CONFIG)
    row = reports[-1].row
    return TrialResult("abc", CONFIG.model_dump(), "TERMINATED", 3, 3, row, 1.0, {}, None)


@pytest.fixture(scope="module")
def exported(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("search")
    bench = make_bench(images, Store(folder / "cache"))
    return Exported(folder, bench, best_of(bench))


def test_predictions_are_in_the_order_of_the_parts_with_their_true_classes(exported: Exported) -> None:
    data = exported.bench.job.data
    assert data.test is not None
    for part, split in (("val", data.val), ("test", data.test)):
        rows = exported.rows(part)
        assert [row["file"] for row in rows] == [str(path) for path in split.paths]
        assert [row["class"] for row in rows] == [path.parent.name for path in split.paths]
    assert {row["predicted"] for row in exported.rows("test")} <= set(COLOURS)


def test_predictions_are_those_of_the_exported_model(exported: Exported) -> None:
    classifier = load_classifier(exported.model)
    rows = exported.rows("test")
    pixels = torch.from_numpy(np.stack([decode(Path(row["file"]), 32) for row in rows])).permute(0, 3, 1, 2)
    with torch.no_grad():
        calibrated = classifier.probabilities(pixels)
        plain = classifier.network(pixels).softmax(dim=1)
    names = [classifier.config.classes[index] for index in plain.argmax(dim=1)]
    assert [row["predicted"] for row in rows] == names
    # The trial computes in parts and other batches: float32 sums in another order.
    for column, values in (("confidence", plain), ("calibrated", calibrated)):
        expected = values.max(dim=1).values.tolist()
        assert [float(row[column]) for row in rows] == pytest.approx(expected, abs=1e-3)


def test_validation_probabilities_are_those_before_temperature(exported: Exported) -> None:
    probabilities = validation_probabilities(exported.bench, exported.best)
    rows = exported.rows("val")
    assert probabilities.shape == (len(rows), 3)
    assert [float(row["confidence"]) for row in rows] == pytest.approx(probabilities.max(axis=1), abs=1e-6)
    names = [exported.bench.job.data.classes[index] for index in probabilities.argmax(axis=1)]
    assert [row["predicted"] for row in rows] == names


def test_accuracies_are_those_of_the_predictions(exported: Exported) -> None:
    metrics = exported.read(METRICS_FILE)
    for part in ("val", "test"):
        right = [row["class"] == row["predicted"] for row in exported.rows(part)]
        assert metrics[f"{part}_accuracy"] == pytest.approx(sum(right) / len(right))
    assert exported.test is not None
    assert metrics["test_accuracy"] == exported.test.test_accuracy
    assert metrics["test_interval"] == list(exported.test.test_interval)
    assert metrics["n_test"] == len(exported.rows("test"))


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize(("column", "metric"), [("confidence", "ece"), ("calibrated", "ece_calibrated")])
def test_calibration_errors_are_those_of_the_predictions(
    exported: Exported, part: str, column: str, metric: str
) -> None:
    rows = exported.rows(part)
    confidence = np.array([[float(row[column]), 0.0] for row in rows])
    wrong = np.array([row["class"] != row["predicted"] for row in rows], np.int64)
    expected = expected_calibration_error(confidence, wrong)
    assert exported.read(METRICS_FILE)[f"{part}_{metric}"] == pytest.approx(expected, abs=1e-4)


def test_temperature_lowers_the_loss_on_val(exported: Exported) -> None:
    metrics = exported.read(METRICS_FILE)
    assert metrics["temperature"] == exported.read(CONFIG_FILE)["temperature"]
    assert metrics["temperature"] > 0
    assert metrics["val_loss_calibrated"] <= metrics["val_loss"] + 1e-6


def test_card_counts_the_images_of_each_part(exported: Exported) -> None:
    # 18 of each class: a fifth to test, then a fifth of the rest to val.
    data = exported.bench.job.data
    assert data.test is not None
    sizes = [len(split.labels) for split in (data.train, data.val, data.test)]
    card = (exported.model / CARD_FILE).read_text()
    assert "| **all images** | " + " | ".join(map(str, sizes)) + " |" in card
    assert sum(sizes) == 54


def test_without_test_images_nothing_is_said_of_a_test(exported: Exported, hostile_path: Path) -> None:
    bench = exported.bench
    job = bench.job
    bench.job = replace(job, data=replace(job.data, test=None))
    try:
        untested = Exported(hostile_path, bench, exported.best)
    finally:
        bench.job = job
    assert untested.test is None
    assert untested.rows("test") == []
    assert len(untested.rows("val")) == len(job.data.val.labels)
    assert not [name for name in untested.read(METRICS_FILE) if name.startswith(("test", "n_test"))]
    assert "There was no test part" in (untested.model / CARD_FILE).read_text()


def test_no_cell_is_a_formula(exported: Exported, hostile_path: Path) -> None:
    bench = exported.bench
    job = bench.job
    bench.job = replace(job, data=replace(job.data, classes=("=1+1", "@x", "-y")))
    try:
        hostile = Exported(hostile_path, bench, exported.best)
    finally:
        bench.job = job
    for row in [*hostile.rows("val"), *hostile.rows("test")]:
        assert row["class"] in ("'=1+1", "'@x", "'-y")
        assert row["predicted"] in ("'=1+1", "'@x", "'-y")
    assert load_classifier(hostile.model).config.classes == ("=1+1", "@x", "-y")
