"""What went wrong with W&B, in plain words, and what to do."""

import errno
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tune_inat.wandb_files import OFFLINE, has_ended, read_recorded

FULL_BYTES = 1_000_000  # free on a disk that W&B's files have filled
MAX_REASON = 200  # characters
RESULTS = "trials.csv and report.html have their results"
SLOW = "W&B is slower than the search: its last runs stay on disk, and `wandb sync` sends them."


def reason_of(error: Exception) -> str:
    """An error's first line, without the passwords of proxies."""
    first_line = str(error).strip().partition("\n")[0]
    return re.sub(r"://[^/@\s]*@", "://", first_line)[:MAX_REASON] or type(error).__name__


def why_offline(error: Exception, place: str) -> str:
    """Why nothing more is sent to W&B, for a project that is called `place`."""
    reason = reason_of(error)
    stay = f"({reason}): its runs stay on disk from here on, and `wandb sync` sends them"
    if "401" in reason:
        return f"W&B refuses the API key {stay}. `wandb login` sets another."
    if "403" in reason:
        return f"W&B refuses {stay}. Does the API key belong to an account that may write to {place}?"
    return f"W&B cannot be reached {stay}."


def why_broken(error: Exception) -> str:
    """Why nothing more is written for W&B, not even to the disk."""
    hint = " Make room on the disk." if getattr(error, "errno", None) == errno.ENOSPC else ""
    return f"W&B keeps failing ({reason_of(error)}): nothing more is written for it; {RESULTS}.{hint}"


def is_torn(path: Path) -> bool:
    """Whether a run's file that is to be sent later is not whole: W&B does not say what it cannot write."""
    return path.parent.name.startswith(OFFLINE) and not has_ended(path)


def why_torn(torn: Sequence[Path], folder: Path) -> str:
    """Why runs in W&B's folder are not whole. On a full disk their rests are removed: they cannot be sent."""
    runs = "1 run on disk is" if len(torn) == 1 else f"{len(torn):,} runs on disk are"
    if shutil.disk_usage(folder).free >= FULL_BYTES:
        return f"W&B: {runs} not whole, {torn[0].parent} is the first; {RESULTS}."
    for path in torn:
        read_recorded(folder.parent, path.stem.removeprefix("run-"))
    return f"W&B: {runs} not whole, since the disk of {folder} is full; {RESULTS}. Make room there."
