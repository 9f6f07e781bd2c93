"""CUDA's Multi-Process Service: whether its daemon runs, and a trial's part of a GPU under it.

Without MPS a GPU gives its processes turns: two trials on it gain only where one leaves it idle. With MPS
their kernels run side by side. See NVIDIA's "Multi-Process Service" guide.
"""

import os
import socket
import stat
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

PIPE_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
PART_VARIABLE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
DEFAULT_PIPES = "/tmp/nvidia-mps"
PID_FILE = "nvidia-cuda-mps-control.pid"
# Each process may use twice its part of the processors: NVIDIA's advice where loads come and go, as no
# process then fills the GPU and what one leaves idle another takes.
OVERBOOKING = 2


def mps_runs() -> bool:
    """Whether the control daemon of MPS answers at the place where CUDA would look for it."""
    folder = Path(os.environ.get(PIPE_VARIABLE, DEFAULT_PIPES))
    return _is_listened_to(folder / "control") or _is_alive(folder / PID_FILE)


def take_part(per_gpu: int, environment: MutableMapping[str, str]) -> None:
    """Limit what this process may use of its GPU's processors; before CUDA starts, if MPS runs.

    A limit that the user has set stays.
    """
    if per_gpu > 1 and mps_runs():
        environment.setdefault(PART_VARIABLE, str(min(100, OVERBOOKING * 100 // per_gpu)))


def _is_listened_to(pipe: Path) -> bool:
    """Whether a process has the other end of a named pipe or socket."""
    with suppress(OSError):
        mode = pipe.stat().st_mode
        if stat.S_ISFIFO(mode):
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # fails where nobody reads
            return True
        if stat.S_ISSOCK(mode):
            return any(_answers(pipe, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET))
    return False


def _answers(pipe: Path, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as client:
        return client.connect_ex(str(pipe)) == 0


def _is_alive(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True
