"""What a plan says of GPUs: how many trials share one, why, and what a user can do about it."""

from collections.abc import Mapping
from typing import Any

from tune_inat.errors import printable
from tune_inat.tables import amount, count

WHY = {
    "memory": "Its memory holds no more.",
    "throughput": "More would train hardly more images a second.",
    "cores": "There are no more CPU cores beside it.",
    "trials": "That keeps all trials busy that can run at a time.",
    "most": "More processes than that share a GPU badly.",
    "unmeasured": "It could not be measured.",
}


def gpu_lines(plan: Mapping[str, Any]) -> list[str]:
    """A line for each type of GPU, and for CPUs that help; `plan` is a `Forecast` as JSON."""
    lines = [_packing_line(packing) for packing in plan["packings"]]
    for place in plan["devices"]["places"]:
        if place["gpus"] == 0:
            cores = count(place["cpus"], "CPU core")
            lines.append(f"Nodes without GPUs: {count(place['n_trials'], 'trial')}, each on {cores}.")
    if lines and plan["packings"]:
        lines.append("--gpus-per-trial 0.5 would put two trials on each GPU, 1 only one, 0 none.")
    return lines


def _packing_line(packing: Mapping[str, Any]) -> str:
    card, per_gpu, measured = packing["card"], packing["per_gpu"], packing["measured"]
    size = f", {amount(card['n_bytes'], 'bytes')}" if card["n_bytes"] else ""
    said = [f"{packing['n_gpus']:,} x {printable(card['name'])}{size}: {count(per_gpu, 'trial')} on each"]
    if packing["memory_fraction"] is not None:
        own = amount(packing["memory_fraction"] * card["n_bytes"], "bytes")
        said.append(f", at most {own} of tensors in each")
    said.append(f". {WHY[packing['limit']]}")
    if measured is not None:
        said.append(
            f" Measured: the heaviest step takes {amount(measured['step_bytes'], 'bytes')} and a process "
            f"{amount(measured['process_bytes'], 'bytes')}, so {packing['n_by_memory']:,} would fit"
        )
        rates = [f"{n} at a time {float(r):,.0f}" for n, r in measured["throughput"].items()]
        said.append(f"; images/s: {', '.join(rates)}." if rates else ".")
    if card["mps"]:
        said.append(" CUDA MPS runs: their kernels run side by side.")
    return "".join(said)
