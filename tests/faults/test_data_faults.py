"""A folder with all that can be wrong with one: said before a search begins, refused where it has to be."""

import os
import shutil
import struct
import sys
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.command import Ran, run, run_python
from tests.image_files import encode, noise, scene

NAMES = (  # of files, as bytes: what a file system allows
    b"two words.png",
    b'it\'s "quoted".png',
    b"line\nbreak.png",
    b"\x1b[31mred.png",
    b"\xff\xfe not UTF-8.png",
    b"=cmd|' C calc'!A0.png",
    b"<img src=x onerror=alert(1)>.png",
    b"--json.png",
    b"n" * 251 + b".png",
)


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that unpacks to as many black pixels as it claims."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + 3 * width)) for _ in range(min(height, 100))) + rows.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write_scenes(root: Path, counts: dict[str, int], *, first_seed: int = 0) -> None:
    """Folders of pictures under `root` that all look different."""
    seed = first_seed
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / folder / f"{number}.png").write_bytes(encode(scene(seed, 60, 80), "PNG"))
            seed += 1


def write_near_copy(original: Path, copy: Path) -> None:
    """The picture once more, smaller and as a JPEG."""
    image = Image.open(original).convert("RGB")
    copy.write_bytes(encode(image.resize((image.width * 3 // 4, image.height * 3 // 4)), "JPEG", quality=70))


def audit(folder: Path, cache: Path, *arguments: str) -> Ran:
    ran = run("data", folder, *arguments, cwd=folder.parent, cache=cache)
    assert "Traceback" not in ran.err
    return ran


@dataclass(frozen=True)
class Spoilt:
    """A folder with many faults, and what the command says of it."""

    root: Path
    found: dict[str, Any]
    text: Ran

    def reasons(self) -> dict[str, str]:
        """Why files cannot be read, by their names."""
        return {Path(item["path"]).name: item["reason"] for item in self.found["unreadable"]}

    def names(self, kind: str) -> list[list[str]]:
        """The names of the files in each pair or set of a kind."""
        return [[Path(path).name for path in paths] for paths in self.found[kind]]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Spoilt:
    root = tmp_path_factory.mktemp('it\'s a "Wald" mit Bäumen') / "photos"
    cache = tmp_path_factory.mktemp("cache")
    write_scenes(root, {"ant": 20, "bee": 20, "cow/calf/young": 3, "cow": 20})
    ant, bee = root / "ant", root / "bee"
    for number, name in enumerate(NAMES):
        (ant / os.fsdecode(name)).write_bytes(encode(noise(number), "PNG"))
    (bee / "short.jpg").write_bytes(encode(scene(900), "JPEG")[:-400])
    (bee / "empty.png").touch()
    (bee / "page.jpg").write_text("<html>404</html>")
    (bee / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (bee / "pixel.gif").write_bytes(encode(np.zeros((1, 1, 3), np.uint8), "GIF"))
    (bee / "panorama.png").write_bytes(encode(noise(901, 40, 900), "PNG"))
    (bee / "wrong.png").write_bytes(encode(scene(902), "WEBP"))
    (bee / "loop.png").symlink_to(bee / "loop.png")
    (bee / "gone.png").symlink_to(bee / "nowhere.png")
    (bee / "round").symlink_to(root)
    (bee / ".ipynb_checkpoints").mkdir()
    (bee / ".ipynb_checkpoints" / "old.png").write_bytes(encode(scene(903), "PNG"))
    (bee / "notes.txt").touch()
    os.mkfifo(bee / "pipe.png")
    shutil.copy(ant / "0.png", ant / "0 again.png")
    shutil.copy(ant / "1.png", bee / "an ant.png")
    write_near_copy(ant / "2.png", ant / "2 smaller.jpg")
    write_near_copy(ant / "3.png", bee / "3 smaller.jpg")
    as_json = audit(root, cache, "--json")
    assert as_json.code == 2
    return Spoilt(root, as_json.json(), audit(root, cache))


def test_each_file_that_cannot_be_read_is_named_with_its_reason(spoilt: Spoilt) -> None:
    reasons = spoilt.reasons()
    assert set(reasons) == {
        *("short.jpg", "empty.png", "page.jpg", "bomb.png", "loop.png", "gone.png", "pipe.png")
    }
    for name, reason in {
        "short.jpg": "is cut short",
        "empty.png": "is empty",
        "page.jpg": "is not a whole",
        "bomb.png": "pixels",  # more than the limit: refused by its header
        "gone.png": "is a broken link",
        "pipe.png": "is not a regular file",
    }.items():
        assert reason in reasons[name]


def test_files_that_can_be_read_and_should_not_be_there_are_named(spoilt: Spoilt) -> None:
    assert [Path(item["path"]).name for item in spoilt.found["tiny"]] == ["pixel.gif"]
    assert [Path(item["path"]).name for item in spoilt.found["extreme_shapes"]] == ["panorama.png"]
    assert [Path(item["path"]).name for item in spoilt.found["misnamed"]] == ["wrong.png"]


def test_copies_and_near_copies_are_named_together(spoilt: Spoilt) -> None:
    assert spoilt.names("duplicates") == [["0 again.png", "0.png"], ["1.png", "an ant.png"]]
    assert sorted(sorted(names) for names in spoilt.names("near_copies")) == [
        ["2 smaller.jpg", "2.png"],
        ["3 smaller.jpg", "3.png"],
    ]
    assert spoilt.names("two_labels") == [["1.png", "an ant.png"]]
    assert [sorted(names) for names in spoilt.names("near_copies_of_two_labels")] == [
        ["3 smaller.jpg", "3.png"]
    ]


def test_folders_are_walked_once_and_what_was_passed_over_is_said(spoilt: Spoilt) -> None:
    assert spoilt.found["classes"]["cow"] == {"images": 23}  # those in depth, and none by the link in bee
    notices = "\n".join(spoilt.found["notices"])
    assert "Took 3 images from folders within those of classes" in notices
    assert ".ipynb_checkpoints" in notices
    assert "Ignored 1 file that is no image by its name: .txt 1." in notices


def test_text_says_it_too_and_no_name_can_drive_the_terminal(spoilt: Spoilt) -> None:
    assert spoilt.text.code == 2
    assert "7 cannot be read:" in spoilt.text.out
    for warning in spoilt.found["warnings"]:
        assert f"warning: {warning}" in spoilt.text.out
    assert "\x1b" not in spoilt.text.out + spoilt.text.err
    assert "7 of" in spoilt.text.err
    assert "--skip-bad-images" in spoilt.text.err


def test_bomb_costs_neither_time_nor_memory(tmp_path: Path, own_cache: Path) -> None:
    write_scenes(tmp_path / "d", {"a": 3, "b": 3})
    for number in range(20):
        (tmp_path / "d" / "a" / f"bomb{number}.png").write_bytes(bomb(60_000, 60_000 + number))
    script = (
        "import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30));"
        "sys.argv = ['data', sys.argv[1], '--json']; runpy.run_module('tune_inat.data', run_name='__main__')"
    )
    ran = run_python("-c", script, tmp_path / "d", cwd=tmp_path, cache=own_cache)
    assert ran.code == 2
    assert len(ran.json()["unreadable"]) == 20  # 10 GB each, if one were decoded
    assert "Traceback" not in ran.err


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of given parts with a copy and a near copy across them; a class of one image, imbalance."""
    root = tmp_path_factory.mktemp("parted") / "photos"
    counts = {"train/a": 30, "train/b": 1, "val/a": 4, "val/b": 3, "test/a": 4}
    write_scenes(root, counts)
    shutil.copy(root / "train/a/0.png", root / "test/a/copy.png")
    write_near_copy(root / "train/a/1.png", root / "val/a/near.jpg")
    return root


def test_copy_in_two_given_parts_is_refused_unless_it_is_allowed(parted: Path, own_cache: Path) -> None:
    refused, allowed = audit(parted, own_cache), audit(parted, own_cache, "--allow-leakage", "--json")
    assert refused.code == 2
    assert "1 image is both in train and in test:" in refused.err
    assert f"{parted}/train/a/0.png = {parted}/test/a/copy.png" in refused.err
    assert "--allow-leakage" in refused.err
    assert allowed.code == 0, allowed.err
    assert allowed.json()["split"] == {"test": 5, "train": 31, "val": 8}
    assert allowed.json()["problems"] == []


def test_near_copy_in_two_given_parts_is_a_warning_with_both_names(parted: Path, own_cache: Path) -> None:
    found = audit(parted, own_cache, "--allow-leakage", "--json").json()
    pair = [f"{parted}/train/a/1.png", f"{parted}/val/a/near.jpg"]
    assert found["near_copies_between_parts"] == [pair]
    assert f"Near copies stand in two parts (1): {' = '.join(pair)}." in found["warnings"]


def test_small_and_missing_classes_are_said(parted: Path, own_cache: Path) -> None:
    found = audit(parted, own_cache, "--allow-leakage", "--json").json()
    assert found["single_classes"] == ["b"]
    assert found["imbalance"] == {"largest": "a", "n_largest": 30, "smallest": "b", "n_smallest": 1}
    assert any("class_weights=balanced" in warning for warning in found["warnings"])
    assert found["notices"] == [f"{parted}/test: has no images of b."]


def test_test_that_is_train_is_refused(tmp_path: Path, own_cache: Path) -> None:
    write_scenes(tmp_path / "d", {"train/a": 4, "train/b": 4})
    shutil.copytree(tmp_path / "d" / "train", tmp_path / "d" / "test")
    ran = audit(tmp_path / "d", own_cache)
    assert ran.code == 2
    assert "8 images are both in train and in test; test has no other:" in ran.err


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems spell names in one form")
def test_class_names_that_differ_between_parts(tmp_path: Path, own_cache: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Bäume") for form in ("NFC", "NFD"))
    write_scenes(
        tmp_path / "d", {f"train/{composed}": 4, "train/Ant": 4, f"val/{decomposed}": 2, "val/ant": 2}
    )
    ran = audit(tmp_path / "d", own_cache)
    assert ran.code == 2
    assert 'val/ant: train has no such class. "Ant" and "ant" differ in case' in ran.err
    assert "Bäume" not in ran.err  # two spellings of one name


def test_empty_classes_are_refused(tmp_path: Path, own_cache: Path) -> None:
    write_scenes(tmp_path / "d", {"a": 4, "b": 4})
    (tmp_path / "d" / "c").mkdir()
    ran = audit(tmp_path / "d", own_cache, "--json")
    assert ran.code == 2
    assert ran.json()["problems"] == [f"{tmp_path}/d/c: has no images."]


def test_second_audit_decodes_nothing(tmp_path: Path, own_cache: Path) -> None:
    write_scenes(tmp_path / "d", {"a": 8, "b": 8})
    first = audit(tmp_path / "d", own_cache, "--json")
    entries = {path: path.stat().st_mtime_ns for path in own_cache.rglob("facts.json")}
    assert len(entries) == 1
    assert audit(tmp_path / "d", own_cache, "--json").out == first.out
    assert {path: path.stat().st_mtime_ns for path in own_cache.rglob("facts.json")} == entries


SPACE = """
method: grid
parameters: {freeze: {value: 1.0}, epochs: {value: 1}, batch_size: {value: 16}, image_size: {value: 32}}
"""


@dataclass(frozen=True)
class Searched:
    """A search on spoilt images, run twice."""

    root: Path
    runs: tuple[Ran, Ran]
    summaries: tuple[dict[str, Any], dict[str, Any]]
    report: str


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    cwd, cache = tmp_path_factory.mktemp("search"), tmp_path_factory.mktemp("cache")
    root = cwd / "photos"
    write_scenes(root, {"ant": 15, "<b>bee": 15})
    for number, name in enumerate(NAMES):
        (root / "ant" / os.fsdecode(name)).write_bytes(encode(noise(number), "PNG"))
    for number in range(4):
        write_near_copy(root / "ant" / f"{number}.png", root / "ant" / f"{number} smaller.jpg")
    shutil.copy(root / "ant" / "5.png", root / "<b>bee" / "an ant.png")
    (root / "ant" / "short.png").write_bytes(encode(noise(99), "PNG")[:-30])
    (cwd / "space.yaml").write_text(SPACE)
    command = ["--space", "space.yaml", "--data", "photos", "--model", "resnet18", "--weights", "none"]
    command += ["--skip-bad-images", "--wandb", "disabled", "--json", "--name", "x"]
    runs = (run("search", *command, cwd=cwd, cache=cache), run("search", *command, cwd=cwd, cache=cache))
    assert [ran.code for ran in runs] == [0, 0], runs[0].err + runs[1].err
    return Searched(
        root, runs, (runs[0].json(), runs[1].json()), (cwd / "runs" / "x" / "report.html").read_text()
    )


@pytest.mark.end_to_end
def test_search_says_what_is_wrong_before_it_begins(searched: Searched) -> None:
    for ran in searched.runs:
        assert "Images stand under two classes (1):" in ran.err
        assert "Traceback" not in ran.err


@pytest.mark.end_to_end
def test_search_started_again_looks_at_no_image(searched: Searched) -> None:
    assert "Decoding images" in searched.runs[0].err
    for title in ("Decoding images", "Checking images"):
        assert title not in searched.runs[1].err
    assert "Checking images" not in searched.runs[0].err  # it came from the decoding


@pytest.mark.end_to_end
def test_summary_has_the_audit_and_keeps_it(searched: Searched) -> None:
    first, again = (summary["data"] for summary in searched.summaries)
    assert first == again
    assert first["audit"]["formats"] == {"PNG": 40, "JPEG": 4}
    assert [Path(item["path"]).name for item in first["audit"]["unreadable"]] == ["short.png"]
    assert first["audit"]["totals"]["near_copies"] == 4
    rows = first["audit"]["split"].values()
    assert {part: sum(row[part] for row in rows) for part in ("train", "val", "test")} == {
        part: first[part] for part in ("train", "val", "test")
    }


@pytest.mark.end_to_end
def test_report_shows_the_audit_as_text(searched: Searched) -> None:
    images = searched.report.partition('id="images"')[2]
    for text in (
        "Files that show nearly the same (4 of 4)",
        "Images under two classes (1 of 1)",
        "Files that cannot be read (1 of 1)",
        "short.png, i",
        "&lt;b&gt;bee",
    ):
        assert text in images
    assert "<b>bee" not in searched.report
