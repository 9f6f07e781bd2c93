"""A network as an ONNX file that gives the same logits: it is compared in ONNX Runtime before it is kept."""

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tune_inat.errors import UserError
from tune_inat.images import decode
from tune_inat.pictures import UnreadableImage, strict_pillow

ONNX_FILE = "model.onnx"
INPUT_NAME, OUTPUT_NAME = "pixels", "logits"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
N_COMPARED = 16  # images
TOLERANCE = 1e-4  # between logits, relative to the largest one

PixelArray = npt.NDArray[np.uint8]
LogitArray = npt.NDArray[np.float32]


def check_packages() -> None:
    """Refuse to go on without what ONNX needs.

    Raises:
        UserError: a package is missing, with the command that installs it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--onnx needs {', '.join(missing)}: pip install 'tune_inat[onnx]'")


def write_onnx(network: nn.Module, path: Path, *, image_size: int, images: Sequence[Path]) -> str:
    """Write a network from pixels (n, 3, S, S) uint8 to logits (n, K) float32 as ONNX, for any n.

    Args:
        network: in eval mode, on the CPU.
        images: files to compare on; the first few that can be read. Without any, drawn pixels do.

    Returns:
        What it was compared on, and how well it agreed, in a sentence.

    Raises:
        UserError: the network cannot be expressed in ONNX, or the file does not give the same logits.
    """
    check_packages()
    pixels, what = _pixels_to_compare(images, image_size)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _export(network, aside, pixels[:2])
        gap = _largest_gap(network, aside, pixels)
        if gap > TOLERANCE:
            raise UserError(
                f"{path}: not written, as ONNX Runtime's logits of {what} are not the network's (they differ "
                f"by {gap:.1e} of the largest, more than {TOLERANCE:.0e})."
            )
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return f"The same logits in ONNX Runtime as in torch on {what}, within {gap:.0e} of the largest."


def _export(network: nn.Module, path: Path, pixels: PixelArray) -> None:
    with _quiet():
        try:
            torch.onnx.export(
                network,
                (torch.from_numpy(pixels),),
                path,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, ValueError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"This network cannot be written as ONNX: {first}") from error


def _largest_gap(network: nn.Module, path: Path, pixels: PixelArray) -> float:
    """The largest difference of logits, relative to the largest logit; infinite if a prediction differs.

    All images go through at once and the first one alone: the size of the batch is free.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    gaps = []
    for batch in (pixels, pixels[:1]):
        with torch.no_grad():
            ours: LogitArray = network(torch.from_numpy(batch)).float().numpy()
        (theirs,) = session.run([OUTPUT_NAME], {INPUT_NAME: batch})
        gaps.append(_gap(ours, theirs))
    return max(gaps)


def _gap(ours: LogitArray, theirs: LogitArray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    scale = float(np.abs(ours).max()) or 1.0
    rows = np.arange(len(ours))
    # Where two classes are level, either may come first; else the prediction is the same.
    lead = ours.max(axis=1) - ours[rows, theirs.argmax(axis=1)]
    if bool((lead > TOLERANCE * scale).any()):
        return float("inf")
    return float(np.abs(ours - theirs).max()) / scale


def _pixels_to_compare(images: Sequence[Path], size: int) -> tuple[PixelArray, str]:
    decoded: list[Any] = []
    with strict_pillow():
        for path in images:
            try:
                decoded.append(decode(path, size))
            except UnreadableImage:
                continue
            if len(decoded) == N_COMPARED:
                break
    if len(decoded) < 2:  # a batch of one would fix the size of the batch
        drawn = np.random.default_rng(0).integers(0, 256, (N_COMPARED, 3, size, size), np.uint8)
        return drawn, f"{N_COMPARED} images of random pixels"
    return np.ascontiguousarray(np.stack(decoded).transpose(0, 3, 1, 2)), f"{len(decoded)} images"


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter tells of its own inner life; what matters of it is an error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
