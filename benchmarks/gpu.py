"""What can only be seen on a GPU: `python -m benchmarks.gpu`, which takes less than 8 minutes on one.

It runs the sample's grid with and without reuse and compares the numbers, says how many trials the search has
put on the GPU and why, what that is worth against one at a time, and whether a step that does not fit into a
capped memory is split to the same gradients. It ends with 0 if all of that holds, 1 if not, 2 without a GPU.

`TUNE_INAT_PRETENDED_GPUS` (see `tune_inat.pretended`) lets all but the last run on a CPU, to try the script.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine
from benchmarks.processes import RowError, RowProcess
from tune_inat.config import TrialConfig
from tune_inat.gauge import LocalProcesses
from tune_inat.gpu_lines import gpu_lines
from tune_inat.inputs import open_store, read_inputs
from tune_inat.job import Job
from tune_inat.meter import SilentMeter
from tune_inat.mps import mps_runs
from tune_inat.preparation import open_bench
from tune_inat.pretended import n_pretended
from tune_inat.settings import make_settings
from tune_inat.store import CACHE_VARIABLE
from tune_inat.trial import EpochReport, run_trial
from tune_inat.workbench import open_worker_bench

# Without TF32, whose products have 10 bits: reuse and no reuse differ by rounding in fp32 alone.
FP32 = {"NVIDIA_TF32_OVERRIDE": "0"}
MAX_LOSS_DIFFERENCE = 0.02  # of val_loss: rounding grows over up to 7 epochs of training
MAX_ACCURACY_DIFFERENCE = 0.011  # three of the 287 validation images
MAX_SPLIT_DIFFERENCE = 1e-3  # of the first epoch's mean loss, as a share
CAPPED_TO = 0.4  # of what a step takes
# Without BatchNorm, parts of a batch add up to the whole; all of it trains.
SPLIT = TrialConfig(
    model="timm/vit_tiny_patch16_224", weights="none", freeze=0.0, batch_size=256, epochs=1, image_size=224
)


@dataclass
class Findings:
    """What was seen: lines to print, and what does not hold."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print a line at once: the machine may be taken away before the end."""
        self.lines.append(line)
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def check(self, holds: bool, what: str) -> None:
        """Say whether something holds."""
        self.say(f"{'ok' if holds else 'NOT OK'}: {what}")
        if not holds:
            self.problems.append(what)


def run_grid(folder: Path, name: str, *arguments: str, space: str = "grid") -> dict[str, Any]:
    """The summary of a search on the sample, with a cache of its own.

    Raises:
        RowError: it failed.
    """
    command = ["-m", "tune_inat.search", "--space", space, "--storage", str(folder / name), "--json"]
    command += ["--precision", "fp32", "--wandb", "disabled", *arguments]
    output = folder / f"{name}.json"
    RowProcess(command, {**FP32, CACHE_VARIABLE: str(folder / f"{name}.cache")}, output).run()
    summary: dict[str, Any] = json.loads(output.read_text())
    return summary


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """The largest differences of two searches' trials in val_loss and val_accuracy; infinite if any lacks."""
    trials = {trial["trial_id"]: trial for trial in other["trials"]}
    if trials.keys() != {trial["trial_id"] for trial in one["trials"]} or not trials:
        return math.inf, math.inf

    def largest(name: str) -> float:
        pairs = [(trial[name], trials[trial["trial_id"]][name]) for trial in one["trials"]]
        return max(math.inf if a is None or b is None else abs(a - b) for a, b in pairs)

    return largest("val_loss"), largest("val_accuracy")


def gain_of_two(packings: Sequence[Mapping[str, Any]]) -> float | None:
    """How many times as many images two trials on a GPU train as one does, as the plan has measured it."""
    for packing in packings:
        throughput = (packing["measured"] or {}).get("throughput", {})
        if "2" in throughput:
            return float(throughput["2"] / throughput["1"])
    return None


def look_at_grid(findings: Findings, folder: Path, *, space: str = "grid") -> None:
    """The grid with reuse, without, and one trial at a time."""
    shared = run_grid(folder, "reuse", space=space)
    plan = shared["planned"]["plan"]
    for line in gpu_lines(plan):
        findings.say(line)
    dids = [trial["did"] for trial in shared["trials"]]
    findings.check(all(did.get("gpu") for did in dids), f"each trial ran on a GPU: {dids[0]}")
    gain = gain_of_two(plan["packings"])
    findings.check(gain is not None, "two trials on one GPU were measured against one")
    if gain is not None:
        findings.say(f"two trials on one GPU train {gain:.2f} times as many images a second as one")
    alone = run_grid(folder, "alone", "--gpus-per-trial", "1", "--max-concurrent", "1", space=space)
    times = {name: each["measured"]["seconds"] for name, each in (("packed", shared), ("one by one", alone))}
    findings.say("; ".join(f"the grid {name}: {seconds:.1f} s" for name, seconds in times.items()))
    plain = run_grid(folder, "no-reuse", "--no-reuse", space=space)
    findings.say(f"the grid without reuse: {plain['measured']['seconds']:.1f} s")
    for name, other in (("without reuse", plain), ("one by one", alone)):
        loss, accuracy = differences(shared, other)
        close = loss <= MAX_LOSS_DIFFERENCE and accuracy <= MAX_ACCURACY_DIFFERENCE
        said = f"val_loss differs by at most {loss:.2e}, val_accuracy by {accuracy:.4f}"
        findings.check(close, f"packed with reuse and {name} give the same: {said}")


def look_at_split(findings: Findings, folder: Path) -> None:
    """A step that does not fit: the same epoch in the memory it wants and in a part of it."""
    os.environ[CACHE_VARIABLE] = str(folder / "split.cache")
    settings = make_settings(precision="fp32", image_size=SPLIT.image_size)
    inputs = read_inputs(settings, SilentMeter(), open_store(settings))
    job = replace(open_bench(inputs, SilentMeter(), gpus_per_trial=1).job, reuse=False)
    with LocalProcesses(job) as processes:
        card, memory = processes.card(), processes.memory(SPLIT)
    if not memory:
        findings.check(False, f"a step of {SPLIT.model} fits on the GPU: others may have its memory")
        return
    findings.say(
        f"a step of {SPLIT.model}, batch {SPLIT.batch_size}: {memory['step_bytes'] / 1e9:.2f} GB, "
        f"a process beside it {memory['process_bytes'] / 1e9:.2f} GB"
    )
    fraction = CAPPED_TO * memory["step_bytes"] / card.n_bytes
    whole, split = epoch_of(job), epoch_of(replace(job, memory_fraction=fraction))
    findings.check("micro_batches" not in whole.did, "the whole memory takes whole batches")
    n_parts = split.did.get("micro_batches", 1)
    findings.check(n_parts > 1, f"{CAPPED_TO:.0%} of it takes {n_parts} micro-batches")
    losses = whole.row["train_loss"], split.row["train_loss"]
    close = abs(losses[0] - losses[1]) <= MAX_SPLIT_DIFFERENCE * losses[0]
    findings.check(close, f"their mean losses are the same: {losses[0]:.5f} and {losses[1]:.5f}")


def epoch_of(job: Job) -> EpochReport:
    """The epoch of a trial as a worker with this job has it."""
    bench = open_worker_bench(job)
    bench.job = replace(bench.job, states_root=Path(tempfile.mkdtemp(dir=os.environ[CACHE_VARIABLE])))
    reports: list[EpochReport] = []
    run_trial(bench, SPLIT, horizons=(), report=reports.append)
    bench.rest()
    return reports[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at everything; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", default="grid", help="another search space for the sample")
    space = parser.parse_args(arguments).space
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not n_pretended():
        sys.stderr.write("benchmarks.gpu: there is no CUDA GPU here, so there is nothing to see.\n")
        return 2
    os.environ.update(FP32)  # before CUDA starts
    findings, started = Findings(), time.monotonic()
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if has_gpu else []
    findings.say(f"GPUs: {', '.join(names) or 'pretended ones, on a CPU'}; CUDA {torch.version.cuda}")
    findings.say(f"{describe_machine()}; CUDA MPS {'runs' if mps_runs() else 'does not run'}")
    parts: list[Callable[[Findings, Path], None]] = [
        lambda findings, folder: look_at_grid(findings, folder, space=space)
    ]
    if has_gpu and not n_pretended():
        parts.append(look_at_split)
    else:
        findings.say("left out: steps that do not fit, whose memory cannot be pretended")
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            try:
                part(findings, Path(scratch))
            except RowError as error:
                findings.check(False, str(error))
    findings.say(f"{time.monotonic() - started:.0f} s in all; {len(findings.problems)} things do not hold")
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())
