"""What the nodes of a cluster see of each other's disks."""

import socket
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_inat.disk import make_folder, writing
from tune_inat.errors import ResourceError

ANSWER_SECONDS = 120.0  # a node's first process takes its time


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
        asked = {
            node["NodeManagerAddress"]: _sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(marker))
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        }
        blind = [address for address, answer in asked.items() if not _answer(answer)]
    finally:
        marker.unlink(missing_ok=True)
    if blind:
        raise ResourceError(
            f"{what}: the nodes {', '.join(sorted(blind))} of the cluster do not see {folder} of "
            f"{socket.gethostname()}. Trials on all nodes keep their epochs there: give a folder that all "
            "nodes share, such as one on NFS."
        )


@ray.remote(num_cpus=0)
def _sees(path: str) -> bool:
    return Path(path).exists()


def _answer(answer: Any) -> bool:
    return bool(ray.get(answer, timeout=ANSWER_SECONDS))
