"""A backbone with its head, cut where a trial's freezing allows."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from tune_inat.backbone import Backbone, Normalize
from tune_inat.freeze import block_of, frozen_tensors
from tune_inat.graph import INPUT
from tune_inat.tracing import Traced


@dataclass(frozen=True)
class Network:
    """A backbone with its head, cut where a trial's freezing allows: `suffix(prefix(pixels))` are logits.

    Attributes:
        prefix: from pixels (n, 3, S, S) uint8 to the cut; `None` where nothing frozen precedes what trains.
        suffix: from the cut, or from pixels, to logits (n, K). Its frozen modules stay in eval mode.
        trainable: what trains, by name, in `model.parameters()` order.
        block_of: the block that each trainable tensor belongs to.
    """

    backbone: Backbone
    traced: Traced
    cut: str
    prefix: nn.Module | None
    suffix: nn.Module
    trainable: Mapping[str, nn.Parameter]
    block_of: Mapping[str, str]
    normalize: Normalize

    def to_crossing(self, name: str) -> nn.Module:
        """From pixels (n, 3, S, S) uint8 to a crossing before the cut or at it, in eval mode."""
        return nn.Sequential(self.normalize, self.traced.segment(INPUT, name)).eval()


@dataclass
class LoadedBackbone:
    """A backbone on its device, and what it takes to make it new again.

    Attributes:
        exact: see `Workbench.exact_crossings`; `None` until someone asks.
    """

    key: tuple[object, ...]
    backbone: Backbone
    normalize: Normalize
    traced: Traced
    pristine: Mapping[str, Tensor]
    exact: frozenset[str] | None = None

    def cut(self, freeze: float | str) -> Network:
        """The network as a freezing cuts it."""
        backbone, traced = self.backbone, self.traced
        frozen = frozen_tensors(backbone, freeze)
        cut = traced.cut_for(frozen)
        suffix: nn.Module = traced.suffix(cut, frozen)
        prefix = None
        if cut == INPUT:
            suffix = nn.Sequential(self.normalize, suffix)
        else:
            prefix = nn.Sequential(self.normalize, traced.segment(INPUT, cut)).eval()
        trainable = {name: p for name, p in backbone.model.named_parameters() if p.requires_grad}
        return Network(backbone, traced, cut, prefix, suffix, trainable, block_of(backbone), self.normalize)
