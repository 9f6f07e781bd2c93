"""The model card: what a classifier was made from and how, how good it is, and how to use it without us."""

import inspect
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune_inat.errors import printable
from tune_inat.export import ModelConfig
from tune_inat.metrics import wilson_interval

MAX_CLASSES = 50  # that are listed with their counts
TIMM_PREFIX = "timm/"

METRICS = {  # in the order of their rows
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (mean recall of the classes)",
    "macro_f1": "macro F1",
    "loss": "cross-entropy in nats",
    "loss_calibrated": "cross-entropy after temperature",
    "ece": "expected calibration error, 15 bins",
    "ece_calibrated": "expected calibration error after temperature",
}


@dataclass(frozen=True)
class DataFacts:
    """A data set as the card shows it: for each part, train first, the images of each class in order."""

    name: str
    counts: Mapping[str, Sequence[int]]

    def total(self, part: str) -> int:
        """The images of a part, 0 where there is none."""
        return sum(self.counts.get(part, ()))


def compose_card(config: ModelConfig, metrics: Mapping[str, Any], data: DataFacts) -> str:
    """The card as Markdown. `metrics` are those of `metrics.json`."""
    sections = [
        f"# {_line(config.model)}, fine-tuned on {_line(data.name)}",
        f"A classifier of images into {len(config.classes)} classes, found by a hyperparameter search of "
        f"tune_inat: trial {_code(config.trial_id)} after epoch {config.epoch}.",
        "## Data",
        _data(config, data),
        "## Metrics",
        _metrics(metrics, data),
        "## Training",
        "The configuration of the trial:",
        _code_block(json.dumps(dict(config.config), indent=2), "json"),
        "## Calibration",
        _calibration(config, metrics),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(config, data)),
        "## Use",
        "With tune_inat, in this folder:",
        _code_block("python -m tune_inat.predict . IMAGE_OR_FOLDER...", "sh"),
        f"Without it, with {_library(config)}, Pillow and safetensors:",
        _code_block(loading_code(config), "python"),
        "`logits[0, n]` is of the n-th of the `classes` in `config.json`. tune_inat decodes large JPEG files "
        "at a fraction of their size, which is faster and changes pixels a little, and so the logits.",
        "## ONNX",
        "`model.onnx` is written by `python -m tune_inat.export . --onnx`, which needs "
        "`pip install 'tune_inat[onnx]'`. "
        f"Input `pixels`: uint8 (n, 3, {config.image_size}, {config.image_size}), R, G, B, any n; the "
        "normalisation is inside. Output `logits`: float32 "
        f"(n, {len(config.classes)}); divide by the temperature before a softmax.",
    ]
    return "\n\n".join(sections) + "\n"


def loading_code(config: ModelConfig) -> str:
    """Python that loads the weights into the plain network and computes `logits` of one image."""
    size = config.image_size
    return "\n".join(
        [
            "import numpy as np, torch, " + ("timm" if _is_timm(config) else "torchvision"),
            "from PIL import Image, ImageOps",
            "from safetensors.torch import load_file",
            f"network = {_construction(config)}.eval()",
            'network.load_state_dict(load_file("model.safetensors"))',
            'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")',
            f"pixels = np.array(image.resize(({size}, {size}), Image.Resampling.BICUBIC), np.float32) / 255",
            f"pixels = (pixels - np.float32({list(config.mean)})) / np.float32({list(config.std)})",
            "logits = network(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())).detach()",
            f"probabilities = (logits / {config.temperature!r}).softmax(1)",
        ]
    )


def _is_timm(config: ModelConfig) -> bool:
    return config.model.startswith(TIMM_PREFIX)


def _library(config: ModelConfig) -> str:
    return "timm" if _is_timm(config) else "torchvision"


def _construction(config: ModelConfig) -> str:
    """The plain network with as many outputs as there are classes, as `architectures` makes it."""
    options: dict[str, Any] = {"num_classes": len(config.classes)}
    if _is_timm(config):
        import timm

        name = config.model.removeprefix(TIMM_PREFIX)
        published = timm.get_pretrained_cfg(name)
        assert published is not None, "timm has a configuration for each of its models"
        if published.fixed_input_size and config.image_size != published.input_size[-1]:
            options["img_size"] = config.image_size
        return f"timm.create_model({_arguments(name, options)})"
    from torchvision import models

    builder = models.get_model_builder(config.model)
    accepted = inspect.signature(typing.get_type_hints(builder)["return"]).parameters
    if "aux_logits" in accepted:  # GoogLeNet and Inception
        options |= {"aux_logits": False, "transform_input": True, "init_weights": False}
    if "image_size" in accepted:
        options["image_size"] = config.image_size
    if "input_size" in accepted:
        options["input_size"] = (config.image_size, config.image_size)
    return f"torchvision.models.get_model({_arguments(config.model, options)})"


def _arguments(name: str, options: Mapping[str, Any]) -> str:
    return ", ".join([json.dumps(name), *(f"{key}={value!r}" for key, value in options.items())])


def _data(config: ModelConfig, data: DataFacts) -> str:
    parts = list(data.counts)
    header = ["class", *parts]
    rows = [
        [_code(name), *(f"{data.counts[part][index]:,}" for part in parts)]
        for index, name in enumerate(config.classes[:MAX_CLASSES])
    ]
    if len(config.classes) > MAX_CLASSES:
        rest = f"{len(config.classes) - MAX_CLASSES:,} more classes"
        rows.append([rest, *(f"{sum(data.counts[part][MAX_CLASSES:]):,}" for part in parts)])
    rows.append(["**all images**", *(f"{data.total(part):,}" for part in parts)])
    return (
        "Weights were fitted on train; the trial, its epoch and the temperature were chosen on val"
        + ("; test was looked at afterwards.\n\n" if "test" in parts else ".\n\n")
        + _table(header, rows)
    )


def _metrics(metrics: Mapping[str, Any], data: DataFacts) -> str:
    parts = [part for part in ("val", "test") if f"{part}_accuracy" in metrics]
    rows = [
        [title, *(_metric(metrics, part, name, data.total(part)) for part in parts)]
        for name, title in METRICS.items()
        if any(f"{part}_{name}" in metrics for part in parts)
    ]
    return (
        "Of these very weights. In brackets, Wilson's 95 % interval, which knows only of the number of "
        "images. Those of val are optimistic: the best of all trials and epochs was chosen by them.\n\n"
        + _table(["metric", *(f"{part} ({data.total(part):,} images)" for part in parts)], rows)
    )


def _metric(metrics: Mapping[str, Any], part: str, name: str, n: int) -> str:
    value = metrics.get(f"{part}_{name}")
    if not isinstance(value, float):
        return ""
    if name != "accuracy" or n == 0:
        return f"{value:.4f}"
    low, high = wilson_interval(round(value * n), n)
    return f"{value:.4f} ({low:.4f} to {high:.4f})"


def _calibration(config: ModelConfig, metrics: Mapping[str, Any]) -> str:
    if config.temperature == 1.0:
        return (
            "Temperature 1: the softmax of the logits is used as it is, no other temperature fitted better."
        )
    text = (
        f"Temperature {config.temperature:.4f}, fitted on val (Guo et al., 2017): probabilities are the "
        "softmax of the logits divided by it. No prediction changes."
    )
    if "test_ece_calibrated" in metrics:
        ece, ece_after = metrics["test_ece"], metrics["test_ece_calibrated"]
        loss, loss_after = metrics["test_loss"], metrics["test_loss_calibrated"]
        return (
            f"{text} On test the expected calibration error goes from {ece:.4f} to {ece_after:.4f}, the "
            f"cross-entropy from {loss:.4f} to {loss_after:.4f}."
        )
    return f"{text} There is no test part to tell how well that carries over."


def _limits(config: ModelConfig, data: DataFacts) -> list[str]:
    size = config.image_size
    lines = [
        f"It sees the whole picture squeezed to {size} x {size} pixels, whatever its shape: proportions are "
        "lost, and so is detail smaller than that.",
        f"It names one of its {len(config.classes)} classes for any picture, also for one that shows none of "
        "them or several. Its probabilities do not tell such pictures apart.",
        "The metrics are of images from the same source as those it was trained on. Nothing is known of "
        "others: another camera, place, season or way of collecting.",
        "Nothing was examined of biases in the images or their labels, nor of the licences of the images and "
        "of the pretrained weights.",
    ]
    if data.total("test"):
        n = data.total("test")
        smallest = min(data.counts["test"])
        lines.append(
            f"The test has {n:,} images, {smallest:,} in its smallest class: what is less than the interval "
            "apart cannot be told apart, and a single class much less so."
        )
    else:
        lines.append("There was no test part: val, by which it was chosen, is all that is known.")
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _code_block(text: str, language: str) -> str:
    """Text as a block; a fence longer than any inside it cannot be closed by it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _code(text: str) -> str:
    """Foreign text as code in a Markdown table, on one line."""
    return "`" + printable(text).replace("`", "'").replace("\n", " ").replace("|", "\\|") + "`"


def _line(text: str) -> str:
    """Foreign text as plain words: no Markdown or HTML of its own."""
    plain = printable(text).replace("\n", " ")
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in plain)
