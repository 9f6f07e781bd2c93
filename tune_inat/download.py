"""A large file over HTTP, whole: a download that was cut goes on where it stopped."""

import http.client
import json
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tune_inat.disk import check_room, writing
from tune_inat.errors import DataError
from tune_inat.meter import Meter

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0  # without a byte
N_TRIES = 6  # in a row that bring nothing
LONGEST_PAUSE_SECONDS = 30.0
TRY_AGAIN = frozenset({408, 416, 425, 429})  # and all from 500

logger = logging.getLogger(__name__)


class _Interrupted(Exception):
    """The server or the network failed in a way that another try may mend."""


def download(
    url: str,
    target: Path,
    *,
    meter: Meter,
    pause: Callable[[float], None] = time.sleep,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Fetch a file, going on with what an earlier call has left beside `target`.

    A part is only gone on with where the server says that its file is still the same (by a strong ETag,
    else by its time of change); it is begun anew otherwise. Proxies and certificates are as usual.

    Args:
        target: where the whole file will be; returns at once if it is there.
        pause: waits between tries, which come ever more slowly and end after six that brought nothing.

    Raises:
        DataError: the server refuses, or cannot be reached.
        ResourceError: the disk has no room.
    """
    part = _Part(target)
    n_failures = 0
    while not target.exists():
        n_before = part.n_bytes()
        try:
            _fetch(url, part, meter, timeout_seconds)
            part.finish()
        except _Interrupted as error:
            n_failures = 1 if part.n_bytes() > n_before else n_failures + 1
            if n_failures >= N_TRIES:
                raise DataError(
                    f"{url}: the download failed {N_TRIES} times in a row ({error}). What has arrived "
                    f"({part.n_bytes():,} bytes) is kept: the same command goes on from there."
                ) from error
            logger.info("%s: %s, trying again after %s bytes", url, error, part.n_bytes())
            pause(min(2.0 ** (n_failures - 1), LONGEST_PAUSE_SECONDS))


@dataclass(frozen=True)
class _Part:
    """What has arrived of a file, and of which state of the server's file it is a part."""

    target: Path

    @property
    def path(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def _origin(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part.json")

    def n_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def validator(self, url: str) -> str | None:
        """What names the state of the server's file; `None` if there is nothing to go on with."""
        try:
            origin = json.loads(self._origin.read_bytes())
            validator = origin["validator"] if origin["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return validator if isinstance(validator, str) and self.n_bytes() else None

    def begin(self, url: str, validator: str | None) -> None:
        with writing(self.path):
            self.path.write_bytes(b"")
            self._origin.write_text(json.dumps({"url": url, "validator": validator}), "utf-8")

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)

    def finish(self) -> None:
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self.target)
        self._origin.unlink(missing_ok=True)


def _fetch(url: str, part: _Part, meter: Meter, timeout_seconds: float) -> None:
    """One request, from where the part ends to the file's end.

    Raises:
        _Interrupted: the end was not reached.
    """
    validator = part.validator(url)
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "tune_inat"})
    if validator is not None:
        request.add_header("Range", f"bytes={part.n_bytes()}-")
        request.add_header("If-Range", validator)
    opener = urllib.request.build_opener(_CarefulRedirects())
    try:
        with opener.open(request, timeout=timeout_seconds) as response:
            n_total = _expected_bytes(response, part, url)
            _append(response, part, n_total, meter)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is longer than the file
            part.drop()
        if error.code in TRY_AGAIN or error.code >= 500:
            raise _Interrupted(f"HTTP {error.code} {error.reason}") from error
        raise DataError(f"{url}: the server refuses (HTTP {error.code} {error.reason}).") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(f"{url}: the server's certificate is not trusted ({reason}).") from error
        raise _Interrupted(str(reason) or type(reason).__name__) from error
    if n_total is not None and part.n_bytes() != n_total:
        raise _Interrupted(f"{part.n_bytes():,} of {n_total:,} bytes arrived")


class _CarefulRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects as usual, but never out of encryption, and without what was meant for another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        target = urlsplit(newurl)
        if target.scheme not in ("http", "https") or (req.type == "https" and target.scheme != "https"):
            place = f"{target.scheme}://{target.hostname}"
            raise DataError(f"{req.full_url}: refused, since it leads to {place}, without encryption.")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        for name in ("Authorization", "Proxy-authorization", "Cookie"):  # a proxy's password, above all
            if request is not None:
                request.remove_header(name)
        return request


def _expected_bytes(response: Any, part: _Part, url: str) -> int | None:
    """The whole file's size, with the part made ready for what `response` brings. `None`: unknown."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != part.n_bytes():
            part.drop()
            raise _Interrupted("the server sent another range than the one asked for")
        return None if match[2] == "*" else int(match[2])
    part.begin(url, _validator_of(response))  # a new file, a changed one, or a server without ranges
    length = response.headers.get("Content-Length")
    return int(length) if length is not None and length.isdecimal() else None


def _validator_of(response: Any) -> str | None:
    etag = response.headers.get("ETag")
    if etag is not None and not etag.startswith("W/"):
        return str(etag)
    changed = response.headers.get("Last-Modified")
    return None if changed is None else str(changed)


def _append(response: Any, part: _Part, n_total: int | None, meter: Meter) -> None:
    n_have = part.n_bytes()
    if n_total is not None:
        check_room(part.path.parent, n_total - n_have, part.target.name)
    with (
        meter.task(f"Downloading {part.target.name}", n_total, "bytes") as advance,
        part.path.open("ab") as file,
    ):
        advance(n_have)
        while chunk := response.read1(CHUNK_BYTES):
            with writing(part.path):
                file.write(chunk)
                file.flush()
            advance(len(chunk))
