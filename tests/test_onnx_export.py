"""The ONNX file gives the network's logits for any number of images, or it is not written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.benches import write_images
from tests.end_to_end.command import run
from tests.networks import make_backbone
from tests.slow import slow
from tune_inat.backbone import Backbone, Normalize
from tune_inat.errors import UserError
from tune_inat.export import ModelConfig, load_classifier, save_classifier
from tune_inat.onnx_export import INPUT_NAME, ONNX_FILE, OUTPUT_NAME, write_onnx

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")

CLASSES = tuple("abcdefg")


def classifier_of(backbone: Backbone) -> nn.Module:
    return nn.Sequential(Normalize(backbone.mean, backbone.std), backbone.model).eval()


def logits_of(path: Path, pixels: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: pixels.numpy()})
    return torch.from_numpy(logits)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 32),
        pytest.param("swin_t", 64, marks=slow),
        ("timm/vit_tiny_patch16_224", 64),
        ("timm/tf_efficientnet_lite0", 64),
    ],
)
def test_logits_are_the_networks_for_any_number_of_images(name: str, size: int, hostile_path: Path) -> None:
    network = classifier_of(make_backbone(name, size))
    images = sorted(write_images(hostile_path / "images", n_of_each=2).rglob("*.png"))
    said = write_onnx(network, hostile_path / ONNX_FILE, image_size=size, images=images)
    assert "6 images" in said
    for n in (1, 2, 5):
        pixels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
        with torch.no_grad():
            ours = network(pixels)
        theirs = logits_of(hostile_path / ONNX_FILE, pixels)
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4 * float(ours.abs().max()))
        assert torch.equal(theirs.argmax(dim=1), ours.argmax(dim=1))


class ElsewhereDifferent(nn.Module):
    """What it computes depends on whether it is being exported."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (n, 3)."""
        means = pixels.float().mean(dim=(2, 3))
        return means + 1 if torch.compiler.is_compiling() else means


def test_file_with_other_logits_is_not_written(hostile_path: Path) -> None:
    with pytest.raises(UserError, match="not written"):
        write_onnx(ElsewhereDifferent().eval(), hostile_path / ONNX_FILE, image_size=8, images=[])
    assert list(hostile_path.iterdir()) == []


class DependsOnValues(nn.Module):
    """A network whose course depends on what it sees."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (n, 3)."""
        means = pixels.float().mean(dim=(2, 3))
        return means + 1 if means.sum().item() > 100 else means


def test_network_that_onnx_cannot_express_is_refused_in_words(hostile_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written as ONNX"):
        write_onnx(DependsOnValues().eval(), hostile_path / ONNX_FILE, image_size=8, images=[])
    assert list(hostile_path.iterdir()) == []


@pytest.fixture
def saved(hostile_path: Path) -> Path:
    """A search's folder with a model in it, and predictions on images."""
    backbone = make_backbone("resnet18")
    config = ModelConfig("resnet18", CLASSES, 32, backbone.mean, backbone.std, "abc", 2, {})
    search = hostile_path / "search"
    save_classifier(search / "best_model", backbone, config, {}, card="")
    images = sorted(write_images(hostile_path / "images", n_of_each=2).rglob("*.png"))
    lines = ["part,file", *(f'test,"{str(path).replace(chr(34), chr(34) * 2)}"' for path in images)]
    (search / "predictions.csv").write_text("\n".join(lines) + "\n")
    return search


def test_command_writes_it_beside_the_weights_compared_on_the_searchs_images(saved: Path) -> None:
    ran = run("export", saved, "--onnx", cwd=saved, cache=saved)
    assert ran.code == 0, ran.err
    assert ran.out == f"{saved / 'best_model' / ONNX_FILE}\n"
    assert "on 6 images" in ran.err
    assert "Warning" not in ran.err
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8))
    with torch.no_grad():
        ours = load_classifier(saved / "best_model").network(pixels)
    torch.testing.assert_close(
        logits_of(saved / "best_model" / ONNX_FILE, pixels), ours, rtol=1e-3, atol=1e-3
    )


def test_missing_packages_are_named_with_the_command_that_installs_them(saved: Path) -> None:
    without = "import sys; sys.modules['onnxruntime'] = None; sys.argv = ['export', sys.argv[1], '--onnx']\n"
    code = without + "import runpy; runpy.run_module('tune_inat.export', run_name='__main__')"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(saved)], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr == "--onnx needs onnxruntime: pip install 'tune_inat[onnx]'\n"
    assert not (saved / "best_model" / ONNX_FILE).exists()


def test_command_without_a_format_asks_for_one(saved: Path) -> None:
    ran = run("export", saved, cwd=saved, cache=saved)
    assert (ran.code, ran.err) == (2, "Say in which format: --onnx.\n")
