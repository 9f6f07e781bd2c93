"""Which precision a search computes in: what is asked for, or what is faster on this machine."""

from collections.abc import Callable
from typing import Literal

import torch

from tune_inat.errors import ResourceError
from tune_inat.frozen import Precision

WORTHWHILE = 1.2  # how much faster bf16 must be: below that, its rounding buys nothing


def choose_precision(
    asked: Literal["auto", "fp32", "bf16"], device: torch.device, seconds: Callable[[Precision], float]
) -> Precision:
    """The precision to compute in. On a CPU, `auto` compares what the same work takes in both.

    Args:
        seconds: times that work; called only where the answer depends on it.

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
    return "bf16" if seconds("fp32") > WORTHWHILE * seconds("bf16") else "fp32"
