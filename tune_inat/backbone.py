"""Pretrained networks with a new head: loaded by name, reset between trials."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_inat.architectures import create_architecture
from tune_inat.weights import hash_of_weights


class Head(nn.Module):
    """Dropout, then a linear layer from features (n, D) to logits (n, K).

    In a network that classifies each pixel before it pools (SqueezeNet), it maps (n, D, H, W) to
    (n, K, H, W). `weight` and `bias` are named and shaped as those of the layer that it replaces.
    """

    def __init__(self, replaced: nn.Linear | nn.Conv2d, n_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight = nn.Parameter(replaced.weight.new_empty(n_classes, *replaced.weight.shape[1:]))
        self.bias = None if replaced.bias is None else nn.Parameter(replaced.bias.new_empty(n_classes))

    def forward(self, features: Tensor) -> Tensor:
        """The logits of features."""
        if self.training and self.dropout > 0:
            features = F.dropout(features, self.dropout)
        if self.weight.ndim == 4:
            return F.conv2d(features, self.weight, self.bias)
        return F.linear(features, self.weight, self.bias)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw new weights as `nn.Linear` does by default: uniform within 1/sqrt(D)."""
        bound = self.weight.shape[1] ** -0.5
        for parameter in self.parameters():
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)


class Normalize(nn.Module):
    """Pixels (n, 3, H, W) to what a network is used to, float32 in the same memory layout.

    They are uint8, or float32 where they have been mixed, in 0..255 either way.
    """

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        scale = 1 / (255 * torch.tensor(std))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-255 * torch.tensor(mean) * scale).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """The pixels, normalised."""
        own = pixels.to(torch.float32, copy=True)  # what was mixed is the caller's
        return own.mul_(self.scale).add_(self.shift)


@dataclass(eq=False)
class Backbone:
    """A network whose own classifier is replaced by a `Head` for K classes.

    Attributes:
        model: the whole network, from normalised images (n, 3, H, W) to logits (n, K). In eval mode when
            loaded. Move it to its device before it is traced.
        head_names: the paths of its heads: one, or two where the network averages two.
        mean, std: what `Normalize` needs.
        image_size: the side of the images that it takes.
        weights: what was loaded, in words.
        weights_key: a hash of the backbone's tensors as loaded, its name, mean and std.
        notices: what the user must be told.
        changing: the names of the tensors that training changes, parameters and buffers: all, until some
            are frozen.
    """

    name: str
    model: nn.Module
    head_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    weights: str
    weights_key: str
    notices: tuple[str, ...]
    changing: tuple[str, ...]

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads, in the order of their names."""
        heads = [self.model.get_submodule(name) for name in self.head_names]
        return tuple(head for head in heads if isinstance(head, Head))

    def is_of_head(self, tensor_name: str) -> bool:
        """Whether a tensor belongs to a head."""
        return tensor_name.rpartition(".")[0] in self.head_names


def load_backbone(
    name: str,
    *,
    weights: str = "default",
    n_classes: int,
    seed: int,
    dropout: float = 0.0,
    image_size: int | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Backbone:
    """Load a torchvision network or `timm/NAME` and give it a new head.

    The head follows from the seed alone, and so do random weights. torch's global generator stays as it was.

    Args:
        weights: `default` (those published), `none` (random) or a file.
        dropout: before the head. The network's own dropout at that place is switched off.
        image_size: the side of the images it will see; `None` leaves it at what the weights were made for.
        state: all but the head, as another process has loaded it (`pristine_state`): nothing is read or
            downloaded then.

    Raises:
        BackboneError: there is no such network or no such weights, with what would be right.
    """
    with _own_random_numbers(seed):
        made = create_architecture(name, weights=weights if state is None else "none", image_size=image_size)
    model = made.model
    for path in made.classifiers:
        _silence_dropout(model, path)
        replaced = model.get_submodule(path)
        assert isinstance(replaced, nn.Linear | nn.Conv2d), "classifiers are such layers"
        model.set_submodule(path, Head(replaced, n_classes, dropout))
    model.eval()
    notices: tuple[str, ...] = ()
    if weights == "none":
        notices = (
            f"model {name}: random weights, as --weights none asks. Nothing is learned beforehand, so "
            "frozen layers stay random; expect far lower accuracy than with pretrained weights.",
        )
    backbone = Backbone(
        name=name,
        model=model,
        head_names=made.classifiers,
        mean=made.mean,
        std=made.std,
        image_size=made.image_size,
        weights=made.weights if state is None else weights,
        weights_key="",
        notices=notices,
        changing=tuple(model.state_dict()),
    )
    if state is not None:
        model.load_state_dict({**model.state_dict(), **state})
    backbone.weights_key = hash_of_weights(_backbone_state(backbone), also=[name, made.mean, made.std])
    reset_heads(backbone, seed)
    return backbone


def reset_heads(backbone: Backbone, seed: int) -> None:
    """Draw the heads anew. They follow from the seed and their shape alone."""
    generator = torch.Generator().manual_seed(seed)
    for head in backbone.heads:
        head.draw(generator)


def pristine_state(backbone: Backbone) -> dict[str, Tensor]:
    """A copy of all but the heads, for `restore`."""
    return {name: value.detach().clone() for name, value in _backbone_state(backbone).items()}


@torch.no_grad()
def restore(backbone: Backbone, pristine: Mapping[str, Tensor], *, seed: int, dropout: float) -> None:
    """Make a backbone as it was loaded, with a head from the seed: in place, so what shares it follows.

    All is in eval mode and nothing frozen afterwards.
    """
    for name, value in _backbone_state(backbone).items():
        value.copy_(pristine[name])
    reset_heads(backbone, seed)
    for head in backbone.heads:
        head.dropout = dropout
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    backbone.model.eval()
    backbone.changing = tuple(backbone.model.state_dict())


def _backbone_state(backbone: Backbone) -> dict[str, Tensor]:
    return {
        name: value for name, value in backbone.model.state_dict().items() if not backbone.is_of_head(name)
    }


def _silence_dropout(model: nn.Module, classifier: str) -> None:
    """Switch off the dropout just before a classifier: a layer, or a rate that a module around it applies."""
    leaves = [module for module in model.modules() if not list(module.children())]
    before = leaves[leaves.index(model.get_submodule(classifier)) - 1]
    if isinstance(before, nn.Dropout):
        before.p = 0.0
    around = model
    for name in classifier.split("."):
        if isinstance(getattr(around, "drop_rate", None), float):
            around.drop_rate = 0.0  # type: ignore[assignment]  # a number, not a module
        around = around.get_submodule(name)


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
