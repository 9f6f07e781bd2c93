"""Cuts: what is before and after one gives together what the whole network gives, and trains the same."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torchvision import models

from tests.networks import make_backbone
from tune_inat.backbone import Backbone
from tune_inat.freeze import frozen_tensors
from tune_inat.graph import INPUT
from tune_inat.tracing import Traced, trace

TORCHVISION = models.list_models(module=models)
TIMM = [
    "timm/beit_base_patch16_224",  # relative positions
    "timm/caformer_s18",
    "timm/convnext_atto",
    "timm/crossvit_9_240",  # two branches that meet in two heads: no crossing between
    "timm/cs3darknet_focus_s",
    "timm/deit_tiny_distilled_patch16_224",  # two heads
    "timm/eva02_tiny_patch14_224",
    "timm/levit_128s",  # two heads with BatchNorms of their own
    "timm/mixer_s32_224",
    "timm/mobilenetv3_small_050",
    "timm/mobilevit_xxs",
    "timm/nf_regnet_b0",
    "timm/pit_ti_224",
    "timm/regnety_002",
    "timm/resnetv2_50x1_bit",  # standardised weights
    "timm/res2net50_14w_8s",
    "timm/swin_tiny_patch4_window7_224",
    "timm/tf_efficientnet_b0",  # "same" padding
    "timm/tf_efficientnet_lite0",
    "timm/tf_mobilenetv3_small_minimal_100",
    "timm/vit_tiny_patch16_224",
    "timm/vit_small_patch14_dinov2",  # published without a classifier
]
SIZES = {"maxvit_t": 224, "inception_v3": 75, "timm/crossvit_9_240": 240, "timm/levit_128s": 224}
SIZES |= {"timm/pit_ti_224": 224, "timm/eva02_tiny_patch14_224": 28, "timm/vit_small_patch14_dinov2": 28}
SIZES |= {"vit_h_14": 28, "timm/mobilevit_xxs": 64, "timm/mixer_s32_224": 64}
SIZES |= {name: 64 for name in TORCHVISION if name.startswith(("alexnet", "densenet", "squeezenet", "vgg"))}
SIZES |= {name: 64 for name in TIMM if "swin" in name or "darknet" in name}
SIZE = 32  # where a network takes any
LARGE = 100_000_000  # parameters: not to be left to Python's leisure


@pytest.fixture(scope="module", autouse=True)
def _spare_garbage_collection() -> Iterator[None]:
    """Hide what is imported from Python's garbage collection: it would look at all of it again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@dataclass
class Case:
    """A network, and what crosses where 0.6 of it is frozen."""

    backbone: Backbone
    traced: Traced
    images: Tensor
    frozen: tuple[str, ...]
    cut: str
    features: Tensor


@pytest.fixture(scope="module", params=[*TORCHVISION, *TIMM])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    size = SIZES.get(request.param, SIZE)
    backbone = make_backbone(request.param, size)
    traced = trace(backbone)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    frozen = frozen_tensors(backbone, 0.6)
    cut = traced.cut_for(frozen)
    with torch.no_grad():
        yield Case(backbone, traced, images, frozen, cut, traced.segment(INPUT, cut)(images))
    if sum(parameter.numel() for parameter in backbone.model.parameters()) > LARGE:
        del backbone, traced
        gc.collect()


def test_parts_give_to_the_last_bit_what_the_whole_network_gives(case: Case) -> None:
    whole = case.backbone.model.eval()(case.images)
    assert whole.isfinite().all()
    assert not torch.equal(whole[0], whole[1])
    all_frozen = frozen_tensors(case.backbone, 1.0)
    last = case.traced.cut_for(all_frozen)
    deeper = case.traced.segment(case.cut, last)(case.features)
    for frozen, cut, features in [(case.frozen, case.cut, case.features), (all_frozen, last, deeper)]:
        assert case.traced.at(cut).shape == features.shape[1:]
        assert torch.equal(case.traced.suffix(cut, frozen)(features), whole)


def test_suffix_in_train_mode_gives_what_the_whole_network_gives(case: Case) -> None:
    suffix = case.traced.suffix(case.cut, case.frozen)
    suffix.train()  # and with it the modules of the network
    torch.manual_seed(0)
    parts = suffix(case.features)
    torch.manual_seed(0)
    assert torch.equal(parts, case.backbone.model(case.images))


def test_head_is_the_last_that_a_network_uses(case: Case) -> None:
    tensors = case.traced.order.tensors
    of_head = [number for name, number in tensors.items() if case.backbone.is_of_head(name)]
    others = [number for name, number in tensors.items() if not case.backbone.is_of_head(name)]
    assert len(of_head) >= len(case.backbone.heads)
    assert min(of_head) > max(others) or len(case.backbone.heads) == 2
