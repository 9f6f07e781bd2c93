"""What is frozen: tensors by share or block, and the modules that stay in eval mode with them."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tune_inat.backbone import Backbone
from tune_inat.errors import BackboneError

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
BLOCK_DEPTH = 4  # names of blocks have at most so many parts


@dataclass(frozen=True)
class RunOrder:
    """When modules and tensors are first used in a forward pass, by name: later ones have higher numbers."""

    modules: Mapping[str, int]
    tensors: Mapping[str, int]


def registration_order(model: nn.Module) -> RunOrder:
    """The order in which a network names its parts, taken for the order in which it uses them."""
    modules = {path: number for number, (path, _) in enumerate(model.named_modules())}
    tensors = {name: modules[_owner(name)] for name, _ in model.named_parameters()}
    return RunOrder(modules, tensors)


def backbone_tensors(backbone: Backbone) -> tuple[str, ...]:
    """The names of the backbone's parameters in `model.parameters()` order, the head's left out."""
    return tuple(name for name, _ in backbone.model.named_parameters() if not backbone.is_of_head(name))


def blocks(backbone: Backbone) -> tuple[str, ...]:
    """The names that suit `freeze`, in order: `layer3`, `features.5`. All modules with parameters do."""
    names: list[str] = []
    owners = [_owner(name) + "." for name in backbone_tensors(backbone)]

    def descend(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            child_path = f"{path}{name}"
            if any(owner.startswith(f"{child_path}.") for owner in owners):
                names.append(child_path)
                depth = child_path.count(".") + 1
                if depth == 1 or (depth < BLOCK_DEPTH and _is_stage(child)):
                    descend(child, f"{child_path}.")

    descend(backbone.model, "")
    return tuple(names)


def block_of(backbone: Backbone) -> dict[str, str]:
    """The smallest of the `blocks` that each parameter belongs to; else the module that owns it."""
    known = set(blocks(backbone))
    owners = {}
    for name, _ in backbone.model.named_parameters():
        path = _owner(name)
        while path and path not in known:
            path = _owner(path)
        owners[name] = path or _owner(name) or name
    return owners


def frozen_tensors(backbone: Backbone, freeze: float | str) -> tuple[str, ...]:
    """The names of the parameters to freeze: the first ones in `model.parameters()` order.

    Args:
        freeze: their share, 0 to 1, rounded down so that no module has some of its own tensors frozen and
            some not; or the name of the last frozen block.

    Raises:
        BackboneError: the share is out of range, or there is no such block.
    """
    names = backbone_tensors(backbone)
    if isinstance(freeze, str):
        return names[: _end_of_block(backbone, names, freeze)]
    if not 0 <= freeze <= 1:
        raise BackboneError(f"freeze {freeze}: a share lies between 0 and 1.")
    n_frozen = int(freeze * len(names) + 1e-9)  # 0.29 * 100 is 28.999...
    while 0 < n_frozen < len(names) and _owner(names[n_frozen - 1]) == _owner(names[n_frozen]):
        n_frozen -= 1
    return names[:n_frozen]


def apply_freeze(backbone: Backbone, frozen: Collection[str], order: RunOrder) -> tuple[nn.Module, ...]:
    """Freeze these parameters and let all others train; all is left in eval mode.

    A module with parameters trains when one of its parameters does. One without (dropout, stochastic depth)
    trains when it first runs after the first parameter that trains. The network's outermost module stays in
    eval mode: what networks do there when they train are auxiliary outputs, and the dropout that `Head` has.

    Args:
        order: of the network; see `Traced.order`.

    Returns:
        The modules to put into train mode for a training step.
    """
    model = backbone.model.eval()
    held = set(frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in held)
    training = _training_modules(model, order)
    persistent = model.state_dict().keys()
    changing = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for path, module in training.items():
        changing.update(f"{path}.{name}" for name, _ in module.named_buffers(recurse=False))
    backbone.changing = tuple(name for name in persistent if name in changing)
    return tuple(training.values())


def trainable_state(backbone: Backbone) -> dict[str, Tensor]:
    """What training changes: trainable parameters and the buffers beside them. No copies."""
    state = backbone.model.state_dict()
    return {name: state[name] for name in backbone.changing}


@torch.no_grad()
def load_trainable_state(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """Take over what `trainable_state` gave under the same freezing, in place.

    Raises:
        ValueError: it comes from another freezing.
    """
    own = trainable_state(backbone)
    if own.keys() != state.keys():
        raise ValueError(f"this state is of another freezing: {sorted(own.keys() ^ state.keys())[:3]}, ...")
    for name, value in own.items():
        value.copy_(state[name])


def _training_modules(model: nn.Module, order: RunOrder) -> dict[str, nn.Module]:
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    first = min((order.tensors[name] for name in trainable if name in order.tensors), default=0)
    training = {}
    for path, module in model.named_modules():
        parameters = list(module.parameters())
        if parameters:
            trains = any(parameter.requires_grad for parameter in parameters)
        else:
            trains = _first_run(path, order) > first
        if trains and path:
            training[path] = module
    return training


def _first_run(path: str, order: RunOrder) -> int:
    """When a module first runs; inside of one that the order takes as a whole, when that one does."""
    while path and path not in order.modules:
        path = _owner(path)
    return order.modules.get(path, 0)


def _end_of_block(backbone: Backbone, names: tuple[str, ...], block: str) -> int:
    inside = [number for number, name in enumerate(names) if name.startswith(f"{block}.")]
    if inside:
        return inside[-1] + 1
    if block in backbone.head_names:
        raise BackboneError(f"freeze {block}: this is the head, which always trains. 1.0 freezes all else.")
    paths = {_owner(name) for name in names} | set(blocks(backbone))
    near = difflib.get_close_matches(block, sorted(paths), n=3)
    outermost = ", ".join(name for name in blocks(backbone) if "." not in name)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {outermost}."
    raise BackboneError(f"freeze {block}: {backbone.name} has no such block with parameters. {hint}")


def _is_stage(module: nn.Module) -> bool:
    """Whether a module is a list of parts, or has a list of blocks of one kind (timm's stages)."""
    if type(module) in LISTS:
        return True
    lists = [list(child.children()) for child in module.children() if type(child) in LISTS]
    return any(len({type(part) for part in parts}) == 1 and any(parts[0].children()) for parts in lists)


def _owner(name: str) -> str:
    """The path of the module that a tensor or a module belongs to."""
    return name.rpartition(".")[0]
