"""The audit counts what is there and names what is wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.image_files import PixelArray, encode, noise, photo, scene, write_classes
from tune_inat.audit import Audit, to_json, to_short_json, to_text
from tune_inat.data import find_images
from tune_inat.facts import load_facts
from tune_inat.meter import SilentMeter
from tune_inat.store import Store


def audit(root: Path, cache: Path) -> Audit:
    folder = find_images(str(root), cache=cache, meter=SilentMeter())
    files = {file.content: file.path for file in folder.files}
    return Audit(folder, load_facts(Store(cache), files, n_workers=2, meter=SilentMeter()))


def resized(pixels: PixelArray, side: int) -> Image.Image:
    """The picture as a square."""
    return Image.fromarray(pixels).resize((side, side))


def test_files_are_counted_by_class_and_part(hostile_path: Path, own_cache: Path) -> None:
    write_classes(hostile_path, {"train/a": 4, "train/b": 3, "val/a": 2})
    assert audit(hostile_path, own_cache).counts() == {
        "a": {"train": 4, "val": 2},
        "b": {"train": 3, "val": 0},
    }


def test_formats_and_sizes_are_those_of_the_contents(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 1})  # 16 x 12 pixels each
    (tmp_path / "b" / "large.jpg").write_bytes(encode(photo(300, 500), "JPEG"))
    (tmp_path / "b" / "wrong.jpg").write_bytes(encode(photo(30, 50), "WEBP"))
    found = audit(tmp_path, own_cache)
    assert found.formats() == {"PNG": 3, "JPEG": 1, "WEBP": 1}
    assert found.sizes() == {
        "width": {"min": 16, "median": 16, "max": 500},
        "height": {"min": 12, "median": 12, "max": 300},
    }
    assert found.misnamed() == [(tmp_path / "b" / "wrong.jpg", "WEBP")]


def test_all_that_cannot_be_read_is_named_with_its_reason(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "empty.png").touch()
    (tmp_path / "a" / "link.png").symlink_to("nowhere")
    (tmp_path / "b" / "page.jpg").write_text("<html>")
    reasons = {path.name: reason for path, reason in audit(tmp_path, own_cache).unreadable_files()}
    assert reasons == {
        "empty.png": "is empty",
        "link.png": "is a broken link",
        "page.jpg": "is not a whole JPEG, PNG, WebP, BMP, GIF or TIFF image",
    }


def test_files_of_the_same_content_are_named_together(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    shutil.copy(tmp_path / "a" / "0.png", tmp_path / "b" / "copy.png")
    (same,) = audit(tmp_path, own_cache).duplicates()
    assert [file.path for file in same] == [tmp_path / "a" / "0.png", tmp_path / "b" / "copy.png"]


def test_near_copies_are_named_together_and_with_their_parts(tmp_path: Path, own_cache: Path) -> None:
    for name, seed in (("train/a/1", 1), ("train/b/2", 2), ("test/a/3", 3), ("test/b/4", 4)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / f"{name}.png").write_bytes(encode(scene(seed), "PNG"))
    for name, side in (("train/a/5", 80), ("test/a/6", 60), ("test/b/7", 50)):
        (tmp_path / f"{name}.png").write_bytes(encode(resized(scene(1), side), "PNG"))
    found = audit(tmp_path, own_cache)
    (same,) = found.near_copies()
    assert sorted(file.path.stem for file in same) == ["1", "5", "6", "7"]
    assert sorted(other.path.stem for _, other in found.near_copies_between_parts()) == ["6", "7"]
    assert {one.path.parent.parent.name for one, _ in found.near_copies_between_parts()} == {"train"}
    assert found.near_copies_of_two_labels()
    warnings = "\n".join(found.warnings())
    assert "Near copies stand in two parts (2): " in warnings
    assert f"{tmp_path}/test/a/6.png" in warnings


def test_summary_has_the_counts_whole_and_of_long_lists_the_first(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    for number in range(130):
        (tmp_path / "a" / f"bad{number}.png").write_bytes(noise(number).tobytes())
    split = {"a": {"train": 1, "val": 1}, "b": {"train": 1, "val": 1}}
    short = json.loads(json.dumps(to_short_json(audit(tmp_path, own_cache), split)))
    assert short["classes"]["a"] == {"images": 132}
    assert short["split"] == split
    assert len(short["unreadable"]) == 100
    assert short["totals"]["unreadable"] == 130


def test_text_and_json_say_the_same(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    shutil.copy(tmp_path / "a" / "0.png", tmp_path / "b" / "copy.png")
    (tmp_path / "a" / "empty.png").touch()
    (tmp_path / "a" / "notes.txt").touch()
    found = audit(tmp_path, own_cache)
    text, report = to_text(found), json.loads(json.dumps(to_json(found)))
    assert report["unreadable"] == [{"path": f"{tmp_path}/a/empty.png", "reason": "is empty"}]
    assert f"{tmp_path}/a/empty.png: is empty" in text
    assert report["duplicates"] == [[f"{tmp_path}/a/0.png", f"{tmp_path}/b/copy.png"]]
    assert f"1 set of files has the same content:\n  {tmp_path}/a/0.png = {tmp_path}/b/copy.png" in text
    assert "1 image stands under two classes:" in text
    for notice in report["notices"]:
        assert f"note: {notice}" in text
    assert len(report["notices"]) == 1


def test_text_is_cut_where_the_json_is_not(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    for number in range(30):
        (tmp_path / "a" / f"bad{number}.png").write_bytes(noise(number).tobytes())
    found = audit(tmp_path, own_cache)
    assert "30 cannot be read:" in to_text(found)
    assert "... and 10 more" in to_text(found)
    assert len(to_json(found)["unreadable"]) == 30


@pytest.mark.parametrize("name", [b"line\nbreak.png", b"\x1b[31mred.png", b"\xff.png"])
def test_names_cannot_drive_the_terminal(tmp_path: Path, own_cache: Path, name: bytes) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / os.fsdecode(name)).touch()
    text = to_text(audit(tmp_path, own_cache))
    line = next(line for line in text.splitlines() if "is empty" in line)
    assert line.startswith(f"  {tmp_path}/a/")
    assert line.isprintable()
