"""A data set: which image is in which part. `python -m tune_inat.data PATH` audits one."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from tune_inat.contents import hash_files
from tune_inat.errors import DataError, run_command
from tune_inat.folders import ImageFolder, LabelledFile, Part, read_folder, shown
from tune_inat.meter import Meter, SilentMeter
from tune_inat.origins import INATURALIST, Archive, locate
from tune_inat.progress import Terminal
from tune_inat.store import claim_root, default_root, hash_of

HELD_OUT = 0.2  # of each class for test, then of the rest for val
N_LISTED = 20  # unreadable files that an error spells out

RowArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """The images of one part, in the order of their contents' hashes.

    Attributes:
        rows: (n,) int64, into the pixels' rows.
        labels: (n,) int64, into the data set's classes.
        paths: where each image was found.
    """

    rows: RowArray
    labels: RowArray
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class DataSet:
    """Labelled images in their parts, ready to train on.

    Attributes:
        test: `None` where a folder came with train/ and val/ only.
        fingerprint: the same for the same classes, and contents and labels in each part, wherever they lie.
        notices: what was passed over, for people.
        skipped: files left out because they cannot be read, each with its reason.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split | None
    fingerprint: str
    notices: tuple[str, ...]
    skipped: tuple[tuple[Path, str], ...]


def find_images(source: str, *, cache: Path, meter: Meter, inaturalist: Archive = INATURALIST) -> ImageFolder:
    """Bring a data set to this machine and list its labelled files. No image is decoded.

    Args:
        source: `sample`, `inaturalist12k`, a folder, or a URI (s3://, gs://, file://).
        cache: where downloads, copies and the record of hashes are kept; made if it is missing.
        inaturalist: where iNaturalist-12K is published.

    Raises:
        DataError: there is no such data set, or its shape makes no sense.
        ResourceError: no room, or no right to write to the cache.
    """
    claim_root(cache)
    found = locate(source, cache=cache, meter=meter, inaturalist=inaturalist)
    record = cache / "contents" / f"{hash_of(str(found.root))}.json"

    def hash_kept(paths: Sequence[Path]) -> tuple[Mapping[Path, str], Mapping[Path, str]]:
        return hash_files(paths, record=record, meter=meter)

    folder = read_folder(found.root, name=found.name, hash_files=hash_kept, parts=found.parts)
    return replace(folder, notices=(*found.notices, *folder.notices))


def split_images(
    folder: ImageFolder,
    *,
    row_of: Mapping[str, int],
    unreadable: Mapping[str, str],
    seed: int,
    skip_bad_images: bool,
) -> DataSet:
    """Put each image into its part.

    A folder of class folders gives a fifth of each class to test and a fifth of the rest to val. Where
    there is train/ and test/ alone, val is a fifth of train. Both are drawn by `seed` from the sorted
    contents, so neither names nor places matter, and files of the same content stay in one part.

    Args:
        row_of: the pixels' row of each readable image, by content.
        unreadable: why each other image cannot be read, by content.

    Raises:
        DataError: images that cannot be read (unless they are skipped), or a class with too few.
    """
    damaged = [(file.path, unreadable[file.content]) for file in folder.files if file.content in unreadable]
    skipped = (*folder.unreadable, *damaged)
    if skipped and not skip_bad_images:
        raise DataError(_describe_unreadable(skipped, len(folder.files) + len(folder.unreadable)))
    readable = sorted((f for f in folder.files if f.content in row_of), key=lambda f: (f.content, f.path))
    parts = _split_parts(folder, readable, seed)
    parts_of_hash = {name: [(f.content, f.label) for f in files] for name, files in parts.items()}
    return DataSet(
        name=folder.name,
        root=folder.root,
        classes=folder.classes,
        train=_make_split(parts["train"], row_of),
        val=_make_split(parts["val"], row_of),
        test=_make_split(parts["test"], row_of) if "test" in parts else None,
        fingerprint=hash_of({"classes": folder.classes, "parts": parts_of_hash}),
        notices=folder.notices,
        skipped=skipped,
    )


def _describe_unreadable(skipped: Sequence[tuple[Path, str]], n_files: int) -> str:
    lines = [f"  {shown(path)}: {reason}" for path, reason in skipped[:N_LISTED]]
    if len(skipped) > N_LISTED:
        lines.append(f"  ... and {len(skipped) - N_LISTED} more")
    title = f"{len(skipped)} of {n_files:,} images cannot be read:"
    return "\n".join([title, *lines, "Mend or remove them, or leave them out with --skip-bad-images."])


def _split_parts(
    folder: ImageFolder, files: Sequence[LabelledFile], seed: int
) -> dict[Part, list[LabelledFile]]:
    """Files by part; where the folder leaves a part to us, it is drawn."""
    given = {part: [file for file in files if file.part == part] for part in folder.parts}
    if "" in given:
        _check_counts(folder, given[""], n_parts=3)
        rest, test = _hold_out(given[""], seed)
        train, val = _hold_out(rest, seed)
        return {"train": train, "val": val, "test": test}
    if "val" in given:
        _check_counts(folder, given["train"], n_parts=1)
    else:
        _check_counts(folder, given["train"], n_parts=2)
        given["train"], given["val"] = _hold_out(given["train"], seed)
    if empty := [part for part, in_part in given.items() if not in_part]:
        raise DataError([f"{shown(folder.root)}: no image of {part} can be read." for part in empty])
    return given


def _check_counts(folder: ImageFolder, files: Sequence[LabelledFile], *, n_parts: int) -> None:
    """Refuse classes that do not reach for one image in each part drawn from them."""
    contents_of = _group_contents(files)
    needed = "1 is needed" if n_parts == 1 else f"{n_parts} are needed, one for each part drawn from them"
    problems = [
        f"{shown(folder.root)}: class {shown(name)} has {n_found} different readable images; {needed}."
        for label, name in enumerate(folder.classes)
        if (n_found := len(contents_of.get(label, ()))) < n_parts
    ]
    if problems:
        raise DataError(problems)


def _hold_out(files: Sequence[LabelledFile], seed: int) -> tuple[list[LabelledFile], list[LabelledFile]]:
    """Split off a fifth of each class, one image at least. Files of one content go the same way.

    In each class it draws what scikit-learn's `train_test_split(contents, random_state=seed)` draws,
    without the two seconds that importing it takes.
    """
    held: set[str] = set()
    for contents in _group_contents(files).values():
        n_held = max(1, round(HELD_OUT * len(contents)))
        order = np.random.RandomState(seed).permutation(len(contents))
        held.update(contents[position] for position in order[:n_held])
    return [f for f in files if f.content not in held], [f for f in files if f.content in held]


def _group_contents(files: Sequence[LabelledFile]) -> dict[int, list[str]]:
    """The different contents of each label. One that stands under two labels counts for its first."""
    label_of: dict[str, int] = {}
    for file in files:
        label_of.setdefault(file.content, file.label)
    contents_of: dict[int, list[str]] = {}
    for content, label in label_of.items():
        contents_of.setdefault(label, []).append(content)
    return contents_of


def _make_split(files: Sequence[LabelledFile], row_of: Mapping[str, int]) -> Split:
    return Split(
        rows=np.array([row_of[file.content] for file in files], np.int64),
        labels=np.array([file.label for file in files], np.int64),
        paths=tuple(file.path for file in files),
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    source: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder, a URI, `sample` or `inaturalist12k`.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The seed of the split.")] = 0,
) -> None:
    """Audit a data set: its classes, images and split. Ends with 2 where a search would refuse it."""
    meter = Terminal() if sys.stderr.isatty() else SilentMeter()
    try:
        folder = find_images(source, cache=default_root(), meter=meter)
    except DataError as error:
        if as_json:
            sys.stdout.write(json.dumps({"problems": error.problems}, indent=2) + "\n")
        raise
    from tune_inat.audit import audit_folder, to_json, to_text

    audit = audit_folder(folder, n_workers=len(os.sched_getaffinity(0)), meter=meter)
    split, problems = _try_split(folder, audit.unreadable, list(audit.facts), seed)
    if as_json:
        report = {**to_json(audit), "split": split, "problems": problems}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sizes = ", ".join(f"{part} {n:,}" for part, n in split.items()) or "none"
        sys.stdout.write(
            f"{to_text(audit)}\nsplit (seed {seed}): {sizes}\n".encode(errors="replace").decode()
        )
    if problems:
        raise DataError(problems)


def _try_split(
    folder: ImageFolder, unreadable: Mapping[str, str], readable: Sequence[str], seed: int
) -> tuple[dict[str, int], list[str]]:
    """The size of each part that a search would use, and what it would refuse."""
    row_of = {content: row for row, content in enumerate(readable)}
    problems: list[str] = []
    for skip in (False, True):
        try:
            data = split_images(folder, row_of=row_of, unreadable=unreadable, seed=seed, skip_bad_images=skip)
        except DataError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        parts = {"train": data.train, "val": data.val, "test": data.test}
        return {name: len(part.rows) for name, part in parts.items() if part is not None}, problems
    return {}, problems


if __name__ == "__main__":
    run_command(app)
