"""Folders of any shape become labelled files, or an error that says all that is wrong."""

import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.image_files import write_classes
from tune_inat.errors import DataError
from tune_inat.folders import ImageFolder, LabelledFile, is_image_name, read_folder, shown


def name_as_content(paths: Sequence[Path]) -> tuple[Mapping[Path, str], Mapping[Path, str]]:
    """A hasher for files that need no content."""
    return {path: path.name for path in paths}, {}


def read(root: Path) -> ImageFolder:
    return read_folder(root, name="test", hash_files=name_as_content)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path) -> list[tuple[str, str, str]]:
    """(part, class, path below the root) of each file."""
    folder = read(root)
    return [
        (file.part, folder.classes[file.label], file.path.relative_to(root).as_posix())
        for file in folder.files
    ]


def test_class_folders_are_the_classes(hostile_path: Path) -> None:
    write_classes(hostile_path, {"b c": 1, "Ä'": 2})
    assert listed(hostile_path) == [("", "b c", "b c/0.png"), ("", "Ä'", "Ä'/0.png"), ("", "Ä'", "Ä'/1.png")]
    assert read(hostile_path).parts == ("",)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_parts_are_found_by_their_names(hostile_path: Path, val: str) -> None:
    touch(hostile_path, "train/a/1.png", "train/b/1.png", f"{val}/a/2.png", f"{val}/b/2.png", "test/a/3.png")
    assert listed(hostile_path) == [
        ("test", "a", "test/a/3.png"),
        ("train", "a", "train/a/1.png"),
        ("train", "b", "train/b/1.png"),
        ("val", "a", f"{val}/a/2.png"),
        ("val", "b", f"{val}/b/2.png"),
    ]


def test_train_alone_is_split_by_us_and_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png")
    assert {part for part, _, _ in listed(tmp_path)} == {""}
    assert "has only train" in read(tmp_path).notices[0]


def test_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "bus/1.png", "train/1.png", "car/1.png")
    assert read(tmp_path).classes == ("bus", "car", "train")


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    touch(tmp_path, "a/x/y/1.png", "a/2.JPG", "b/1.TiFf")
    assert [path for _, _, path in listed(tmp_path)] == ["a/2.JPG", "a/x/y/1.png", "b/1.TiFf"]
    assert read(tmp_path).notices == (
        f"Took 1 image from folders within those of classes: {tmp_path}/a/x/y.",
    )


def test_hidden_and_foreign_things_do_not_count(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", "a/._1.png", "a/.DS_Store", ".git/3.png", "__MACOSX/a/1.png")
    assert len(listed(tmp_path)) == 2
    assert read(tmp_path).notices == ()


def test_hidden_images_of_a_class_do_not_count_and_are_noticed(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", "a/.ipynb_checkpoints/1.png", "b/.2.png")
    assert len(listed(tmp_path)) == 2
    assert read(tmp_path).notices == (
        f"Passed over what is hidden (2): {tmp_path}/a/.ipynb_checkpoints, {tmp_path}/b/.2.png.",
    )


def test_other_files_are_ignored_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", "labels.csv", "a/x.txt", "b/y.txt", "b/README")
    assert read(tmp_path).notices == (
        "Ignored 4 files that are no images by their names: .txt 2, .csv 1, no suffix 1.",
    )


def test_images_beside_class_folders_are_noticed(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", "loose.png")
    assert read(tmp_path).notices == (f"{tmp_path}: ignored 1 image that lies beside the class folders.",)


def test_loops_of_links_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "loop.png").symlink_to(tmp_path / "b" / "loop.png")
    assert [path for _, _, path in listed(tmp_path)] == ["a/1.png", "b/1.png", "b/loop.png"]


def test_class_folder_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.png", "data/b/1.png")
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path / "data").classes == ("a", "b")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_names_that_are_not_utf8_become_valid_class_names(tmp_path: Path) -> None:
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/B\xe4ume"))
    touch(bad, "1\n.png", os.fsdecode(b"\xff.png"))
    touch(tmp_path, "b/1.png")
    folder = read(tmp_path)
    assert folder.classes == ("B\\xe4ume", "b")
    assert len(folder.files) == 3
    assert all(file.path.exists() for file in folder.files)
    assert "\n" not in shown(folder.files[0].path)


def test_names_of_255_bytes_are_fine(tmp_path: Path) -> None:
    touch(tmp_path, f"{'a' * 255}/{'b' * 251}.png", "c/1.png")
    assert len(read(tmp_path).files) == 2


def test_normal_forms_of_unicode_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Bäume") for form in ("NFC", "NFD"))
    touch(tmp_path, f"train/{composed}/1.png", "train/b/1.png", f"val/{decomposed}/1.png", "val/b/1.png")
    assert read(tmp_path).classes == (composed, "b")
    assert read(tmp_path).notices == ()


def test_class_missing_from_val_is_noticed(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png")
    assert read(tmp_path).notices == (f"{tmp_path}/val: has no images of b.",)


def test_class_unknown_to_train_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    touch(tmp_path, "train/Apple/1.png", "train/pear/1.png", "val/apple/1.png", "test/plum/1.png")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert set(caught.value.problems) == {
        f'{tmp_path}/val/apple: train has no such class. "Apple" and "apple" differ in case, spaces or the '
        "form of characters only: give both the same name.",
        f"{tmp_path}/test/plum: train has no such class.",
    }


@pytest.mark.parametrize("other", ["apple", "Apple ", "\uff21pple"], ids=["case", "space", "full width"])
def test_classes_whose_names_look_the_same_are_noticed(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "Apple/1.png", f"{other}/1.png", "pear/1.png")
    (notice,) = read(tmp_path).notices
    assert "are 2 classes, though the names differ in case, spaces or the form of characters only" in notice
    assert '"Apple"' in notice
    assert f'"{other}"' in notice


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/x.txt", "train/c/.hidden.png", "val/d/1.png", "test/1.png")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    problems = "\n".join(caught.value.problems)
    for expected in (
        "train/b: has no images",
        "train/c: has no images",
        "val/d: train has",
        "test: has no class",
    ):
        assert expected in problems


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no class folders. Put the images of each class into a folder"),
        (["1.png"], "has no class folders"),
        (["a/x.txt", "b/y.txt"], "its folders have no images"),
        (["a/1.png"], "has only one class; two are needed"),
        (["data/a/1.png", "data/b/1.png"], "only one class.*Did you mean .*/data?"),
        (["test/a/1.png", "val/a/1.png"], "has test, val, but no train"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "val, valid mean the same"),
    ],
)
def test_folder_of_no_sensible_shape_is_an_error(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", "b/closed/2.png")
    (tmp_path / "b" / "closed").chmod(0)
    assert read(tmp_path).unreadable == ((tmp_path / "b" / "closed", "cannot be listed (Permission denied)"),)


def test_file_without_content_is_unreadable_not_lost(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    bad = tmp_path / "a" / "2.png"

    def hash_all_but_one(paths: Sequence[Path]) -> tuple[Mapping[Path, str], Mapping[Path, str]]:
        return {path: path.name for path in paths if path != bad}, {bad: "is a broken link"}

    folder = read_folder(tmp_path, name="test", hash_files=hash_all_but_one)
    assert folder.unreadable == ((bad, "is a broken link"),)
    assert LabelledFile(tmp_path / "b" / "1.png", 1, "", "1.png") in folder.files
    assert len(folder.files) == 2


def test_folder_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    with pytest.raises(DataError, match=r"b/1.png: is gone"):
        read_folder(tmp_path, name="test", hash_files=lambda paths: ({}, dict.fromkeys(paths, "is gone")))


@pytest.mark.parametrize(
    ("name", "is_image"),
    [
        ("a/1.PNG", True),
        ("1.jpeg", True),
        ("a/.1.png", False),
        (".a/1.png", False),
        ("a/1.txt", False),
        ("png", False),
    ],
)
def test_image_names_are_told_from_others(name: str, is_image: bool) -> None:
    assert is_image_name(name) is is_image
