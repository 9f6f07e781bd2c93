"""The plan: the same trials each time, and who shares epochs with whom."""

import json
import random
from pathlib import Path

import pytest

from tune_inat.config import TrialConfig
from tune_inat.errors import SpaceError
from tune_inat.plan import (
    TrialNamer,
    check_early_stopping,
    complete_config,
    is_of_space,
    longest_trial,
    make_plan,
)
from tune_inat.space import SearchSpace, load_space


def space_of(folder: Path, text: str) -> SearchSpace:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return load_space(str(path))


def test_seed_grid_has_twelve_trials_and_shares_thirty_of_seventy_two_epochs() -> None:
    plan = make_plan(load_space("grid"), {}, n_trials=None, seed=0)
    assert plan.n_trials == len(plan.trials) == 12
    assert plan.epochs_asked == 72
    assert plan.epochs_to_train == 42
    assert set(plan.horizons().values()) == {(5, 7)}
    assert len({trial.trial_id for trial in plan.trials}) == 12


def test_cosine_knows_the_last_epoch_so_shares_none() -> None:
    plan = make_plan(load_space("grid"), {"schedule": "cosine"}, n_trials=None, seed=0)
    assert plan.epochs_to_train == plan.epochs_asked


def test_what_has_no_effect_keeps_no_trials_apart() -> None:
    adam = TrialConfig(optimizer="adam")
    assert adam.family() == adam.model_copy(update={"momentum": 0.5, "views": 8}).family()
    sgd = TrialConfig(optimizer="sgd")
    assert sgd.family() != sgd.model_copy(update={"momentum": 0.5}).family()


def test_trial_limit_takes_the_first_points_of_a_grid() -> None:
    whole = make_plan(load_space("grid"), {}, n_trials=None, seed=0)
    assert make_plan(load_space("grid"), {}, n_trials=5, seed=0).trials == whole.trials[:5]


def test_longer_random_search_begins_with_the_same_trials() -> None:
    space = load_space("random")
    short = make_plan(space, {}, n_trials=3, seed=7)
    long = make_plan(space, {}, n_trials=6, seed=7)
    assert long.trials[:3] == short.trials
    assert make_plan(space, {}, n_trials=3, seed=8).trials != short.trials


def test_run_cap_is_the_number_of_trials_unless_the_command_says_another(hostile_path: Path) -> None:
    text = "method: random\nrun_cap: 4\nmetric: {name: val_loss}\nparameters: {lr: {min: 0.1, max: 0.2}}\n"
    space = space_of(hostile_path, text)
    assert make_plan(space, {}, n_trials=None, seed=0).n_trials == 4
    assert make_plan(space, {}, n_trials=2, seed=0).n_trials == 2


def test_equal_configurations_get_names_of_their_own() -> None:
    namer = TrialNamer()
    first, second = namer.name(TrialConfig()), namer.name(TrialConfig())
    assert second.trial_id == f"{first.trial_id}-2"
    assert TrialNamer().name(TrialConfig()) == first


def test_longest_trial_is_that_of_the_space_or_of_what_is_fixed() -> None:
    assert longest_trial(load_space("grid"), {}) == 7
    fixed_only = load_space("backbones")
    assert longest_trial(fixed_only, {"epochs": 9} if "epochs" not in fixed_only.parameters else {}) >= 1


def test_longest_trial_is_found_wherever_it_is_listed(hostile_path: Path) -> None:
    text = "method: random\nmetric: {name: val_loss}\nparameters: {epochs: {values: [4, 8, 2]}}\n"
    assert longest_trial(space_of(hostile_path, text), {}) == 8


WIDE = """
method: bayes
metric: {name: val_loss}
parameters:
  lr: {distribution: log_uniform_values, min: 1e-4, max: 1e-1}
  dropout: {distribution: beta, a: 2, b: 5}
  weight_decay: {distribution: q_uniform, min: 0.0, max: 0.5, q: 0.1}
  batch_size: {distribution: int_uniform, min: 8, max: 64}
  optimizer: {values: [adam, sgd]}
"""


def test_every_trial_of_a_space_is_found_to_be_of_it(hostile_path: Path) -> None:
    space, rng = space_of(hostile_path, WIDE), random.Random(0)
    for _ in range(50):
        config = complete_config(space.sample(rng), {"seed": 3}).model_dump()
        assert is_of_space(json.loads(json.dumps(config)), space, {"seed": 3})


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.2},
        {"weight_decay": 0.15},
        {"batch_size": 65},
        {"optimizer": "adamw"},
        {"label_smoothing": 0.1},
        {"seed": 4},
    ],
    ids=str,
)
def test_trial_that_a_space_cannot_give_is_not_of_it(change: dict[str, object], hostile_path: Path) -> None:
    space = space_of(hostile_path, WIDE)
    config = complete_config(space.sample(random.Random(0)), {"seed": 3}).model_dump()
    assert is_of_space(config, space, {"seed": 3})
    assert not is_of_space({**config, **change}, space, {"seed": 3})


def test_early_stopping_that_comes_too_late_is_refused(hostile_path: Path) -> None:
    text = (
        "method: random\nmetric: {name: val_loss}\nearly_terminate: {type: hyperband, min_iter: 5}\n"
        "parameters: {epochs: {values: [3, 5]}}\n"
    )
    space = space_of(hostile_path, text)
    with pytest.raises(SpaceError, match="after epoch 5, but the longest has 5 epochs"):
        check_early_stopping(space, longest_trial(space, {}))


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_endless_number_of_trials_is_refused(tmp_path: Path, method: str) -> None:
    text = f"method: {method}\nmetric: {{name: val_loss}}\nrun_cap: 1000000000\n"
    space = space_of(tmp_path, text + "parameters: {lr: {min: 0.1, max: 0.2}}")
    with pytest.raises(SpaceError, match=r"1,000,000,000 trials are more than 100,000"):
        make_plan(space, {}, n_trials=None, seed=0)
    assert make_plan(space, {}, n_trials=3, seed=0).n_trials == 3
