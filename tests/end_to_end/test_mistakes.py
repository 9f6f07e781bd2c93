"""What a user does wrong is said, whole and without a traceback, before anything runs."""

from pathlib import Path

import pytest

from tests.end_to_end.command import run

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--space", "gird"], "grid"),
        (["--data", "nowhere"], "nowhere"),
        (["--set", "lrr=0.1"], "lr"),
        (["--set", "lr=-1"], "lr"),
        (["--precision", "fp8"], "fp32"),
        (["--trials", "0"], "--trials"),
        (["--seed", "1", "--set", "seed=2"], "--seed"),
        (["--set", "freeze=0.5"], "freeze"),
        (["--name", "../elsewhere"], "--name ../elsewhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_said_and_ends_with_code_2(
    arguments: list[str], said: str, hostile_path: Path, own_cache: Path
) -> None:
    ran = run("search", *arguments, cwd=hostile_path, cache=own_cache)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert not (hostile_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "resnet5", "--set", "weights=nowhere.pth"], "resnet50"),
        (["--set", "weights=nowhere.pth"], "nowhere.pth: there is no such file"),
        (["--gpus-per-trial", "2"], "there are 0 GPUs"),
        (["--cpus-per-trial", "999"], "--cpus-per-trial 999"),
        (["--model", "vit_b_16", "--weights", "none", "--image-size", "100"], "100"),
        (["--address", "127.0.0.1:1"], "no Ray cluster answers there"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_model_or_device_that_cannot_be_had_is_refused(
    arguments: list[str], said: str, hostile_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.getbasetemp() / "shared cache of refusals"
    ran = run("search", *arguments, cwd=hostile_path, cache=cache)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not list((hostile_path / "runs").glob("*"))  # and no name is taken


def test_predict_without_a_model_says_so(hostile_path: Path, own_cache: Path) -> None:
    (hostile_path / "image.png").touch()
    ran = run("predict", "runs/none", "image.png", cwd=hostile_path, cache=own_cache)
    assert ran.code == 2
    assert "there is no model here" in ran.err
