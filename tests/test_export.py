"""A model on disk predicts as it did in memory, and a damaged one is refused in words."""

import json
from pathlib import Path

import pytest
import torch

from tune_inat.backbone import Normalize, load_backbone
from tune_inat.errors import UserError
from tune_inat.export import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Classifier,
    ModelConfig,
    load_classifier,
    save_classifier,
)
from tune_inat.onnx_export import ONNX_FILE

CLASSES = ("a|b", "c`d\n# e", "ü")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    backbone = load_backbone("resnet18", weights="none", n_classes=3, seed=5)
    config = ModelConfig("resnet18", CLASSES, 32, backbone.mean, backbone.std, "abc", 2, {"lr": 0.1})
    folder = tmp_path_factory.mktemp('it\'s a "model"')
    save_classifier(folder, backbone, config, {"val_accuracy": 0.9}, card="# A card")
    return folder, backbone.model


def copy_with(folder: Path, copy: Path, **values: object) -> Classifier:
    """The same model, loaded from a copy whose configuration says something else."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    (copy / CONFIG_FILE).write_text(json.dumps({**config, **values}))
    (copy / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes())
    return load_classifier(copy)


def test_model_comes_back_to_the_last_bit(saved: tuple[Path, torch.nn.Module]) -> None:
    folder, model = saved
    classifier = load_classifier(folder)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    normalised = Normalize(classifier.config.mean, classifier.config.std)(pixels)  # as in training
    with torch.no_grad():
        assert torch.equal(classifier.network(pixels), model(normalised))
    assert classifier.config.classes == CLASSES
    assert not classifier.network.training


def test_card_is_beside_the_weights(saved: tuple[Path, torch.nn.Module]) -> None:
    assert (saved[0] / CARD_FILE).read_text() == "# A card"


def test_temperature_divides_the_logits_of_probabilities(
    saved: tuple[Path, torch.nn.Module], hostile_path: Path
) -> None:
    hotter = copy_with(saved[0], hostile_path, temperature=2.5)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = (hotter.network(pixels) / 2.5).softmax(dim=1)
        assert torch.equal(hotter.probabilities(pixels), expected)


def test_model_of_before_temperatures_has_temperature_1(
    saved: tuple[Path, torch.nn.Module], hostile_path: Path
) -> None:
    assert copy_with(saved[0], hostile_path).config.temperature == 1.0
    config = json.loads((hostile_path / CONFIG_FILE).read_text())
    assert "temperature" in config  # written now, so it must be taken out for an older model
    del config["temperature"]
    (hostile_path / CONFIG_FILE).write_text(json.dumps(config))
    assert load_classifier(hostile_path).config.temperature == 1.0


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "warm", None])
def test_temperature_that_is_none_is_refused(
    saved: tuple[Path, torch.nn.Module], hostile_path: Path, temperature: object
) -> None:
    with pytest.raises(UserError, match="not a model's configuration"):
        copy_with(saved[0], hostile_path, temperature=temperature)


def test_missing_model_is_said(hostile_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model here"):
        load_classifier(hostile_path)


@pytest.mark.parametrize("content", ["", "[]", '{"model": 1}', '{"mean": "abc"}'])
def test_damaged_configuration_is_said(
    saved: tuple[Path, torch.nn.Module], hostile_path: Path, content: str
) -> None:
    (hostile_path / CONFIG_FILE).write_text(content)
    with pytest.raises(UserError, match="not a model's configuration"):
        load_classifier(hostile_path)


def test_weights_of_another_model_are_refused(
    saved: tuple[Path, torch.nn.Module], hostile_path: Path
) -> None:
    config = json.loads((saved[0] / CONFIG_FILE).read_text())
    (hostile_path / CONFIG_FILE).write_text(json.dumps({**config, "classes": ["one", "two"]}))
    (hostile_path / WEIGHTS_FILE).write_bytes((saved[0] / WEIGHTS_FILE).read_bytes())
    with pytest.raises(UserError, match="not the model's weights"):
        load_classifier(hostile_path)


def test_network_trained_at_another_size_than_its_own_comes_back(hostile_path: Path) -> None:
    name = "timm/vit_tiny_patch16_224"
    backbone = load_backbone(name, weights="none", n_classes=3, seed=5, image_size=64)
    config = ModelConfig(name, CLASSES, 64, backbone.mean, backbone.std, "abc", 2, {})
    save_classifier(hostile_path, backbone, config, {}, card="")
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    normalised = Normalize(backbone.mean, backbone.std)(pixels)
    with torch.no_grad():
        assert torch.equal(load_classifier(hostile_path).network(pixels), backbone.model(normalised))


def test_onnx_file_of_earlier_weights_goes_with_them(hostile_path: Path) -> None:
    (hostile_path / ONNX_FILE).write_bytes(b"of other weights")
    backbone = load_backbone("resnet18", weights="none", n_classes=3, seed=5)
    config = ModelConfig("resnet18", CLASSES, 32, backbone.mean, backbone.std, "abc", 2, {})
    save_classifier(hostile_path, backbone, config, {}, card="")
    assert not (hostile_path / ONNX_FILE).exists()
