"""What a search comes to: its best model, tested once and exported."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tune_inat.config import TrialConfig
from tune_inat.export import ModelConfig, save_classifier
from tune_inat.leaderboard import BEST_MODEL_FOLDER, LEADERBOARD_METRICS, TestResult, TrialResult
from tune_inat.metrics import evaluate, wilson_interval
from tune_inat.network import Network
from tune_inat.trial import predict, weights_after
from tune_inat.workbench import Workbench


def export_best(folder: Path, bench: Workbench, best: TrialResult, *, data_name: str) -> TestResult | None:
    """Write the best trial's model to `best_model/` and test it; `None` where there are no test images.

    This is the one place where test labels are read.
    """
    assert best.best_epoch is not None, "a best trial has an epoch"
    config = TrialConfig(**best.config)
    network = weights_after(bench, config, best.best_epoch)
    test = _test(bench, config, network)
    model = ModelConfig(
        model=config.model,
        classes=bench.job.data.classes,
        image_size=config.image_size,
        mean=network.backbone.mean,
        std=network.backbone.std,
        trial_id=best.trial_id,
        epoch=best.best_epoch,
        config=config.model_dump(),
    )
    metrics: dict[str, Any] = {
        "data": data_name,
        **{name: best.metric(name) for name in LEADERBOARD_METRICS},
        **(asdict(test) if test is not None else {}),
    }
    save_classifier(folder / BEST_MODEL_FOLDER, network.backbone, model, metrics)
    return test


def _test(bench: Workbench, config: TrialConfig, network: Network) -> TestResult | None:
    split = bench.job.data.test
    if split is None:
        return None
    logits = predict(bench, network, bench.source(network, config, "test"), len(split.labels))
    evaluation = evaluate(logits, split.labels)
    n_correct = int((logits.argmax(axis=1) == split.labels).sum())
    return TestResult(
        test_accuracy=evaluation.accuracy,
        test_loss=evaluation.loss,
        test_interval=wilson_interval(n_correct, len(split.labels)),
        n_test=len(split.labels),
    )
