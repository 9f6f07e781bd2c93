"""A trained classifier on disk, enough to predict without the search; as ONNX too, by the command.

`python -m tune_inat.export runs/NAME --onnx` writes `model.onnx` beside the weights.
"""

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tune_inat.disk import check_room, sync
from tune_inat.errors import UserError, printable, run_command
from tune_inat.leaderboard import BEST_MODEL_FOLDER, PREDICTIONS_FILE
from tune_inat.store import write_atomically

if TYPE_CHECKING:  # torch is imported where it is used: the command answers before it is loaded
    from torch import Tensor, nn

    from tune_inat.backbone import Backbone

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class ModelConfig:
    """What one must know to use the weights.

    Images are resized to `image_size` x `image_size` (the whole picture, bicubic), scaled to 0..1, then
    normalised by `mean` and `std` (R, G, B). Output n of the network is the logit of `classes[n]`. The
    softmax of the logits divided by `temperature` are probabilities that fit the validation images.
    """

    model: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    trial_id: str
    epoch: int
    config: Mapping[str, Any]
    temperature: float = 1.0


@dataclass(frozen=True)
class Classifier:
    """A network in eval mode, from pixels (n, 3, S, S) uint8, R, G, B, to logits (n, K)."""

    config: ModelConfig
    network: "nn.Module"

    def probabilities(self, pixels: "Tensor") -> "Tensor":
        """Probabilities (n, K) float32 of pixels (n, 3, S, S) uint8, calibrated by the temperature."""
        logits: Tensor = self.network(pixels)
        return (logits.float() / self.config.temperature).softmax(dim=1)


def save_classifier(
    folder: Path, backbone: "Backbone", config: ModelConfig, metrics: Mapping[str, Any], *, card: str
) -> None:
    """Write a network as it is now, with what is needed to use it.

    The tensors have the names that they have in the plain network of torchvision or timm.

    Args:
        card: the model card, Markdown.

    Raises:
        ResourceError: the disk has no room for it.
    """
    from safetensors.torch import save_file

    from tune_inat.onnx_export import ONNX_FILE

    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, ONNX_FILE):  # of weights that were here before
        (folder / name).unlink(missing_ok=True)
    # safetensors has no strides: contiguous copies, whatever layout the network trained in.
    tensors: dict[str, Tensor] = {
        name: value.detach().cpu().contiguous().clone() for name, value in backbone.model.state_dict().items()
    }
    check_room(folder, sum(value.nbytes for value in tensors.values()), "the best model")
    aside = folder / f".{WEIGHTS_FILE}.tmp"
    save_file(tensors, aside, metadata={"format": "pt"})
    sync(aside)
    aside.replace(folder / WEIGHTS_FILE)
    content = json.dumps(asdict(config), indent=2) + "\n"
    write_atomically(folder / METRICS_FILE, (json.dumps(metrics, indent=2) + "\n").encode())
    write_atomically(folder / CARD_FILE, card.encode(errors="backslashreplace"))
    write_atomically(folder / CONFIG_FILE, content.encode())  # last: with it, the model is whole


def load_classifier(folder: Path) -> Classifier:
    """Read what `save_classifier` wrote.

    Raises:
        UserError: there is no such model, or it is torn.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch import nn

    from tune_inat.backbone import Normalize, load_backbone

    config = _read_config(folder)
    backbone = load_backbone(
        config.model,
        weights="none",
        n_classes=len(config.classes),
        seed=0,
        image_size=config.image_size,
    )
    try:
        backbone.model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder / WEIGHTS_FILE}: these are not the model's weights ({error}).") from error
    network = nn.Sequential(Normalize(config.mean, config.std), backbone.model)
    return Classifier(config, network.eval())


def _read_config(folder: Path) -> ModelConfig:
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_bytes())
        return ModelConfig(
            model=str(values["model"]),
            classes=tuple(str(name) for name in values["classes"]),
            image_size=int(values["image_size"]),
            mean=_channels(values["mean"]),
            std=_channels(values["std"]),
            trial_id=str(values["trial_id"]),
            epoch=int(values["epoch"]),
            config=dict(values["config"]),
            temperature=_positive(values.get("temperature", 1.0)),  # older models have none
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: there is no model here. A finished search leaves one in runs/NAME/best_model."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: this is not a model's configuration ({error!r}).") from error


def _channels(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"temperature {value}")
    return number


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run: Annotated[Path, typer.Argument(help="The folder of a search (runs/NAME), or of a model.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write model.onnx, and compare it with the network.")
    ] = False,
) -> None:
    """Write the best model in another format, beside its weights."""
    if not onnx:
        raise UserError("Say in which format: --onnx.")
    from tune_inat.onnx_export import ONNX_FILE, check_packages, write_onnx

    check_packages()
    folder = model_folder(run)
    classifier = load_classifier(folder)
    checked = write_onnx(
        classifier.network,
        folder / ONNX_FILE,
        image_size=classifier.config.image_size,
        images=_known_images(folder),
    )
    sys.stdout.write(printable(str(folder / ONNX_FILE)) + "\n")
    sys.stderr.write(f"{checked}\n")


def model_folder(run: Path) -> Path:
    """The folder of a model: `runs/NAME/best_model`, or the folder itself."""
    inner = run / BEST_MODEL_FOLDER
    return inner if inner.is_dir() else run


def _known_images(folder: Path) -> list[Path]:
    """The images that the search predicted, as far as they are still where they were."""
    try:
        with (folder.resolve().parent / PREDICTIONS_FILE).open(
            encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            paths = [Path(row["file"]) for row in csv.DictReader(file)]
    except (OSError, csv.Error, KeyError, TypeError):
        return []
    return [path for path in paths if path.is_file()]


if __name__ == "__main__":
    run_command(app)
