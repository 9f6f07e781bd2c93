"""Images in a bucket become a folder here, copied once; from an S3 server of our own on loopback."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.buckets import Bucket
from tune_inat.errors import DataError
from tune_inat.folders import is_image_name
from tune_inat.meter import Advance, SilentMeter
from tune_inat.remote import copy_images, hide_secrets

pytest_plugins = ["tests.bucket_fixtures"]

LONG_SECONDS = 30.0


def uri_of(bucket: Bucket, below: str = "images") -> str:
    """A URI that says itself where the server is."""
    return f"{bucket.uri(below)}{bucket.options}"


def copy(uri: str, home: Path) -> dict[str, bytes]:
    folder = copy_images(uri, home, is_wanted=is_image_name, meter=SilentMeter())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_images_are_copied_and_nothing_else(bucket: Bucket, hostile_path: Path) -> None:
    files = {"a/1.png": b"one", "b c/ü'2\".JPG": b"two", "b c/deep/3.gif": b""}
    for name, content in files.items():
        bucket.put(f"images/{name}", content)
    bucket.put("images/a/huge.tar", b"no image")
    bucket.put("images/a/.hidden.png", b"hidden")
    bucket.put("other/4.png", b"elsewhere")
    assert copy(uri_of(bucket), hostile_path) == files


def test_what_is_there_is_not_copied_again(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("images/a/1.png", b"one")
    folder = copy_images(uri_of(bucket), tmp_path, is_wanted=is_image_name, meter=SilentMeter())
    copied = folder / "a" / "1.png"
    times = copied.stat()
    copied.write_bytes(b"our")  # of the same size and date: only a second copy would undo it
    os.utime(copied, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert copy(uri_of(bucket), tmp_path) == {"a/1.png": b"our"}


class CountingMeter:
    """Adds up what is copied; the first copy lasts until it is told that another one waits."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.is_copying, self.may_go_on = threading.Event(), threading.Event()

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        self.is_copying.set()
        self.may_go_on.wait(LONG_SECONDS)
        yield self._advance

    def _advance(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes


def test_two_processes_of_a_machine_copy_each_image_once(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("images/a/1.png", b"one")
    bucket.put("images/a/2.png", b"four")
    first, second = CountingMeter(), CountingMeter()

    def copy_as(meter: CountingMeter) -> Path:
        return copy_images(uri_of(bucket), tmp_path, is_wanted=is_image_name, meter=meter)

    with ThreadPoolExecutor(2) as pool:
        copies = [pool.submit(copy_as, first)]
        assert first.is_copying.wait(LONG_SECONDS)
        copies.append(pool.submit(copy_as, second))
        second.may_go_on.set()
        is_second_copying = second.is_copying.wait(0.5)  # it has listed the bucket, and waits for the first
        first.may_go_on.set()
    assert not is_second_copying
    assert (first.n_bytes, second.n_bytes) == (7, 0)
    assert len({copy.result() for copy in copies}) == 1


def test_changed_and_removed_files_are_followed(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        bucket.put(f"images/{name}", b"old")
    copy(uri_of(bucket), tmp_path)
    bucket.put("images/a/1.png", b"newer")
    bucket.remove("images/b/3.png")
    assert copy(uri_of(bucket), tmp_path) == {"a/1.png": b"newer", "a/2.png": b"old"}


def test_file_of_another_date_is_copied_again(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("images/a/1.png", b"new")
    folder = copy_images(uri_of(bucket), tmp_path, is_wanted=is_image_name, meter=SilentMeter())
    (folder / "a" / "1.png").write_bytes(b"old")  # of the same size; written now, so later than the source
    assert copy(uri_of(bucket), tmp_path) == {"a/1.png": b"new"}


def test_folder_that_became_a_file_is_followed(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("images/a/x.png/1.png", b"old")
    copy(uri_of(bucket), tmp_path)
    bucket.remove("images/a/x.png/1.png")
    bucket.put("images/a/x.png", b"new")
    assert copy(uri_of(bucket), tmp_path) == {"a/x.png": b"new"}


def test_remains_of_a_cut_copy_are_no_harm(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("images/a/1.png", b"one")
    folder = copy_images(uri_of(bucket), tmp_path, is_wanted=is_image_name, meter=SilentMeter())
    (folder / "a" / ".0123.part").write_bytes(b"half")
    (folder / "a" / "1.png").write_bytes(b"on")
    assert copy(uri_of(bucket), tmp_path) == {"a/1.png": b"one"}


def test_whole_bucket_may_be_given(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("a/1.png", b"one")
    assert copy(f"s3://{bucket.name}{bucket.options}", tmp_path) == {"a/1.png": b"one"}


def test_missing_bucket_is_an_error(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://nowhere/images.* cannot be listed .*Is the .* right\?"):
        copy(f"s3://nowhere/images{bucket.options}", tmp_path)


def test_missing_path_is_an_error(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be listed .*Is the path right\?"):
        copy(uri_of(bucket, "nowhere"), tmp_path)


def test_path_without_images_is_an_error(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("images/a/1.txt", b"text")
    with pytest.raises(DataError, match="there are no images"):
        copy(uri_of(bucket), tmp_path)


def test_object_names_that_are_no_paths_are_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("images/a/1.png", b"one")
    bucket.put("images/a//b.png", b"two")
    with pytest.raises(DataError, match=r"'a//b.png' is not a path below it"):
        copy(uri_of(bucket), tmp_path)


def test_files_of_a_file_uri_are_copied(hostile_path: Path) -> None:
    (hostile_path / "in" / "a").mkdir(parents=True)
    (hostile_path / "in" / "a" / "1.png").write_bytes(b"one")
    assert copy((hostile_path / "in").as_uri(), hostile_path / "out") == {"a/1.png": b"one"}


@pytest.mark.parametrize("uri", ["s3://?region=us-east-1", "file:///"])
def test_uri_without_a_place_is_an_error(uri: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no bucket or folder"):
        copy(uri, tmp_path)


def test_wrong_credentials_are_hinted_at(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("images/a/1.png", b"one")
    with (
        bucket.refusing(),
        pytest.raises(DataError, match=r"(?s)cannot be listed .*Is AWS_ACCESS_KEY_ID right\?"),
    ):
        copy(uri_of(bucket), tmp_path)


def test_unknown_scheme_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http:// cannot be read. Known are s3://, gs://"):
        copy("http://example.org/images", tmp_path)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://KEY:SECRET@bucket/a?region=x", "s3://bucket/a?region=x"),
        ("s3://KEY:SEC/RET@bucket/a", "s3://bucket/a"),
        ("gs://anonymous@bucket", "gs://bucket"),
        ("s3://bucket/a?secret_key=S&region=x&session_token=S", "s3://bucket/a?region=x"),
        ("s3://bucket/a?X-Amz-Signature=S", "s3://bucket/a"),
        ("https://store/a?sig=S&sigma=1", "https://store/a?sigma=1"),
        ("--data=s3://KEY:SECRET@bucket/a", "--data=s3://bucket/a"),
        ("photos/me@home:1?key=2", "photos/me@home:1?key=2"),
    ],
)
def test_secrets_are_not_shown(uri: str, shown: str) -> None:
    assert hide_secrets(uri) == shown


def test_errors_hold_no_secrets(bucket: Bucket, tmp_path: Path) -> None:
    for uri in (f"s3://KEY:SECRET@nowhere/a{bucket.options}", "s3://KEY:SECRET@nowhere/a?nonsense=1"):
        with pytest.raises(DataError, match="nowhere") as caught:
            copy(uri, tmp_path)
        assert "SECRET" not in str(caught.value)
