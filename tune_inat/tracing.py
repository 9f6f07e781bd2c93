"""Where a network can be cut, what crosses there, and the parts on both sides."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from tune_inat.backbone import Backbone
from tune_inat.errors import BackboneError
from tune_inat.freeze import RunOrder, apply_freeze, registration_order
from tune_inat.graph import INPUT, Graph, trace_graph

OUTPUT = "output"
PROBE_IMAGES = 3  # in the batch that shapes are found with: not a number that shapes have by chance


@dataclass(frozen=True)
class Crossing:
    """What crosses at a point of a network, for one image, and the work to get there from the images."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    flops: int

    @property
    def n_bytes(self) -> int:
        """Bytes for one image, as the network gives them in fp32."""
        n_values = 1
        for size in self.shape:
            n_values *= size
        return n_values * self.dtype.itemsize


Refine = Callable[[fx.GraphModule], fx.GraphModule]


def _as_it_is(part: fx.GraphModule) -> fx.GraphModule:
    return part


class Suffix(nn.Module):
    """The part of a network that trains, from what crosses at a cut to logits.

    `train()` puts into train mode what trains and leaves what is frozen in eval mode; so does `eval()` the
    other way round. It shares its parts with the backbone.
    """

    def __init__(
        self, evaluating: nn.Module, training: nn.Module, network: nn.Module, moving: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self._evaluating = evaluating
        self._training = training
        self._all = tuple(network.modules())
        self._moving = tuple(moving)
        self.eval()

    def forward(self, features: Tensor) -> Tensor:
        """The logits (n, K) of what crosses at the cut."""
        logits: Tensor = self._training(features) if self.training else self._evaluating(features)
        return logits

    def train(self, mode: bool = True) -> "Suffix":
        """Train mode for what trains, or eval mode for all."""
        for module in self._all:
            module.training = False
        for module in self._moving:
            module.training = mode
        self.training = mode
        return self


class Traced:
    """A backbone's graph: the points where it can be cut, and the parts between.

    What cannot be traced has one such point, its input, and says why in `reason`.

    Attributes:
        order: when modules and parameters are first used; the order of registration where it is not traced.
        reason: why the backbone could not be traced, else `None`.
    """

    def __init__(
        self,
        backbone: Backbone,
        graph: Graph | None,
        training: Graph | None,
        reason: str | None = None,
        *,
        refine: Refine = _as_it_is,
    ) -> None:
        model = backbone.model
        self.backbone = backbone
        self.reason = reason
        self.order: RunOrder = registration_order(model) if graph is None else graph.run_order(model)
        self._refine = refine
        self._graph = graph
        self._training_graph = training  # of train mode, where that is another graph
        self._measured: dict[int, _Measured] = {}
        self._parts: dict[tuple[str, str | None], nn.Module] = {}
        self._training_parts: dict[tuple[str, frozenset[str]], nn.Module] = {}

    @cached_property
    def crossings(self) -> tuple[str, ...]:
        """The points before the head, in order from `INPUT`, at which one tensor crosses, image by image.

        Raises:
            BackboneError: the network does not take images of the backbone's size.
        """
        return tuple(self._measure(self.backbone.image_size).crossings)

    def cut_for(self, frozen: Collection[str]) -> str:
        """The deepest crossing before the first use of a parameter that is not frozen."""
        if self._graph is None:
            return INPUT
        held = set(frozen)
        first = min(number for name, number in self.order.tensors.items() if name not in held)
        return [name for name in self.crossings if self._graph.index(name) < first][-1]

    def segment(self, start: str, end: str | None = None) -> nn.Module:
        """The part from one crossing to another, or to the logits (`None`), in eval mode."""
        key = (start, end)
        if key not in self._parts:
            self._parts[key] = self._part(self._graph, start, end)
        return self._parts[key].eval()

    def suffix(self, cut: str, frozen: Collection[str]) -> Suffix:
        """The part from a cut to the logits, ready to train all but what is frozen.

        This freezes the backbone: frozen parameters need no gradient, all others do.
        """
        moving = apply_freeze(self.backbone, frozen, self.order)
        evaluating = self.segment(cut)
        training = evaluating
        if self._training_graph is not None:
            key = (cut, frozenset(frozen))
            if key not in self._training_parts:
                self._training_parts[key] = self._training_part(cut, moving)
            training = self._training_parts[key]
        return Suffix(evaluating, training, self.backbone.model, moving)

    def at(self, crossing: str, image_size: int | None = None) -> Crossing:
        """What crosses at a point, for images of a size (`None`: the backbone's)."""
        return self._measure(image_size or self.backbone.image_size).crossings[crossing]

    @torch.no_grad()
    def types(self, images: Tensor) -> dict[str, torch.dtype]:
        """The type of what crosses at each point where one tensor does, for images (n, 3, S, S) float32."""
        if self._graph is None:
            return {INPUT: images.dtype}
        run = _Types(fx.GraphModule(self.backbone.model, self._graph.part(INPUT, None)))
        run.run(images)
        return {name: run.types[name] for name in self.crossings}

    def flops_between(self, start: str, end: str | None = None, image_size: int | None = None) -> int:
        """The floating-point operations from a crossing to another, or to the logits, for one image."""
        measured = self._measure(image_size or self.backbone.image_size)
        whole = measured.flops if end is None else measured.crossings[end].flops
        return whole - measured.crossings[start].flops

    def _part(self, graph: Graph | None, start: str, end: str | None) -> nn.Module:
        if graph is None:
            return self.backbone.model
        return self._refine(fx.GraphModule(self.backbone.model, graph.part(start, end)))

    def _training_part(self, cut: str, moving: Sequence[nn.Module]) -> nn.Module:
        with _in_train_mode(self.backbone.model, moving):
            graph = trace_graph(self.backbone.model)
        assert self._graph is not None, "there are two graphs or none"
        if graph.steps_to(cut) != self._graph.steps_to(cut):
            raise RuntimeError(f"{self.backbone.name}: training changes what runs before the cut {cut}")
        return self._part(graph, cut, None)

    def _measure(self, image_size: int) -> "_Measured":
        if image_size not in self._measured:
            steps = _probe(self.backbone, self._graph, image_size)
            self._measured[image_size] = self._sort_out(steps)
        return self._measured[image_size]

    def _sort_out(self, steps: "dict[str, _Step]") -> "_Measured":
        """Of all steps those before the head at which one tensor crosses, in both modes, that can be kept."""
        flops = list(steps.values())[-1].flops // PROBE_IMAGES
        if self._graph is None:
            names: Collection[str] = [INPUT]
        else:
            head = min(
                number for name, number in self.order.tensors.items() if self.backbone.is_of_head(name)
            )
            names = [name for name in self._graph.crossings() if self._graph.index(name) < head]
        if self._training_graph is not None:
            also = set(self._training_graph.crossings())
            names = [name for name in names if name in also]
        kept = {}
        for name in names:
            step = steps[name]
            if isinstance(step.value, Tensor) and (name == INPUT or _can_be_kept(step.value, step.version)):
                shape = tuple(step.value.shape[1:])
                kept[name] = Crossing(shape, step.value.dtype, step.flops // PROBE_IMAGES)
        return _Measured(kept, flops)


def trace(backbone: Backbone, *, refine: Refine = _as_it_is) -> Traced:
    """Trace a backbone, in eval mode and, where that makes a difference, in train mode.

    Args:
        backbone: its model must be on its device already.
        refine: is given each part that is made, and may put other modules in the places of some.
    """
    model = backbone.model.eval()
    try:
        graph = trace_graph(model)
        with _in_train_mode(model, [module for module in model.modules() if module is not model]):
            training = trace_graph(model)
    except Exception as error:  # noqa: BLE001  # a model's code may raise anything when given a symbol
        return Traced(backbone, None, None, f"{type(error).__name__}: {error}".split("\n", 1)[0])
    return Traced(backbone, graph, None if training.code == graph.code else training, refine=refine)


@dataclass(frozen=True)
class _Measured:
    crossings: dict[str, Crossing]
    flops: int  # from the images to the logits, for one image


@dataclass(frozen=True)
class _Step:
    value: object  # what the step gave; tensors without data
    version: int  # of a tensor then: it grows when a later step overwrites it
    flops: int  # so far, for all images


def _can_be_kept(value: Tensor, version: int) -> bool:
    """Whether a value holds numbers, an image a row, that no later step overwrote."""
    is_by_image = value.ndim > 1 and value.shape[0] == PROBE_IMAGES
    return is_by_image and value.is_floating_point() and value._version == version


class _Types(fx.Interpreter):
    """Runs a graph and notes of which type each step's tensor is."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.types: dict[str, torch.dtype] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.types[n.meta.get("step", OUTPUT)] = value.dtype
        return value


class _Probe(fx.Interpreter):
    """Runs a graph and notes what each step gives."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.steps: dict[str, _Step] = {}
        self._counter = counter

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        version = value._version if isinstance(value, Tensor) else 0
        name = n.meta.get("step", OUTPUT)
        self.steps[name] = _Step(value, version, self._counter.get_total_flops())
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # BatchNorms take half of all time without data, to find that their output is like their input.
        if isinstance(self.fetch_attr(target), _BatchNorm) and args[0].is_meta:
            return torch.empty_like(args[0])
        return super().call_module(target, args, kwargs)


def _probe(backbone: Backbone, graph: Graph | None, image_size: int) -> dict[str, _Step]:
    """What each step gives for images of a size, by name; the last is the output.

    Raises:
        BackboneError: the network does not take such images, or does not give one logit a class.
    """
    try:
        # Without data: 0.1 s for ResNet-50, where torch's fake tensors take 0.3 s (2 cores, 2026-11).
        steps = _run(_without_data(backbone.model), graph, image_size, torch.device("meta"))
    except Exception:  # noqa: BLE001  # not all code runs without data; what is wrong with the images shows below
        try:
            device = next(backbone.model.parameters()).device
            steps = _run(backbone.model, graph, image_size, device)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            reason = str(error).split("\n", 1)[0]
            raise BackboneError(
                f"model {backbone.name}: it does not take images of {image_size} x {image_size} pixels "
                f"({reason})."
            ) from error
    logits = steps[OUTPUT].value
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    n_classes = backbone.heads[0].weight.shape[0]
    if shape != (PROBE_IMAGES, n_classes):
        raise BackboneError(
            f"model {backbone.name}: its output for {PROBE_IMAGES} images is {shape}, no logits."
        )
    return steps


@torch.no_grad()
def _run(model: nn.Module, graph: Graph | None, image_size: int, device: torch.device) -> dict[str, _Step]:
    fast_path = torch.backends.mha.get_fastpath_enabled()  # of transformers in eval mode: has no meta kernel
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, device:
            images = torch.zeros(PROBE_IMAGES, 3, image_size, image_size)
            if graph is None:
                start = _Step(images, 0, 0)
                logits = model(images)
                return {INPUT: start, OUTPUT: _Step(logits, 0, counter.get_total_flops())}
            probe = _Probe(fx.GraphModule(model, graph.part(INPUT, None)), counter)
            probe.run(images)
            return probe.steps
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _without_data(model: nn.Module) -> nn.Module:
    """A copy of a model whose tensors have shapes and types only."""
    empty: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        for parameter in model.parameters()
    }
    empty.update({id(buffer): buffer.to("meta") for buffer in model.buffers()})
    return copy.deepcopy(model, empty)


@contextmanager
def _in_train_mode(model: nn.Module, modules: Collection[nn.Module]) -> Iterator[None]:
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        model.eval()
