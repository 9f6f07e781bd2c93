"""The folder of a search: the same command finds it again, another one does not write over it."""

from pathlib import Path

import pytest

from tune_inat.errors import ResourceError, UserError
from tune_inat.runs import find_run_folder, held, keep_identity, kept_cpus, short_name, work_identity

IDENTITY: dict[str, object] = {"space": "grid", "images": "abc", "parameters": {"seed": 0}}


def keep(folder: Path, identity: dict[str, object]) -> None:
    with held(folder):
        keep_identity(folder, identity)
        (folder / "summary.json").touch()


def test_same_search_comes_back_to_its_folder_and_another_gets_its_own(hostile_path: Path) -> None:
    first = find_run_folder(hostile_path, None, "grid-sample", IDENTITY)
    keep(first, IDENTITY)
    assert first.name == "grid-sample"
    assert find_run_folder(hostile_path, None, "grid-sample", IDENTITY) == first
    other = {**IDENTITY, "images": "def"}
    assert find_run_folder(hostile_path, None, "grid-sample", other).name == "grid-sample-2"


def test_named_search_may_change_its_space_but_not_its_images(hostile_path: Path) -> None:
    keep(hostile_path / "mine", IDENTITY)
    wider = {**IDENTITY, "space": "wider grid"}
    assert find_run_folder(hostile_path, "mine", "grid-sample", wider) == hostile_path / "mine"
    with pytest.raises(UserError, match="a search with other images"):
        find_run_folder(hostile_path, "mine", "grid-sample", {**wider, "images": "def"})


def test_named_search_with_another_parameter_is_refused_with_its_name_and_values(hostile_path: Path) -> None:
    keep(hostile_path / "mine", {**IDENTITY, "parameters": {"model": "resnet18"}})
    # Images are split by the seed, so their fingerprint is another one as well.
    other = {**IDENTITY, "images": "def", "parameters": {"model": "resnet18", "seed": 3}}
    with pytest.raises(UserError, match=r"a search with other seed \(not given there, 3 here\)\. Choose"):
        find_run_folder(hostile_path, "mine", "grid-sample", other)


def test_folder_of_something_else_is_never_taken(hostile_path: Path) -> None:
    (hostile_path / "grid-sample").mkdir()
    (hostile_path / "grid-sample" / "thesis.tex").touch()
    assert find_run_folder(hostile_path, None, "grid-sample", IDENTITY).name == "grid-sample-2"
    with pytest.raises(UserError, match="holds other files, not a search"):
        find_run_folder(hostile_path, "grid-sample", "grid-sample", IDENTITY)


def test_search_that_is_refused_takes_no_name(hostile_path: Path) -> None:
    with pytest.raises(UserError), held(hostile_path / "mine"):
        raise UserError("there is no model resnet5")
    assert not (hostile_path / "mine").exists()
    assert find_run_folder(hostile_path, None, "mine", IDENTITY).name == "mine"


def test_space_may_grow_by_weights_files_but_those_it_had_must_be_the_same(hostile_path: Path) -> None:
    folder = hostile_path / "mine"
    keep(folder, {**IDENTITY, "weights": {"a.pth": "1"}})
    keep(folder, {**IDENTITY, "weights": {"b.pth": "2"}})
    both: dict[str, object] = {**IDENTITY, "weights": {"a.pth": "1", "b.pth": "2"}}
    assert find_run_folder(hostile_path, "mine", "", both) == folder
    with pytest.raises(UserError, match="other weights"):
        find_run_folder(hostile_path, "mine", "", {**IDENTITY, "weights": {"a.pth": "changed"}})


def test_two_searches_cannot_write_to_one_folder(hostile_path: Path) -> None:
    with held(hostile_path / "run"), pytest.raises(ResourceError, match="another search"):
        keep(hostile_path / "run", IDENTITY)
    keep(hostile_path / "run", IDENTITY)


def test_storage_that_is_a_file_is_said(hostile_path: Path) -> None:
    (hostile_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        keep(hostile_path / "file" / "run", IDENTITY)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("sample", "sample"),
        ("/data/photos/", "photos"),
        ("../../../photos", "photos"),
        ("s3://bucket/birds/2026/?region=eu-west-1", "2026"),
        ("gs://bucket", "bucket"),
        ('it\'s a "Wald" mit Bäumen', "it_s_a_Wald_mit_Bäumen"),
        ("/", "images"),
        ("x" * 300, "x" * 40),
    ],
)
def test_short_name_is_one_safe_part_of_a_path(source: str, name: str) -> None:
    assert short_name(source) == name


def test_short_name_of_this_folder_is_its_name(hostile_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hostile_path / "photos").mkdir()
    monkeypatch.chdir(hostile_path / "photos")
    assert short_name(".") == "photos"


def test_identity_of_the_work_outlives_a_changed_space_but_not_other_images() -> None:
    assert work_identity(IDENTITY) == work_identity({**IDENTITY, "space": "wider grid"})
    assert work_identity(IDENTITY) != work_identity({**IDENTITY, "images": "def"})


def test_cores_of_a_trial_are_known_again_and_make_no_other_search(hostile_path: Path) -> None:
    folder = hostile_path / "mine"
    keep(folder, IDENTITY)
    assert kept_cpus(folder) is None
    keep_identity(folder, IDENTITY, cpus_per_trial=3)
    keep_identity(folder, IDENTITY)  # as where nothing was left to run
    assert kept_cpus(folder) == 3
    assert find_run_folder(hostile_path, None, "mine", IDENTITY) == folder
