"""The card tells what is known, and its lines of Python load the model without us."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.image_files import photo
from tune_inat.backbone import load_backbone
from tune_inat.export import CARD_FILE, ModelConfig, load_classifier, save_classifier
from tune_inat.images import decode
from tune_inat.model_card import DataFacts, compose_card

CLASSES = ("a|b", "c`d\n# e", "ü")
DATA = DataFacts("photos", {"train": (70, 80, 90), "val": (10, 10, 10), "test": (15, 16, 9)})
METRICS = {
    "val_accuracy": 0.9,
    "val_loss": 0.4,
    "test_accuracy": 0.85,
    "test_loss": 0.5,
    "test_loss_calibrated": 0.6,
    "test_ece": 0.12,
    "test_ece_calibrated": 0.03,
}


def config_of(model: str = "resnet18", size: int = 32, temperature: float = 1.5) -> ModelConfig:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return ModelConfig(model, CLASSES, size, mean, std, "abc", 2, {"lr": 0.1}, temperature)


def python_in(card: str) -> str:
    """The one block of Python in a card."""
    (code,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    return str(code)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 32),
        ("vit_b_32", 64),  # positions for another image size than its own
        ("googlenet", 64),  # second classifiers, and pixels scaled in a way of its own
        ("squeezenet1_1", 64),  # a convolution for a classifier
        ("timm/mobilenetv3_small_050", 32),
        ("timm/vit_tiny_patch16_224", 64),
        ("timm/deit_tiny_distilled_patch16_224", 224),  # two heads
    ],
)
def test_lines_of_the_card_give_our_logits_without_us(name: str, size: int, hostile_path: Path) -> None:
    backbone = load_backbone(name, weights="none", n_classes=3, seed=5, image_size=size)
    config = ModelConfig(name, CLASSES, size, backbone.mean, backbone.std, "abc", 2, {}, 1.7)
    card = compose_card(config, METRICS, DATA)
    save_classifier(hostile_path, backbone, config, METRICS, card=card)
    picture = hostile_path / "photo.jpg"
    Image.fromarray(photo(40, 60)).save(picture)
    code = python_in((hostile_path / CARD_FILE).read_text())
    without_us = "import sys\nsys.modules['tune_inat'] = None\n"
    printed = "\nimport json\nprint(json.dumps([logits.tolist(), probabilities.tolist()]))"
    ran = subprocess.run(
        [sys.executable, "-c", without_us + code + printed],
        cwd=hostile_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(code.splitlines()) == 10
    logits, probabilities = json.loads(ran.stdout)
    classifier = load_classifier(hostile_path)
    pixels = torch.from_numpy(decode(picture, size).copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        ours, ours_p = classifier.network(pixels), classifier.probabilities(pixels)
    # The normalisation is computed in another order: a few units in the last place of float32.
    assert ours.abs().max() > 1e-3
    torch.testing.assert_close(torch.tensor(logits), ours, rtol=1e-3, atol=1e-4 * float(ours.abs().max()))
    torch.testing.assert_close(torch.tensor(probabilities), ours_p, rtol=1e-3, atol=1e-4)


def test_class_names_are_text() -> None:
    card = compose_card(config_of(), METRICS, DATA)
    assert "| `c'd # e` |" in card
    assert "\n# e" not in card
    assert "| `a\\|b` | 70 | 10 | 15 |" in card


def test_name_of_the_data_set_is_text() -> None:
    card = compose_card(config_of(), METRICS, DataFacts("<b>x</b>\n## y", DATA.counts))
    assert "<b>" not in card.replace("\\<b", "")
    assert "\n## y" not in card


def test_metrics_have_wilson_intervals() -> None:
    card = compose_card(config_of(), METRICS, DATA)
    # Wilson (1927) for 34 of 40, by hand: 0.8193 +- 0.1101
    assert "0.8500 (0.7093 to 0.9294)" in card
    assert "test (40 images)" in card


def test_totals_and_limits_are_those_of_the_data() -> None:
    card = compose_card(config_of(), METRICS, DATA)
    assert "| **all images** | 240 | 30 | 40 |" in card
    assert "The test has 40 images, 9 in its smallest class" in card
    assert "squeezed to 32 x 32 pixels" in card


def test_no_test_part_is_said_and_no_test_is_claimed() -> None:
    counts = {part: DATA.counts[part] for part in ("train", "val")}
    metrics = {name: value for name, value in METRICS.items() if name.startswith("val")}
    card = compose_card(config_of(), metrics, DataFacts("photos", counts))
    assert "There was no test part" in card
    assert "looked at once" not in card
    assert "test (" not in card


def test_calibration_is_told_with_its_effect() -> None:
    assert "Temperature 1.5000" in compose_card(config_of(), METRICS, DATA)
    assert "error goes from 0.1200 to 0.0300, the cross-entropy from 0.5000 to 0.6000" in compose_card(
        config_of(), METRICS, DATA
    )
    assert "Temperature 1:" in compose_card(config_of(temperature=1.0), METRICS, DATA)


def test_many_classes_are_cut_and_still_counted() -> None:
    many = ModelConfig("resnet18", tuple(map(str, range(60))), 32, (0, 0, 0), (1, 1, 1), "abc", 2, {})
    card = compose_card(many, METRICS, DataFacts("photos", {"train": (2,) * 60, "val": (1,) * 60}))
    assert "| 10 more classes | 20 | 10 |" in card
    assert "| **all images** | 120 | 60 |" in card
    assert "`50`" not in card
