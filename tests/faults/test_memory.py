"""Memory that runs out: steps are split on the device, and a search goes on where the kernel kills trials."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.benches import config_of, make_bench, numbers_of, reports_of, write_images
from tests.end_to_end.command import Ran, run, run_python
from tests.faults.disturbed import parse_strictly, running_search
from tests.slow import slow
from tune_inat import recipe
from tune_inat.config import TrialConfig
from tune_inat.store import Store
from tune_inat.trial import Trainer

FITS = 3  # images in a step

# Everything that the loss of a batch is made of; the transformer has no BatchNorm.
VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "class weights": {"class_weights": "balanced"},
    "label smoothing": {"label_smoothing": 0.1},
    "mixup": {"mixup": 0.4},
    "all of them": {"class_weights": "balanced", "label_smoothing": 0.1, "mixup": 0.4},
}


def let_fit(monkeypatch: pytest.MonkeyPatch, n_images: int) -> list[int]:
    """Let steps of more images run out of memory as on a GPU; returns the sizes of those that fit."""
    whole, sizes = recipe.training_loss, []

    def loss(logits: Tensor, *arguments: Any) -> Tensor:
        if len(logits) > n_images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        sizes.append(len(logits))
        return whole(logits, *arguments)

    monkeypatch.setattr(recipe, "training_loss", loss)
    return sizes


def first_step(bench: Any, config: TrialConfig) -> tuple[Tensor, dict[str, Tensor], Trainer]:
    """The loss and the gradients of a trial's first step."""
    trainer = Trainer(bench, config)
    picked = recipe.batches(recipe.draw_epoch(config.seed, 1, 33).order, config.batch_size)[0]
    features = trainer._train.take(picked, 1)
    loss, _ = trainer._step.add_gradients(features, picked, 1, 0)
    gradients = {name: p.grad.clone() for name, p in trainer.network.trainable.items() if p.grad is not None}
    return loss, gradients, trainer


@pytest.mark.parametrize("variant", VARIANTS)
def test_split_step_has_the_loss_and_the_gradients_of_the_whole_one(
    variant: str, images: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = {"model": "timm/vit_tiny_patch16_224", "freeze": 0.8, "batch_size": 10}
    config = config_of(**transformer, **VARIANTS[variant])
    bench = make_bench(images, store)
    # Unequal classes: the weights of parts of a batch differ.
    bench.job.data.train.labels[:12] = 0
    loss, gradients, _ = first_step(bench, config)
    sizes = let_fit(monkeypatch, FITS)
    split_loss, split_gradients, trainer = first_step(bench, config)
    assert trainer.did["micro_batches"] == 4
    assert sorted(set(sizes)) == [2, 3]
    assert split_loss.item() == pytest.approx(loss.item(), abs=1e-6)
    assert gradients.keys() == split_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, split_gradients[name], rtol=0, atol=1e-6), name


def test_trial_whose_batch_does_not_fit_says_so_and_trains_on(
    images: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(epochs=2, batch_size=8, freeze=1.0)  # frozen BatchNorms do not care
    whole = numbers_of(reports_of(make_bench(images, Store(store.root.with_name("whole"))), config))
    let_fit(monkeypatch, FITS)
    reports = reports_of(make_bench(images, store), config)
    assert [report.did["micro_batches"] for report in reports] == [4, 4]
    for split, same in zip(numbers_of(reports), whole, strict=True):
        assert split == pytest.approx(same, abs=1e-5)


def test_batch_norm_that_trains_never_sees_a_single_image(
    images: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = let_fit(monkeypatch, FITS)
    reports_of(make_bench(images, store), config_of(freeze=0.5, epochs=1))
    assert set(sizes) == {2, 3}  # of batches of 8 and, the last one, of 9
    let_fit(monkeypatch, 1)
    with pytest.raises(Exception, match="not even 2 at a time"):
        reports_of(make_bench(images, Store(store.root / "other")), config_of(freeze=0.5, epochs=1))


def test_validation_that_does_not_fit_takes_fewer_images_at_a_time(
    images: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(epochs=1, freeze=1.0)
    (whole,) = numbers_of(reports_of(make_bench(images, Store(store.root.with_name("whole"))), config))
    bench = make_bench(images, store)
    trainer, sizes = Trainer(bench, config), []

    def limit(module: Any, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > 4 and not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(inputs[0]))

    trainer.network.suffix.register_forward_pre_hook(limit)
    row = trainer.train_epoch(1, lambda: False)
    assert max(sizes[-3:]) <= 4
    assert row["val_loss"] == pytest.approx(whole["val_loss"], abs=1e-6)


# A process that may not have more memory than it has, but for what a third of its batch takes.
UNDER_A_LIMIT = """
import resource, sys
import torch
from torch import nn
from tune_inat.micro_batches import MicroBatches

torch.set_num_threads(1)
layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU())
images, n_bytes = torch.randn(8_000, 16), 8_000 * 4096 * 4
take = lambda part: float(layers(images[part]).pow(2).sum())
with torch.no_grad():
    take(slice(0, 10))
    size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + n_bytes, resource.RLIM_INFINITY))
    batches = MicroBatches()
    parts = batches.run(len(images), take)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(batches.n_parts, abs(sum(parts) / take(slice(None)) - 1) < 1e-4)
"""


def test_memory_that_a_limit_keeps_from_a_process_splits_its_batches(tmp_path: Path) -> None:
    ran = run_python("-c", UNDER_A_LIMIT, cwd=tmp_path, cache=tmp_path)
    n_parts, is_same = ran.out.split()
    assert int(n_parts) > 1, ran.err
    assert is_same == "True"


SWEEP = """
method: grid
metric: {name: val_accuracy, goal: maximize}
parameters:
  lr: {values: [1e-3, 2e-3]}
  epochs: {value: 5}
  freeze: {value: 0.8}
  model: {value: resnet18}
  weights: {value: none}
  image_size: {value: 32}
  batch_size: {value: 8}
"""
# In the workers of Ray alone, steps of more images run out of memory as on a GPU.
SMALL_GPU = f"""
import importlib.util, sys


class Finder:
    def find_spec(self, name, path, target=None):
        if name != "tune_inat.recipe":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), shrink(module))
        return spec


def shrink(recipe):
    import torch

    whole = recipe.training_loss

    def loss(logits, *arguments):
        if len(logits) > {FITS} and "default_worker" in sys.argv[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(logits, *arguments)

    recipe.training_loss = loss


sys.meta_path.insert(0, Finder())
"""


@dataclass(frozen=True)
class ShortOfMemory:
    """A search that was short of memory."""

    cwd: Path
    cache: Path
    killed: str  # the trial whose process was killed
    ran: Ran
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def short_of_memory(tmp_path_factory: pytest.TempPathFactory) -> ShortOfMemory:
    cwd, cache = tmp_path_factory.mktemp("search"), tmp_path_factory.mktemp("cache")
    write_images(cwd / "photos")
    (cwd / "sweep.yaml").write_text(SWEEP)
    (cwd / "path").mkdir()
    (cwd / "path" / "sitecustomize.py").write_text(SMALL_GPU)
    counter = cwd / "vmstat"
    counter.write_text("nr_free_pages 12\noom_kill 3\n")
    arguments = ("--space", "sweep.yaml", "--data", "photos", "--precision", "fp32", "--wandb", "disabled")
    with running_search(
        *(*arguments, "--max-concurrent", "2", "--cpus-per-trial", "1", "--json"),
        cwd=cwd,
        cache=cache,
        name="short",
        before=f"import pathlib, tune_inat.failures as f; f.VM_STATISTICS = pathlib.Path({str(counter)!r})",
        python_path=cwd / "path",
    ) as search:
        killed, trial = search.in_epoch(1)
        counter.write_text("nr_free_pages 12\noom_kill 4\n")  # as the kernel does when it kills
        search.signal(trial, signal.SIGKILL)
        ran = search.ran()
    assert ran.code == 0, ran.err
    return ShortOfMemory(cwd, cache, killed, ran, parse_strictly(ran.out))


@pytest.mark.end_to_end
def test_search_says_in_how_many_parts_its_batches_were_taken(short_of_memory: ShortOfMemory) -> None:
    assert [trial["did"]["micro_batches"] for trial in short_of_memory.summary["trials"]] == [4, 4]


@pytest.mark.end_to_end
def test_kill_for_want_of_memory_is_known_as_one_and_lets_fewer_trials_run(
    short_of_memory: ShortOfMemory,
) -> None:
    failures = {trial["trial_id"]: trial.get("failures") for trial in short_of_memory.summary["trials"]}
    (reason,) = failures.pop(short_of_memory.killed)
    assert "the kernel killed its process because memory ran out" in reason
    assert "at most 1 of the trials run at a time" in reason
    assert list(failures.values()) == [None]


@pytest.mark.end_to_end
def test_search_with_failures_behind_it_can_be_compared(short_of_memory: ShortOfMemory) -> None:
    compared = run("results", "runs/short", "--json", cwd=short_of_memory.cwd, cache=short_of_memory.cache)
    assert parse_strictly(compared.out)[0]["failed"] == 0


@pytest.mark.end_to_end
@slow
def test_kill_by_rays_memory_monitor_fails_the_trial_and_not_the_search(
    short_of_memory: ShortOfMemory,
) -> None:
    to_any = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    with running_search(
        *("--space", "sweep.yaml", "--data", "photos", "--set", "weight_decay=0.1", "--trials", "1"),
        *("--max-failures", "0", "--wandb", "disabled", "--json"),
        cwd=short_of_memory.cwd,
        cache=short_of_memory.cache,
        name="monitored",
        environment=to_any,
    ) as search:
        ran = search.ran()
    assert ran.code == 1, ran.err
    (trial,) = parse_strictly(ran.out)["trials"]
    assert "Ray ended its process because the machine ran low on memory" in trial["error"]
    assert "Traceback" not in ran.err
