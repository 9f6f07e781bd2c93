"""A data set's parts follow from contents and seed; what a search would refuse is said beforehand."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from tests.image_files import encode, noise, write_classes
from tune_inat.data import DataSet, Split, find_images, split_images
from tune_inat.errors import DataError
from tune_inat.folders import ImageFolder
from tune_inat.meter import SilentMeter
from tune_inat.origins import INATURALIST

FINGERPRINT = "8187257b9c4d63df215328e96aa6e25b"


def find(root: Path | str, cache: Path) -> ImageFolder:
    return find_images(str(root), cache=cache, meter=SilentMeter())


def split(
    folder: ImageFolder,
    *,
    seed: int = 0,
    unreadable: Mapping[str, str] | None = None,
    skip: bool = False,
    near: Sequence[tuple[str, str]] = (),
    allow_leakage: bool = False,
) -> DataSet:
    """Split a folder whose images are all readable but those given."""
    bad = unreadable or {}
    contents = sorted({file.content for file in folder.files})
    row_of = {content: row for row, content in enumerate(contents) if content not in bad}
    return split_images(
        folder,
        row_of=row_of,
        unreadable=bad,
        seed=seed,
        skip_bad_images=skip,
        near=near,
        allow_leakage=allow_leakage,
    )


def parts_of(data: DataSet) -> dict[str, Split]:
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {name: part for name, part in parts.items() if part is not None}


def contents_of(data: DataSet, folder: ImageFolder) -> dict[str, list[str]]:
    content_at = {file.path: file.content for file in folder.files}
    return {name: [content_at[path] for path in part.paths] for name, part in parts_of(data).items()}


def test_each_image_is_in_one_part(hostile_path: Path, own_cache: Path) -> None:
    write_classes(hostile_path, {"a": 30, "b": 20})
    folder = find(hostile_path, own_cache)
    parts = contents_of(split(folder), folder)
    assert sorted(content for part in parts.values() for content in part) == sorted(
        file.content for file in folder.files
    )


def test_rows_labels_and_paths_belong_together(hostile_path: Path, own_cache: Path) -> None:
    write_classes(hostile_path, {"a": 10, "b": 10})
    folder = find(hostile_path, own_cache)
    contents = sorted(file.content for file in folder.files)
    for part in parts_of(split(folder)).values():
        assert part.rows.dtype == part.labels.dtype == np.int64
        assert list(part.rows) == sorted(part.rows)  # in the order of the pixels' file
        for row, label, path in zip(part.rows, part.labels, part.paths, strict=True):
            file = next(file for file in folder.files if file.path == path)
            assert (contents[row], folder.classes[label]) == (file.content, path.parent.name)


def test_a_fifth_of_each_class_is_test_and_a_fifth_of_the_rest_val(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 50, "b": 25})
    data = split(find(tmp_path, own_cache))
    assert {name: list(np.bincount(part.labels)) for name, part in parts_of(data).items()} == {
        "test": [10, 5],
        "val": [8, 4],
        "train": [32, 16],
    }


def test_draw_is_scikit_learns(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 23, "b": 17})
    folder = find(tmp_path, own_cache)
    expected = {"train": set[str](), "val": set[str](), "test": set[str]()}
    for label in (0, 1):
        contents = sorted(file.content for file in folder.files if file.label == label)
        rest, test = train_test_split(contents, test_size=round(len(contents) / 5), random_state=7)
        train, val = train_test_split(sorted(rest), test_size=round(len(rest) / 5), random_state=7)
        for name, drawn in (("train", train), ("val", val), ("test", test)):
            expected[name].update(drawn)
    assert {name: set(part) for name, part in contents_of(split(folder, seed=7), folder).items()} == expected


def test_class_of_three_has_one_in_each_part(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 400})
    for part in parts_of(split(find(tmp_path, own_cache))).values():
        assert np.count_nonzero(part.labels == 0) == 1


def test_classes_too_small_are_all_named_with_their_counts(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 9, "c": 1})
    with pytest.raises(DataError) as caught:
        split(find(tmp_path, own_cache))
    needed = "3 are needed, one for each part drawn from them."
    assert caught.value.problems == (
        f"{tmp_path}: class a has 2 different readable images; {needed}",
        f"{tmp_path}: class c has 1 different readable images; {needed}",
    )


def test_seed_alone_changes_the_split(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 30, "b": 30})
    folder = find(tmp_path, own_cache)
    assert split(folder, seed=1).fingerprint == split(folder, seed=1).fingerprint
    assert split(folder, seed=1).fingerprint != split(folder, seed=2).fingerprint


def test_names_and_places_do_not_change_the_split(hostile_path: Path, own_cache: Path) -> None:
    write_classes(hostile_path / "one", {"a": 20, "b": 20})
    shutil.copytree(hostile_path / "one", hostile_path / "two")
    for path in (hostile_path / "two").rglob("*.png"):
        path.rename(path.with_name(f"{99 - int(path.stem)}.PNG"))
    one, two = (split(find(hostile_path / name, own_cache)) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    np.testing.assert_array_equal(one.val.rows, two.val.rows)


def test_fingerprint_knows_classes_contents_labels_and_parts(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    folder = find(tmp_path, own_cache)
    first, *rest = folder.files
    others = [
        folder,
        replace(folder, classes=("a", "c")),
        replace(folder, files=(replace(first, content="0" * 32), *rest)),
        replace(folder, files=(replace(first, label=1), *rest)),
        replace(folder, files=(replace(first, part="val"), *rest)),
    ]
    assert len({split(other).fingerprint for other in others}) == 5


def test_copies_of_an_image_stay_in_one_part(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 20, "b": 20})
    for path in list((tmp_path / "a").iterdir()):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    folder = find(tmp_path, own_cache)
    parts = [set(contents) for contents in contents_of(split(folder), folder).values()]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 40


def test_image_under_two_labels_stays_in_one_part(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    for path in list((tmp_path / "a").iterdir())[:3]:
        shutil.copy(path, tmp_path / "b" / f"copy of {path.name}")
    folder = find(tmp_path, own_cache)
    parts = [set(contents) for contents in contents_of(split(folder), folder).values()]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 10


def contents_by_label(folder: ImageFolder) -> list[list[str]]:
    """The contents of each class, sorted."""
    labels = range(len(folder.classes))
    return [sorted(file.content for file in folder.files if file.label == label) for label in labels]


@pytest.mark.parametrize("seed", range(5))
def test_near_copies_stay_in_one_part(tmp_path: Path, own_cache: Path, seed: int) -> None:
    write_classes(tmp_path, {"a": 40, "b": 40})
    folder = find(tmp_path, own_cache)
    a, b = contents_by_label(folder)
    near = [*zip(a[::4], a[1::4], strict=True), *zip(a[1::4], a[2::4], strict=True), (a[3], b[5])]
    data = split(folder, near=near, seed=seed)
    parts = {c: name for name, contents in contents_of(data, folder).items() for c in contents}
    assert all(parts[one] == parts[other] for one, other in near)
    assert [list(np.bincount(part.labels)) for part in (data.test, data.val) if part is not None] == [
        pytest.approx([8, 8], abs=1),
        pytest.approx([6, 6], abs=1),
    ]


def test_split_without_near_copies_is_as_it_was(tmp_path: Path, own_cache: Path) -> None:
    # The fingerprint of these files as the version before near copies gave it: searches go on.
    write_classes(tmp_path, {"a": 12, "b": 9})
    assert split(find(tmp_path, own_cache)).fingerprint == FINGERPRINT


def test_class_of_near_copies_alone_is_split_all_the_same_and_said(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 20, "b": 20})
    folder = find(tmp_path, own_cache)
    a, b = contents_by_label(folder)
    data = split(folder, near=[*pairwise(a), (b[0], b[1])])
    assert [list(np.bincount(part.labels)) for part in parts_of(data).values()] == [
        [13, 13],
        [3, 3],
        [4, 4],
    ]
    (notice,) = data.notices
    assert "near copies make up too much of a to be kept in one part" in notice


def test_large_set_of_near_copies_is_trained_on(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 40, "b": 40})
    folder = find(tmp_path, own_cache)
    a, _ = contents_by_label(folder)
    data = split(folder, near=list(pairwise(a[:15])))
    assert set(a[:15]) <= set(contents_of(data, folder)["train"])
    assert data.notices == ()


def test_image_in_two_given_parts_is_an_error_with_both_names(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 3, "val/b": 3, "test/a": 2, "test/b": 2})
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "test/a/copy.png")
    shutil.copy(tmp_path / "val/a/0.png", tmp_path / "test/b/copy.png")
    folder = find(tmp_path, own_cache)
    with pytest.raises(DataError) as caught:
        split(folder)
    advice = "Keep each image in one part, or go on all the same with --allow-leakage."
    assert caught.value.problems == (
        "1 image is both in train and in test:\n"
        f"  {tmp_path}/train/a/0.png = {tmp_path}/test/a/copy.png\n{advice}",
        "1 image is both in val and in test:\n"
        f"  {tmp_path}/val/a/0.png = {tmp_path}/test/b/copy.png\n{advice}",
    )
    assert {name: len(part.rows) for name, part in parts_of(split(folder, allow_leakage=True)).items()} == {
        "train": 8,
        "val": 6,
        "test": 6,
    }


def test_test_that_is_train_again_is_said_to_be_so(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"train/a": 15, "train/b": 15})
    (tmp_path / "test").symlink_to(tmp_path / "train")
    with pytest.raises(DataError) as caught:
        split(find(tmp_path, own_cache))
    assert "30 images are both in train and in test; test has no other:" in str(caught.value)
    assert "... and 10 more" in str(caught.value)


def test_all_that_is_wrong_comes_at_once(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"train/a": 4, "train/b": 1, "test/a": 2})
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "test/a/copy.png")
    folder = find(tmp_path, own_cache)
    bad = next(file.content for file in folder.files if file.path.name == "1.png")
    with pytest.raises(DataError) as caught:
        split(folder, unreadable={bad: "is empty"})
    assert len(caught.value.problems) == 3
    assert "cannot be read" in caught.value.problems[0]
    assert "both in train and in test" in caught.value.problems[1]
    assert "class b has 1 different readable images" in caught.value.problems[2]


def test_given_parts_are_kept(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 1, "val/b": 2, "test/b": 3})
    data = split(find(tmp_path, own_cache))
    for name, part in parts_of(data).items():
        assert {path.parent.parent.name for path in part.paths} == {name}
    assert {name: len(part.rows) for name, part in parts_of(data).items()} == {
        "train": 8,
        "val": 3,
        "test": 3,
    }


def test_without_test_there_is_none(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 1, "val/b": 2})
    assert split(find(tmp_path, own_cache)).test is None


def test_without_val_a_fifth_of_train_is_val(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"train/a": 10, "train/b": 20, "test/a": 1, "test/b": 2})
    data = split(find(tmp_path, own_cache))
    assert [list(np.bincount(part.labels)) for part in (data.train, data.val)] == [[8, 16], [2, 4]]
    assert {path.parent.parent.name for path in data.val.paths} == {"train"}
    assert data.test is not None
    assert {path.parent.parent.name for path in data.test.paths} == {"test"}


def test_inaturalist_splits_train_and_tests_on_val(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = {"train/Aves": 10, "train/Mammalia": 10, "val/Aves": 3, "val/Mammalia": 4}
    write_classes(tmp_path / INATURALIST.folder, counts)
    data = split(find("inaturalist12k", own_cache))
    assert {name: len(part.rows) for name, part in parts_of(data).items()} == {
        "train": 16,
        "val": 4,
        "test": 7,
    }
    assert "used as it is" in data.notices[0]


def test_unreadable_images_stop_all_with_their_reasons(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    folder = find(tmp_path, own_cache)
    bad = {folder.files[0].content: "is cut short", folder.files[7].content: "is empty"}
    with pytest.raises(DataError) as caught:
        split(folder, unreadable=bad)
    assert str(caught.value) == (
        "2 of 10 images cannot be read:\n"
        f"  {tmp_path}/a/0.png: is cut short\n"
        f"  {tmp_path}/b/2.png: is empty\n"
        "Mend or remove them, or leave them out with --skip-bad-images."
    )


def test_images_that_are_left_out_are_told_with_their_reasons(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    folder = find(tmp_path, own_cache)
    bad = {folder.files[n].content: "is empty" for n in (0, 1, 5, 6)}
    assert any(
        notice.startswith("4 of 10 images are left out (--skip-bad-images): ")
        and notice.endswith(f"{tmp_path}/b/0.png is empty, and 1 more.")
        for notice in split(folder, unreadable=bad, skip=True).notices
    )


def test_long_list_of_unreadable_images_is_cut(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 30, "b": 30})
    folder = find(tmp_path, own_cache)
    with pytest.raises(DataError, match=r"60 of 60 images (.|\n)*\.\.\. and 40 more") as caught:
        split(folder, unreadable={file.content: "is empty" for file in folder.files})
    assert str(caught.value).count("is empty") == 20


def test_unreadable_images_are_left_out_on_request(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    folder = find(tmp_path, own_cache)
    bad = folder.files[0]
    data = split(folder, unreadable={bad.content: "is cut short"}, skip=True)
    assert dict(data.skipped) == {bad.path: "is cut short", tmp_path / "a" / "gone.png": "is a broken link"}
    assert sum(len(part.rows) for part in parts_of(data).values()) == 9


def test_part_of_which_nothing_is_left_is_an_error(tmp_path: Path, own_cache: Path) -> None:
    write_classes(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 1})
    folder = find(tmp_path, own_cache)
    bad = {file.content: "is empty" for file in folder.files if file.part == "val"}
    with pytest.raises(DataError, match="no image of val can be read"):
        split(folder, unreadable=bad, skip=True)


def audit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tune_inat.data", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_shows_what_a_search_would_use(hostile_path: Path) -> None:
    write_classes(hostile_path, {"a": 10, "b": 15})
    done = audit(hostile_path)
    assert done.returncode == 0, done.stderr
    assert "25 images in 2 classes" in done.stdout
    assert "split (seed 0): train 16, val 4, test 5" in done.stdout


def test_command_gives_all_findings_as_json(hostile_path: Path) -> None:
    write_classes(hostile_path, {"a": 10, "b": 15})
    done = audit(hostile_path, "--json", "--seed", "3")
    report = json.loads(done.stdout)
    assert report["classes"] == {"a": {"images": 10}, "b": {"images": 15}}
    assert report["split"] == {"train": 16, "val": 4, "test": 5}
    assert report["problems"] == []
    assert done.returncode == 0


def test_command_ends_with_2_where_a_search_would_refuse(hostile_path: Path) -> None:
    write_classes(hostile_path, {"a": 10, "b": 2})
    (hostile_path / "a" / "bad.png").write_bytes(encode(noise(99), "PNG")[:-30])
    done = audit(hostile_path, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 2
    assert "1 of 13 images cannot be read" in report["problems"][0]
    assert "class b has 2 different readable images" in report["problems"][1]  # all at once
    assert "2 problems, nothing was started." in done.stderr


def test_command_says_that_there_is_nothing(hostile_path: Path) -> None:
    done = audit(hostile_path / "nothing", "--json")
    assert done.returncode == 2
    assert "there is no such folder" in json.loads(done.stdout)["problems"][0]
    assert "Traceback" not in done.stderr


def test_help_comes_without_heavy_imports() -> None:
    assert "Audit a data set" in audit("--help").stdout
    script = "import sys, tune_inat.data; print({'torch', 'ray', 'sklearn', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
