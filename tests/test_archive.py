"""An archive is unpacked whole and inside its folder, or not at all."""

import io
import stat
import zipfile
from pathlib import Path

import pytest

from tests.image_files import noise
from tune_inat.archive import unpack
from tune_inat.errors import DataError
from tune_inat.meter import SilentMeter


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_all_files_come_out(hostile_path: Path) -> None:
    files = {"a/b/1.png": b"one", 'ä "quoted" \n/2.png': noise(0).tobytes(), "3": b""}
    archive = write_zip(hostile_path / "a.zip", files)
    unpack(archive, hostile_path / "out", meter=SilentMeter())
    assert files_below(hostile_path / "out") == files


def test_remains_of_an_earlier_try_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(b"old")
    unpack(write_zip(tmp_path / "a.zip", {"new": b"new"}), tmp_path / "out", meter=SilentMeter())
    assert files_below(tmp_path / "out") == {"new": b"new"}


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/evil", "a/./b", "a//b", "C:/evil", "C:\\evil", "a\\..\\..\\evil", "\\evil"],
)
def test_path_that_may_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = write_zip(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    with pytest.raises(DataError, match=r"absolute path|leaves its folder"):
        unpack(archive, tmp_path / "in" / "out", meter=SilentMeter())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(DataError, match="'link' is a link or a special file"):
        unpack(tmp_path / "a.zip", tmp_path / "out", meter=SilentMeter())


def test_encrypted_file_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"secret": b"1"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 0x1  # the flags in the central directory
    archive.write_bytes(content)
    with pytest.raises(DataError, match="'secret' is encrypted"):
        unpack(archive, tmp_path / "out", meter=SilentMeter())


def test_doubled_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("twice", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("twice", "2")
    with pytest.raises(DataError, match="'twice' is there more than once"):
        unpack(tmp_path / "a.zip", tmp_path / "out", meter=SilentMeter())


def test_all_faults_are_named_at_once_up_to_a_limit(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {f"../{number}": b"" for number in range(50)})
    with pytest.raises(DataError, match=r"(?s)'\.\./0'.*'\.\./19'.*and 30 more"):
        unpack(archive, tmp_path / "out", meter=SilentMeter())


def test_altered_content_is_found_by_its_checksum(tmp_path: Path) -> None:
    content = noise(0, 100, 100).tobytes()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a", content)
    damaged = file.getvalue().replace(content, content[:-1] + b"\x00")
    (tmp_path / "a.zip").write_bytes(damaged)
    with pytest.raises(DataError, match=r"not a whole zip archive.*Bad CRC"):
        unpack(tmp_path / "a.zip", tmp_path / "out", meter=SilentMeter())


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_archive_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    archive = write_zip(tmp_path / "a.zip", {str(n): noise(n).tobytes() for n in range(20)})
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="not a whole zip archive"):
        unpack(archive, tmp_path / "out", meter=SilentMeter())
