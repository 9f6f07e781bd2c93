"""What all trials of a search have in common, as it travels to every process that works for the search."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from tune_inat.bucket import RemoteFolder
from tune_inat.config import TrialConfig
from tune_inat.cuts import KeptCuts
from tune_inat.data import DataSet
from tune_inat.frozen import Precision
from tune_inat.objective import Goal
from tune_inat.store import Store, hash_of


@dataclass(frozen=True)
class Job:
    """The search's inputs and decisions, the same for all trials.

    Attributes:
        files: where the machine `host` has an image of each content; another has its own (see `places`).
        source: what `--data` says, for other machines to find the images by.
        states_root: the folder of families' epochs, if not in the store: all nodes of a cluster see it.
        states: the same in a bucket, of which each machine has copies in its store.
        search: names the search among those that have the same `states_root`.
        memory_fraction: of a GPU's memory, for one trial; `None` for all of it.
        gpus: how much of a GPU a trial gets, or how many; also of pretended ones, where `device` is the CPU.
        step_bytes: of a GPU's memory, what the heaviest step needs; 0 if that is not known.
        is_mixed: whether some trials run on GPUs and some on CPUs.
        kept: where activations are kept, by `images_key`.
        has_room: for activations that nothing was decided about.
        budget_bytes: what `--cache-gb` allows each machine's cache; `None`: what its disk can spare.
        is_guest: whether another machine than this one conducts the search.
    """

    store: Store
    data: DataSet
    files: Mapping[str, Path]
    precision: Precision
    device: Literal["cpu", "cuda"]
    reuse: bool
    metric: str
    goal: Goal
    n_threads: int
    source: str = ""
    host: str = ""
    states_root: Path | None = None
    states: RemoteFolder | None = None
    search: str = ""
    memory_fraction: float | None = None
    gpus: float = 0.0
    step_bytes: int = 0
    is_mixed: bool = False
    kept: Mapping[str, KeptCuts] = field(default_factory=dict)
    has_room: bool = True
    budget_bytes: int | None = None
    is_guest: bool = False

    @property
    def runs_on(self) -> int | str:
        """What the rounding of sums depends on: on a CPU, the threads of a trial."""
        if self.is_mixed:
            return "cpu or cuda"
        return self.n_threads if self.device == "cpu" else self.device

    def images_key(self, config: TrialConfig, *, of_views: bool) -> str:
        """Names a set of images and the network it goes through: equal for all trials that share both."""
        network = (config.model, config.weights, config.image_size)
        views = (config.augment, config.views) if of_views else None
        has_seed = of_views or config.weights == "none"
        return _hash_once((*network, views, config.seed if has_seed else None))


_hash_once = cache(hash_of)  # a plan of many trials asks for few of these, very often
