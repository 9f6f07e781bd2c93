"""A training step: the gradients of a batch, added up in parts where it does not fit in memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tune_inat.config import TrialConfig
from tune_inat.micro_batches import MicroBatches
from tune_inat.network import Network
from tune_inat.recipe import class_weights, draw_mix, share_of_loss
from tune_inat.workbench import Workbench


class Step:
    """Adds up the gradients of a trial's batches.

    Images are mixed and weighed within the whole batch, also where it is taken in parts: only a BatchNorm
    that trains sees the parts, and takes its statistics from them.

    Args:
        labels: of all training images (N,), on the device.
        undo: drops the gradients that are there.
    """

    def __init__(
        self,
        bench: Workbench,
        config: TrialConfig,
        network: Network,
        *,
        labels: Tensor,
        undo: Callable[[], None],
    ) -> None:
        self._bench = bench
        self._config = config
        self._network = network
        self._labels = labels
        self._undo = undo
        weights = class_weights(config, bench.job.data.train.labels, len(bench.job.data.classes))
        self._class_weights = None if weights is None else weights.to(bench.device)
        self._micro_batches = MicroBatches(smallest=2 if _trains_batch_norm(network) else 1)

    @property
    def n_parts(self) -> int:
        """Into how many parts a batch is split so far."""
        return self._micro_batches.n_parts

    def add_gradients(self, features: Tensor, picked: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Add the gradients of the batch's mean loss to those that are there.

        Args:
            features: of the batch at the cut, (n, ...).
            picked: the batch's images by number, (n,) int64.
            step: of the epoch, from 0.

        Returns:
            The loss () and how many images () the network, as it is, gets right.

        Raises:
            StepTooLargeError: it does not fit in memory, however few images are taken at a time.
        """
        labels = self._labels[picked.to(self._labels.device)]
        mix = draw_mix(self._config, epoch, step, len(picked), self._bench.device)
        batch = features if mix is None else mix.features(features)
        share = share_of_loss if mix is None else mix.share_of_loss
        draws = self._draws()

        def take(part: slice) -> tuple[Tensor, Tensor]:
            with self._bench.autocast():
                logits = self._network.suffix(batch[part])
            loss = share(logits, labels, part, self._config, self._class_weights)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return loss.detach(), (logits.detach().argmax(dim=1) == labels[part]).sum()

        def undo() -> None:
            self._undo()
            self._draw_from(draws)

        taken = self._micro_batches.run(len(picked), take, undo=undo)
        if len(taken) == 1:
            return taken[0]
        return torch.stack([loss for loss, _ in taken]).sum(), torch.stack([n for _, n in taken]).sum()

    def _draws(self) -> Tensor:
        """Where the stream stands that modules draw from: they draw the same when a step is tried again."""
        device = self._bench.device
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def _draw_from(self, place: Tensor) -> None:
        if self._bench.device.type == "cuda":
            torch.cuda.set_rng_state(place, self._bench.device)
        else:
            torch.set_rng_state(place)


def _trains_batch_norm(network: Network) -> bool:
    """Whether a BatchNorm takes its statistics from the batches; a frozen one never does."""
    network.suffix.train()
    return any(isinstance(module, _BatchNorm) and module.training for module in network.suffix.modules())
