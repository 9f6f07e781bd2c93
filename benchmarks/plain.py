"""Row a, the plain loop: trials one after another, as one writes them who starts with PyTorch.

Every epoch decodes and resizes every image file and runs it through the whole network, in fp32. From
tune_inat it has what makes accuracies comparable: the weights, what is frozen, the order of the images.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.task import Example, Task
from benchmarks.timing import TimedTrial, TimedTrials
from tune_inat.backbone import Backbone, load_backbone
from tune_inat.config import TrialConfig
from tune_inat.freeze import frozen_tensors
from tune_inat.recipe import batches, draw_epoch


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to. `train_loss` is the mean over its images."""

    train_loss: float
    val_accuracy: float


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files, decoded, resized and normalised each time that they are asked for."""

    def __init__(self, examples: Sequence[Example], backbone: Backbone, image_size: int) -> None:
        self._examples = examples
        bicubic = transforms.InterpolationMode.BICUBIC
        self._transform = transforms.Compose(
            [
                transforms.Resize((image_size, image_size), interpolation=bicubic),
                transforms.ToTensor(),
                transforms.Normalize(backbone.mean, backbone.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        example = self._examples[index]
        with Image.open(example.path) as image:
            return self._transform(image.convert("RGB")), example.label


class PlainTrial:
    """A trial's network, optimizer and data, from its first step on.

    Args:
        n_workers: processes that decode images.
    """

    def __init__(self, task: Task, config: TrialConfig, *, n_workers: int) -> None:
        self._config = config
        self._n_workers = n_workers
        backbone = load_backbone(
            config.model,
            weights=config.weights,
            n_classes=task.n_classes,
            seed=config.seed,
            image_size=config.image_size,
        )
        freeze(backbone, config.freeze)
        self.model = backbone.model
        self._train = ImageFiles(task.train, backbone, config.image_size)
        val = ImageFiles(task.val, backbone, config.image_size)
        self._val_loader = DataLoader(val, batch_size=config.batch_size, num_workers=n_workers)
        self._optimizer = torch.optim.Adam(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad], lr=config.lr
        )

    def run_epoch(self, number: int) -> Epoch:
        """Train the epoch (counted from 1) and validate."""
        order = draw_epoch(self._config.seed, number, len(self._train)).order
        steps = [step.tolist() for step in batches(order, self._config.batch_size)]
        loader = DataLoader(self._train, batch_sampler=steps, num_workers=self._n_workers)
        set_train_mode(self.model)
        total_loss = 0.0
        for images, labels in loader:
            self._optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._optimizer.step()
            total_loss += loss.item() * len(labels)
        return Epoch(total_loss / len(self._train), self._validate())

    @torch.no_grad()
    def _validate(self) -> float:
        self.model.eval()
        n_right = n_images = 0
        for images, labels in self._val_loader:
            n_right += int((self.model(images).argmax(dim=1) == labels).sum())
            n_images += len(labels)
        return n_right / n_images


def freeze(backbone: Backbone, share: float | str) -> None:
    """Freeze the first parameter tensors, with tune_inat's rounding."""
    frozen = set(frozen_tensors(backbone, share))
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def set_train_mode(model: nn.Module) -> None:
    """Train mode, but for frozen BatchNorms, whose statistics would move."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def time_trial(
    task: Task,
    config: TrialConfig,
    *,
    n_workers: int,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> TimedTrial:
    """Run a trial by the clock; `report` is given each epoch as it ends."""
    started = time.perf_counter()
    trial = PlainTrial(task, config, n_workers=n_workers)
    set_up = time.perf_counter()
    best = 0.0
    for number in range(1, config.epochs + 1):
        epoch = trial.run_epoch(number)
        report(epoch)
        best = max(best, epoch.val_accuracy)
    return TimedTrial(
        config=config,
        setup_seconds=set_up - started,
        epochs_seconds=time.perf_counter() - set_up,
        best_val_accuracy=best,
    )


def run(task: Task) -> TimedTrials:
    """All trials of a task, one after another, with torch's own number of threads."""
    n_workers = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    trials = []
    for config in task.trials_to_run():
        trials.append(time_trial(task, config, n_workers=n_workers))
        sys.stderr.write(f"{trials[-1]!r}\n")
    return TimedTrials(seconds=time.perf_counter() - started, n_slots=1, trials=tuple(trials))


if __name__ == "__main__":
    task_file, result_file = map(Path, sys.argv[1:])
    result_file.write_text(run(Task.model_validate_json(task_file.read_bytes())).model_dump_json())
