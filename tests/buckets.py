"""An S3 server of our own on loopback, with buckets that programs reach as they would AWS's."""

import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

REGION = "us-east-1"


@dataclass
class Bucket:
    """A bucket, and the environment in which processes find its server."""

    name: str
    endpoint: str
    may_answer: threading.Event = field(default_factory=threading.Event)
    keeps_waiting: threading.Event = field(default_factory=threading.Event)  # somebody, while it is silent
    environment: dict[str, str] = field(default_factory=dict)

    def uri(self, below: str = "") -> str:
        return f"s3://{self.name}/{below}".rstrip("/")

    @property
    def options(self) -> str:
        """What a URI needs where the environment does not say where the server is."""
        return f"?endpoint_override={self.endpoint.partition('://')[2]}&scheme=http&region={REGION}"

    @property
    def client(self) -> Any:
        """Another library's view of it."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )

    def files(self, below: str = "") -> dict[str, int]:
        """The sizes of all files below, by name."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=below)
        found = {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", ())}
        return {key[len(below) :].lstrip("/"): size for key, size in found.items() if not key.endswith("/")}

    def read(self, name: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.name, Key=name)["Body"].read()
        return content

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=name, Body=content)

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=name)

    def clear(self) -> None:
        """Remove all that is in it: servers of one process share what they have."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        for key in [each["Key"] for page in pages for each in page.get("Contents", ())]:
            self.remove(key)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Have the server check credentials for a while; it knows none."""
        self._check_credentials_after(b"0")
        try:
            yield
        finally:
            self._check_credentials_after(b"inf")

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Have the server take requests for a while, and answer them only after it."""
        self.may_answer.clear()
        self.keeps_waiting.clear()
        try:
            yield
        finally:
            self.may_answer.set()

    def _check_credentials_after(self, n_requests: bytes) -> None:
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", n_requests, plain)
        urllib.request.urlopen(request).close()


@contextmanager
def open_bucket(name: str = "a-bucket") -> Iterator[Bucket]:
    """A server with one bucket, for as long as it is needed."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        bucket = Bucket(name, f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        bucket.may_answer.set()
        answer = server._server.app  # type: ignore[union-attr]

        def answer_when_allowed(*request: Any) -> Any:
            if not bucket.may_answer.is_set():
                bucket.keeps_waiting.set()
            bucket.may_answer.wait()
            return answer(*request)

        server._server.app = answer_when_allowed  # type: ignore[union-attr]
        bucket.environment |= {
            "AWS_ENDPOINT_URL": bucket.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
        bucket.client.create_bucket(Bucket=name)
        yield bucket
    finally:
        server.stop()
