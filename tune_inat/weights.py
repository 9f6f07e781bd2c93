"""Where a network's weights come from: a file, a download, a package, or a seed."""

import hashlib
import pickle
import re
import socket
import sys
import urllib.parse
import urllib.request
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tune_inat.errors import BackboneError
from tune_inat.store import hash_of

WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the weights in a checkpoint
WAYS_OUT = "--weights FILE takes a file that you have (.pth, .safetensors), --weights none random weights."
LISTED = 5  # names in an error, of each kind


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a file of `torch.save`, on the CPU. No code of it is run.

    Raises:
        BackboneError: there is no such file, or it does not hold named tensors and nothing else.
    """
    if not path.is_file():
        found = "this is a folder" if path.is_dir() else "there is no such file"
        raise BackboneError(f"weights {path}: {found}. Weights are `default`, `none` or a file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise BackboneError(f"weights {path}: it holds no named tensors, but {type(content).__name__}.")
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise BackboneError(
            f"weights {path}: expected a mapping of names to tensors; no tensors are {_some(strangers)}."
        )
    state = OrderedDict((str(name).removeprefix("module."), value) for name, value in content.items())
    metadata = getattr(content, "_metadata", None)
    if metadata is not None:
        state._metadata = metadata  # type: ignore[attr-defined]  # torch's place for modules' versions
    return state


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], source: str, *, optional: Collection[str]
) -> None:
    """Load weights into a network: all of them, nothing left over.

    Args:
        source: names the weights in an error.
        optional: paths of modules whose weights may be missing, left over or of another shape.

    Raises:
        BackboneError: what is missing, left over or of another shape, at once.
    """
    own = model.state_dict()
    wanted = OrderedDict(
        (_modern(name), value) for name, value in state.items() if not _is_under(name, optional)
    )
    misshapen = [name for name, value in wanted.items() if name in own and own[name].shape != value.shape]
    shapes = [f"{name} {tuple(wanted.pop(name).shape)} for {tuple(own[name].shape)}" for name in misshapen]
    # MNASNet refuses weights without its version, which only torch.save keeps.
    version = {"": {"version": getattr(model, "_version", 1)}}
    wanted._metadata = getattr(state, "_metadata", version)  # type: ignore[attr-defined]  # as above
    result = model.load_state_dict(wanted, strict=False)
    missing = [
        name
        for name in result.missing_keys
        if not _is_under(name, [*optional, *misshapen]) and not name.endswith("num_batches_tracked")
    ]
    findings = [
        (shapes, "have another shape than the network's"),
        (missing, f"of the network's {len(own)} are missing"),
        (result.unexpected_keys, "are not the network's"),
    ]
    problems = [
        f"{source}: {len(names)} tensors {what}: {_some(names)}." for names, what in findings if names
    ]
    if problems:
        raise BackboneError(problems)


def load_in_order(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights whose names differ but whose order is the network's own.

    Raises:
        BackboneError: number, shapes or types differ.
    """
    own = model.state_dict()
    pairs = list(zip(own.items(), state.items(), strict=False))
    if len(own) != len(state) or any(
        mine.shape != theirs.shape or mine.dtype != theirs.dtype for (_, mine), (_, theirs) in pairs
    ):
        raise BackboneError(f"{source}: its tensors are not those of this network, in its order.")
    model.load_state_dict({name: theirs for (name, _), (_, theirs) in pairs})


def hash_of_weights(state: Mapping[str, Tensor], *, also: Any) -> str:
    """A hash of all tensors, by name and to the last bit, and of a value made of JSON's types."""
    digest = hashlib.sha256(hash_of(also).encode())
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def download_torchvision(name: str, weights: Any) -> dict[str, Tensor]:
    """torchvision's weights for a model, from its cache or the network.

    Raises:
        BackboneError: they could not be downloaded; with the ways out.
    """
    file_name = weights.url.rsplit("/", 1)[-1]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, weights_only=True
        )
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"model {name}: {folder / file_name} is damaged, or holds Python objects besides "
            f"tensors. Remove it, and it is downloaded anew; {WAYS_OUT}"
        ) from error
    except (OSError, RuntimeError) as error:
        raise BackboneError(
            f"model {name}: its weights could not be downloaded ({error}). A copy of {file_name} "
            f"in {folder} (TORCH_HOME moves it) will do; {WAYS_OUT}"
        ) from error
    return state


@contextmanager
def downloads_for(name: str) -> Iterator[None]:
    """Around what downloads a timm model's weights: quick to fail without a network.

    Raises:
        BackboneError: they could not be downloaded; with the ways out.
    """
    from huggingface_hub import constants

    try:
        with _offline_if_unreachable():
            yield
    except OSError as error:
        raise BackboneError(
            f"model {name}: its weights could not be downloaded ({error}). A copy "
            f"of them in {constants.HF_HUB_CACHE} (HF_HOME moves it) will do; {WAYS_OUT}"
        ) from error


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Have the Hugging Face client look only in its cache if its server has no address here.

    It would try again for 47 seconds otherwise, even with the weights in the cache (measured, 2 cores).
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname or ""
    if not urllib.request.getproxies():  # a proxy knows addresses that this machine does not
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"weights {path}: this is not a safetensors file ({error}).") from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols: what fails, fails below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make an unpickler raise almost anything
        if isinstance(error, pickle.UnpicklingError) and _is_pickle(path):
            raise BackboneError(
                f"weights {path}: refused, since it holds Python objects or code besides tensors. "
                "Save `model.state_dict()` instead of the model."
            ) from error
        raise BackboneError(f"weights {path}: this is not a file of weights, or a damaged one.") from error


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return zipfile.is_zipfile(file) or (file.seek(0) == 0 and file.read(1) == pickle.PROTO)


def _modern(name: str) -> str:
    """A tensor's name as networks have it now: torchvision's DenseNet files still say `norm.1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", name)


def _is_under(name: str, paths: Collection[str]) -> bool:
    """Whether a tensor is one of those named, or belongs to a module that is."""
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:LISTED])
    return shown if len(names) <= LISTED else f"{shown} and {len(names) - LISTED} more"
