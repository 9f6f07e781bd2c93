"""A trained classifier on disk: weights, configuration and metrics, enough to predict without the search."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tune_inat.backbone import Backbone, Normalize, load_backbone
from tune_inat.errors import UserError, printable
from tune_inat.store import write_atomically

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class ModelConfig:
    """What one must know to use the weights.

    Images are resized to `image_size` x `image_size` (the whole picture, bicubic), scaled to 0..1, then
    normalised by `mean` and `std` (R, G, B). Output n of the network is the logit of `classes[n]`.
    """

    model: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    trial_id: str
    epoch: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Classifier:
    """A network in eval mode, from pixels (n, 3, S, S) uint8, R, G, B, to logits (n, K)."""

    config: ModelConfig
    network: nn.Module


def save_classifier(
    folder: Path, backbone: Backbone, config: ModelConfig, metrics: Mapping[str, Any]
) -> None:
    """Write a network as it is now, with what is needed to use it."""
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors has no strides: contiguous copies, whatever layout the network trained in.
    tensors: dict[str, Tensor] = {
        name: value.detach().cpu().contiguous().clone() for name, value in backbone.model.state_dict().items()
    }
    aside = folder / f".{WEIGHTS_FILE}.tmp"
    save_file(tensors, aside, metadata={"format": "pt"})
    aside.replace(folder / WEIGHTS_FILE)
    content = json.dumps(asdict(config), indent=2) + "\n"
    write_atomically(folder / METRICS_FILE, (json.dumps(metrics, indent=2) + "\n").encode())
    write_atomically(folder / CARD_FILE, _card(config, metrics).encode())
    write_atomically(folder / CONFIG_FILE, content.encode())  # last: with it, the model is whole


def load_classifier(folder: Path) -> Classifier:
    """Read what `save_classifier` wrote.

    Raises:
        UserError: there is no such model, or it is torn.
    """
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


def _card(config: ModelConfig, metrics: Mapping[str, Any]) -> str:
    """The model card: what it is, how good, how to use it."""
    lines = [
        f"# {config.model}, fine-tuned on {metrics['data']}",
        "",
        f"Trial `{config.trial_id}`, epoch {config.epoch}. Images of {config.image_size} x "
        f"{config.image_size} px, {len(config.classes)} classes: "
        + ", ".join(_code(name) for name in config.classes[:50])
        + (" ..." if len(config.classes) > 50 else "")
        + ".",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in metrics.items() if isinstance(value, float)),
        "",
        "The metrics are those of these very weights. Predict with",
        "",
        "    python -m tune_inat.predict . IMAGE_OR_FOLDER...",
        "",
    ]
    return "\n".join(lines)


def _code(text: str) -> str:
    """Foreign text as code in Markdown, on one line."""
    return "`" + printable(text).replace("`", "'").replace("\n", " ") + "`"
