"""A folder in a bucket: files are there whole or not at all, and what is wrong is said before work begins."""

from pathlib import Path

import pytest

from tests.buckets import Bucket
from tune_inat.bucket import RemoteFolder, UnreachableError
from tune_inat.errors import DataError, ResourceError

pytest_plugins = ["tests.bucket_fixtures"]


def test_files_come_back_as_they_were(bucket: Bucket, hostile_path: Path) -> None:
    folder = RemoteFolder(bucket.uri("runs")) / "ein Wald's"
    (hostile_path / "a").write_bytes(b"x" * 100)
    folder.send(hostile_path / "a", "deep/er/a b'ü.bin")
    folder.write("b", b"new")
    assert {name: file.n_bytes for name, file in folder.files(recursive=True).items()} == {
        "deep/er/a b'ü.bin": 100,
        "b": 3,
    }
    assert folder.fetch("deep/er/a b'ü.bin", hostile_path / "new" / "b")
    assert (hostile_path / "new" / "b").read_bytes() == b"x" * 100
    assert [path.name for path in (hostile_path / "new").iterdir()] == ["b"]


def test_what_is_not_there_is_no_error(bucket: Bucket, tmp_path: Path) -> None:
    folder = RemoteFolder(bucket.uri("nowhere"))
    assert folder.files() == {}
    assert folder.folders() == []
    assert folder.read("a") is None
    assert not folder.fetch("a", tmp_path / "a")
    folder.remove("a")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "a//b"])
def test_names_that_lead_elsewhere_are_refused(bucket: Bucket, name: str) -> None:
    bucket.put(f"runs/grid/{name}", b"x")
    with pytest.raises(DataError, match="is not a path below it"):
        RemoteFolder(bucket.uri("runs"), "grid").files(recursive=True)


def test_what_is_removed_is_gone(bucket: Bucket) -> None:
    folder = RemoteFolder(bucket.uri("runs"))
    for name in ("a", "b/c"):
        folder.write(name, b"x")
    folder.remove_all()
    assert bucket.files() == {}


def test_check_of_a_good_bucket_leaves_nothing(bucket: Bucket) -> None:
    RemoteFolder(bucket.uri("runs")).check()
    assert bucket.files() == {}


def test_missing_bucket_is_refused(bucket: Bucket) -> None:
    with pytest.raises(ResourceError, match=r"s3://nobody-has-this/runs.*Is the bucket's name right"):
        RemoteFolder("s3://nobody-has-this/runs").check()


def test_wrong_credentials_are_refused(bucket: Bucket) -> None:
    with bucket.refusing(), pytest.raises(ResourceError, match=r"(?s)Is AWS_ACCESS_KEY_ID right"):
        RemoteFolder(bucket.uri("runs")).check()


def test_unknown_kind_of_storage_is_refused() -> None:
    with pytest.raises(DataError, match=r"ftp:// cannot be read. Known are s3://"):
        RemoteFolder("ftp://host/runs").check()


def test_what_is_given_up_is_told_without_secrets(bucket: Bucket) -> None:
    endpoint = bucket.endpoint.removeprefix("http://")
    uri = f"s3://KEY:SECRET@nobody-has-this/runs?endpoint_override={endpoint}&scheme=http&region=us-east-1"
    with pytest.raises(UnreachableError, match="cannot be written") as caught:
        RemoteFolder(uri).write("a", b"x")
    assert "SECRET" not in str(caught.value)


def test_server_that_comes_back_is_waited_for(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RemoteFolder(bucket.uri("runs"), patience_seconds=60.0)
    folder.write("a", b"x")
    pauses: list[float] = []

    def come_back(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            allowed.__exit__(None, None, None)

    allowed = bucket.refusing()
    allowed.__enter__()
    monkeypatch.setattr("time.sleep", come_back)
    assert folder.read("a") == b"x"
    assert pauses == [0.5, 1.0]  # growing


def test_name_can_be_typed_again(bucket: Bucket) -> None:
    folder = RemoteFolder(f"s3://KEY:SECRET@{bucket.name}/runs?region=eu-west-1") / "a b"
    assert folder.name == f"s3://{bucket.name}/runs/a%20b?region=eu-west-1"
