"""Freezing: which tensors a share or a block's name means, and what runs in which mode."""

import pytest
import torch
from torch import nn

from tests.networks import make_backbone
from tune_inat.backbone import Backbone, Head
from tune_inat.errors import BackboneError
from tune_inat.freeze import (
    apply_freeze,
    backbone_tensors,
    block_of,
    blocks,
    frozen_tensors,
    load_trainable_state,
    registration_order,
    trainable_state,
)
from tune_inat.tracing import trace


@pytest.fixture(scope="module")
def resnet50() -> Backbone:
    return make_backbone("resnet50", 32)


def test_resnet50_has_159_tensors_beside_its_head(resnet50: Backbone) -> None:
    names = backbone_tensors(resnet50)
    assert len(names) == 159  # 53 convolutions and 53 BatchNorms of two tensors
    assert names[0] == "conv1.weight"
    assert not any(name.startswith("fc.") for name in names)


@pytest.mark.parametrize(
    ("freeze", "n_frozen", "last"),
    [
        (0.0, 0, ""),
        (0.7, 111, "layer3.3.bn3.bias"),  # 111.3
        (0.8, 127, "layer3.5.conv3.weight"),  # 127.2
        (0.9, 142, "layer4.1.conv1.weight"),  # 143.1 would halve layer4.1.bn1
        (1.0, 159, "layer4.2.bn3.bias"),
        ("conv1", 1, "conv1.weight"),
        ("layer3", 129, "layer3.5.bn3.bias"),
        ("layer3.4", 120, "layer3.4.bn3.bias"),
    ],
)
def test_freeze_of_resnet50_means(resnet50: Backbone, freeze: float | str, n_frozen: int, last: str) -> None:
    frozen = frozen_tensors(resnet50, freeze)
    assert len(frozen) == n_frozen
    assert frozen == backbone_tensors(resnet50)[:n_frozen]
    assert not last or frozen[-1] == last


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "timm/convnext_atto", "timm/levit_128s", "swin_t"])
def test_no_share_freezes_a_module_by_half(name: str) -> None:
    backbone = make_backbone(name)
    names = backbone_tensors(backbone)
    before = 0
    for percent in range(101):
        frozen = frozen_tensors(backbone, percent / 100)
        owners = {tensor.rpartition(".")[0] for tensor in frozen}
        free = {tensor.rpartition(".")[0] for tensor in names[len(frozen) :]}
        assert owners.isdisjoint(free)
        assert before <= len(frozen) <= percent / 100 * len(names) + 1e-6
        before = len(frozen)
    assert before == len(names)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("layr3", r"freeze layr3: resnet50 has no such block with parameters\. Did you mean layer3 or"),
        ("relu", "no such block with parameters"),
        ("qqqq", r"It has conv1, bn1, layer1, layer2, layer3, layer4\."),
        ("fc", r"this is the head, which always trains\. 1\.0 freezes all else"),
        (1.5, "a share lies between 0 and 1"),
        (float("nan"), "a share lies between 0 and 1"),
    ],
)
def test_freeze_that_makes_no_sense_is_refused(resnet50: Backbone, freeze: float | str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        frozen_tensors(resnet50, freeze)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("resnet18", ["conv1", "layer3", "layer3.1"]),
        ("efficientnet_b0", ["features.5", "features.5.2"]),
        ("vgg11", ["features.16", "classifier.3"]),
        ("vit_b_32", ["conv_proj", "encoder.layers.encoder_layer_11", "encoder.ln"]),
        ("timm/tf_efficientnet_lite0", ["conv_stem", "blocks.3", "blocks.3.2"]),
        ("timm/convnext_atto", ["stages.2", "stages.2.blocks.5"]),
        ("timm/vit_tiny_patch16_224", ["patch_embed", "blocks.11"]),
    ],
)
def test_blocks_are_in_order_and_each_can_be_named(name: str, known: list[str]) -> None:
    backbone = make_backbone(name)
    listed = blocks(backbone)
    assert [block for block in listed if block in known] == known
    assert not set(listed) & set(backbone.head_names)
    assert not any(".conv1" in block or "mlp" in block for block in listed)  # parts of blocks are none
    ends = [len(frozen_tensors(backbone, block)) for block in listed]
    assert min(ends) > 0
    assert max(ends) == len(backbone_tensors(backbone))


def test_every_tensor_has_its_smallest_block(resnet50: Backbone) -> None:
    owners = block_of(resnet50)
    assert owners["layer3.1.bn2.weight"] == "layer3.1"
    assert owners["conv1.weight"] == "conv1"
    assert owners["fc.weight"] == "fc"
    assert list(owners) == [name for name, _ in resnet50.model.named_parameters()]
    assert block_of(make_backbone("timm/vit_tiny_patch16_224"))["cls_token"] == "cls_token"


class Small(nn.Module):
    """Registers its parts in another order than it runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Dropout(0.5)
        self.first = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 1)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.early = nn.Dropout(0.5)
        self.head = Head(nn.Linear(4, 2), n_classes=2, dropout=0.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.early(self.norm(self.first(images)))
        features = self.late(self.plain(self.second(features)))
        logits: torch.Tensor = self.head(features.mean((2, 3)))
        return logits


@pytest.fixture
def small() -> Backbone:
    model = Small().eval()
    return Backbone(
        name="small",
        model=model,
        head_names=("head",),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        image_size=8,
        weights="random",
        weights_key="",
        notices=(),
        changing=tuple(model.state_dict()),
    )


def modes(backbone: Backbone) -> set[str]:
    """The modules in train mode."""
    return {path for path, module in backbone.model.named_modules() if module.training}


def test_dropout_runs_as_what_trains_before_it(small: Backbone) -> None:
    traced = trace(small)
    frozen = frozen_tensors(small, "norm")
    suffix = traced.suffix(traced.cut_for(frozen), frozen)
    suffix.train()
    assert modes(small) == {"second", "plain", "late", "head"}
    suffix.eval()
    assert modes(small) == set()
    linear_probe = traced.suffix(traced.cut_for(backbone_tensors(small)), backbone_tensors(small))
    linear_probe.train()
    assert modes(small) == {"head"}
    traced.suffix("input", ()).train()
    assert modes(small) == {"first", "norm", "early", "second", "plain", "late", "head"}


def test_order_of_registration_stands_in_where_the_real_order_is_unknown(small: Backbone) -> None:
    frozen = frozen_tensors(small, "norm")
    moving = apply_freeze(small, frozen, registration_order(small.model))
    paths = {path for path, module in small.model.named_modules() if module in moving}
    assert paths == {"second", "plain", "early", "head"}  # `late` is registered first


def test_frozen_parameters_need_no_gradient_and_others_do_again(small: Backbone) -> None:
    order = registration_order(small.model)
    apply_freeze(small, frozen_tensors(small, 1.0), order)
    assert [name for name, p in small.model.named_parameters() if p.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    apply_freeze(small, (), order)
    assert all(parameter.requires_grad for parameter in small.model.parameters())


def test_state_is_what_trains_and_comes_back_in_place(small: Backbone) -> None:
    traced = trace(small)
    traced.suffix("input", frozen_tensors(small, "norm"))
    state = trainable_state(small)
    assert list(state) == [
        *["second.weight", "second.bias"],
        *["plain.running_mean", "plain.running_var", "plain.num_batches_tracked"],
        *["head.weight", "head.bias"],
    ]
    kept = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        small.model.get_parameter("second.weight").zero_()
        small.model.get_buffer("plain.running_mean").fill_(9)
    load_trainable_state(small, kept)
    assert all(torch.equal(small.model.state_dict()[name], value) for name, value in kept.items())


def test_state_of_another_freezing_is_refused(small: Backbone) -> None:
    traced = trace(small)
    traced.suffix("input", ())
    state = {name: value.clone() for name, value in trainable_state(small).items()}
    traced.suffix("input", frozen_tensors(small, "norm"))
    with pytest.raises(ValueError, match="another freezing"):
        load_trainable_state(small, state)
