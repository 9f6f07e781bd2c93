"""A workbench on a few generated images, for tests of what trials do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tune_inat.config import TrialConfig
from tune_inat.data import find_images, split_images
from tune_inat.frozen import Precision
from tune_inat.images import load_pixels
from tune_inat.job import Job
from tune_inat.meter import SilentMeter
from tune_inat.store import Store
from tune_inat.trial import EpochReport, run_trial
from tune_inat.workbench import Workbench

IMAGE_SIZE = 32
COLOURS = {"blue": (30, 40, 200), "green": (30, 200, 40), "red": (200, 40, 30)}
N_OF_EACH = 18


def write_images(folder: Path, *, n_of_each: int = N_OF_EACH) -> Path:
    """Noisy images of three colours, in class folders."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(n_of_each):
            noise = random.normal(0, 60, (40, 40, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def make_bench(folder: Path, store: Store, *, reuse: bool = True, precision: Precision = "fp32") -> Workbench:
    """A workbench on the CPU with one thread, as a worker has it."""
    torch.set_num_threads(1)
    images = find_images(str(folder), cache=store.root, meter=SilentMeter())
    files = {file.content: file.path for file in images.files}
    pixels = load_pixels(store, files, size=IMAGE_SIZE, n_workers=1, meter=SilentMeter())
    data = split_images(
        images, row_of=pixels.row_of, unreadable=pixels.unreadable, seed=0, skip_bad_images=False
    )
    job = Job(
        store=store,
        data=data,
        files=files,
        precision=precision,
        device="cpu",
        reuse=reuse,
        metric="val_accuracy",
        goal="maximize",
        n_threads=1,
    )
    return Workbench(job, torch.device("cpu"), SilentMeter())


def config_of(**values: object) -> TrialConfig:
    """A small trial on random weights."""
    small = {"model": "resnet18", "weights": "none", "image_size": IMAGE_SIZE, "batch_size": 8, "epochs": 2}
    return TrialConfig.model_validate({**small, **values})


def reports_of(
    bench: Workbench, config: TrialConfig, *, stop: Callable[[EpochReport], None] = lambda report: None
) -> list[EpochReport]:
    """What a trial reports; `stop` may raise to end it, as a scheduler does."""
    reports: list[EpochReport] = []

    def report(progress: EpochReport) -> None:
        reports.append(progress)
        stop(progress)

    run_trial(bench, config, horizons=(), report=report)
    return reports


def numbers_of(reports: list[EpochReport]) -> list[dict[str, float]]:
    """The rows without what is measured by the clock."""
    clock = {"images_per_second", "train_seconds", "epoch_seconds"}
    return [{k: v for k, v in report.row.items() if k not in clock} for report in reports]
