"""A download comes whole whatever the server does, or says why not; from a server of our own on loopback."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tune_inat import disk
from tune_inat.download import N_TRIES, download
from tune_inat.errors import DataError, ResourceError
from tune_inat.meter import SilentMeter

CONTENT = bytes(range(256)) * 4_000  # 1 MB


@dataclass
class Server:
    """What the next answers are like, and which requests came."""

    content: bytes = CONTENT
    validators: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    cuts: list[int] = field(default_factory=list)  # bytes after which each next answer's connection breaks
    failures: list[int] = field(default_factory=list)  # status codes of the next answers
    has_ranges: bool = True
    has_length: bool = True
    range_shift: int = 0  # added to the start of each range sent
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.ranges.append(request.headers.get("Range"))
        if self.failures:
            request.send_error(self.failures.pop(0))
            return
        start = self._start(request)
        if start > len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.has_length:
            request.send_header("Content-Length", str(len(body)))
        for name, value in self.validators.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)

    def _start(self, request: BaseHTTPRequestHandler) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        is_same = request.headers.get("If-Range") in self.validators.values()
        return int(asked[1]) + self.range_shift if asked and is_same and self.has_ranges else 0


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    with QuietServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}/file.zip"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield state
        http.shutdown()


@pytest.fixture
def target(hostile_path: Path) -> Path:
    return hostile_path / "file.zip"


def fetch(server: Server, target: Path) -> list[float]:
    """Download, and return the pauses that were made."""
    pauses: list[float] = []
    download(server.url, target, meter=SilentMeter(), pause=pauses.append, timeout_seconds=5)
    return pauses


def test_whole_file_arrives_and_nothing_else_is_left(server: Server, target: Path) -> None:
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["file.zip"]


def test_file_that_is_there_is_not_asked_for(server: Server, target: Path) -> None:
    target.write_bytes(b"old")
    fetch(server, target)
    assert target.read_bytes() == b"old"
    assert server.ranges == []


@pytest.mark.parametrize(
    "validators", [{"ETag": '"one"'}, {"Last-Modified": "Tue, 01 Jan 2019 00:00:00 GMT"}]
)
def test_cut_connections_are_gone_on_with(server: Server, target: Path, validators: dict[str, str]) -> None:
    server.validators = validators
    server.cuts = [100_000, 50_000, 1]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]


def test_next_call_goes_on_with_what_an_earlier_left(server: Server, target: Path) -> None:
    server.cuts = [100_000]
    server.failures = []
    server.cuts += [0] * N_TRIES
    with pytest.raises(DataError, match=r"6 times in a row .*100,000 bytes\) is kept"):
        fetch(server, target)
    server.cuts = []
    fetch(server, target)
    assert server.ranges[-1] == "bytes=100000-"
    assert target.read_bytes() == CONTENT


def test_changed_file_is_begun_anew(server: Server, target: Path) -> None:
    server.cuts = [100_000] + [0] * N_TRIES
    with pytest.raises(DataError, match="in a row"):
        fetch(server, target)
    server.cuts, server.content, server.validators = [], CONTENT[::-1], {"ETag": '"two"'}
    fetch(server, target)
    assert target.read_bytes() == CONTENT[::-1]


def test_weak_etag_is_not_trusted(server: Server, target: Path) -> None:
    server.validators = {"ETag": 'W/"one"'}
    server.cuts = [100_000]
    fetch(server, target)
    assert server.ranges == [None, None]
    assert target.read_bytes() == CONTENT


def test_server_without_ranges_is_begun_anew(server: Server, target: Path) -> None:
    server.has_ranges = False
    server.cuts = [100_000]
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_wrong_range_is_not_appended(server: Server, target: Path) -> None:
    server.cuts = [100_000]
    server.range_shift = 7
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_part_longer_than_the_file_is_begun_anew(server: Server, target: Path) -> None:
    target.with_name("file.zip.part").write_bytes(bytes(len(CONTENT) + 5))
    origin = {"url": server.url, "validator": '"one"'}
    target.with_name("file.zip.part.json").write_text(json.dumps(origin))
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("origin", ["", "{", "[]", '{"url": "other", "validator": "\\"one\\""}'])
def test_part_of_unknown_origin_is_begun_anew(server: Server, target: Path, origin: str) -> None:
    target.with_name("file.zip.part").write_bytes(bytes(100))
    target.with_name("file.zip.part.json").write_text(origin)
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_file_of_unknown_length_ends_with_the_connection(server: Server, target: Path) -> None:
    server.has_length = False
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_tired_server_is_tried_again_ever_more_slowly(server: Server, target: Path) -> None:
    server.failures = [503, 500, 429, 408]
    assert fetch(server, target) == [1.0, 2.0, 4.0, 8.0]
    assert target.read_bytes() == CONTENT


def test_progress_starts_the_count_of_failures_anew(server: Server, target: Path) -> None:
    server.cuts = [1_000] * 20
    assert set(fetch(server, target)) == {1.0}
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("code", [403, 404, 410])
def test_refusal_is_an_error_at_once(server: Server, target: Path, code: int) -> None:
    server.failures = [code]
    with pytest.raises(DataError, match=f"refuses .HTTP {code}"):
        fetch(server, target)
    assert len(server.ranges) == 1


def test_unreachable_server_is_an_error_after_all_tries(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DataError, match=r"6 times in a row .*refused"):
        fetch(Server(url="http://127.0.0.1:1/file.zip"), target)


def test_folder_that_cannot_be_written_is_an_error_at_once(server: Server, target: Path) -> None:
    target.with_name("file.zip.part").mkdir()
    with pytest.raises(ResourceError, match=r"file.zip.part: cannot be written"):
        fetch(server, target)


def test_room_is_asked_for_beforehand(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"1,000,000,000\.00 GB are needed for the file and .* free"):
        disk.check_room(tmp_path, 10**18, "the file")
    disk.check_room(tmp_path, 1, "the file")
