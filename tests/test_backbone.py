"""Backbones: found by name, with a head that follows from the seed alone."""

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision.transforms import v2

from tests.networks import N_CLASSES, make_backbone
from tune_inat.architectures import create_architecture
from tune_inat.backbone import Backbone, Head, Normalize, load_backbone, pristine_state, reset_heads, restore
from tune_inat.errors import BackboneError
from tune_inat.freeze import apply_freeze, registration_order

PACKAGED = "timm/tf_efficientnet_lite0"


def load(name: str, *, weights: str = "none", seed: int = 0, image_size: int | None = None) -> Backbone:
    return load_backbone(name, weights=weights, n_classes=N_CLASSES, seed=seed, image_size=image_size)


def test_head_starts_as_a_linear_layer_of_torch_does_from_the_same_seed() -> None:
    backbone = load("resnet18", seed=3)
    torch.manual_seed(3)
    linear = nn.Linear(512, N_CLASSES)
    (head,) = backbone.heads
    assert torch.equal(head.weight, linear.weight)
    assert head.bias is not None
    assert torch.equal(head.bias, linear.bias)
    features = torch.randn(2, 512)
    assert torch.equal(head(features), linear(features))


def test_head_depends_on_the_seed_and_not_on_the_backbone_or_what_ran_before() -> None:
    first = load("mobilenet_v2", seed=1).heads[0].weight
    torch.rand(100)
    again = load(PACKAGED, weights="default", seed=1).heads[0].weight
    other = load("mobilenet_v2", seed=2).heads[0].weight
    assert torch.equal(first, again)  # both have 1,280 features
    assert not torch.equal(first, other)


def test_loading_leaves_torchs_random_numbers_as_they_were() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load("squeezenet1_1")
    assert torch.equal(torch.rand(3), expected)


def test_dropout_before_the_head_acts_in_train_mode_only() -> None:
    backbone = load("resnet18")
    (head,) = backbone.heads
    head.dropout = 0.5
    features = torch.ones(1, 512)
    head.train()
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


# By name, as its authors call the layer. SqueezeNet classifies each pixel before it pools.
@pytest.mark.parametrize(
    ("name", "heads", "shape"),
    [
        ("resnet18", ("fc",), (N_CLASSES, 512)),
        ("vgg11", ("classifier.6",), (N_CLASSES, 4096)),
        ("vit_b_32", ("heads.head",), (N_CLASSES, 768)),
        ("squeezenet1_1", ("classifier.1",), (N_CLASSES, 512, 1, 1)),
        ("maxvit_t", ("classifier.5",), (N_CLASSES, 512)),
        ("timm/convnext_atto", ("head.fc",), (N_CLASSES, 320)),
        ("timm/caformer_s18", ("head.fc.fc2",), (N_CLASSES, 2048)),
        ("timm/dla34", ("fc",), (N_CLASSES, 512, 1, 1)),
        ("timm/deit_tiny_distilled_patch16_224", ("head", "head_dist"), (N_CLASSES, 192)),
        ("timm/levit_128s", ("head.linear", "head_dist.linear"), (N_CLASSES, 384)),
        ("timm/crossvit_9_240", ("head.0", "head.1"), (N_CLASSES, 128)),
        ("timm/vit_small_patch14_dinov2", ("head",), (N_CLASSES, 384)),
    ],
)
def test_head_takes_the_place_of_the_networks_own(
    name: str, heads: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    backbone = make_backbone(name)
    assert backbone.head_names == heads
    assert all(isinstance(head, Head) for head in backbone.heads)
    assert backbone.heads[0].weight.shape == shape
    assert not any(module.training for module in backbone.model.modules())


# Each has a dropout of its own before its classifier: a layer, or a rate that its forward pass applies.
@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "mobilenet_v3_small", "googlenet", "timm/ghostnet_050", "timm/rexnet_100"]
)
def test_networks_own_dropout_before_the_head_is_off(name: str) -> None:
    backbone = make_backbone(name, 32)
    for module in backbone.model.modules():
        module.training = isinstance(module, nn.Dropout)
    around = backbone.model
    for part in backbone.head_names[0].split("."):
        around.training = True
        around = around.get_submodule(part)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone.model(images), backbone.model(images))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_left_out_and_pixels_are_scaled_whatever_is_loaded(name: str) -> None:
    backbone = make_backbone(name)
    assert not any("aux" in path.lower() for path, _ in backbone.model.named_modules())
    assert vars(backbone.model)["transform_input"] is True


def test_random_weights_follow_from_the_seed_and_are_said_aloud() -> None:
    first, again, other = load("squeezenet1_1"), load("squeezenet1_1"), load("squeezenet1_1", seed=1)
    assert first.weights_key == again.weights_key != other.weights_key
    assert first.weights == "random"
    (notice,) = first.notices
    assert "random weights" in notice
    assert "far lower accuracy" in notice
    assert load(PACKAGED, weights="default").notices == ()


def test_key_depends_on_the_backbone_and_not_on_the_head() -> None:
    few = load(PACKAGED, weights="default")
    many = load_backbone(PACKAGED, n_classes=1000, seed=9, dropout=0.5)
    assert few.weights_key == many.weights_key
    assert few.weights_key != load(PACKAGED).weights_key


def test_packaged_weights_see_what_is_in_photographs() -> None:
    made = create_architecture(PACKAGED, weights="default", image_size=None)
    network = nn.Sequential(Normalize(made.mean, made.std), made.model).eval()
    china, flower = (torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images)
    prepare = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    with torch.no_grad():
        logits = network(torch.stack([prepare(china), prepare(flower)]))
    classes = logits.topk(2).indices
    assert 698 in classes[0]  # palace, of ImageNet's classes
    assert classes[1, 0] == 985  # daisy: its only garden flower of this kind


def test_normalising_is_what_torchvision_does_and_keeps_the_layout() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    normalised = Normalize(mean, std)(pixels)
    expected: Tensor = v2.functional.normalize(pixels.float() / 255, list(mean), list(std))
    assert torch.allclose(normalised, expected, atol=1e-6)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert normalised.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "image_size"), [("vit_b_32", 64), ("timm/vit_tiny_patch16_224", 64), ("resnet18", 64)]
)
def test_network_of_fixed_size_is_made_for_the_images_at_hand(name: str, image_size: int) -> None:
    backbone = make_backbone(name, image_size)
    assert backbone.image_size == image_size
    assert backbone.model(torch.zeros(1, 3, image_size, image_size)).shape == (1, N_CLASSES)
    assert make_backbone(name).image_size == 224


def test_restore_undoes_training_in_place() -> None:
    backbone = load("squeezenet1_1", seed=4)
    pristine = pristine_state(backbone)
    parameters = dict(backbone.model.named_parameters())
    start = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(1)
    apply_freeze(backbone, list(parameters)[:3], registration_order(backbone.model))
    restore(backbone, pristine, seed=4, dropout=0.25)
    assert all(torch.equal(value, start[name]) for name, value in backbone.model.state_dict().items())
    assert all(parameters[name] is value for name, value in backbone.model.named_parameters())
    assert all(parameter.requires_grad for parameter in parameters.values())
    assert backbone.heads[0].dropout == 0.25


def test_heads_of_a_pair_start_apart() -> None:
    backbone = make_backbone("timm/deit_tiny_distilled_patch16_224", 32)
    reset_heads(backbone, 0)
    first, second = backbone.heads
    assert not torch.equal(first.weight, second.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt50", r"model resnt50: torchvision has no such classifier\. Did you mean resnet50 or"),
        ("ResNet50", r"Did you mean resnet50\?"),
        ("tf_efficientnet_lite0", r"Did you mean timm/tf_efficientnet_lite0\?"),
        ("fcn_resnet50", "torchvision has no such classifier"),  # a model of torchvision's, but no classifier
        ("zzzz", "timm's models are named timm/NAME"),
        ("timm/resnet51", r"model timm/resnet51: timm has no such model\. Did you mean timm/resnet"),
        ("timm/resnet50.a1_in2k", r"Did you mean timm/resnet50\.a1_in1k"),
        ("timm/zzzz", r"timm has no such model\.$"),
        ("timm/coatnet_0_224", r"timm has no weights for it\. --weights FILE"),
    ],
)
def test_unknown_model_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load(name, weights="default")


def test_image_size_that_a_network_cannot_be_made_for_is_refused() -> None:
    with pytest.raises(BackboneError, match="maxvit_t: it does not take images of 100 x 100 pixels"):
        load("maxvit_t", image_size=100)
    with pytest.raises(BackboneError, match="twins_pcpvt_small: it does not take images of 30 x 30 pixels"):
        load("timm/twins_pcpvt_small", image_size=30)


def test_download_that_fails_says_what_else_there_is(
    hostile_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(hostile_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(BackboneError, match=r"could not be downloaded.*resnet18-\w+\.pth.*--weights FILE"):
        load("resnet18", weights="default")


def test_download_of_timm_that_fails_says_what_else_there_is(
    hostile_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hostile_path))
    with pytest.raises(
        BackboneError, match=r"timm/resnet18: its weights could not be.*HF_HOME.*--weights none"
    ):
        load("timm/resnet18", weights="default")
