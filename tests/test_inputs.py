"""What a search reads makes it the search that it is."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.benches import write_images
from tune_inat.errors import UserError
from tune_inat.inputs import open_store, read_inputs
from tune_inat.meter import SilentMeter
from tune_inat.runs import find_run_folder, held, keep_identity
from tune_inat.settings import make_settings
from tune_inat.store import CACHE_VARIABLE, Store


@pytest.fixture
def folder(hostile_path: Path) -> Path:
    write_images(hostile_path / "photos")
    return hostile_path


def identity(
    folder: Path, space: str = "method: grid\nparameters: {seed: {values: [1, 2]}}", **given: Any
) -> Any:
    """The identity of a search on these images."""
    (folder / "space.yaml").write_text(space)
    settings = make_settings(
        space=str(folder / "space.yaml"), data=str(folder / "photos"), image_size=16, **given
    )
    return read_inputs(settings, SilentMeter(), Store(folder / "cache")).identity()


def test_same_inputs_are_the_same_search(folder: Path) -> None:
    weights = folder / "w.pth"
    weights.write_bytes(b"old")
    assert identity(folder) == identity(folder)
    assert identity(folder) != identity(folder, weights=str(weights))
    assert identity(folder, weights=str(weights)) == identity(folder, weights=str(weights))


@pytest.mark.parametrize(
    "given",
    [{"weights": "w.pth"}, {"space": "method: grid\nparameters: {weights: {values: [default, w.pth]}}"}],
    ids=["fixed", "varied"],
)
def test_other_weights_of_the_same_name_are_another_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    monkeypatch.chdir(folder)
    Path("w.pth").write_bytes(b"old")
    before = identity(folder, **given)
    Path("w.pth").write_bytes(b"new")
    assert identity(folder, **given) != before
    Path("w.pth").write_bytes(b"old")
    assert identity(folder, **given) == before


@pytest.mark.parametrize(
    ("space", "given", "n_notices"),
    [
        ("method: random", {}, 1),
        ("method: bayes\nmetric: {name: val_loss}", {}, 1),
        ("method: random\nrun_cap: 4", {}, 0),
        ("method: random", {"trials": 4}, 0),
        ("method: grid", {}, 0),
    ],
)
def test_a_number_of_trials_that_nobody_gave_is_said(
    folder: Path, space: str, given: dict[str, int], n_notices: int
) -> None:
    (folder / "space.yaml").write_text(f"{space}\nparameters: {{lr: {{values: [0.1, 0.2]}}}}")
    settings = make_settings(
        space=str(folder / "space.yaml"), data=str(folder / "photos"), image_size=16, **given
    )
    inputs = read_inputs(settings, SilentMeter(), Store(folder / "cache"))
    notices = [text for text in inputs.warnings() if "run_cap" in text]
    assert len(notices) == n_notices
    assert all(f"means {inputs.plan.n_trials} trials" in text for text in notices)


def test_named_search_refuses_other_weights_of_the_same_name(folder: Path) -> None:
    weights = folder / "w.pth"
    weights.write_bytes(b"old")
    before = identity(folder, weights=str(weights))
    with held(folder / "runs" / "mine"):
        keep_identity(folder / "runs" / "mine", before)
    weights.write_bytes(b"new")
    after = identity(folder, weights=str(weights))
    with pytest.raises(UserError, match="holds a search with other weights"):
        find_run_folder(folder / "runs", "mine", "space-photos", after)


def test_models_and_weights_that_do_not_exist_are_refused_before_many_images_are_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_inat.inputs.MANY_IMAGES", 1)
    with pytest.raises(UserError, match="no such file"):
        identity(folder, weights=str(folder / "nowhere.pth"))
    with pytest.raises(UserError, match="Did you mean"):
        identity(folder, model="resnet5")
    assert not (folder / "cache" / "pixels").exists()


def test_cache_may_fill_its_disk_nearly_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "kept").write_bytes(bytes(1000))
    budget = open_store(make_settings()).budget_bytes
    assert budget is not None
    free = shutil.disk_usage(tmp_path).free
    assert 1000 <= budget <= 1000 + free
    assert open_store(make_settings(cache_gb=0.5)).budget_bytes == 500_000_000
