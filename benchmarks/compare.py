"""The command: tune_inat against the plain loop, Ray Tune by hand and the bare arithmetic, side by side.

    python -m benchmarks.compare                                # the bundled sample, all five rows
    python -m benchmarks.compare --on photos --epochs-timed 1   # ResNet-50 on photographs, sooner

The rows run one after another, each in a process of its own, on the CPU, on the same images in the same
split, from the same weights and seed:

a   the plain loop: the grid's 12 trials as one writes them who starts with PyTorch (`plain.py`)
b   the same trial function under Ray Tune with Ray's W&B callback (`by_hand.py`)
c   `python -m tune_inat.search --space grid` with an empty cache
d   the same command again
e   the floor: the arithmetic alone that no search can do without, everything in memory (`floor.py`)
"""

import json
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from benchmarks.machine import REPOSITORY, describe_machine
from benchmarks.photos import write_photos
from benchmarks.processes import RowError
from benchmarks.report import Comparison, to_markdown, to_table
from benchmarks.rows import TITLES, RowName, Scratch, measure
from benchmarks.task import Task, make_task
from tune_inat.errors import EXIT_DONE, EXIT_FAILED, UserError, run_command
from tune_inat.settings import SearchSettings, make_settings

RESULTS = REPOSITORY / "benchmarks" / "results"
N_PHOTOS = 279
MIN_PHOTOS = 30  # a few of each class in each part
NEED_C: frozenset[RowName] = frozenset({"d", "e"})
TABLE_WIDTH = 110  # where there is no terminal


class Subject(StrEnum):
    """What is searched on."""

    SAMPLE = "sample"
    PHOTOS = "photos"


class Precision(StrEnum):
    """What c and e compute in; a and b compute in fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    on: Annotated[
        Subject, typer.Option(help="the bundled sample, or generated photographs")
    ] = Subject.SAMPLE,
    rows: Annotated[str, typer.Option(help="which rows, e.g. a,c,d,e")] = "a,b,c,d,e",
    photos: Annotated[int, typer.Option(min=MIN_PHOTOS, help="how many photographs")] = N_PHOTOS,
    space: Annotated[str, typer.Option(help="a search space of freeze, epochs and batch_size")] = "grid",
    epochs_timed: Annotated[
        int | None,
        typer.Option(min=1, help="a and b train so many epochs of each kind of trial and scale up"),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="of c and e; auto: c chooses")] = Precision.AUTO,
    scratch: Annotated[Path | None, typer.Option(help="where to make the folder that rows write to")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep that folder")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table as Markdown as well")] = False,
    name: Annotated[str | None, typer.Option(help="of the file in benchmarks/results")] = None,
) -> None:
    """Compare tune_inat with what is done without it."""
    chosen = parse_rows(rows, has_precision=precision is not Precision.AUTO)
    for number in (signal.SIGTERM, signal.SIGHUP):  # end rows as Ctrl-C does
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="tune_inat-benchmark-", dir=scratch))
    is_done = True
    try:
        settings = _settings(on, folder, photos, space=space, precision=precision.value)
        task = make_task(settings, cache=folder / "inputs", epochs_timed=epochs_timed)
        is_done = _compare(on, task, chosen, folder, name or on.value, as_markdown=markdown)
    finally:
        if keep or not is_done:  # the logs of a row that failed
            _say(f"Kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    raise typer.Exit(EXIT_DONE if is_done else EXIT_FAILED)


def parse_rows(text: str, *, has_precision: bool) -> tuple[RowName, ...]:
    """The rows named, in the order of their letters.

    Args:
        has_precision: the precision is given; else that of `e` is what `c` chooses.

    Raises:
        UserError: there is no such row, or one stands without the `c` that it needs.
    """
    named = {part.strip() for part in text.split(",")}
    problems = [f"--rows: there is no row {row!r}; there are a to e." for row in sorted(named - set(TITLES))]
    if "d" in named and "c" not in named:
        problems.append("--rows: d repeats the command of c. Name c as well.")
    if "e" in named and "c" not in named and not has_precision:
        problems.append("--rows: e computes in the precision that c chooses. Name c as well, or --precision.")
    if problems:
        raise UserError(problems)
    return tuple(row for row in get_args(RowName) if row in named)


def _settings(on: Subject, folder: Path, n_photos: int, **given: str) -> SearchSettings:
    if on is Subject.SAMPLE:
        return make_settings(data="sample", **given)
    _say(f"Writing {n_photos} photographs")
    data = write_photos(folder / "photos", n_photos)
    return make_settings(data=str(data), model="resnet50", weights="none", image_size=224, **given)


def _compare(
    on: Subject, task: Task, rows: tuple[RowName, ...], folder: Path, name: str, *, as_markdown: bool
) -> bool:
    """Measure row after row, keeping the results of those done; whether all came to an end."""
    comparison = Comparison(on.value, describe(task), describe_machine(), ())
    results = RESULTS / f"{name}.json"
    failed: set[RowName] = set()
    for row in rows:
        if row in NEED_C and "c" in failed:
            continue
        _say(f"{row}: {TITLES[row]}")
        try:
            measurement = measure(row, task, Scratch(folder))
        except RowError as error:
            failed.add(row)
            _say(str(error))
            continue
        _say(f"   {measurement.seconds:.1f} s")
        comparison = replace(comparison, measurements=(*comparison.measurements, measurement))
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(comparison.to_json(), indent=2) + "\n")
    if comparison.measurements:
        _print(comparison, as_markdown=as_markdown)
        _say(f"Written: {results}")
    return not failed


def describe(task: Task) -> str:
    """What is searched, in a line."""
    config = task.trials[0]
    weights = "random weights" if config.weights == "none" else "pretrained"
    return (
        f"{len(task.trials)} trials, {sum(trial.epochs for trial in task.trials)} epochs; "
        f"{config.model} ({weights}) at {config.image_size} px; "
        f"{len(task.train):,} images to train on, {len(task.val):,} to validate"
    )


def _print(comparison: Comparison, *, as_markdown: bool) -> None:
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False, markup=False)
    console.print(str(comparison.machine), soft_wrap=True)
    console.print(comparison.description, soft_wrap=True)
    console.print(to_table(comparison.measurements))
    if as_markdown:
        console.print(to_markdown(comparison.measurements) + "\n", soft_wrap=True)
    for line in (*comparison.notes(), "", *map(str, comparison.goals())):
        console.print(line, soft_wrap=True)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    run_command(app)
