"""Fixtures of the tests that speak to a bucket: a pytest plugin."""

from collections.abc import Iterator

import pytest

from tests.buckets import Bucket, open_bucket


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[Bucket]:
    """A server for the tests of a file, with one bucket."""
    with open_bucket() as bucket:
        yield bucket
        bucket.clear()


@pytest.fixture
def bucket(bucket_server: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, which this process and all that it starts find as they would AWS's."""
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TUNE_INAT_STORAGE_SECONDS", "0")  # what fails here would fail for ever
    yield bucket_server
    bucket_server.clear()
