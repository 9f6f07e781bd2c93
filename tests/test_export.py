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
    ModelConfig,
    load_classifier,
    save_classifier,
)

CLASSES = ("a|b", "c`d\n# e", "ü")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    backbone = load_backbone("resnet18", weights="none", n_classes=3, seed=5)
    config = ModelConfig("resnet18", CLASSES, 32, backbone.mean, backbone.std, "abc", 2, {"lr": 0.1})
    folder = tmp_path_factory.mktemp('it\'s a "model"')
    save_classifier(folder, backbone, config, {"data": "photos", "val_accuracy": 0.9})
    return folder, backbone.model


def test_model_comes_back_to_the_last_bit(saved: tuple[Path, torch.nn.Module]) -> None:
    folder, model = saved
    classifier = load_classifier(folder)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    normalised = Normalize(classifier.config.mean, classifier.config.std)(pixels)  # as in training
    with torch.no_grad():
        assert torch.equal(classifier.network(pixels), model(normalised))
    assert classifier.config.classes == CLASSES
    assert not classifier.network.training


def test_card_shows_class_names_as_text(saved: tuple[Path, torch.nn.Module]) -> None:
    card = (saved[0] / CARD_FILE).read_text()
    assert "`c'd # e`" in card
    assert "\n# e" not in card


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
    save_classifier(hostile_path, backbone, config, {"data": "photos"})
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    normalised = Normalize(backbone.mean, backbone.std)(pixels)
    with torch.no_grad():
        assert torch.equal(load_classifier(hostile_path).network(pixels), backbone.model(normalised))
