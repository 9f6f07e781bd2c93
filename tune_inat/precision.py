"""Which precision a search computes in: what is asked for, or what is faster on this machine."""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from tune_inat.errors import ResourceError
from tune_inat.features import Precision
from tune_inat.store import Store, hash_of

PROBE_KIND = "precision"
PROBE_IMAGES = 8
PROBE_PASSES = 2  # the faster one counts; a pass before them warms up
WORTHWHILE = 1.2  # how much faster bf16 must be: below that, its rounding buys nothing


def choose_precision(
    asked: Literal["auto", "fp32", "bf16"],
    device: torch.device,
    store: Store,
    *,
    model: str,
    image_size: int,
    network: Callable[[], nn.Module],
) -> Precision:
    """The precision to compute in. On a CPU, `auto` times a few passes, once for each model and machine.

    Args:
        network: gives the network to time, from pixels (n, 3, S, S) uint8; called only when it must be timed.

    Raises:
        ResourceError: bf16 is asked for and the GPU cannot compute in it.
    """
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bf16" and not has_bf16:
        raise ResourceError(f"--precision bf16: {torch.cuda.get_device_name(device)} cannot compute in it.")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if has_bf16 else "fp32"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "fp32"  # oneDNN would emulate it, a hundred times slower
    machine = [
        platform.processor(),
        platform.machine(),
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
    ]
    key = hash_of([machine, torch.get_num_threads(), model, image_size])

    def build(folder: Path) -> None:
        seconds = {name: _seconds(network(), image_size, name) for name in ("fp32", "bf16")}
        (folder / "seconds.json").write_text(json.dumps(seconds))

    folder = store.get_or_build(PROBE_KIND, key, build)
    seconds = json.loads((folder / "seconds.json").read_text())
    return "bf16" if seconds["fp32"] > WORTHWHILE * seconds["bf16"] else "fp32"


def _seconds(network: nn.Module, image_size: int, precision: str) -> float:
    batch = torch.zeros(PROBE_IMAGES, image_size, image_size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    passes = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(1 + PROBE_PASSES):
            started = time.perf_counter()
            network(batch)
            passes.append(time.perf_counter() - started)
    return min(passes[1:])
