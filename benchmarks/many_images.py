"""Decoding and the frozen pass on many small generated images, and the memory that they take.

`python -m benchmarks.many_images N FOLDER` prints a `PassRow` as JSON; `benchmarks.scale` runs it so, each in
a process of its own.
"""

import gc
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from benchmarks.memory import anonymous_bytes, anonymous_peak
from tune_inat.disk import size_of
from tune_inat.features import FEATURES_KIND
from tune_inat.inputs import read_inputs
from tune_inat.meter import SilentMeter
from tune_inat.preparation import open_bench
from tune_inat.settings import make_settings
from tune_inat.store import Store

SIDE = 32  # pixels
N_CLASSES = 10
IMAGES_A_FOLDER = 1000  # of a class: no folder is so large that it is slow
N_WARM = 200
SWEEP = {
    "method": "grid",
    "parameters": {"freeze": {"values": [0.5, 0.9]}, "lr": {"value": 1e-3}, "epochs": {"value": 1}},
}


@dataclass(frozen=True)
class PassRow:
    """What `n_images` took. Memory is anonymous, in bytes: mapped files are the page cache's.

    Attributes:
        decode_seconds: finding, hashing, decoding and auditing the files.
        pass_seconds: of the frozen layers, for two cuts.
        read_bytes: what the process had when all was decoded, above what it had before: names and hashes.
        decode_peak_bytes: the most while it decoded, above what it had before.
        pass_peak_bytes: the most in the pass, above what the process had when it began.
        activation_bytes: what the pass has written.
    """

    n_images: int
    decode_seconds: float
    pass_seconds: float
    read_bytes: int
    decode_peak_bytes: int
    pass_peak_bytes: int
    activation_bytes: int


def write_images(folder: Path, n_images: int) -> None:
    """Small PNG files of noise in class folders, no two alike."""
    draw = np.random.default_rng(0)
    for number in range(n_images):
        label, place = number % N_CLASSES, number // N_CLASSES // IMAGES_A_FOLDER
        path = folder / f"class {label}" / str(place) / f"{number}.png"
        if number // N_CLASSES % IMAGES_A_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        pixels[..., label % 3] //= 2
        Image.fromarray(pixels).save(path, compress_level=0)


def measure(n_images: int, folder: Path) -> PassRow:
    """Read, decode and run the frozen layers on generated images, in a folder that is empty before."""
    _run(N_WARM, folder / "warm")  # what is loaded and compiled once
    return _run(n_images, folder / "measured")


def _run(n_images: int, folder: Path) -> PassRow:
    write_images(folder / "images", n_images)
    space, store = folder / "space.yaml", Store(folder / "cache")
    space.write_text(json.dumps(SWEEP))
    settings = make_settings(
        space=str(space),
        data=str(folder / "images"),
        model="timm/tf_efficientnet_lite0",
        weights="none",
        image_size=SIDE,
        precision="fp32",
    )
    begun = _settled()
    started = perf_counter()
    with anonymous_peak() as decoding:
        inputs = read_inputs(settings, SilentMeter(), store)
    decoded = perf_counter()
    bench = open_bench(inputs, SilentMeter(), gpus_per_trial=0)
    bench.check([trial.config for trial in inputs.plan.trials])
    read = _settled()
    ready = perf_counter()
    with anonymous_peak() as passing:
        bench.prepare([trial.config for trial in inputs.plan.trials])
    return PassRow(
        n_images=n_images,
        decode_seconds=decoded - started,
        pass_seconds=perf_counter() - ready,
        read_bytes=read - begun,
        decode_peak_bytes=decoding.peak - begun,
        pass_peak_bytes=passing.peak - read,
        activation_bytes=size_of(store.root / FEATURES_KIND),
    )


def _settled() -> int:
    """The anonymous memory of this process when what nobody refers to is gone."""
    gc.collect()
    return anonymous_bytes()


if __name__ == "__main__":
    count, scratch = sys.argv[1:]
    sys.stdout.write(json.dumps(asdict(measure(int(count), Path(scratch)))) + "\n")
