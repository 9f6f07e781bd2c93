"""What the nodes of a cluster see of each other's disks."""

import socket
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_inat.bucket import RemoteFolder
from tune_inat.disk import make_folder, writing
from tune_inat.errors import ResourceError, UserError
from tune_inat.storages import FolderStorage, Storage

ANSWER_SECONDS = 120.0  # a node's first process takes its time
GONE = (TaskUnschedulableError, NodeDiedError, WorkerCrashedError)


def check_storage(storage: Storage) -> None:
    """Refuse a storage that not all nodes of the cluster can use.

    Raises:
        ResourceError: with the nodes that cannot, and why.
    """
    if isinstance(storage, FolderStorage):
        check_shared(storage.root.absolute(), f"--storage {storage.root}")
    elif storage.states is not None:
        _check_reached(storage.states)


def check_shared(folder: Path, what: str) -> None:
    """Refuse a folder that not all nodes of the cluster see.

    Ray itself finds out at the first checkpoint, and then ends as if all were well.

    Args:
        folder: a path on this node; made if it is missing.
        what: what asks for it, to begin the sentence with: `--storage runs`.

    Raises:
        ResourceError: with the nodes that do not see it.
    """
    make_folder(folder)
    marker = folder / f".seen-{uuid.uuid4().hex}"
    with writing(marker):
        marker.write_bytes(b"")
    try:
        blind = [address for address, sees in _ask_nodes(_sees, str(marker)).items() if not sees]
    finally:
        marker.unlink(missing_ok=True)
    if blind:
        raise ResourceError(
            f"{what}: the nodes {', '.join(sorted(blind))} of the cluster do not see {folder} of "
            f"{socket.gethostname()}. Trials on all nodes keep their epochs there: give a folder that all "
            "nodes share, such as one on NFS."
        )


def _check_reached(remote: RemoteFolder) -> None:
    """Refuse a bucket that not all nodes can write to: each keeps there what its trials have trained."""
    problems = _ask_nodes(_why_not_reached, remote)
    if any(problems.values()):
        raise ResourceError(
            [f"on node {address}: {problem}" for address, problem in sorted(problems.items()) if problem]
        )


def _ask_nodes(question: Any, about: Any) -> dict[str, Any]:
    """The answer of each node that is up, by its address. One that goes meanwhile gets no trial: it has none.

    Raises:
        ResourceError: a node does not answer.
    """
    asked = {
        node["NodeManagerAddress"]: question.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(about)
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }
    answers = {}
    for address, answer in asked.items():
        with suppress(*GONE):
            try:
                answers[address] = ray.get(answer, timeout=ANSWER_SECONDS)
            except GetTimeoutError as error:
                raise ResourceError(
                    f"The node {address} of the cluster has not answered for {ANSWER_SECONDS:g} s. Start Ray "
                    "there again, or stop it."
                ) from error
    return answers


@ray.remote(num_cpus=0)
def _why_not_reached(remote: RemoteFolder) -> str | None:
    try:
        remote.check()
    except UserError as error:
        return " ".join(error.problems)
    return None


@ray.remote(num_cpus=0)
def _sees(path: str) -> bool:
    return Path(path).exists()
