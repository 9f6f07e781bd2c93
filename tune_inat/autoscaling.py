"""The machines that Ray's autoscaler may start for a cluster, by the file that it was started with."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tune_inat.devices import Node, card_of

PROCESSES = Path("/proc")
CONFIG, CLUSTER = "--autoscaling-config=", "--gcs-address="  # in the command line of Ray's monitor


def n_kept_up(cluster: str, processes: Path = PROCESSES) -> int:
    """How many workers the autoscaler keeps up all the time: of one's own machines, all.

    Args:
        cluster, processes: as in `machines_on_demand`.
    """
    config = _config_of(cluster, processes)
    kinds = (config.get("available_node_types") or {}).values()
    n_kept = sum(int(kind.get("min_workers", 0)) for kind in kinds)
    return min(n_kept, int(config.get("max_workers", n_kept)))


def machines_on_demand(cluster: str, processes: Path = PROCESSES) -> tuple[Node, ...]:
    """All workers that may come to a cluster, as many as it may have at a time.

    Ray tells nobody, but its monitor runs on the head, where searches run. Elsewhere, and where machines do
    not come by themselves, there are none.

    Args:
        cluster: its address, `host:port`.
        processes: where the machine's processes are listed.
    """
    return workers_of(_config_of(cluster, processes))


def workers_of(config: Mapping[str, Any]) -> tuple[Node, ...]:
    """The workers that a `cluster.yaml` allows, with the devices that it says they have."""
    workers: list[Node] = []
    for name, kind in (config.get("available_node_types") or {}).items():
        resources = kind.get("resources") or {}
        n_cpus, n_gpus = (int(resources.get(device, 0)) for device in ("CPU", "GPU"))
        node = Node(n_cpus, n_gpus, card_of(resources))
        if name != config.get("head_node_type") and node.n_cpus > 0:
            workers += [node] * int(kind.get("max_workers", 0))
    return tuple(workers[: int(config.get("max_workers", len(workers)))])


def _config_of(cluster: str, processes: Path) -> Mapping[str, Any]:
    """The file that a cluster was started with, if its autoscaler runs on this machine."""
    for command in _commands(processes):
        options = {word.partition("=")[0] + "=": word.partition("=")[2] for word in command}
        if options.get(CLUSTER) == cluster and CONFIG in options:
            with suppress(OSError, yaml.YAMLError):
                config: Mapping[str, Any] = yaml.safe_load(Path(options[CONFIG]).expanduser().read_text())
                return config
    return {}


def _commands(processes: Path) -> Iterator[list[str]]:
    for path in processes.glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            yield path.read_bytes().decode(errors="replace").split("\0")
