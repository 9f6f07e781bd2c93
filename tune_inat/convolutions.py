"""Convolutions that the CPU computes faster than by torch's own layers, in their place in a graph."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

# The gradient of a depthwise convolution's weights: oneDNN is fast for 3 x 3, torch slow for larger ones. All
# gradients on one core of a Xeon with AVX-512 and AMX, in ms, torch's and these here (torch 2.14, 2026-11):
#   1152 channels at 3 x 3, kernel 5, batch 32    fp32 9.4 and 2.4    bf16 35 and 1.7
#    672 channels at 6 x 6, kernel 5, batch 32    fp32 8.5 and 4.2    bf16 40 and 2.6
#    768 channels at 7 x 7, kernel 7, batch 32    fp32 26  and 10     bf16 81 and 6.8
#    480 channels at 14 x 14, kernel 5, batch 16  fp32 14  and 7.6    bf16 63 and 6.6
MIN_KERNEL = 5
MAX_POSITIONS = 14 * 14  # of the output's map, which becomes a kernel: large ones are slow too


def speed_up(network: fx.GraphModule) -> fx.GraphModule:
    """Put a faster layer in the place of each convolution of a graph that gains by it on the CPU."""
    for node in network.graph.nodes:
        if node.op != "call_module":
            continue
        module = network.get_submodule(node.target)
        if not isinstance(module, nn.Conv2d) or not (type(module) is nn.Conv2d or _is_same(module)):
            continue
        if _is_pointwise(module):
            network.set_submodule(node.target, PointwiseConvolution(module))
        elif _is_depthwise(module):
            network.set_submodule(node.target, DepthwiseConvolution(module))
    return network


class PointwiseConvolution(nn.Module):
    """A 1 x 1 `nn.Conv2d`, computed as the matrix product that it is, with that module's own weights.

    oneDNN rearranges the weights for each convolution. Forward and backward of 192 to 1152 channels at 3 x 3,
    batch 32, take 2.3 ms so and 1.1 ms as a product in bf16, 4.1 and 3.0 ms in fp32 (one core, as above).
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        convolution = self.convolution
        if features.device.type != "cpu":
            result: Tensor = convolution(features)
            return result
        down, across = convolution.stride
        # A product of what has gaps in memory takes a hundred times as long.
        positions = features.permute(0, 2, 3, 1)[:, ::down, ::across].contiguous()
        product = functional.linear(positions.flatten(0, 2), convolution.weight.flatten(1), convolution.bias)
        return product.reshape(*positions.shape[:3], -1).permute(0, 3, 1, 2)


class DepthwiseConvolution(nn.Module):
    """A depthwise `nn.Conv2d` with a large kernel and a faster backward pass, with that module's own weights.

    Outputs are torch's, gradients differ from torch's in rounding. Where torch is faster (on GPUs, at large
    maps), torch computes the gradients too.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        convolution = self.convolution
        compute: Callable[..., Tensor] = _Depthwise.apply
        if not self._is_faster(features):
            result: Tensor = convolution(features)
            return result
        if _is_same(convolution):
            features = _padded_as_tensorflow_does(convolution, features)
        # What autocast would do; inside a function of our own it must have been done before.
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else features.dtype
        weight = convolution.weight.to(dtype)
        bias = None if convolution.bias is None else convolution.bias.to(dtype)
        with torch.autocast("cpu", enabled=False):
            return compute(features.to(dtype), weight, bias, convolution.stride, convolution.padding)

    def _is_faster(self, features: Tensor) -> bool:
        height, width = features.shape[-2:]
        down, across = self.convolution.stride
        return (
            torch.is_grad_enabled()
            and self.convolution.weight.requires_grad
            and features.device.type == "cpu"
            and -(-height // down) * -(-width // across) <= MAX_POSITIONS
        )


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == (1, 1)
        and convolution.groups == 1
        and convolution.padding in ((0, 0), "same", "valid")
        and (convolution.stride == (1, 1) or not _is_same(convolution))
    )


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    return (
        convolution.groups == convolution.in_channels == convolution.out_channels
        and min(convolution.kernel_size) >= MIN_KERNEL
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
        and all(pad < size for pad, size in zip(convolution.padding, convolution.kernel_size, strict=True))
    )


def _is_same(convolution: nn.Conv2d) -> bool:
    """Whether it is timm's convolution that pads as TensorFlow does, by the size of what it is given."""
    layers: Any = sys.modules.get("timm.layers")  # not loaded: the model is not timm's
    return layers is not None and type(convolution) is layers.Conv2dSame


def _padded_as_tensorflow_does(convolution: nn.Conv2d, features: Tensor) -> Tensor:
    layers: Any = sys.modules["timm.layers"]
    padded: Tensor = layers.pad_same(features, convolution.kernel_size, convolution.stride)
    return padded


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution, all of whose gradients are depthwise convolutions as well."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(features, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        for_features, for_weight, for_bias = ctx.needs_input_grad[:3]
        return (
            _features_gradient(features, weight, gradient, ctx.stride, ctx.padding) if for_features else None,
            _weight_gradient(features, weight, gradient, ctx.stride, ctx.padding) if for_weight else None,
            gradient.sum((0, 2, 3)) if for_bias else None,
            None,
            None,
        )


def _features_gradient(
    features: Tensor, weight: Tensor, gradient: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The gradient convolved with the flipped kernel; with a stride, torch's own way."""
    if stride == (1, 1):
        around = [size - 1 - pad for size, pad in zip(weight.shape[-2:], padding, strict=True)]
        return functional.conv2d(gradient, weight.flip(2, 3), padding=around, groups=len(weight))
    result: Tensor = torch.ops.aten.convolution_backward(
        gradient,
        features,
        weight,
        None,
        stride,
        padding,
        (1, 1),
        False,
        (0, 0),
        len(weight),
        (True, False, False),
    )[0]
    return result


def _weight_gradient(
    features: Tensor, weight: Tensor, gradient: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Each image and channel convolved with its gradient as the kernel, then summed over the images."""
    n, channels, height, width = features.shape
    kernel_height, kernel_width = weight.shape[-2:]
    images = features.permute(2, 3, 0, 1).reshape(1, height, width, n * channels).permute(0, 3, 1, 2)
    kernels = gradient.permute(2, 3, 0, 1).reshape(*gradient.shape[-2:], n * channels).permute(2, 0, 1)
    each = functional.conv2d(
        images, kernels.unsqueeze(1), padding=padding, dilation=stride, groups=n * channels
    )
    # A stride may leave a row or column over that no output saw: it is cut off here.
    each = each.permute(0, 2, 3, 1)[0, :kernel_height, :kernel_width]
    summed = each.reshape(kernel_height, kernel_width, n, channels).sum(2)
    return summed.permute(2, 0, 1).unsqueeze(1)
