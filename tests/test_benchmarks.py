"""The comparison compares like with like, says what it estimated, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks import gpu
from benchmarks.compare import parse_rows
from benchmarks.floor import Floor
from benchmarks.goals import check_goals
from benchmarks.machine import REPOSITORY
from benchmarks.photos import CLASSES, draw_photo, write_photos
from benchmarks.plain import PlainTrial, freeze, set_train_mode
from benchmarks.report import cells, to_markdown
from benchmarks.rows import Measurement, RowName
from benchmarks.task import Task, make_task
from benchmarks.timing import TimedTrial, TimedTrials, makespan, scale_up
from tests.benches import IMAGE_SIZE, config_of, make_bench, reports_of, write_images
from tune_inat.backbone import load_backbone
from tune_inat.errors import UserError
from tune_inat.freeze import frozen_tensors
from tune_inat.settings import make_settings
from tune_inat.store import Store
from tune_inat.tracing import trace

SPACE = """
method: grid
metric: {name: val_accuracy, goal: maximize}
parameters: {freeze: {values: [0.5, 0.8]}, epochs: {values: [1, 2]}, batch_size: {value: 8}}
"""


@pytest.fixture
def images(hostile_path: Path) -> Path:
    return write_images(hostile_path / "images")


@pytest.fixture
def task(images: Path, hostile_path: Path) -> Task:
    space = hostile_path / "space.yaml"
    space.write_text(SPACE)
    settings = make_settings(
        space=str(space),
        data=str(images),
        model="resnet18",
        weights="none",
        image_size=IMAGE_SIZE,
        precision="fp32",
    )
    return make_task(settings, cache=hostile_path / "inputs", epochs_timed=None)


# ---- the photographs


def test_photographs_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = (write_photos(tmp_path / name, 3) for name in ("first", "second"))
    written = sorted(path.relative_to(first) for path in first.glob("*/*.jpg"))
    assert len(written) == 3
    assert {path.parent.name for path in written} == set(CLASSES)
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in written)


@pytest.mark.parametrize("other", [("meadow", 0, 0), ("heath", 1, 0), ("heath", 0, 1)])
def test_photographs_differ_by_class_number_and_seed(other: tuple[str, int, int]) -> None:
    name, number, seed = other
    size = {"width": 64, "height": 48}
    assert (draw_photo(name, number, seed=seed, **size) != draw_photo("heath", 0, **size)).any()


# ---- the rows do the same work


@pytest.mark.parametrize("share", [0.0, 0.45, 0.8, 1.0])
def test_plain_loop_trains_what_tune_inat_trains(share: float) -> None:
    plain, ours = (
        load_backbone("resnet18", weights="none", n_classes=3, seed=0, image_size=IMAGE_SIZE)
        for _ in range(2)
    )
    freeze(plain, share)
    set_train_mode(plain.model)
    frozen, traced = frozen_tensors(ours, share), trace(ours)
    traced.suffix(traced.cut_for(frozen), frozen).train()
    for mine, theirs in zip(ours.model.named_parameters(), plain.model.named_parameters(), strict=True):
        assert (mine[0], mine[1].requires_grad) == (theirs[0], theirs[1].requires_grad)
    for module, other in zip(ours.model.modules(), plain.model.modules(), strict=True):
        if isinstance(module, _BatchNorm):
            assert module.training == other.training


def test_plain_loop_gives_the_numbers_of_tune_inat(task: Task, images: Path, hostile_path: Path) -> None:
    config = config_of(freeze=0.8)
    plain = PlainTrial(task, config, n_workers=0)
    for report in reports_of(make_bench(images, Store(hostile_path / "cache")), config):
        epoch = plain.run_epoch(int(report.row["epoch"]))
        assert epoch.train_loss == pytest.approx(report.row["train_loss"], rel=1e-3)
        assert epoch.val_accuracy == report.row["val_accuracy"]


def test_floor_gives_the_numbers_of_tune_inat(task: Task, images: Path, hostile_path: Path) -> None:
    bench = make_bench(images, Store(hostile_path / "cache"))
    floor = Floor(task, "fp32")
    floor.run_prefix()
    assert [(config.freeze, config.epochs) for config in floor.leaders] == [(0.5, 2), (0.8, 2)]
    for config in floor.leaders:
        assert floor.train(config) == max(r.row["val_accuracy"] for r in reports_of(bench, config))


def test_task_of_other_parameters_is_refused(task: Task, hostile_path: Path) -> None:
    space = hostile_path / "other.yaml"
    space.write_text("method: grid\nparameters: {lr: {values: [0.1, 0.2]}}\n")
    settings = task.settings.model_copy(update={"space": str(space)})
    with pytest.raises(UserError, match="lr: the plain loop varies freeze, epochs, batch_size only"):
        make_task(settings, cache=task.inputs_cache, epochs_timed=None)


# ---- estimates


def test_jobs_start_as_soon_as_a_slot_is_free() -> None:
    assert makespan([3.0, 1.0, 1.0, 1.0], n_slots=2) == 3.0
    assert makespan([3.0, 1.0, 1.0, 2.0], n_slots=2) == 4.0
    assert makespan([], n_slots=2) == 0.0


def test_estimate_is_what_all_epochs_would_have_taken(task: Task) -> None:
    # A process takes 5 s around its trials; each trial 3 s to start, 1 s to set up, and by freeze 2 or 4 s
    # an epoch. One epoch of each kind: 5 + 2 * (3 + 1) + 2 + 4 = 19.
    seconds = {0.5: 4.0, 0.8: 2.0}
    timed = [
        TimedTrial(
            config=config, setup_seconds=1, epochs_seconds=seconds[float(config.freeze)], best_val_accuracy=0
        )
        for config in task.model_copy(update={"epochs_timed": 1}).trials_to_run()
    ]
    result = TimedTrials(seconds=14, n_slots=1, trials=tuple(timed))
    # Asked for are 4 trials with 3 epochs of each kind: 5 + 4 * (3 + 1) + 3 * 2 + 3 * 4 = 39.
    assert scale_up(19.0, result, task.trials) == pytest.approx(39)


def test_table_marks_estimates_and_what_rests_on_them() -> None:
    rows = cells(
        [
            Measurement("a", 1234.5, is_estimate=True, notes=("~ a",)),
            Measurement("c", 100.0, best_val_accuracy=0.99),
            Measurement("e", 80.0),
        ]
    )
    assert rows == [
        ("a", "the plain loop", "~1,234.5", "1.0", "~15.4", ""),
        ("c", "tune_inat, empty cache", "100.0", "~12.3", "1.2", "0.9900"),
        ("e", "the floor", "80.0", "~15.4", "1.0", ""),
    ]


def test_markdown_has_a_line_for_each_row() -> None:
    lines = to_markdown([Measurement("c", 100.0), Measurement("d", 2.0)]).splitlines()
    assert [line.count("|") for line in lines] == [7, 7, 7, 7]
    assert lines[3] == "| d | tune_inat, the same again | 2.0 |  |  |  |"


# ---- goals


@pytest.mark.parametrize(
    ("subject", "changes", "reached"),
    [
        ("sample", {}, [True, True, True, True]),
        ("sample", {"a": 799.0, "b": 799.0}, [False, True, True, True]),  # 8 times 100 s is 800 s
        ("photos", {"a": 1199.0, "b": 1200.0}, [False, True, True, True]),
        ("photos", {"a": 1200.0, "b": 1199.0}, [True, True, True, False]),
        ("sample", {"e": 69.0}, [True, False, True, True]),  # 1.3 times 69 s and 10 s is 99.7 s
        ("sample", {"d": 12.0}, [True, True, False, True]),
    ],
)
def test_goals_are_held_against_their_limits(
    subject: str, changes: dict[RowName, float], reached: list[bool]
) -> None:
    seconds: dict[RowName, float] = {"a": 800.0, "b": 800.0, "c": 100.0, "d": 5.0, "e": 70.0}
    assert [goal.is_reached for goal in check_goals(subject, seconds | changes)] == reached


def test_goal_without_its_rows_is_not_measured() -> None:
    goals = check_goals("sample", {"c": 100.0, "d": 5.0})
    assert [goal.is_reached for goal in goals] == [None, None, True, None]
    assert str(goals[0]).startswith("not measured: ")


# ---- the command


def test_rows_come_in_their_order() -> None:
    assert parse_rows("e, c,a", has_precision=False) == ("a", "c", "e")


def test_all_that_is_wrong_with_rows_is_said() -> None:
    with pytest.raises(UserError, match=r"no row 'x'.*\n.*d repeats.*\n.*e computes"):
        parse_rows("d,e,x", has_precision=False)


DRIVER = """
import signal, sys
from pathlib import Path
from benchmarks.processes import RowProcess

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
RowProcess(["-c", sys.argv[1]], {}, Path(sys.argv[2])).run()
"""
ROW = """
import subprocess, sys, time
left = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(left.pid, flush=True)
time.sleep({seconds})
"""


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_what_a_row_leaves_running_is_ended(tmp_path: Path, is_interrupted: bool) -> None:
    output = tmp_path / "row.out"
    row = textwrap.dedent(ROW.format(seconds=60 if is_interrupted else 0))
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, row, str(output)], cwd=REPOSITORY)
    while not (output.exists() and output.read_text().endswith("\n")):
        assert driver.poll() is None, "the row has begun"
        time.sleep(0.02)
    if is_interrupted:
        driver.send_signal(signal.SIGINT)
    assert driver.wait(30) == (-signal.SIGINT if is_interrupted else 0)
    assert not Path(f"/proc/{int(output.read_text())}").exists()


# ---- the scale


@pytest.mark.end_to_end
def test_quick_scale_has_a_row_of_each_kind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--quick"],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cells = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines()]
    firsts = [row[1] for row in cells if len(row) > 2]
    assert firsts == ["6", "200", "300", "8", "8", "8", "8", "8"]
    assert list(tmp_path.iterdir()) == []


# ---- what is looked at on a GPU


def test_without_a_gpu_there_is_nothing_to_see(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "there is no CUDA GPU here" in capsys.readouterr().err


def test_searches_differ_by_their_furthest_trials() -> None:
    def summary(**losses: float | None) -> dict[str, object]:
        return {
            "trials": [{"trial_id": name, "val_loss": it, "val_accuracy": 0.5} for name, it in losses.items()]
        }

    assert gpu.differences(summary(a=1.0, b=2.0), summary(b=2.5, a=1.0)) == (0.5, 0.0)
    assert gpu.differences(summary(a=1.0), summary(a=None))[0] == float("inf")
    assert gpu.differences(summary(a=1.0), summary(a=1.0, b=1.0))[0] == float("inf")
    assert gpu.differences(summary(), summary())[0] == float("inf")


def test_gain_of_two_is_that_of_the_plan() -> None:
    unmeasured = {"measured": None}
    assert gpu.gain_of_two([unmeasured]) is None
    assert gpu.gain_of_two([unmeasured, {"measured": {"throughput": {"1": 100.0, "2": 150.0}}}]) == 1.5


def test_the_split_that_is_looked_at_is_of_one_network_whose_parts_add_up() -> None:
    backbone = load_backbone(gpu.SPLIT.model, weights="none", n_classes=3, seed=0, image_size=IMAGE_SIZE * 7)
    assert not any(isinstance(module, _BatchNorm) for module in backbone.model.modules())
