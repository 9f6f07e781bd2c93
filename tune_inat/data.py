"""A data set: which image is in which part. `python -m tune_inat.data PATH` audits one."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer

from tune_inat.contents import hash_files
from tune_inat.errors import DataError, run_command
from tune_inat.folders import ImageFolder, LabelledFile, read_folder, shown
from tune_inat.meter import Meter, SilentMeter
from tune_inat.origins import INATURALIST, Archive, locate
from tune_inat.progress import Terminal
from tune_inat.splits import describe_leaks, draw_parts
from tune_inat.store import Store, claim_root, default_root, hash_of

if TYPE_CHECKING:
    from tune_inat.audit import Audit

N_LISTED, N_TOLD = 20, 3  # unreadable files that an error spells out, and a notice

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

    def counts(self) -> dict[str, dict[str, int]]:
        """The number of images by class and part."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        counts = {
            name: np.bincount(part.labels, minlength=len(self.classes)).tolist()
            for name, part in parts.items()
            if part is not None
        }
        return {
            class_name: {part: counts[part][label] for part in counts}
            for label, class_name in enumerate(self.classes)
        }


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
    near: Sequence[tuple[str, str]] = (),
    allow_leakage: bool = False,
) -> DataSet:
    """Put each image into its part.

    A folder of class folders gives a fifth of each class to test and a fifth of the rest to val. Where
    there is train/ and test/ alone, val is a fifth of train. Both are drawn by `seed` from the sorted
    contents, so neither names nor places matter; copies and near copies of an image stay in one part.

    Args:
        row_of: the pixels' row of each readable image, by content.
        unreadable: why each other image cannot be read, by content.
        near: pairs of contents that are near copies.
        allow_leakage: accept images that stand in two parts of the folder.

    Raises:
        DataError: images that cannot be read (unless they are skipped), copies in two parts (unless they are
            allowed), or a class with too few images. It names all that is wrong.
    """
    damaged = [(file.path, unreadable[file.content]) for file in folder.files if file.content in unreadable]
    skipped = (*folder.unreadable, *damaged)
    problems = []
    n_files = len(folder.files) + len(folder.unreadable)
    if skipped and not skip_bad_images:
        problems.append(_describe_unreadable(skipped, n_files))
    readable = sorted((f for f in folder.files if f.content in row_of), key=lambda f: (f.content, f.path))
    if not allow_leakage:
        problems += describe_leaks(readable)
    try:
        parts, notices = draw_parts(folder, readable, near, seed)
    except DataError as error:
        raise DataError([*problems, *error.problems]) from None
    if problems:
        raise DataError(problems)
    parts_of_hash = {name: [(f.content, f.label) for f in files] for name, files in parts.items()}
    return DataSet(
        name=folder.name,
        root=folder.root,
        classes=folder.classes,
        train=_make_split(parts["train"], row_of),
        val=_make_split(parts["val"], row_of),
        test=_make_split(parts["test"], row_of) if "test" in parts else None,
        fingerprint=hash_of({"classes": folder.classes, "parts": parts_of_hash}),
        notices=(*folder.notices, *_tell_skipped(skipped, n_files), *notices),
        skipped=skipped,
    )


def _tell_skipped(skipped: Sequence[tuple[Path, str]], n_files: int) -> Iterator[str]:
    if skipped:
        names = ", ".join(f"{shown(path)} {reason}" for path, reason in skipped[:N_TOLD])
        more = f", and {len(skipped) - N_TOLD} more" if len(skipped) > N_TOLD else ""
        yield f"{len(skipped)} of {n_files:,} images are left out (--skip-bad-images): {names}{more}."


def _describe_unreadable(skipped: Sequence[tuple[Path, str]], n_files: int) -> str:
    lines = [f"  {shown(path)}: {reason}" for path, reason in skipped[:N_LISTED]]
    if len(skipped) > N_LISTED:
        lines.append(f"  ... and {len(skipped) - N_LISTED} more")
    title = f"{len(skipped)} of {n_files:,} images cannot be read:"
    return "\n".join([title, *lines, "Mend or remove them, or leave them out with --skip-bad-images."])


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
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Accept images that stand in two parts.")
    ] = False,
) -> None:
    """Audit a data set: its classes, images and split. Ends with 2 where a search would refuse it."""
    meter = Terminal() if sys.stderr.isatty() else SilentMeter()
    store = Store(default_root())
    try:
        folder = find_images(source, cache=store.root, meter=meter)
        from tune_inat.audit import Audit, to_json, to_text
        from tune_inat.facts import load_facts

        files = {file.content: file.path for file in folder.files}
        facts = load_facts(store, files, n_workers=len(os.sched_getaffinity(0)), meter=meter)
    except DataError as error:
        if as_json:
            sys.stdout.write(json.dumps({"problems": error.problems}, indent=2) + "\n")
        raise
    audit = Audit(folder, facts)
    split, problems = _try_split(audit, seed, allow_leakage=allow_leakage)
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


def _try_split(audit: "Audit", seed: int, *, allow_leakage: bool) -> tuple[dict[str, int], list[str]]:
    """The size of each part that a search would use, and what it would refuse."""
    facts = audit.facts
    row_of = {content: row for row, content in enumerate(facts.pictures)}
    problems: list[str] = []
    for skip, allow in ((False, allow_leakage), (True, True)):
        try:
            data = split_images(
                audit.folder,
                row_of=row_of,
                unreadable=facts.unreadable,
                seed=seed,
                skip_bad_images=skip,
                near=facts.near,
                allow_leakage=allow,
            )
        except DataError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        parts = {"train": data.train, "val": data.val, "test": data.test}
        return {name: len(part.rows) for name, part in parts.items() if part is not None}, problems
    return {}, problems


if __name__ == "__main__":
    run_command(app)
