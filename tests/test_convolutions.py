"""The CPU's own convolutions: what torch's layers give and learn, whatever the kernel, stride and padding."""

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, fx, nn

from tune_inat.convolutions import (
    MAX_POSITIONS,
    DepthwiseConvolution,
    PointwiseConvolution,
    speed_up,
)
from tune_inat.graph import INPUT, trace_graph

CASES = {
    "5x5": (nn.Conv2d(6, 6, 5, padding=2, groups=6), 6),
    "5x5, stride": (nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6), 7),
    "5x5, stride, even map": (nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6, bias=False), 6),
    "7x7": (nn.Conv2d(6, 6, 7, padding=3, groups=6), 4),
    "7x5, unpadded": (nn.Conv2d(6, 6, (7, 5), groups=6), 9),
    "stride of 3 and 1": (nn.Conv2d(6, 6, 5, stride=(3, 1), padding=1, groups=6), 8),
    "same, stride": (Conv2dSame(6, 6, 5, stride=2, groups=6), 7),
    "same": (Conv2dSame(6, 6, 5, groups=6), 6),
    "1x1": (nn.Conv2d(6, 4, 1), 5),
    "1x1, stride": (nn.Conv2d(6, 4, 1, stride=2, bias=False), 5),
    "1x1 on one position": (nn.Conv2d(6, 4, 1), 1),
}


def fast(convolution: nn.Conv2d) -> fx.GraphModule:
    model = nn.Sequential(convolution)
    return speed_up(fx.GraphModule(model, trace_graph(model).part(INPUT, None)))


def learned(network: nn.Module, convolution: nn.Conv2d, features: Tensor, *, bf16: bool) -> list[Tensor]:
    """The output and all gradients of a loss that weighs each output differently."""
    features = features.clone().requires_grad_()
    convolution.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = network(features)
    output.float().sin().sum().backward()
    gradients = [parameter.grad for parameter in (*convolution.parameters(), features)]
    return [output.detach().float(), *(gradient.clone() for gradient in gradients if gradient is not None)]


def images(convolution: nn.Conv2d, size: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, convolution.in_channels, size, size).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_torch(case: str) -> None:
    convolution, size = CASES[case]
    network = fast(convolution)
    assert isinstance(network.get_submodule("0"), DepthwiseConvolution | PointwiseConvolution)
    ours = learned(network, convolution, images(convolution, size), bf16=False)
    theirs = learned(convolution, convolution, images(convolution, size), bf16=False)
    assert len(ours) == len(theirs)
    for own, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_in_bf16_they_are_those_of_fp32_but_for_rounding(case: str) -> None:
    convolution, size = CASES[case]
    ours = learned(fast(convolution), convolution, images(convolution, size), bf16=True)
    theirs = learned(convolution, convolution, images(convolution, size), bf16=False)
    assert len(ours) == len(theirs)
    for own, its in zip(ours, theirs, strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, its, rtol=0.05, atol=0.02 * float(its.abs().max()))


def test_memory_stays_channels_last() -> None:
    for convolution, size in CASES.values():
        output = fast(convolution)(images(convolution, size))
        assert output.is_contiguous(memory_format=torch.channels_last)


def test_frozen_weights_get_no_gradient_and_features_still_do() -> None:
    convolution = nn.Conv2d(6, 6, 5, padding=2, groups=6).requires_grad_(False)
    features = images(convolution, 5).requires_grad_()
    fast(convolution)(features).sum().backward()
    assert convolution.weight.grad is None
    assert features.grad is not None


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 12, 5, padding=2, groups=6),
        nn.Conv2d(6, 6, 5, padding=2, groups=3),
        nn.Conv2d(6, 6, 5, padding=2, groups=6, padding_mode="circular"),
        nn.Conv2d(6, 6, 5, padding=4, dilation=2, groups=6),
        nn.Conv2d(6, 4, 1, padding=1),
        nn.Conv2d(6, 4, 1, groups=2),
    ],
)
def test_others_stay_as_they_are(convolution: nn.Conv2d) -> None:
    assert fast(convolution).get_submodule("0") is convolution


def test_large_maps_are_left_to_torch() -> None:
    convolution = nn.Conv2d(2, 2, 5, padding=2, groups=2)
    side = int(MAX_POSITIONS**0.5) + 1
    output = fast(convolution)(images(convolution, side))
    assert "Depthwise" not in type(output.grad_fn).__name__


def test_a_network_is_not_changed_by_its_graph() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 5, padding=2, groups=6))
    names = list(model.state_dict())
    graph = speed_up(fx.symbolic_trace(model))
    assert list(model.state_dict()) == names
    assert {id(parameter) for parameter in graph.parameters()} == {id(p) for p in model.parameters()}
