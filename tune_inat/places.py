"""Where a process that works for a search finds images and keeps its cache, on whatever machine it runs."""

import socket
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from tune_inat.data import find_images
from tune_inat.errors import DataError
from tune_inat.job import Job
from tune_inat.meter import SilentMeter
from tune_inat.origins import is_known_by_name
from tune_inat.remote import hide_secrets, is_uri
from tune_inat.store import Store, default_root


def this_host() -> str:
    """What machines are told apart by."""
    return socket.gethostname()


def found_everywhere(source: str) -> str:
    """`--data` as it means the same in every folder of every machine that has it."""
    return source if is_known_by_name(source) or is_uri(source) else str(Path(source).absolute())


def at_this_host(job: Job) -> Job:
    """A job as it can be done here: with this machine's own cache and its own copies of the images.

    Raises:
        DataError: this machine cannot get at the images, or has others.
    """
    if job.host in ("", this_host()):
        return job
    store = Store(default_root() if job.reuse else _scratch(), job.store.budget_bytes)
    try:
        folder = find_images(job.source, cache=store.root, meter=SilentMeter())
    except DataError as error:
        raise DataError([f"on node {this_host()}: {problem}" for problem in error.problems]) from error
    files = {file.content: file.path for file in folder.files}
    missing = job.files.keys() - files.keys()
    if missing:
        raise DataError(
            f"--data {hide_secrets(job.source)}: node {this_host()} has not the images that {job.host} has: "
            f"{len(missing):,} of {len(job.files):,} are missing. Put them where all nodes see the same."
        )
    return replace(job, store=store, files={content: files[content] for content in job.files})


@cache
def _scratch() -> Path:
    """A cache for this process alone."""
    return Path(tempfile.mkdtemp(prefix="tune_inat-"))
