"""Ray itself: a session of it, quiet, and what it has."""

import gc
import importlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from tune_inat.autoscaling import machines_on_demand
from tune_inat.devices import Cluster, Node, card_of
from tune_inat.disk import is_of_full_disk
from tune_inat.errors import ResourceError
from tune_inat.interrupts import listen_again
from tune_inat.pretended import n_pretended

# Measured on 2 cores with Ray 2.60, these take Tune's start from 5 s to 1.5 s and its
# output to nothing. A trial's clean-up may take 30 s (it saves its state) before its process is given up.
QUIET_RAY = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a sign of life has no metrics
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # Tune hands it on: a relative path means the same in the workers
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
WORKER_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
    # glibc hands the memory of a batch back to the system when the batch is done, above all in threads other
    # than the first, where trials run. With these, epochs of ResNet-50 take 6 % less (2 cores, 2026-11).
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # the most that glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
}
CONNECT_SECONDS = 5.0
WATCH_SECONDS = 0.2  # between two looks after Ray's processes
MAX_SOCKET_FOLDER = 40  # characters: Unix allows 107 in all, and Ray's own part has 66
LEAVE_SECONDS = 3.0  # to say goodbye to a cluster
OBJECT_STORE_BYTES = 256 * 2**20  # Ray carries a search's description only; images and weights are on disk


_sessions: list[threading.Thread] = []  # of this process: the last one, which may still be ending


def quiet_ray() -> None:
    """Set what Ray and Tune read from the environment; what the user has set stays."""
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)


def keep_keys_out_of_commands() -> None:
    """Have Tune pass no AWS keys to its workers: it does so in their command lines, which all users can read.

    On this machine workers have them from the environment, and no trial asks AWS for anything.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }


def cluster_of(nodes: Sequence[Mapping[str, Any]], on_demand: Sequence[Node] = ()) -> Cluster:
    """The devices of the nodes that are up, as Ray describes them; or of those that would come on demand.

    Args:
        on_demand: all machines that the cluster may start, those that are up among them.
    """
    up = tuple(
        Node(
            n_cpus=int(node["Resources"].get("CPU", 0)),
            n_gpus=int(node["Resources"].get("GPU", 0)),
            card=card_of(node["Resources"]),
            node_id=node.get("NodeID", ""),
        )
        for node in nodes
        if node["Alive"]
    )
    machines = max(up, tuple(on_demand), key=_devices_of)
    n_gpus, n_cpus = _devices_of(machines)
    return Cluster(n_cpus, n_gpus, machines)


def _devices_of(machines: Sequence[Node]) -> tuple[int, int]:
    """GPUs and CPU cores."""
    return sum(node.n_gpus for node in machines), sum(node.n_cpus for node in machines)


@contextmanager
def ray_session(
    address: str | None, *, n_gpus: int | None = None, on_death: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], Cluster]]:
    """Start or join Ray in the background; the value waits for it and says what there is.

    Ray ends in the background as well; Python waits for that, and so does the next session.

    Args:
        address: `auto`, or `host:port` of a running cluster; `None` starts Ray on this machine alone.
        n_gpus: how many GPUs to announce on this machine; `None` counts them, or those that are pretended.
        on_death: called, in another thread, when Ray has died on this machine alone.
    """
    quiet_ray()
    failure: list[BaseException] = []
    is_started, is_over = threading.Event(), threading.Event()

    def live() -> None:
        """Ray's processes die with the thread that started them: it stays until the session is over."""
        try:
            _init_ray(address, n_gpus)
        except BaseException as error:  # noqa: BLE001  # carried to the thread that waits
            failure.append(error)
        is_started.set()
        if address is None and not failure:
            _watch(is_over, on_death)
        is_over.wait()
        ray.shutdown()

    def wait() -> Cluster:
        is_started.wait()
        listen_again()
        if failure and address is None and is_of_full_disk(failure[0]):
            raise failure[0]  # who knows the disks says which one
        if failure:
            raise _why_no_ray(address, failure[0]) from failure[0]
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        if not any(node["Alive"] for node in nodes):
            raise _why_no_ray(address, RuntimeError("its node has died again"))
        on_demand = () if address is None else machines_on_demand(ray.get_runtime_context().gcs_address)
        return cluster_of(nodes, on_demand)

    for earlier in _sessions:
        earlier.join()
    # Of a cluster no process is ours: nothing has to be waited for, and one that does not answer cannot be.
    thread = threading.Thread(target=live, name="ray-session", daemon=address is not None)
    try:
        thread.start()
        if not thread.daemon:
            _sessions[:] = [thread]
        yield wait
    finally:
        gc.collect()  # what still refers to Ray's actors would end this process if it went after Ray
        is_over.set()
        if thread.daemon:
            thread.join(LEAVE_SECONDS)


def _watch(is_over: threading.Event, on_death: Callable[[], None]) -> None:
    """Look after Ray's processes of this machine: without them Ray soon ends this one, without a word."""
    node: Any = ray._private.worker._global_node
    while not is_over.wait(WATCH_SECONDS):
        if any(kind == "raylet" for kind, _ in node.dead_processes()):
            on_death()
            return


def _init_ray(address: str | None, n_gpus: int | None) -> None:
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
        "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
    }
    # What the raylet says of a process that died would go to stdout; `failures` says it in its place.
    ray._private.worker._worker_logs_enabled = False
    if address is not None:
        _knock(address)
        ray.init(address=address, **common)
        return
    with _loopback_alone(), _apart():
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            num_gpus=n_gpus if n_gpus is not None else n_pretended() or None,
            include_dashboard=False,
            _temp_dir=_short_folder(),
            object_store_memory=OBJECT_STORE_BYTES,
            **common,
        )


def _short_folder() -> str | None:
    """Where Ray keeps its sockets if $TMPDIR is too long for their names; else `None`: where it likes."""
    is_too_long = len(os.environ.get("TMPDIR", "")) > MAX_SOCKET_FOLDER
    return "/tmp/ray" if is_too_long and "RAY_TMPDIR" not in os.environ else None


@contextmanager
def _loopback_alone() -> Iterator[None]:
    """Around the start of Ray: none of its processes listens to other machines, which nothing would stop.

    Ray listens on all addresses otherwise, and runs what it is sent. It turns `_node_ip_address="127.0.0.1"`
    back into the machine's own address, unless it takes itself for one that knows no clusters: as on macOS,
    where it reads RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER into this constant when it is imported.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _apart() -> Iterator[None]:
    """Around the start of Ray: its processes get a process group of their own.

    `timeout`, and whatever else ends a whole group, would end Ray beneath a search that still has to write
    its results. Ray's processes end with this one in any case.
    """
    services: Any = importlib.import_module("ray._private.services")
    before = services.ConsolePopen
    services.ConsolePopen = partial(before, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = before


def _knock(address: str) -> None:
    """Find out whether anybody is there: Ray itself would try for minutes.

    Raises:
        OSError: nobody answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _why_no_ray(address: str | None, error: BaseException) -> ResourceError:
    if address is None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return ResourceError(f"Ray did not start on this machine ({reason}). The same command tries again.")
    return ResourceError(f"--address {address}: no Ray cluster answers there ({error}). Is it up?")
