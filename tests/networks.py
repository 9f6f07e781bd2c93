"""Whole networks for tests, in a moment: their random draws skipped, then filled with plain numbers."""

import math
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tune_inat.backbone import Backbone, load_backbone

N_CLASSES = 7
PERIOD = 1 << 20  # numbers drawn; they repeat
DRAWS = (
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
)


class _SkipDraws(TorchFunctionMode):
    """Leaves tensors as they are where they would be drawn: for all of torchvision that takes minutes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def make_backbone(name: str, image_size: int | None = None) -> Backbone:
    """A network with weights that keep its images apart. It lacks a `weights_key`."""
    with (
        _SkipDraws(),
        mock.patch.object(nn.init, "trunc_normal_"),
        mock.patch("tune_inat.backbone.hash_of_weights", return_value=""),  # of 20 GB: takes 13 s
    ):
        backbone = load_backbone(name, weights="none", n_classes=N_CLASSES, seed=0, image_size=image_size)
    fill(backbone.model)
    return backbone


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Fill a network's parameters, and the statistics of its BatchNorms, from a fixed stream of numbers."""
    numbers = torch.rand(PERIOD, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # as He et al. (2015): the variance stays
            _tile(parameter, numbers, math.sqrt(6 / math.prod(parameter.shape[1:])))
        else:
            _tile(parameter, numbers, 0.1)
            parameter.add_(1 if name.endswith("weight") else 0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            _tile(buffer, numbers, 0.1)


def _tile(tensor: Tensor, numbers: Tensor, scale: float) -> None:
    flat = tensor.detach().view(-1)
    whole = flat.numel() // PERIOD * PERIOD
    if whole:
        flat[:whole].view(-1, PERIOD).copy_(numbers * scale)
    torch.mul(numbers[: flat.numel() - whole], scale, out=flat[whole:])
