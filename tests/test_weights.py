"""Weights from files: taken whole or refused, with every reason at once, and no code of theirs is run."""

import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from tests.networks import make_backbone
from tune_inat.backbone import Backbone, load_backbone
from tune_inat.errors import BackboneError
from tune_inat.weights import hash_of_weights, load_in_order, read_weight_file


def published(name: str) -> nn.Module:
    """torchvision's network as its weights are published: with 1,000 classes and numbers of its own."""
    torch.manual_seed(0)
    kwargs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(name, **kwargs)
    with torch.no_grad():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return network


def load_file(name: str, path: Path, image_size: int | None = None) -> Backbone:
    return load_backbone(name, weights=str(path), n_classes=3, seed=0, image_size=image_size)


def assert_backbone_is(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """All tensors of a backbone are those of a state by the same names."""
    for name, value in backbone.model.state_dict().items():
        if not backbone.is_of_head(name):
            assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_file_is_loaded_and_its_head_left_out(hostile_path: Path, suffix: str) -> None:
    state = published("resnet18").state_dict()
    path = hostile_path / f"gewichte{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    backbone = load_file("resnet18", path)
    assert_backbone_is(backbone, state)
    assert backbone.weights == str(path)
    assert backbone.notices == ()
    assert backbone.heads[0].weight.shape == (3, 512)


def test_weights_key_is_the_same_from_whatever_file(hostile_path: Path) -> None:
    state = published("squeezenet1_1").state_dict()
    torch.save(state, hostile_path / "a.pth")
    save_file(state, hostile_path / "b.safetensors")
    keys = {
        load_file("squeezenet1_1", hostile_path / name).weights_key for name in ("a.pth", "b.safetensors")
    }
    assert len(keys) == 1
    state["features.0.bias"][0] += 1e-6
    torch.save(state, hostile_path / "c.pth")
    assert load_file("squeezenet1_1", hostile_path / "c.pth").weights_key not in keys


@pytest.mark.parametrize("wrap", ["state_dict", "model", "parallel"])
def test_checkpoint_of_a_training_script_will_do(hostile_path: Path, wrap: str) -> None:
    state = published("squeezenet1_1").state_dict()
    content: dict[str, Any] = {wrap: state, "epoch": 3}
    if wrap == "parallel":
        content = {f"module.{name}": value for name, value in state.items()}
    torch.save(content, hostile_path / "checkpoint.pth")
    assert_backbone_is(load_file("squeezenet1_1", hostile_path / "checkpoint.pth"), state)


def test_model_that_we_exported_can_be_loaded_again(hostile_path: Path) -> None:
    backbone = make_backbone("timm/tf_efficientnet_lite0")
    save_file(backbone.model.state_dict(), hostile_path / "model.safetensors")
    again = load_file("timm/tf_efficientnet_lite0", hostile_path / "model.safetensors")
    assert_backbone_is(again, backbone.model.state_dict())


# Their files have what the networks of today have not: second classifiers, a version of their own.
@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "mnasnet0_5"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_peculiar_files_of_torchvision_can_be_loaded(hostile_path: Path, name: str, suffix: str) -> None:
    network = published(name)
    path = hostile_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    assert_backbone_is(load_file(name, path), network.state_dict())


def test_old_names_of_torchvisions_files_are_understood(hostile_path: Path) -> None:
    state = published("densenet121").state_dict()
    old = OrderedDict(
        (name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."), value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")  # younger than the files
    )
    assert old.keys() - state.keys()
    torch.save(old, hostile_path / "densenet.pth")
    assert_backbone_is(load_file("densenet121", hostile_path / "densenet.pth"), state)
    state = published("vit_b_32").state_dict()
    old = OrderedDict(
        (name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."), value)
        for name, value in state.items()
    )
    torch.save(old, hostile_path / "vit.pth")
    assert_backbone_is(load_file("vit_b_32", hostile_path / "vit.pth"), state)


def test_positions_are_interpolated_to_the_size_of_the_images(hostile_path: Path) -> None:
    state = published("vit_b_32").state_dict()
    torch.save(state, hostile_path / "vit.pth")
    backbone = load_file("vit_b_32", hostile_path / "vit.pth", image_size=64)
    positions = backbone.model.get_parameter("encoder.pos_embedding")
    assert positions.shape == (1, 1 + 2 * 2, 768)
    assert torch.equal(positions[:, 0], state["encoder.pos_embedding"][:, 0])  # the class token has none
    assert torch.equal(backbone.model.get_parameter("encoder.ln.weight"), state["encoder.ln.weight"])


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def write_bad_file(kind: str, path: Path) -> None:
    if kind == "random bytes":
        path.write_bytes(bytes(range(255, 0, -1)) * 9)
    elif kind == "empty":
        path.touch()
    elif kind == "torn zip":
        torch.save(published("squeezenet1_1").state_dict(), path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "code":
        torch.save({"fc.weight": Evil()}, path)
    elif kind == "code of old":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "a whole model":
        torch.save(nn.Linear(2, 2), path)
    elif kind == "numbers":
        torch.save([1, 2], path)
    else:
        torch.save({"fc.weight": torch.ones(2), "epoch": 3}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("random bytes", "this is not a file of weights, or a damaged one"),
        ("empty", "this is not a file of weights, or a damaged one"),
        ("torn zip", "this is not a file of weights, or a damaged one"),
        ("code", r"refused, since it holds Python objects or code.*Save `model\.state_dict\(\)`"),
        ("code of old", "refused, since it holds Python objects or code"),
        ("a whole model", "refused, since it holds Python objects or code"),
        ("numbers", "it holds no named tensors, but list"),
        ("others", "no tensors are epoch"),
    ],
)
def test_file_that_holds_no_weights_is_refused_and_not_run(
    hostile_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str
) -> None:
    monkeypatch.chdir(hostile_path)
    path = hostile_path / "weights.pth"
    write_bad_file(kind, path)
    with pytest.raises(BackboneError, match=message) as caught:
        load_file("resnet18", path)
    assert str(path) in str(caught.value)
    assert not (hostile_path / "evil").exists()


def test_damaged_safetensors_are_refused(hostile_path: Path) -> None:
    path = hostile_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(BackboneError, match="this is not a safetensors file"):
        load_file("resnet18", path)


def test_file_that_is_not_there_is_said_to_be_missing(hostile_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no such file\. Weights are `default`, `none` or a file"):
        load_file("resnet18", hostile_path / "nothing.pth")
    with pytest.raises(BackboneError, match="this is a folder"):
        load_file("resnet18", hostile_path)


def test_all_that_does_not_fit_is_named_at_once(hostile_path: Path) -> None:
    state = published("resnet18").state_dict()
    del state["layer1.0.conv1.weight"], state["bn1.bias"]
    state["layer9.weight"] = torch.ones(1)
    state["conv1.weight"] = torch.ones(64, 1, 7, 7)
    state["fc.weight"] = torch.ones(17, 3)  # the head may have any shape
    torch.save(state, hostile_path / "weights.pth")
    with pytest.raises(BackboneError) as caught:
        load_file("resnet18", hostile_path / "weights.pth")
    shapes, missing, extra = caught.value.problems
    assert shapes.endswith(
        "1 tensors have another shape than the network's: conv1.weight (64, 1, 7, 7) for (64, 3, 7, 7)."
    )
    assert missing.endswith("2 tensors of the network's 122 are missing: bn1.bias, layer1.0.conv1.weight.")
    assert extra.endswith("1 tensors are not the network's: layer9.weight.")


def test_weights_of_another_network_are_refused(hostile_path: Path) -> None:
    torch.save(published("squeezenet1_1").state_dict(), hostile_path / "weights.pth")
    # 122 but for the head's two and the 20 counters of BatchNorms
    with pytest.raises(BackboneError, match=r"100 tensors of the network's 122 are missing: conv1"):
        load_file("resnet18", hostile_path / "weights.pth")


def test_weights_in_order_must_be_those_of_the_network() -> None:
    network = nn.Linear(2, 3)
    load_in_order(network, {"a": torch.ones(3, 2), "b": torch.zeros(3)}, "the package")
    assert torch.equal(network.weight, torch.ones(3, 2))
    for wrong in (
        {"a": torch.ones(3, 2)},
        {"a": torch.ones(2, 3), "b": torch.zeros(3)},
        {"a": torch.ones(3, 2).half(), "b": torch.zeros(3)},
    ):
        with pytest.raises(BackboneError, match="the package: its tensors are not those of this network"):
            load_in_order(network, wrong, "the package")


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0, 4.0])},
        {"b": torch.tensor([1.0, 2.0, 3.0])},
        {"a": torch.tensor([[1.0, 2.0, 3.0]])},
        {"a": torch.tensor([1.0, 2.0, 3.0]).view(torch.int32)},
    ],
    ids=["value", "name", "shape", "type"],
)
def test_hash_of_weights_depends_on_each_part(other: dict[str, Tensor]) -> None:
    state = {"a": torch.tensor([1.0, 2.0, 3.0])}
    assert hash_of_weights(state, also=1) == hash_of_weights(dict(state), also=1)
    assert hash_of_weights(state, also=1) != hash_of_weights(other, also=1)
    assert hash_of_weights(state, also=1) != hash_of_weights(state, also=2)


def test_scalars_and_half_precision_can_be_read(hostile_path: Path) -> None:
    content = {"a": torch.tensor(1), "b": torch.ones(2, dtype=torch.bfloat16)}
    save_file(content, hostile_path / "w.safetensors")
    read = read_weight_file(hostile_path / "w.safetensors")
    assert read["b"].dtype == torch.bfloat16
    assert hash_of_weights(read, also=None) == hash_of_weights(content, also=None)
