"""A trained classifier on disk, enough to predict without the search; as ONNX too, by the command.

`python -m tune_inat.export runs/NAME --onnx` writes `model.onnx` beside the weights.
"""

import csv
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from tune_inat.disk import check_room, sync
from tune_inat.elsewhere import folder_at, send_to
from tune_inat.errors import UserError, printable, run_command
from tune_inat.leaderboard import BEST_MODEL_FOLDER, PREDICTIONS_FILE
from tune_inat.remote import is_uri
from tune_inat.store import write_atomically
from tune_inat.wording import complaint

if TYPE_CHECKING:  # torch is imported where it is used: the command answers before it is loaded
    from torch import Tensor, nn

    from tune_inat.backbone import Backbone

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
MODEL_FILES = (WEIGHTS_FILE, CONFIG_FILE, METRICS_FILE, CARD_FILE)
MAX_CONFIG_BYTES = 10_000_000  # the names of ImageNet's 21,841 classes have 0.6 MB


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
    write_atomically(folder / METRICS_FILE, (json.dumps(metrics, indent=2) + "\n").encode())
    write_atomically(folder / CARD_FILE, card.encode(errors="backslashreplace"))
    check_room(folder, sum(value.nbytes for value in tensors.values()), "the best model")
    aside = folder / f".{WEIGHTS_FILE}.tmp"
    try:
        save_file(tensors, aside, metadata={"format": "pt"})
        shutil.copymode(folder / METRICS_FILE, aside)  # safetensors shuts everybody out but the owner
        sync(aside)
        aside.replace(folder / WEIGHTS_FILE)
    finally:
        aside.unlink(missing_ok=True)  # a part of it would take the room of the results that follow
    content = json.dumps(asdict(config), indent=2) + "\n"
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


class _ConfigFile(BaseModel):
    """`config.json` as it has to be to give a `ModelConfig`; it may come from anybody."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str = Field(min_length=1)
    classes: tuple[str, ...] = Field(min_length=1)
    image_size: int = Field(ge=16, le=4096)
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    trial_id: str
    epoch: int
    config: dict[str, Any]
    temperature: PositiveFloat = 1.0  # older models have none


def _read_config(folder: Path) -> ModelConfig:
    path = folder / CONFIG_FILE
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise UserError(f"{path}: it has more than {MAX_CONFIG_BYTES:,} bytes: no model's configuration.")
        return ModelConfig(**_ConfigFile.model_validate_json(content).model_dump())
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: there is no model here. A finished search leaves one in runs/NAME/best_model."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        complaints = " ".join(map(_config_complaint, error.errors()))
        raise UserError(f"{path}: this is not a model's configuration. {complaints}") from error


def _config_complaint(detail: Mapping[str, Any]) -> str:
    if not detail["loc"]:
        return f"{detail['msg']}."
    key = ".".join(map(str, detail["loc"]))
    return f"{key} is missing." if detail["type"] == "missing" else f"{key}: {complaint(detail)}"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run: Annotated[str, typer.Argument(help="The folder of a search (runs/NAME) or model, or its URI.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write model.onnx, and compare it with the network.")
    ] = False,
) -> None:
    """Write the best model in another format, beside its weights."""
    if not onnx:
        raise UserError("Say in which format: --onnx.")
    from tune_inat.onnx_export import ONNX_FILE, check_packages, write_onnx

    check_packages()
    with folder_at(run, is_wanted=lambda name: is_of_model(name) or name == PREDICTIONS_FILE) as place:
        folder = model_folder(place)
        classifier = load_classifier(folder)
        checked = write_onnx(
            classifier.network,
            folder / ONNX_FILE,
            image_size=classifier.config.image_size,
            images=_known_images(folder),
        )
        file = folder / ONNX_FILE
        written = send_to(run, file, file.relative_to(place).as_posix()) if is_uri(run) else str(file)
    sys.stdout.write(printable(written) + "\n")
    sys.stderr.write(f"{checked}\n")


def is_of_model(name: str) -> bool:
    """Whether a file of a search's folder is one of its model's, by its name below the folder."""
    return name.rpartition("/")[2] in MODEL_FILES


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
