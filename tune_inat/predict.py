"""Use a trained classifier: a class and its probability for each image file."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tune_inat.errors import EXIT_FAILED, UserError, printable, run_command
from tune_inat.folders import is_image_name
from tune_inat.images import decode
from tune_inat.leaderboard import BEST_MODEL_FOLDER
from tune_inat.pictures import UnreadableImage, strict_pillow

if TYPE_CHECKING:
    from tune_inat.export import Classifier


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image with their probabilities, likeliest first; or why there are none."""

    path: Path
    ranked: tuple[tuple[str, float], ...]
    problem: str | None = None


def predict_files(
    classifier: "Classifier", paths: Sequence[Path], *, top: int = 1, batch_size: int = 64
) -> Iterator[Prediction]:
    """Predict image files in the order given, on a GPU if there is one. A file that cannot be read says so.

    Args:
        top: how many classes to name for each image.
        batch_size: images in a pass of the network.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = classifier.network.to(device)
    size = classifier.config.image_size

    def decode_one(path: Path) -> "np.ndarray[Any, np.dtype[np.uint8]] | str":
        try:
            return decode(path, size)
        except UnreadableImage as error:
            return error.reason

    n_threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(n_threads) as pool, strict_pillow(), torch.no_grad():
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            decoded = list(pool.map(decode_one, batch))
            images = [pixels for pixels in decoded if not isinstance(pixels, str)]
            probabilities = iter(_probabilities(network, images, device) if images else ())
            for path, pixels in zip(batch, decoded, strict=True):
                if isinstance(pixels, str):
                    yield Prediction(path, (), pixels)
                else:
                    yield Prediction(path, _rank(next(probabilities), classifier.config.classes, top))


def _probabilities(network: Any, images: Sequence[Any], device: Any) -> Any:
    """Probabilities (n, K) float32 of decoded images."""
    import torch

    batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
    return network(batch).float().softmax(dim=1).cpu().numpy()


def _rank(probabilities: Any, classes: Sequence[str], top: int) -> tuple[tuple[str, float], ...]:
    best = np.argsort(-probabilities, kind="stable")[:top]
    return tuple((classes[number], float(probabilities[number])) for number in best)


def find_files(arguments: Sequence[Path]) -> list[Path]:
    """The image files among files and folders (searched to any depth), in order.

    Raises:
        UserError: a path does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    problems = []
    for argument in arguments:
        if argument.is_dir():
            found = sorted(
                path
                for path in argument.rglob("*")
                if is_image_name(path.name) and not path.name.startswith(".")
            )
            if not found:
                problems.append(f"{argument}: there is no image in this folder.")
            files += found
        elif argument.exists():
            files.append(argument)
        else:
            problems.append(f"{argument}: there is no such file or folder.")
    if problems:
        raise UserError(problems)
    return files


def model_folder(run: Path) -> Path:
    """The folder of a model: `runs/NAME/best_model`, or the folder itself."""
    inner = run / BEST_MODEL_FOLDER
    return inner if inner.is_dir() else run


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run: Annotated[Path, typer.Argument(help="The folder of a search (runs/NAME), or of a model.")],
    images: Annotated[list[Path], typer.Argument(help="Image files and folders of images.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of CSV.")] = False,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name for each image.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a pass of the network.")] = 64,
) -> None:
    """Print the class of each image and its probability, as CSV."""
    files = find_files(images)
    from tune_inat.export import load_classifier

    classifier = load_classifier(model_folder(run))
    n_unreadable = 0
    listed: list[dict[str, Any]] = []
    if not as_json:
        _print_row(["file", *_columns(min(top, len(classifier.config.classes)))])
    for prediction in predict_files(classifier, files, top=top, batch_size=batch_size):
        if prediction.problem is not None:
            n_unreadable += 1
            sys.stderr.write(printable(f"{prediction.path}: {prediction.problem}") + "\n")
        elif as_json:
            ranked = [{"class": name, "probability": round(p, 6)} for name, p in prediction.ranked]
            listed.append({"file": str(prediction.path), "predictions": ranked})
        else:
            cells = [cell for name, p in prediction.ranked for cell in (name, f"{p:.6f}")]
            _print_row([str(prediction.path), *cells])
    if as_json:
        sys.stdout.write(json.dumps(listed, indent=2) + "\n")
    if n_unreadable:
        sys.stderr.write(f"{n_unreadable} of {len(files)} files could not be read.\n")
        raise typer.Exit(EXIT_FAILED)


def _columns(top: int) -> list[str]:
    if top == 1:
        return ["class", "probability"]
    return [f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "probability")]


def _print_row(cells: Sequence[str]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    sys.stdout.write(text.getvalue().encode(errors="backslashreplace").decode())


if __name__ == "__main__":
    run_command(app)
