"""How a trial trains: its optimizer, its learning rate at each step, its loss, what each epoch draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tune_inat.config import TrialConfig
from tune_inat.store import hash_of

RECIPE_VERSION = 2  # raise it when the same configuration would train to other numbers
ONECYCLE_RISE = (
    0.3  # share of the steps in which onecycle rises without warmup_epochs, as in torch's OneCycleLR
)
ONECYCLE_START = 1 / 25  # its first learning rate as a share of the peak, likewise
ONECYCLE_END = 1e-4 / 25  # and its last


def recipe_key() -> list[int | str]:
    """What epochs depend on besides configuration and inputs: part of the key of those that are kept."""
    return [RECIPE_VERSION, torch.__version__]


@dataclass(frozen=True)
class Draws:
    """What an epoch draws. It follows from the seed and the epoch alone, never from what ran before."""

    order: Tensor  # (N,) int64: a permutation of the training images
    torch_seed: int  # for what modules draw: dropout, stochastic depth


def draw_epoch(seed: int, epoch: int, n_images: int) -> Draws:
    """The draws of an epoch (counted from 1) over `n_images`."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return Draws(torch.randperm(n_images, generator=generator), derive_seed(seed, "modules", epoch))


def derive_seed(*parts: int | str) -> int:
    """A seed below 2**63 that depends on all parts, so that streams do not overlap."""
    return int(hash_of(list(parts))[:15], 16)


def batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """The rows (n,) int64 of each step. A last batch of one joins the one before: BatchNorm needs two."""
    parts = list(torch.split(order, batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def learning_rate_factor(config: TrialConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate at a step (counted from 0 over the whole trial) as a share of the peak."""
    epoch = (step + 1) / steps_per_epoch  # reached with this step
    if config.schedule == "onecycle":
        rise = config.warmup_epochs / config.epochs if config.warmup_epochs > 0 else ONECYCLE_RISE
        return _onecycle(step, config.epochs * steps_per_epoch, min(rise, 1.0))
    warm = min(1.0, epoch / config.warmup_epochs) if config.warmup_epochs > 0 else 1.0
    if config.schedule == "constant" or warm < 1.0:
        return warm
    done = step / steps_per_epoch - config.warmup_epochs
    share = min(1.0, max(0.0, done) / max(config.epochs - config.warmup_epochs, 1e-9))
    return 0.5 * (1 + math.cos(math.pi * share))


def _onecycle(step: int, n_steps: int, rise: float) -> float:
    """Smith and Topin, "Super-Convergence" (2018): a rise and a fall, both along a cosine."""
    peak = max(1.0, rise * n_steps - 1)
    if step <= peak:
        return _cosine_between(ONECYCLE_START, 1.0, step / peak)
    return _cosine_between(1.0, ONECYCLE_END, (step - peak) / max(1.0, n_steps - 1 - peak))


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


class Optimizer:
    """torch's optimizer over named parameters, its learning rate set anew at each step.

    Weight decay spares tensors of fewer than two dimensions (biases and norms). With `layer_decay`, a block's
    learning rate is `lr * layer_decay ** depth`, where the head has depth 0 and the last block depth 1
    (Clark et al., "ELECTRA", 2020, section 3).

    Args:
        parameters: what trains, in `model.parameters()` order.
        block_of: the name of the block that each parameter belongs to.
    """

    def __init__(
        self, config: TrialConfig, parameters: Mapping[str, nn.Parameter], block_of: Mapping[str, str]
    ) -> None:
        self._config = config
        self._names = tuple(parameters)
        blocks = list(dict.fromkeys(block_of[name] for name in parameters))
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            depth = len(blocks) - 1 - blocks.index(block_of[name])
            scale = config.layer_decay**depth
            groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
        self._scales = [scale for scale, _ in groups]
        self._torch = _torch_optimizer(
            config,
            [
                {"params": group, "weight_decay": config.weight_decay if decays else 0.0}
                for (_, decays), group in groups.items()
            ],
        )

    def step(self, step: int, steps_per_epoch: int) -> float:
        """Take a step with the gradients that are there, clear them, and return the head's learning rate."""
        lr = self._config.lr * learning_rate_factor(self._config, step, steps_per_epoch)
        for group, scale in zip(self._torch.param_groups, self._scales, strict=True):
            group["lr"] = lr * scale
        self._torch.step()
        self.clear()
        return lr

    def clear(self) -> None:
        """Drop the gradients that are there."""
        self._torch.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by `parameter-number/name`. Learning rates follow from the step."""
        states = self._torch.state_dict()["state"]
        return {f"{number}/{key}": value for number, state in states.items() for key, value in state.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned for the same configuration."""
        parameters = [parameter for group in self._torch.param_groups for parameter in group["params"]]
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            number, key = name.split("/")
            parameter = parameters[int(number)]
            if value.shape == parameter.shape:
                # Files hold no strides, and a fused optimizer goes through memory in its own order.
                value = torch.empty_like(parameter).copy_(value)
            states.setdefault(int(number), {})[key] = value
        self._torch.load_state_dict(
            {"state": states, "param_groups": self._torch.state_dict()["param_groups"]}
        )


def _torch_optimizer(config: TrialConfig, groups: Sequence[dict[str, object]]) -> torch.optim.Optimizer:
    """Fused: one kernel for all tensors, on the CPU as well (3 times faster there on small networks)."""
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, fused=True)
        case "sgd":
            return torch.optim.SGD(
                groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True
            )


def class_weights(config: TrialConfig, labels: npt.NDArray[np.int64], n_classes: int) -> Tensor | None:
    """The loss's weights (K,) float32: `n / (K * n_c)`, so that their mean over the images is 1."""
    if config.class_weights == "none":
        return None
    counts = np.bincount(labels, minlength=n_classes)
    return torch.from_numpy(len(labels) / (n_classes * np.maximum(counts, 1))).float()


def training_loss(logits: Tensor, labels: Tensor, config: TrialConfig, weights: Tensor | None) -> Tensor:
    """The mean cross-entropy () float32 of `logits: (N, K)` against `labels: (N,)`."""
    return nn.functional.cross_entropy(
        logits.float(), labels, weight=weights, label_smoothing=config.label_smoothing
    )


def share_of_loss(
    logits: Tensor, labels: Tensor, part: slice, config: TrialConfig, weights: Tensor | None
) -> Tensor:
    """What a part of a batch adds to its mean loss (): the sum over all parts is `training_loss`.

    Args:
        logits: of the part, (p, K).
        labels: of the whole batch, (n,). Their weights are what the mean is over, smoothed or not.
    """
    loss = training_loss(logits, labels[part], config, weights)
    if len(logits) == len(labels):
        return loss
    if weights is None:
        return loss * (len(logits) / len(labels))
    return loss * (weights[labels[part]].sum() / weights[labels].sum())


@dataclass(frozen=True)
class Mix:
    """A pairing of a batch's images and the share that each keeps of itself."""

    partner: Tensor  # (n,) int64
    share: float

    def features(self, features: Tensor) -> Tensor:
        """Mixed features (n, ...) of features (n, ...); of pixels (uint8, a cut at the input) in float32."""
        if not features.is_floating_point():
            features = features.float()
        return features.lerp(features[self.partner], 1 - self.share)

    def share_of_loss(
        self, logits: Tensor, labels: Tensor, part: slice, config: TrialConfig, weights: Tensor | None
    ) -> Tensor:
        """The mean () of the losses against both labels, weighted by their shares; see `share_of_loss`."""
        own = share_of_loss(logits, labels, part, config, weights)
        other = share_of_loss(logits, labels[self.partner], part, config, weights)
        return own * self.share + other * (1 - self.share)


def draw_mix(config: TrialConfig, epoch: int, step: int, n: int, device: torch.device) -> Mix | None:
    """Mixup of the activations at the cut, `None` where `mixup` is 0.

    Zhang et al., "mixup" (ICLR 2018); at a hidden layer: Verma et al., "Manifold Mixup" (ICML 2019).
    """
    if config.mixup == 0:
        return None
    random = np.random.default_rng(derive_seed(config.seed, "mixup", epoch, step))
    partner = torch.from_numpy(random.permutation(n)).to(device)
    return Mix(partner, float(random.beta(config.mixup, config.mixup)))
