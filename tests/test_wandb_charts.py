"""Charts of the best trial say what its predictions say, however many classes there are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tune_inat.wandb_charts import (
    MAX_ARTIFACT_NAME,
    MAX_CURVES,
    MAX_MATRIX_CLASSES,
    OTHERS,
    BestTrial,
    charts_of,
    data_kept_in,
    model_artifact,
)


def predictions(labels: Any, predicted: Any, n_classes: int) -> BestTrial:
    """A trial that gives its choice a probability of 0.6."""
    probabilities = np.full((len(labels), n_classes), 0.4 / (n_classes - 1))
    probabilities[np.arange(len(labels)), predicted] = 0.6
    names = tuple(f"class {index}" for index in range(n_classes))
    return BestTrial(probabilities, np.asarray(labels), names)


def rows_of(chart: Any) -> list[list[Any]]:
    rows: list[list[Any]] = chart.table.data
    return rows


@pytest.fixture(autouse=True)
def staged_here(tmp_path: Path) -> Any:
    with data_kept_in(tmp_path):
        yield


def test_matrix_counts_each_pair_of_classes() -> None:
    best = predictions([0, 0, 1, 2, 2], [0, 1, 1, 2, 0], n_classes=3)
    counts = {(actual, said): n for actual, said, n in rows_of(charts_of(best)["confusion_matrix"]) if n}
    assert counts == {
        ("class 0", "class 0"): 1,
        ("class 0", "class 1"): 1,
        ("class 1", "class 1"): 1,
        ("class 2", "class 2"): 1,
        ("class 2", "class 0"): 1,
    }


def test_curve_of_a_class_is_its_own_though_another_class_has_no_image() -> None:
    best = predictions([0, 0, 2, 2], [0, 1, 2, 2], n_classes=3)  # of class 1 there is none
    rows = rows_of(charts_of(best)["pr_curve"])
    assert {name for name, *_ in rows} == {"class 0", "class 2"}
    assert {precision for name, precision, _ in rows if name == "class 2"} == {1.0}


def test_many_classes_leave_those_with_most_errors() -> None:
    n = 250
    labels = np.arange(n)
    predicted = labels.copy()
    predicted[[200, 210, 220]] = 240
    charts = charts_of(predictions(labels, predicted, n_classes=n))
    cells = rows_of(charts["confusion_matrix"])
    assert len(cells) == MAX_MATRIX_CLASSES**2
    assert sum(count for *_, count in cells) == n  # no image is lost
    counts = {(actual, said): count for actual, said, count in cells}
    assert counts["class 210", "class 240"] == 1
    assert counts[OTHERS, OTHERS] == n - (MAX_MATRIX_CLASSES - 1)
    drawn = {name for name, *_ in rows_of(charts["pr_curve"])}
    assert len(drawn) == MAX_CURVES
    assert {"class 200", "class 210", "class 220", "class 240"} <= drawn


def test_class_of_any_name_has_its_chart() -> None:
    best = predictions([0, 1], [0, 1], n_classes=2)
    hostile = BestTrial(best.probabilities, best.labels, ("B\u00e4r\x1b[31m", "\udcff"))
    names = {name for name, *_ in rows_of(charts_of(hostile)["pr_curve"])}
    assert names == {"B\u00e4r\\x1b[31m", "\\udcff"}


@pytest.mark.parametrize("search", ["B\u00e4ume & mehr", "x" * 120, "a/b"])
def test_artifact_of_a_search_of_any_name_has_a_name_that_wandb_takes(
    hostile_path: Path, search: str
) -> None:
    model = hostile_path / "best_model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    artifact = model_artifact(model, search=search, aside=hostile_path / "aside")
    assert artifact.name.endswith("-model")
    assert len(artifact.name) <= MAX_ARTIFACT_NAME
    assert list(artifact.manifest.entries) == ["config.json"]
