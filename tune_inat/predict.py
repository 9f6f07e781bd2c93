"""Use a trained classifier: a class and its probability for each image file."""

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from tune_inat.elsewhere import folder_at
from tune_inat.errors import EXIT_FAILED, UserError, printable, run_command
from tune_inat.export import Classifier, is_of_model, load_classifier, model_folder
from tune_inat.folders import is_image_name, shown
from tune_inat.images import decode
from tune_inat.labelled import Confusion, confusion_of, labels_of
from tune_inat.leaderboard import safe_cell
from tune_inat.meter import Meter, SilentMeter
from tune_inat.pictures import UnreadableImage, strict_pillow
from tune_inat.progress import Terminal

STDIN = Path("-")  # instead of files: a list of them


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image with their probabilities, likeliest first; or why there are none."""

    path: Path
    ranked: tuple[tuple[str, float], ...]
    problem: str | None = None


def predict_files(
    classifier: Classifier,
    paths: Sequence[Path],
    *,
    top: int = 1,
    batch_size: int = 64,
    meter: Meter | None = None,
) -> Iterator[Prediction]:
    """Predict image files in the order given, on a GPU if there is one. A file that cannot be read says so.

    Args:
        top: how many classes to name for each image.
        batch_size: images in a pass of the network.
        meter: shows how far it has come; nobody if not given.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier.network.to(device)
    size = classifier.config.image_size

    def decode_one(path: Path) -> "npt.NDArray[np.uint8] | str":
        try:
            return decode(path, size)
        except UnreadableImage as error:
            return error.reason

    n_threads = len(os.sched_getaffinity(0))
    with (
        (meter or SilentMeter()).task("Predicting", len(paths), "images") as advance,
        ThreadPoolExecutor(n_threads) as pool,
        strict_pillow(),
    ):
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            decoded = list(pool.map(decode_one, batch))
            images = [pixels for pixels in decoded if not isinstance(pixels, str)]
            probabilities = iter(_probabilities(classifier, images, device) if images else ())
            for path, pixels in zip(batch, decoded, strict=True):
                if isinstance(pixels, str):
                    yield Prediction(path, (), pixels)
                else:
                    yield Prediction(path, _rank(next(probabilities), classifier.config.classes, top))
            advance(len(batch))


def _probabilities(classifier: Classifier, images: Sequence[Any], device: Any) -> Any:
    """Probabilities (n, K) float32 of decoded images."""
    import torch

    with torch.no_grad():
        batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
        return classifier.probabilities(batch).cpu().numpy()


def _rank(probabilities: Any, classes: Sequence[str], top: int) -> tuple[tuple[str, float], ...]:
    best = np.argsort(-probabilities, kind="stable")[:top]
    return tuple((classes[number], float(probabilities[number])) for number in best)


def find_files(arguments: Sequence[Path], *, listed: Sequence[Path] = ()) -> list[Path]:
    """The image files among files, folders (searched to any depth) and patterns, in order.

    Args:
        arguments: what the user typed; `-` stands for `listed`. A pattern that the shell has left as it is
            (`*`, `?`, `[abc]`, `**`) is expanded, unless there is a file of that very name.
        listed: paths out of a list. One that does not exist is a file that cannot be read, not a mistake.

    Raises:
        UserError: a path does not exist, a folder holds no image, or there is nothing to predict.
    """
    files: list[Path] = []
    problems = []
    for argument in arguments:
        if argument == STDIN:
            for path in listed:
                files += _images_in(path) if path.is_dir() else [path]
            continue
        matched = _expand(argument)
        if not matched:
            problems.append(f"{shown(argument)}: there is no such file or folder.")
        for path in matched:
            found = _images_in(path) if path.is_dir() else [path]
            if not found:
                problems.append(f"{shown(path)}: there is no image in this folder.")
            files += found
    if problems:
        raise UserError(problems)
    if not files:
        raise UserError("There is no image to predict: the list on stdin is empty.")
    return files


def _expand(argument: Path) -> list[Path]:
    """What an argument stands for; nothing if there is nothing."""
    if argument.exists() or argument.is_symlink():
        return [argument]
    return [Path(path) for path in sorted(glob.glob(str(argument), recursive=True))]  # noqa: PTH207  # of any root


def _images_in(folder: Path) -> list[Path]:
    """The images at any depth of a folder, hidden ones and those in hidden folders left out."""
    return sorted(path for path in folder.rglob("*") if is_image_name(path.relative_to(folder).as_posix()))


def read_list(content: bytes) -> list[Path]:
    """The paths of a list, one a line; empty lines are passed over."""
    return [Path(os.fsdecode(line)) for line in content.splitlines() if line.strip()]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run: Annotated[str, typer.Argument(help="The folder of a search (runs/NAME) or model, or its URI.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files, folders (searched to any depth), patterns such as 'photos/*.jpg', or - for a "
            "list of paths on stdin, one a line."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of CSV.")] = False,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name for each image.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a pass of the network.")] = 64,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate",
            help="The images stand in folders named by class (the nearest one counts): also name the true "
            "class of each, and give the accuracy with its 95 % interval and the confusion matrix, on stderr "
            "or, with --json, in the object {predictions, evaluation}.",
        ),
    ] = False,
) -> None:
    """Print the class of each image and its calibrated probability, as CSV.

    Files that cannot be read are named on stderr at the end; then the exit code is 1.
    """
    images = _checked(run, images or [])
    files = find_files(images, listed=read_list(sys.stdin.buffer.read()) if STDIN in images else ())
    with folder_at(run, is_wanted=is_of_model) as folder:
        classifier = load_classifier(model_folder(folder))
    classes = classifier.config.classes
    labels = labels_of(files, classes) if evaluate else None
    output = _JsonOutput() if as_json else _CsvOutput(min(top, len(classes)), has_truth=evaluate)
    unreadable: list[Prediction] = []
    pairs: list[tuple[str, str]] = []
    predictions = predict_files(classifier, files, top=top, batch_size=batch_size, meter=_meter(as_json))
    for number, prediction in enumerate(predictions):
        label = labels[number] if labels is not None else None
        truth = None if label is None else classes[label]
        if prediction.problem is not None:
            unreadable.append(prediction)
            continue
        if truth is not None:
            pairs.append((truth, prediction.ranked[0][0]))
        output.add(prediction, truth)
    confusion = confusion_of(pairs, classes) if labels is not None else None
    n_unlabelled = labels.count(None) if labels is not None else 0
    output.end(confusion, n_unlabelled)
    _report_unreadable(unreadable, len(files))
    if unreadable:
        raise typer.Exit(EXIT_FAILED)


def _checked(run: str, images: list[Path]) -> list[Path]:
    """The images, once it is known that there are some and that a folder stands before them."""
    usage = "The first argument is a search's folder (runs/NAME) or its best_model, the images follow it."
    if Path(run).is_file():
        raise UserError(f"{shown(run)}: this is a file. {usage}")
    if not images:
        raise UserError(f"There is no image to predict. {usage}")
    return images


class _CsvOutput:
    """A row on stdout for each image as soon as it is predicted; what else there is goes to stderr."""

    def __init__(self, top: int, *, has_truth: bool) -> None:
        self._has_truth = has_truth
        _print_row(["file", *_columns(top), *(["true_class"] if has_truth else [])])

    def add(self, prediction: Prediction, truth: str | None) -> None:
        cells = [cell for name, p in prediction.ranked for cell in (name, f"{p:.6f}")]
        _print_row([str(prediction.path), *cells, *([truth or ""] if self._has_truth else [])])

    def end(self, confusion: Confusion | None, n_unlabelled: int) -> None:
        if confusion is None:
            return
        sys.stdout.flush()
        sys.stderr.write("".join(f"{line}\n" for line in confusion.lines()))
        if n_unlabelled:
            sys.stderr.write(
                f"{n_unlabelled:,} images in no folder named by a class were left out of this.\n"
            )


class _JsonOutput:
    """One JSON text on stdout at the end: a list, or an object where there is an evaluation too."""

    def __init__(self) -> None:
        self._listed: list[dict[str, Any]] = []

    def add(self, prediction: Prediction, truth: str | None) -> None:
        ranked = [{"class": name, "probability": round(p, 6)} for name, p in prediction.ranked]
        known = {} if truth is None else {"true_class": truth}
        self._listed.append({"file": str(prediction.path), "predictions": ranked, **known})

    def end(self, confusion: Confusion | None, n_unlabelled: int) -> None:
        content: Any = self._listed
        if confusion is not None:
            evaluation = {**confusion.to_json(), "n_unlabelled": n_unlabelled}
            content = {"predictions": self._listed, "evaluation": evaluation}
        sys.stdout.write(json.dumps(content, indent=2) + "\n")


def _meter(as_json: bool) -> Meter:
    """A bar for people, unless the rows on their terminal show already how far it has come."""
    is_seen = sys.stderr.isatty() and (as_json or not sys.stdout.isatty())
    return Terminal(quiet_stdout=True) if is_seen else SilentMeter()


def _report_unreadable(unreadable: Sequence[Prediction], n_files: int) -> None:
    sys.stdout.flush()  # what is said last comes last
    for prediction in unreadable:
        sys.stderr.write(f"{shown(prediction.path)}: {printable(prediction.problem or '')}\n")
    if unreadable:
        sys.stderr.write(f"{len(unreadable):,} of {n_files:,} files could not be read.\n")


def _columns(top: int) -> list[str]:
    if top == 1:
        return ["class", "probability"]
    return [f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "probability")]


def _print_row(cells: Sequence[str]) -> None:
    """A row without formulas for a spreadsheet, and on a terminal without anything that could drive it."""
    text = io.StringIO(newline="")
    cells = [printable(cell) for cell in cells] if sys.stdout.isatty() else cells
    csv.writer(text, lineterminator="\n").writerow(map(safe_cell, cells))
    sys.stdout.write(text.getvalue().encode(errors="backslashreplace").decode())


if __name__ == "__main__":
    run_command(app)
