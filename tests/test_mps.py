"""CUDA MPS: noticed where its daemon runs, and only there."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from tune_inat.mps import PART_VARIABLE, PIPE_VARIABLE, mps_runs, take_part


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(tempfile.mkdtemp())  # sockets need short paths
    monkeypatch.setenv(PIPE_VARIABLE, str(folder))
    return folder


def test_what_a_dead_daemon_left_does_not_count(pipes: Path) -> None:
    assert not mps_runs()
    os.mkfifo(pipes / "control")
    (pipes / "nvidia-cuda-mps-control.pid").write_text("999999999")
    assert not mps_runs()


def test_pipe_that_is_read_counts(pipes: Path) -> None:
    os.mkfifo(pipes / "control")
    reader = os.open(pipes / "control", os.O_RDONLY | os.O_NONBLOCK)
    assert mps_runs()
    os.close(reader)
    assert not mps_runs()


def test_socket_that_is_listened_to_counts(pipes: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(pipes / "control"))
        assert not mps_runs()
        server.listen()
        assert mps_runs()
    assert not mps_runs()


def test_daemon_that_lives_counts(pipes: Path) -> None:
    (pipes / "nvidia-cuda-mps-control.pid").write_text(f"{os.getpid()}\n")
    assert mps_runs()


@pytest.mark.parametrize(("per_gpu", "part"), [(2, "100"), (4, "50"), (8, "25")])
def test_each_process_may_use_twice_its_part(pipes: Path, per_gpu: int, part: str) -> None:
    environment: dict[str, str] = {}
    take_part(per_gpu, environment)
    assert environment == {}  # no daemon
    (pipes / "nvidia-cuda-mps-control.pid").write_text(str(os.getpid()))
    take_part(per_gpu, environment)
    assert environment == {PART_VARIABLE: part}
    chosen = {PART_VARIABLE: "7"}
    take_part(per_gpu, chosen)
    assert chosen == {PART_VARIABLE: "7"}  # the user's own stays
