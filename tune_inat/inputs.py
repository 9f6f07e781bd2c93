"""Everything that a search reads before it runs: its space, its images, its plan."""

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune_inat.audit import Audit
from tune_inat.config import TrialConfig
from tune_inat.contents import hash_content
from tune_inat.data import DataSet, find_images, split_images
from tune_inat.errors import SpaceError, UserError
from tune_inat.facts import ImageFacts, has_facts, load_facts
from tune_inat.images import Pixels, has_pixels, load_pixels
from tune_inat.meter import Meter
from tune_inat.plan import SearchPlan, check_early_stopping, default_notice, longest_trial, make_plan
from tune_inat.settings import WEIGHTS_WITHOUT_FILE, SearchSettings, project_problem
from tune_inat.space import SearchSpace, load_space
from tune_inat.store import Store, default_root, spared_bytes

BYTES_PER_GB = 10**9
MANY_IMAGES = 2000  # to decode them takes longer than to import what knows all models


@dataclass(frozen=True)
class Inputs:
    """What a search works on.

    `files` says where the image of each content lies; `pixels` is `None` where they are not decoded yet.
    `audit` has what was found of the images, `weights` the hash of each file of weights, by the name that
    trials call it.
    """

    settings: SearchSettings
    space: SearchSpace
    fixed: Mapping[str, Any]
    store: Store
    files: Mapping[str, Path]
    pixels: Pixels | None
    data: DataSet
    plan: SearchPlan
    audit: Audit
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed of the split and of the search's own draws."""
        return seed_of(self.fixed)

    def warnings(self) -> list[str]:
        """What the search should not begin without having said, a line each."""
        notice = default_notice(self.space, self.settings.trials)
        return self.audit.warnings() if notice is None else [notice, *self.audit.warnings()]

    def identity(self) -> dict[str, Any]:
        """What makes this search the same as an earlier one: JSON values only.

        Trials name a file of weights; what is in it now is told here, so that other weights of the same name
        are another search.
        """
        identity: dict[str, Any] = {
            "space": self.space.identity(),
            "images": self.data.fingerprint,
            "parameters": dict(self.fixed),
            "precision": self.settings.precision,
        }
        return {**identity, "weights": dict(self.weights)} if self.weights else identity


def seed_of(fixed: Mapping[str, Any]) -> int:
    """The search's seed: that of its trials, where they share one."""
    return int(fixed.get("seed", TrialConfig.model_fields["seed"].default))


def read_inputs(settings: SearchSettings, meter: Meter, store: Store) -> Inputs:
    """Read and check all inputs, decoding the images unless the store has them.

    A dry run does not decode: images that nothing has looked at yet it takes for readable, without copies.

    Raises:
        UserError: whatever is wrong with them.
    """
    space = load_space(settings.space, fixed=settings.given())
    fixed = {name: value for name, value in settings.fixed().items() if name not in space.parameters}
    plan = make_plan(space, fixed, n_trials=settings.trials, seed=seed_of(fixed))
    check_early_stopping(space, longest_trial(space, fixed))
    problem = project_problem(space.project)
    if problem is not None:
        raise SpaceError(f"{space.source}: {problem}")
    folder = find_images(settings.data, cache=store.root, meter=meter)
    files = {file.content: file.path for file in folder.files}
    size = _first_image_size(space, fixed)
    pixels, is_decoded = None, has_pixels(store, files, size=size)
    if not is_decoded and len(files) >= MANY_IMAGES:
        check_models(space, fixed)
    n_workers = len(os.sched_getaffinity(0))
    is_audited = has_facts(store, files)
    if is_decoded or not settings.dry_run:
        pixels = load_pixels(
            store, files, size=size, n_workers=n_workers, meter=meter, with_facts=not is_audited
        )
    facts = ImageFacts()
    if is_audited or pixels is not None:
        known = ImageFacts() if pixels is None else ImageFacts(pixels.facts, pixels.unreadable)
        facts = load_facts(store, files, known=known, n_workers=n_workers, meter=meter)
    unreadable = facts.unreadable if pixels is None else pixels.unreadable
    data = split_images(
        folder,
        row_of={name: row for row, name in enumerate(sorted(files)) if name not in unreadable},
        unreadable=unreadable,
        seed=seed_of(fixed),
        skip_bad_images=settings.skip_bad_images,
        near=facts.near,
        allow_leakage=settings.allow_leakage,
    )
    weights = _hash_weights(space, fixed)
    return Inputs(settings, space, fixed, store, files, pixels, data, plan, Audit(folder, facts), weights)


def open_store(settings: SearchSettings) -> Store:
    """The user's store, within `--cache-gb`, else within what its disk can spare now."""
    root = default_root()
    budget = asked_budget(settings)
    return Store(root, spared_bytes(root) if budget is None else budget)


def asked_budget(settings: SearchSettings) -> int | None:
    """The bytes of `--cache-gb`; `None` where it was not given."""
    return None if settings.cache_gb is None else int(settings.cache_gb * BYTES_PER_GB)


def check_models(space: SearchSpace, fixed: Mapping[str, Any]) -> None:
    """Refuse models and weights files that do not exist, all at once. Imports torch.

    Raises:
        UserError: there are such.
    """
    from tune_inat.architectures import check_architecture

    def values_of(name: str) -> Sequence[str]:
        if name in space.parameters:
            return [str(value) for value in space.parameters[name].values or ()]
        return [str(fixed.get(name, TrialConfig.model_fields[name].default))]

    problems: dict[str, None] = {}
    for model, weights in itertools.product(values_of("model"), values_of("weights")):
        try:
            check_architecture(model, weights)
        except UserError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise UserError(tuple(problems))


def _hash_weights(space: SearchSpace, fixed: Mapping[str, Any]) -> dict[str, str]:
    """The hash of each file of weights. One that cannot be read is refused when it is loaded."""
    varied = space.parameters["weights"].values if "weights" in space.parameters else None
    hashes = {}
    for name in varied or [fixed.get("weights", "default")]:
        if name not in WEIGHTS_WITHOUT_FILE:
            if not Path(name).is_file():
                check_models(space, fixed)  # says so, and what else is wrong
            with suppress(OSError, ValueError):
                hashes[name] = hash_content(Path(name))
    return hashes


def _first_image_size(space: SearchSpace, fixed: Mapping[str, Any]) -> int:
    """A size that the search needs anyway; the others are decoded when a trial asks for them."""
    if "image_size" in fixed:
        return int(fixed["image_size"])
    return int(space.parameters["image_size"].ppf(0.0))
