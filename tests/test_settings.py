"""The arguments of a search: checked in one place, for the command and for notebooks."""

from pathlib import Path

import pytest
import typer

from tune_inat.errors import UserError
from tune_inat.search import app, read_arguments
from tune_inat.settings import make_settings
from tune_inat.storages import open_storage


def test_every_wrong_argument_is_said_at_once() -> None:
    with pytest.raises(UserError) as refused:
        make_settings(trials=0, precision="fp8", modle="resnet50")
    said = "\n".join(refused.value.problems)
    assert len(refused.value.problems) == 3
    for expected in ("--trials", "fp32", 'Did you mean "model"?'):
        assert expected in said


def test_sample_has_a_model_that_needs_no_download() -> None:
    assert make_settings().fixed() == {"model": "timm/tf_efficientnet_lite0", "image_size": 96}
    assert make_settings(data="photos").fixed() == {"model": "resnet50", "image_size": 224}
    assert make_settings(model="resnet18").fixed() == {"model": "resnet18", "image_size": 96}


def test_argument_and_override_of_one_parameter_are_refused() -> None:
    with pytest.raises(UserError, match="--seed says it already"):
        make_settings(seed=1, overrides={"seed": 2}).given()


@pytest.mark.parametrize(("given", "meant"), [("auto", "auto"), ("0.5", 0.5), ("2", 2.0)])
def test_gpus_are_a_number_or_auto(given: str, meant: float | str) -> None:
    assert make_settings(gpus_per_trial=given).gpus_per_trial == meant


@pytest.mark.parametrize("given", ["-1", "abc"])
def test_all_that_gpus_can_be_is_said(given: str) -> None:
    with pytest.raises(UserError, match=r"auto, a share \(0.25\) or a number"):
        make_settings(gpus_per_trial=given)


@pytest.mark.parametrize("project", ["a/b", "a:b", "x" * 129])
def test_project_that_wandb_would_refuse_is_refused_at_once(project: str) -> None:
    with pytest.raises(UserError, match="W&B project"):
        make_settings(wandb_project=project)


def test_storage_of_an_unknown_kind_is_refused_not_taken_for_a_folder() -> None:
    with pytest.raises(UserError, match=r"--storage ftp://host/runs: ftp:// cannot be read"):
        open_storage(make_settings(storage="ftp://host/runs"))


def test_folder_may_be_named_by_a_uri(hostile_path: Path) -> None:
    assert open_storage(make_settings(storage=hostile_path.as_uri())).root == hostile_path


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/there", "a\\b", "..", ".", " ", "x" * 300])
def test_name_that_is_no_name_of_a_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        make_settings(name=name)


@pytest.mark.parametrize("name", ["birds", "Bäume & mehr", "v1.2", ".hidden"])
def test_name_of_a_folder_is_taken_as_it_is(name: str) -> None:
    assert make_settings(name=name).name == name


def test_weights_file_is_the_same_however_it_is_named(
    hostile_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hostile_path / "below").mkdir()
    file = hostile_path / "own.pth"
    monkeypatch.chdir(hostile_path / "below")
    monkeypatch.setenv("HOME", str(hostile_path))
    for named in ("../own.pth", str(file), "~/own.pth"):
        assert make_settings(weights=named).given() == {"weights": str(file)}
        assert make_settings(overrides={"weights": named}).given() == {"weights": str(file)}
    for word in ("default", "none"):
        assert make_settings(weights=word).given() == {"weights": word}


def test_model_cannot_be_kept_in_a_wandb_that_is_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--wandb disabled leaves no run"):
        make_settings(wandb="disabled", wandb_model=True)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(UserError, match="WANDB_MODE=disabled leaves no run"):
        make_settings(wandb_model=True)
    assert make_settings(wandb="offline", wandb_model=True).wandb_model


def test_command_has_what_differs_from_the_defaults_and_is_read_back_the_same() -> None:
    assert make_settings().command() == ["python", "-m", "tune_inat.search", "--space", "grid"]
    asked = make_settings(
        space="my sweep.yaml",
        data="photos",
        max_hours=1.5,
        reuse=False,
        wandb_model=True,
        gpus_per_trial=0.25,
        overrides={"lr": 3e-4, "freeze": "layer3"},
    )
    words = asked.command()[3:]
    assert {"--no-reuse", "--wandb-model", "lr=0.0003", "freeze=layer3", "1.5", "0.25"} <= set(words)
    context = typer.main.get_command(app).make_context("search", list(words))
    assert make_settings(**read_arguments(context.params)) == asked
