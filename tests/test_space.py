"""Tests of `space`: search spaces, the shipped ones, `--set`, and the command."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tune_inat.config import TrialConfig
from tune_inat.distributions import Choice, LogUniform
from tune_inat.errors import SpaceError
from tune_inat.objective import Metric
from tune_inat.space import (
    SearchSpace,
    load_space,
    parse_setting,
    parse_settings,
    read_sweep,
    shipped_spaces,
)

Write = Callable[[str], str]

DEFAULTS = TrialConfig.model_validate({}).model_dump()


@pytest.fixture
def write(hostile_path: Path) -> Write:
    """Writes a sweep file and returns its path."""

    def written(text: str) -> str:
        path = hostile_path / "sweep.yaml"
        path.write_text(text)
        return str(path)

    return written


def problems_of(path: str, *, fixed: tuple[str, ...] = ()) -> list[str]:
    """What `load_space` says, without the file's name."""
    with pytest.raises(SpaceError) as caught:
        load_space(path, fixed=fixed)
    return [problem.removeprefix(f"{path}, ").removeprefix(f"{path}: ") for problem in caught.value.problems]


# The documentation of W&B has this sweep as its first example; fc_layer_size is not ours.
WANDBS_EXAMPLE = """\
program: train.py
method: random
metric:
  goal: minimize
  name: loss
parameters:
  batch_size: {distribution: q_log_uniform_values, max: 256, min: 32, q: 8}
  dropout: {values: [0.3, 0.4, 0.5]}
  epochs: {value: 1}
  fc_layer_size: {values: [128, 256, 512]}
  learning_rate: {distribution: uniform, max: 0.1, min: 0}
  optimizer: {values: ["adam", "sgd"]}
"""


def test_the_shipped_spaces_are_these() -> None:
    assert list(shipped_spaces()) == ["backbones", "grid", "optuna", "random"]


@pytest.mark.parametrize("name", sorted(shipped_spaces()))
def test_shipped_spaces_load_without_a_notice_and_give_whole_trials(name: str) -> None:
    space = load_space(name)
    assert space.notices == ()
    points = space.grid() if space.method == "grid" else [space.sample(random.Random(n)) for n in range(50)]
    for point in points:
        assert TrialConfig(**point).model_dump() == DEFAULTS | point


@pytest.mark.parametrize("name", sorted(shipped_spaces()))
def test_shipped_spaces_say_their_command_first(name: str) -> None:
    first = shipped_spaces()[name].read_text().splitlines()[0]
    assert first.startswith(f"# python -m tune_inat.search --space {name}")


def test_the_shipped_grid_is_the_seeds() -> None:
    points = [
        {"freeze": freeze, "epochs": epochs, "batch_size": batch_size}
        for freeze, epochs, batch_size in itertools.product((0.7, 0.8, 0.9), (5, 7), (32, 64))
    ]
    space = load_space("grid")
    assert list(space.grid()) == points
    assert space.metric == Metric("val_accuracy", "maximize")


def test_the_shipped_optuna_space_varies_what_matters_and_stops_early() -> None:
    space = load_space("optuna")
    expected = "freeze lr weight_decay optimizer batch_size schedule label_smoothing dropout epochs"
    assert list(space.parameters) == expected.split()
    assert space.method == "bayes"
    assert space.early_stopping is not None


def test_a_space_has_all_that_the_file_says(write: Write) -> None:
    space = load_space(
        write(
            "name: n\ndescription: d\nproject: p\nentity: e\nrun_cap: 7\nmethod: bayes\n"
            "metric: {name: Val Loss, goal: minimize}\nparameters:\n"
            "  learning_rate: {distribution: log_uniform_values, min: 1e-4, max: 1e-2}\n"
            "  optimizer: {values: [adam, sgd]}\n"
        )
    )
    assert (space.name, space.description, space.project, space.entity) == ("n", "d", "p", "e")
    assert (space.method, space.run_cap, space.metric) == ("bayes", 7, Metric("val_loss", "minimize"))
    assert dict(space.parameters) == {"lr": LogUniform(1e-4, 1e-2), "optimizer": Choice.of(["adam", "sgd"])}


def test_samples_follow_the_random_numbers_that_are_handed_in() -> None:
    space = load_space("random")
    assert space.sample(random.Random(1)) == space.sample(random.Random(1))
    assert space.sample(random.Random(1)) != space.sample(random.Random(2))


def test_a_nested_parameter_counts_by_its_leafs_name(write: Write) -> None:
    path = write(
        "method: random\nparameters:\n  optimizer:\n    parameters:\n      name: {values: [adam, sgd]}\n"
        "      lr: {value: 1e-3}\n  schedule: {parameters: {type: {value: cosine}}}\n"
    )
    assert list(load_space(path).parameters) == ["optimizer", "lr", "schedule"]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("{name: val_acc, goal: maximize}", Metric("val_accuracy", "maximize")),
        ("{name: val_acc}", Metric("val_accuracy", "maximize")),
        ("{name: loss}", Metric("val_loss", "minimize")),
        ("{name: val_acc, goal: minimize}", Metric("val_accuracy", "minimize")),
    ],
)
def test_a_metric_has_a_goal_given_or_not(write: Write, metric: str, expected: Metric) -> None:
    assert (
        load_space(write(f"method: random\nmetric: {metric}\nparameters: {{lr: {{value: 1}}}}")).metric
        == expected
    )


@pytest.mark.parametrize(
    ("line", "notice"),
    [
        ("metric: {name: val_acc}", "no goal is given. W&B would minimize; a search maximizes val_accuracy."),
        (
            "metric: {name: val_acc, goal: minimize}",
            "ATTENTION, the goal is to minimize val_accuracy: the WORST",
        ),
        (
            "metric: {name: val_loss, goal: maximize}",
            "ATTENTION, the goal is to maximize val_loss: the WORST",
        ),
        ("run_cap: 3", "no metric is named, so the best trial is the one with the highest val_accuracy."),
        ("metric: {name: val_loss, target: 0.1}", "metric.target is for W&B's controller and not used here."),
    ],
)
def test_what_is_done_about_a_metric_is_noticed(write: Write, line: str, notice: str) -> None:
    (noticed,) = load_space(write(f"method: random\n{line}\nparameters: {{lr: {{value: 0.1}}}}")).notices
    assert notice in noticed


def test_everything_wrong_with_a_file_is_said_at_once_in_the_order_of_its_lines(write: Write) -> None:
    path = write(
        "method: random\nmetric: {name: auc}\nparameters:\n  freeze_ratio: 0.7\n"
        "  batch_size: {values: [0, 32]}\n  optimizer: {values: [adam, lion]}\n  lr: {min: 2, max: 1}\n"
        "  epochs: {value: 3}\n  epochs: {value: 4}\n"
    )
    assert problems_of(path) == [
        'line 2: metric.name: there is no metric "auc". There are: train_loss, train_accuracy, val_loss, '
        "val_accuracy, val_macro_f1, val_balanced_accuracy, val_ece.",
        "line 4: freeze_ratio: 0.7 stands where a mapping belongs. Write freeze_ratio: {value: 0.7}.",
        'line 4: there is no parameter "freeze_ratio". Did you mean "freeze"?',
        "line 5: batch_size: 0 is below the minimum of 1.",
        'line 6: optimizer: "lion" is not one of adam, adamw, sgd.',
        "line 7: lr: min 2 is not below max 1.",
        'line 9: "epochs" is given twice: it is in line 8 already.',
    ]


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ("  lr: {value: 1}\n  learning_rate: {value: 1}", "line 4: learning_rate: lr is in line 3 already."),
        (
            "  lr: {value: 1}\n  optimizer: {parameters: {lr: {value: 1}}}",
            "line 4: optimizer.lr: lr is in line 3 already.",
        ),
        (
            "  model: {values: [resnet18, resnet50]}",
            "line 3: model: the command sets model as well. Leave one of the two out.",
        ),
    ],
)
def test_a_parameter_has_one_home(write: Write, parameters: str, problem: str) -> None:
    path = write(f"method: random\nparameters:\n{parameters}\n")
    assert problems_of(path, fixed=("model",)) == [problem]


def test_the_test_images_are_nothing_to_optimize_by(write: Write) -> None:
    path = write("method: random\nmetric: {name: test_accuracy}\nparameters: {lr: {value: 1}}")
    assert "The test images are read once, for the best trial" in problems_of(path)[0]


def test_a_grid_too_large_to_list_is_refused(write: Write) -> None:
    values = list(range(1, 401))
    path = write(f"method: grid\nparameters:\n  lr: {{values: {values}}}\n  seed: {{values: {values}}}")
    assert problems_of(path) == ["the grid has 160,000 trials; at most 100,000 fit. Use method random."]


def test_a_stepped_range_in_a_grid_is_the_list_of_its_values(write: Write) -> None:
    def read(epochs: str, lr: str) -> SearchSpace:
        return load_space(write(f"method: grid\nparameters:\n  epochs: {{{epochs}}}\n  lr: {{{lr}}}\n"))

    stepped = read("min: 1, max: 3", "distribution: q_uniform, min: 0.1, max: 0.3, q: 0.1")
    listed = read("values: [1, 2, 3]", "values: [0.1, 0.2]")
    assert stepped.grid_size == 6
    assert stepped.grid() == listed.grid()
    assert stepped.identity() == listed.identity()


def test_a_stepped_range_in_a_grid_has_the_parameters_type(write: Write) -> None:
    space = load_space(
        write(
            "method: grid\nparameters:\n  momentum: {min: 0, max: 0.9, distribution: q_uniform, q: 0.9}\n"
            "  epochs: {distribution: q_uniform, min: 5, max: 8.0, q: 2}\n  weight_decay: {min: 0, max: 1}\n"
        )
    )
    assert space.parameters["momentum"] == Choice.of([0.0])
    assert space.parameters["epochs"] == Choice.of([5, 7])
    assert [type(value) for value in space.parameters["weight_decay"].values or ()] == [float, float]
    assert "weight_decay: min 0 and max 1 are whole numbers, so W&B takes only whole numbers." in " ".join(
        space.notices
    )


def test_one_value_speaks_for_all_of_a_range_that_make_no_sense(write: Write) -> None:
    path = write("method: grid\nparameters:\n  epochs: {min: -5000, max: 3}\n")
    assert problems_of(path) == ["line 3: epochs: -5000 is below the minimum of 1."]


def test_a_value_listed_twice_is_tried_once_and_noticed(write: Write) -> None:
    space = load_space(write("method: grid\nparameters: {lr: {values: [1e-3, 0.001, '1e-3']}}"))
    assert space.grid() == ({"lr": 0.001},)
    assert any("lr: a value is listed more than once." in notice for notice in space.notices)


def test_identity_is_the_meaning_and_not_the_spelling(write: Write) -> None:
    one = load_space(
        write("method: random\nmetric: {name: val_acc}\nparameters: {lr: {min: 1.0, max: 2.0}}\nrun_cap: 3")
    )
    other = load_space(
        write(
            "# the same\nname: other\nmethod: random\nmetric: {name: Val Accuracy, goal: maximize}\n"
            "parameters:\n  learning_rate: {distribution: uniform, min: 1, max: 2}\n"
        )
    )
    assert one.identity() == other.identity()
    json.dumps(one.identity(), allow_nan=False)


@pytest.mark.parametrize(
    "change",
    [
        "method: bayes",
        "metric: {name: val_loss}",
        "parameters: {lr: {min: 1.0, max: 3.0}}",
        "early_terminate: {type: hyperband, min_iter: 2}",
    ],
)
def test_identities_of_other_meanings_differ(write: Write, change: str) -> None:
    def identity(**lines: str) -> object:
        return load_space(write("\n".join(lines.values()))).identity()

    plain = {
        "method": "method: random",
        "metric": "metric: {name: val_acc}",
        "parameters": "parameters: {lr: {min: 1.0, max: 2.0}}",
    }
    assert identity(**plain) != identity(**(plain | {change.split(":")[0]: change}))


def test_a_name_that_is_neither_space_nor_file_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpaceError, match=r'gird: there is no such .* Did you mean "grid"'):
        load_space("gird")


def test_a_folder_is_no_sweep_file(hostile_path: Path) -> None:
    with pytest.raises(SpaceError, match="it is no file"):
        load_space(str(hostile_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(write: Write) -> None:
    path = write("method: grid")
    Path(path).chmod(0)
    with pytest.raises(SpaceError, match="it cannot be read"):
        load_space(path)


def test_a_name_too_long_for_a_file_is_refused() -> None:
    with pytest.raises(SpaceError, match="it cannot be read"):
        load_space("x" * 5000)


def test_a_sweep_for_another_program_is_sound_and_its_strangers_are_listed(write: Write) -> None:
    report = read_sweep(write(WANDBS_EXAMPLE))
    assert [refusal.split(", line ")[1] for refusal in report.refusals] == [
        '10: there is no parameter "fc_layer_size". Did you mean "image_size"?'
    ]
    assert len(report.sweep.parameters) == 6


def test_our_own_names_are_no_mistake_in_a_file_for_another_program(write: Write) -> None:
    report = read_sweep(write("method: random\nparameters:\n  n_layers: {value: 3}\n  epochs: {value: 0}"))
    assert ["epochs: 0 is below the minimum of 1." in refusal for refusal in report.refusals] == [False, True]


def test_a_number_that_makes_no_sense_is_a_mistake_in_a_file_of_ours(write: Write) -> None:
    with pytest.raises(SpaceError, match="line 3: epochs: 0 is below the minimum of 1"):
        read_sweep(write("method: random\nparameters:\n  epochs: {value: 0}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=1e-3", ("lr", 0.001)),
        ("learning_rate=1", ("lr", 1.0)),
        (" epochs = 3 ", ("epochs", 3)),
        ("freeze=layer3", ("freeze", "layer3")),
        ("freeze=0.5", ("freeze", 0.5)),
        ("model=timm/vit_tiny_patch16_224", ("model", "timm/vit_tiny_patch16_224")),
        ("weights=/a=b.pth", ("weights", "/a=b.pth")),
    ],
)
def test_a_setting_is_a_parameter_and_its_value(text: str, expected: tuple[str, object]) -> None:
    name, value = parse_setting(text)
    assert (name, value, type(value)) == (*expected, type(expected[1]))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr", "--set lr: it has to be key=value, such as lr=1e-3."),
        ("lr=", "--set lr=: it has to be key=value"),
        ("=3", "--set =3: it has to be key=value"),
        (
            "freeze_ratio=0.5",
            '--set freeze_ratio=0.5: there is no parameter "freeze_ratio". Did you mean "freeze"?',
        ),
        ("lr=0", "--set lr=0: lr: 0 is not above 0."),
        ("optimizer=lion", '--set optimizer=lion: optimizer: "lion" is not one of adam, adamw, sgd.'),
        ("lr=[1, 2]", "--set lr=[1, 2]: lr takes one value."),
        ("lr={a: 1}", "--set lr={a: 1}: lr takes one value."),
        ("model=!!python/name:x y", "the tag !!python/name:x has no place here"),
        ("model='x", "this is not YAML"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SpaceError) as caught:
        parse_setting(text)
    assert problem in str(caught.value)


def test_all_settings_are_checked_at_once() -> None:
    with pytest.raises(SpaceError) as caught:
        parse_settings(["lr=0", "epochs=3", "epochs=4", "foo=1"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "--set lr=0",
        "--set epochs=4",
        "--set foo=1",
    ]


def test_settings_become_values_by_name() -> None:
    assert parse_settings(["learning_rate=0.1", "epochs=2"]) == {"lr": 0.1, "epochs": 2}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tune_inat.space", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_shows_a_sound_file_and_what_a_search_would_refuse(write: Write) -> None:
    done = command(path := write(WANDBS_EXAMPLE))
    assert done.returncode == 2
    assert done.stdout.startswith(f"{path} is a sound W&B sweep.\n")
    for shown in ("q_log_uniform_values", "no such name", "loss, minimize", "A search would refuse it:"):
        assert shown in done.stdout
    assert done.stderr == f"Note: {path}, line 1: program is for W&B's agents and not used here.\n"


def test_the_command_ends_with_0_where_a_search_would_take_the_file() -> None:
    done = command("grid")
    assert (done.returncode, done.stderr) == (0, "")
    assert "A search would refuse it" not in done.stdout


def test_the_command_says_how_many_trials_there_are_where_the_file_does_not(write: Write) -> None:
    text = "method: random\nmetric: {name: val_loss}\nparameters: {lr: {min: 0.1, max: 0.2}}\n"
    (line,) = [line for line in command(write(text)).stdout.splitlines() if line.startswith("trials")]
    assert line.split(maxsplit=1)[1] == "32, unless run_cap or --trials says otherwise"
    assert "32" not in command(write(f"{text}run_cap: 4\n")).stdout


def test_the_command_prints_all_problems_and_ends_with_2(write: Write) -> None:
    done = command(path := write("method: grid\nparameters:\n  lr: {min: 1, max: 2.0}\n  epochs: 3\n"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{path}, line 3: lr: a grid needs each value, not a range. Write values: [...], give it steps "
        "(q_uniform), or use method random.",
        f"{path}, line 4: epochs: 3 stands where a mapping belongs. Write epochs: {{value: 3}}.",
        "2 problems, nothing was started.",
    ]


def test_a_file_cannot_drive_the_terminal(write: Write) -> None:
    done = command(write('method: grid\nparameters:\n  "\\e[31mred": {value: 1}\n  a: {value: "\\e[0m"}\n'))
    assert "\\x1b[31mred" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout


def test_the_commands_json_is_all_of_a_sound_file(write: Write) -> None:
    done = command(write(WANDBS_EXAMPLE), "--json")
    described = json.loads(done.stdout)
    assert (done.returncode, described["sound"], described["method"]) == (2, True, "random")
    assert described["metric"] == {"name": "loss", "goal": "minimize"}
    assert described["parameters"]["learning_rate"]["kind"] == "uniform"
    assert len(described["refused"]) == 1


def test_the_commands_json_is_the_problems_of_an_unsound_file(write: Write) -> None:
    done = command(path := write("method: grid\n"), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "file": path,
        "sound": False,
        "problems": [f"{path}: parameters is missing: what to search."],
    }


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys, tune_inat.space; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "numpy", "optuna", "wandb", "rich"} & set(done.stdout.split())
