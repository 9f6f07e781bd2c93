"""Cuts: what is before and after one gives together what the whole network gives, and trains the same."""

import gc
import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from tests.networks import N_CLASSES, make_backbone
from tune_inat.backbone import Backbone, pristine_state, reset_heads, restore
from tune_inat.errors import BackboneError
from tune_inat.freeze import frozen_tensors, trainable_state
from tune_inat.graph import INPUT
from tune_inat.tracing import Suffix, Traced, trace

# One of each family of torchvision; TUNE_INAT_ALL_MODELS=1 takes all 80 classifiers: two more minutes.
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet"),
    *("inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1"),
    *("swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
)
TORCHVISION = models.list_models(module=models) if "TUNE_INAT_ALL_MODELS" in os.environ else list(FAMILIES)
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
    "timm/volo_d1_224",  # a head for the image and one for each part of it
]
SIZES = {"maxvit_t": 224, "inception_v3": 75, "timm/crossvit_9_240": 240, "timm/levit_128s": 224}
SIZES |= {"timm/pit_ti_224": 224, "timm/eva02_tiny_patch14_224": 28, "timm/vit_small_patch14_dinov2": 28}
SIZES |= {"vit_h_14": 28, "timm/mobilevit_xxs": 64, "timm/mixer_s32_224": 64}
SIZES |= {name: 64 for name in TORCHVISION if name.startswith(("alexnet", "densenet", "squeezenet", "vgg"))}
SIZES |= {name: 64 for name in TIMM if "swin" in name or "darknet" in name}
SIZE = 32  # where a network takes any
LARGE = 100_000_000  # parameters: not to be left to Python's leisure


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    """Small networks, many of them: threads wait for each other, and Python sifts all that is imported."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(n_threads)


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
        features = traced.segment(INPUT, cut)(images)
    made = Case(backbone, traced, images, frozen, cut, features)
    is_large = sum(parameter.numel() for parameter in backbone.model.parameters()) > LARGE
    del backbone, traced
    yield made
    vars(made).clear()  # pytest still holds it
    if is_large:
        gc.collect()


@torch.no_grad()
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


@torch.no_grad()
def test_suffix_in_train_mode_gives_what_the_whole_network_gives(case: Case) -> None:
    suffix = case.traced.suffix(case.cut, case.frozen)
    suffix.train()  # and with it the modules of the network
    torch.manual_seed(0)
    parts = suffix(case.features)
    torch.manual_seed(0)
    # Not to the last bit: where modes give activations other strides, a CPU may sum in another order.
    torch.testing.assert_close(parts, case.backbone.model(case.images), rtol=1e-5, atol=1e-5)


def test_head_is_the_last_that_a_network_uses(case: Case) -> None:
    tensors = case.traced.order.tensors
    of_head = {number for name, number in tensors.items() if case.backbone.is_of_head(name)}
    assert len(of_head) == len(case.backbone.heads)
    assert max(of_head) == max(tensors.values())


SMALL = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "timm/vit_tiny_patch16_224"]


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_every_crossing_can_be_kept(name: str) -> None:
    backbone = make_backbone(name, 64)
    traced = trace(backbone)
    images = torch.randn(2, 3, 64, 64)
    whole = backbone.model(images)
    for crossing in traced.crossings:
        features = traced.segment(INPUT, crossing)(images)
        kept = features.clone()
        assert torch.equal(traced.segment(crossing)(features), whole)
        assert torch.equal(features, kept), f"what follows {crossing} overwrites it"


def test_crossings_lie_between_the_images_and_the_head() -> None:
    crossings = trace(make_backbone("resnet18", 64)).crossings
    assert crossings[0] == INPUT
    assert crossings[-1] == "flatten"
    assert "bn1" not in crossings  # overwritten by the ReLU that follows
    assert "layer1.0.conv1" not in crossings  # the shortcut crosses beside it
    assert crossings.index("relu") < crossings.index("layer1.0.relu_1") < crossings.index("layer4.1.relu_1")


@pytest.mark.parametrize(
    ("freeze", "cut", "shape"),
    [
        (0.0, INPUT, (3, 224, 224)),
        (0.7, "layer3.3.relu_2", (1024, 14, 14)),  # 111 tensors: to the end of this block
        (0.8, "layer3.4.relu_2", (1024, 14, 14)),  # 127: the next block's last BatchNorm trains
        ("layer3", "layer3.5.relu_2", (1024, 14, 14)),
        (1.0, "flatten", (2048,)),  # a linear probe keeps pooled features
    ],
)
def test_cut_of_resnet50_is_the_deepest_possible(
    freeze: float | str, cut: str, shape: tuple[int, ...]
) -> None:
    backbone = make_backbone("resnet50")
    traced = trace(backbone)
    assert traced.cut_for(frozen_tensors(backbone, freeze)) == cut
    assert traced.at(cut).shape == shape
    assert traced.at(cut).n_bytes == 4 * torch.Size(shape).numel()


def test_operations_are_those_that_torch_counts() -> None:
    backbone = make_backbone("resnet18", 64)
    traced = trace(backbone)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.model(torch.zeros(1, 3, 64, 64))
    assert traced.flops_between(INPUT) == counter.get_total_flops()
    parts = [(INPUT, "layer2.1.relu_1"), ("layer2.1.relu_1", "layer4.1.relu_1"), ("layer4.1.relu_1", None)]
    assert sum(traced.flops_between(*part) for part in parts) == traced.flops_between(INPUT)
    assert traced.flops_between(INPUT, None, 128) > 3.9 * traced.flops_between(INPUT)  # four times the pixels


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 32), ("timm/levit_128s", 100)])
def test_images_that_a_network_does_not_take_are_refused(name: str, size: int) -> None:
    with pytest.raises(BackboneError, match=rf"{name}: it does not take images of {size} x {size} pixels"):
        trace(make_backbone(name)).at(INPUT, size)


class Branching(nn.Module):
    """Goes two ways by the sum of its input: no graph has that."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits if images.sum() > 0 else -logits


def untraceable_backbone() -> Backbone:
    backbone = make_backbone("mobilenet_v3_small", 64)
    model = Branching(backbone.model).eval()
    heads = tuple(f"network.{name}" for name in backbone.head_names)
    return replace(backbone, model=model, head_names=heads, changing=tuple(model.state_dict()))


def test_network_that_cannot_be_traced_trains_whole_and_says_why() -> None:
    backbone = untraceable_backbone()
    traced = trace(backbone)
    assert traced.reason is not None
    assert "control flow" in traced.reason
    frozen = frozen_tensors(backbone, 0.5)
    assert traced.crossings == (INPUT,)
    assert traced.cut_for(frozen) == INPUT
    assert traced.at(INPUT).shape == (3, 64, 64)
    assert traced.flops_between(INPUT) > 0
    images = torch.randn(4, 3, 64, 64)
    suffix = traced.suffix(INPUT, frozen)
    assert torch.equal(suffix(images), backbone.model(images))
    before = digest(backbone, frozen)
    train_some_steps(suffix, backbone, images)
    assert digest(backbone, frozen) == before


def digest(backbone: Backbone, frozen: Collection[str]) -> dict[str, str]:
    """A hash of each tensor that must not change: frozen parameters and the buffers of their modules."""
    owners = {name.rpartition(".")[0] for name in frozen}
    return {
        name: hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for name, value in backbone.model.state_dict().items()
        if name in frozen or (name.rpartition(".")[0] in owners and "running" in name)
    }


def train_some_steps(suffix: Suffix, backbone: Backbone, features: Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in backbone.model.parameters() if p.requires_grad], lr=0.01)
    labels = torch.arange(len(features)) % N_CLASSES
    suffix.train()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(suffix(features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


TRAINED = ["resnet18", "mobilenet_v2", "densenet121", "timm/tf_efficientnet_lite0", "swin_t", "vit_b_32"]


@pytest.mark.parametrize("name", TRAINED)
def test_training_changes_what_is_free_and_no_bit_of_what_is_frozen(name: str) -> None:
    backbone = make_backbone(name, 32)
    traced = trace(backbone)
    frozen = frozen_tensors(backbone, 0.6)
    cut = traced.cut_for(frozen)
    with torch.no_grad():
        features = traced.segment(INPUT, cut)(torch.randn(4, 3, 32, 32))
    suffix = traced.suffix(cut, frozen)
    before = digest(backbone, frozen)
    free = {name: value.clone() for name, value in trainable_state(backbone).items()}
    assert before.keys().isdisjoint(free)
    train_some_steps(suffix, backbone, features)
    assert digest(backbone, frozen) == before
    stuck = [name for name, value in trainable_state(backbone).items() if torch.equal(value, free[name])]
    assert [name for name in stuck if not name.endswith("relative_position_index")] == []  # a constant


@pytest.mark.parametrize("name", TRAINED)
def test_suffix_on_kept_activations_has_the_gradients_of_the_whole_frozen_network(name: str) -> None:
    backbone = make_backbone(name, 32)
    traced = trace(backbone)
    frozen = frozen_tensors(backbone, 0.6)
    cut = traced.cut_for(frozen)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    with torch.no_grad():
        features = traced.segment(INPUT, cut)(images)
    suffix = traced.suffix(cut, frozen).train()
    parameters = [p for p in backbone.model.parameters() if p.requires_grad]
    gradients = []
    for network, inputs in [(suffix, features), (backbone.model, images)]:
        torch.manual_seed(0)
        loss = nn.functional.cross_entropy(network(inputs), labels)
        gradients.append(torch.autograd.grad(loss, parameters))
    assert len(parameters) == len(dict(backbone.model.named_parameters())) - len(frozen)
    for of_suffix, of_whole in zip(*gradients, strict=True):
        assert torch.equal(of_suffix, of_whole)
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])


def test_restored_backbone_gives_again_what_it_gave_through_the_same_parts() -> None:
    backbone = make_backbone("mobilenet_v2", 32)
    reset_heads(backbone, 5)
    traced = trace(backbone)
    pristine = pristine_state(backbone)
    images = torch.randn(4, 3, 32, 32)
    suffix = traced.suffix(INPUT, ())
    first = suffix(images)
    train_some_steps(suffix, backbone, images)
    assert not torch.equal(suffix.eval()(images), first)
    restore(backbone, pristine, seed=5, dropout=0.0)
    assert torch.equal(traced.suffix(INPUT, ())(images), first)
