"""A network's graph: its steps by name, where a single tensor crosses, the part between two such points."""

import inspect
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from tune_inat.backbone import Head
from tune_inat.freeze import RunOrder

INPUT = "input"  # the step that stands for the images


class Graph:
    """The steps of a forward pass in the order in which they run, the first of which is `INPUT`.

    A step is named by the module that it belongs to and what it does (`layer1.0.relu`, `layer1.0.add`),
    with a number if that comes again (`layer1.0.relu_1`). So equal steps have equal names in the graphs of
    train and eval mode, whatever else differs.
    """

    def __init__(self, traced: fx.Graph) -> None:
        self._nodes = list(traced.nodes)
        self._images = next(node for node in self._nodes if node.op == "placeholder")
        self._varying = _follow([self._images], self._nodes)
        self._names = _name_nodes(self._nodes, self._images)
        self._index = {name: number for number, name in enumerate(self._names)}

    @property
    def code(self) -> str:
        """The steps as Python: equal for graphs that do the same."""
        return self.part(INPUT, None).python_code("self").src

    def steps_to(self, name: str) -> list[str]:
        """The names of the steps up to one, those left out that do not depend on the images."""
        last = self._index[name]
        return [
            step
            for step, node in zip(self._names[: last + 1], self._nodes, strict=False)
            if node in self._varying
        ]

    def index(self, name: str) -> int:
        """The place of a step in the order."""
        return self._index[name]

    def crossings(self) -> tuple[str, ...]:
        """The steps, in order, after which nothing but their own result is still needed.

        What does not depend on the images (parameters, constants) may be needed on both sides.
        """
        place = {node: number for number, node in enumerate(self._nodes)}
        found = []
        needed_until: dict[fx.Node, int] = {}
        for number, node in enumerate(self._nodes):
            if node not in self._varying or node.op == "output":
                continue
            needed_until = {other: last for other, last in needed_until.items() if last > number}
            last = max((place[user] for user in node.users), default=-1)
            if last > number:
                needed_until[node] = last
            if list(needed_until) == [node]:
                found.append(self._names[number])
        return tuple(found)

    def part(self, start: str, end: str | None) -> fx.Graph:
        """The graph from the result of one crossing to that of another, or to the output (`None`)."""
        first = self._index[start]
        last = len(self._nodes) - 1 if end is None else self._index[end]
        inside = {node for node in self._nodes[first + 1 : last + 1] if node in self._varying}
        needed = self._constants_for(inside)
        part = fx.Graph()
        copies = {self._nodes[first]: part.placeholder("features" if first else INPUT)}
        copies[self._nodes[first]].meta["step"] = start
        for name, node in zip(self._names, self._nodes, strict=True):
            if (node in inside or node in needed) and node.op != "output":
                copies[node] = part.node_copy(node, lambda other: copies[other])
                copies[node].meta["step"] = name
        result = self._nodes[last].args[0] if end is None else self._nodes[last]
        part.output(fx.map_arg(result, lambda other: copies[other]))
        return part

    def run_order(self, model: nn.Module) -> RunOrder:
        """When the model's modules and parameters are first used."""
        modules: dict[str, int] = {}
        tensors: dict[str, int] = {}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for number, node in enumerate(self._nodes):
            for path, _ in node.meta.get("nn_module_stack", {}).values():
                modules.setdefault(path, number)
            if node.op == "call_module":
                for parameter in model.get_submodule(str(node.target)).parameters():
                    tensors.setdefault(names[id(parameter)], number)
            elif node.op == "get_attr":
                value = _attribute(model, str(node.target))
                if id(value) in names:
                    tensors.setdefault(names[id(value)], number)
        return RunOrder(modules, tensors)

    def _constants_for(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """The steps that these use, directly or not, and that do not depend on the images."""
        found: set[fx.Node] = set()
        queue = list(nodes)
        while queue:
            for node in queue.pop().all_input_nodes:
                if node not in self._varying and node not in found:
                    found.add(node)
                    queue.append(node)
        return found


def trace_graph(model: nn.Module) -> Graph:
    """The graph of a model in the modes that its modules are in now: tracing fixes what depends on them.

    Raises:
        Exception: whatever the model's code raises when it is given a symbol in place of a tensor.
    """
    parameters = list(inspect.signature(type(model).forward).parameters.values())[2:]
    defaults = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD or parameter.kind is parameter.KEYWORD_ONLY
    }
    return Graph(_Tracer().trace(model, concrete_args=defaults or None))


class _Tracer(fx.Tracer):
    """Takes as one step, besides torch's own layers, what cannot be traced or depends on its mode."""

    def __init__(self) -> None:
        from torchvision.ops import StochasticDepth

        self._leaves: tuple[type[nn.Module], ...] = (Head, StochasticDepth)
        functions: list[Any] = []
        layers: Any = sys.modules.get("timm.layers")  # not loaded: the model is not timm's
        if layers is not None:
            self._leaves += (layers.DropPath, *layers.get_notrace_modules())
            functions = layers.get_notrace_functions()
        super().__init__(autowrap_functions=tuple(functions))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)


def _follow(start: list[fx.Node], nodes: list[fx.Node]) -> set[fx.Node]:
    """All nodes that depend on these."""
    found = set(start)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _name_nodes(nodes: list[fx.Node], images: fx.Node) -> list[str]:
    taken: set[str] = set()
    times: dict[str, int] = defaultdict(int)
    names = []
    for node in nodes:
        name = base = INPUT if node is images else _base_name(node)
        while name in taken:
            times[base] += 1
            name = f"{base}_{times[base]}"
        taken.add(name)
        names.append(name)
    return names


def _base_name(node: fx.Node) -> str:
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    does = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "call")
    return f"{path}.{does}" if path else does


def _attribute(model: nn.Module, path: str) -> object:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)
