"""What a folder of labelled images holds, and what is wrong with it: as values, and as JSON."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from tune_inat.facts import ImageFacts
from tune_inat.folders import ImageFolder, LabelledFile, shown
from tune_inat.splits import leaks, near_groups

MAX_LISTED = 100  # of each kind, in the summary of a search
N_EXAMPLES = 3  # that a warning names
EXTREME = 8  # times as long as wide: squeezed to a square, little of such a picture is left
TINY = 8  # pixels on the shorter side
IMBALANCE = 10  # images of the largest class for each of the smallest
PART_ORDER = ("", "train", "val", "test")
PART_NAMES = {"": "images", "train": "train", "val": "val", "test": "test"}
SUFFIXES: Mapping[str, frozenset[str]] = {  # that fit a format
    "JPEG": frozenset({".jpg", ".jpeg", ".jpe", ".jfif"}),
    "MPO": frozenset({".jpg", ".jpeg", ".jpe", ".jfif"}),
    "PNG": frozenset({".png"}),
    "WEBP": frozenset({".webp"}),
    "BMP": frozenset({".bmp", ".dib"}),
    "GIF": frozenset({".gif"}),
    "TIFF": frozenset({".tif", ".tiff"}),
}

FilePair = tuple[LabelledFile, LabelledFile]
Sized = tuple[Path, int, int]


@dataclass(frozen=True)
class Audit:
    """The findings on a folder. What needs all files is found when it is first asked for, then kept."""

    folder: ImageFolder
    facts: ImageFacts

    def counts(self) -> dict[str, dict[str, int]]:
        """The number of files by class and part, the unreadable included."""
        parts = dict.fromkeys(PART_NAMES[file.part] for file in self.folder.files)
        counts = {name: dict.fromkeys(parts, 0) for name in self.folder.classes}
        for file in self.folder.files:
            counts[self.folder.classes[file.label]][PART_NAMES[file.part]] += 1
        return counts

    def unreadable_files(self) -> list[tuple[Path, str]]:
        """Each file that cannot be read, with its reason."""
        unreadable = self.facts.unreadable
        damaged = [(f.path, unreadable[f.content]) for f in self.folder.files if f.content in unreadable]
        return [*self.folder.unreadable, *damaged]

    def misnamed(self) -> list[tuple[Path, str]]:
        """Each file whose suffix is of another format than its content, with its format."""
        return [
            (file.path, facts.format)
            for file in self.folder.files
            if (facts := self.facts.pictures.get(file.content))
            and file.path.suffix.lower() not in SUFFIXES[facts.format]
        ]

    def sizes(self) -> dict[str, dict[str, float]]:
        """The least, the middle and the greatest width and height in pixels."""
        if not self.facts.pictures:
            return {}
        widths = [facts.width for facts in self.facts.pictures.values()]
        heights = [facts.height for facts in self.facts.pictures.values()]
        return {
            name: {"min": min(values), "median": median(values), "max": max(values)}
            for name, values in (("width", widths), ("height", heights))
        }

    def formats(self) -> dict[str, int]:
        """The number of readable files by format, the commonest first."""
        pictures = self.facts.pictures
        found = Counter(pictures[f.content].format for f in self.folder.files if f.content in pictures)
        return dict(found.most_common())

    def tiny(self) -> list[Sized]:
        """Files of few pixels, down to one, where most have many; with their sizes."""
        sizes = self.sizes()
        if not sizes or min(sizes["width"]["median"], sizes["height"]["median"]) <= 2 * TINY:
            return []  # small is what these images are
        return self._sized(lambda width, height: min(width, height) < TINY)

    def extreme_shapes(self) -> list[Sized]:
        """Files that are many times as wide as high, or as high as wide, with their sizes."""
        return self._sized(lambda width, height: max(width, height) > EXTREME * min(width, height))

    def duplicates(self) -> list[list[LabelledFile]]:
        """The files of each content that is there more than once."""
        return [same for same in self._files_of.values() if len(same) > 1]

    def near_copies(self) -> list[list[LabelledFile]]:
        """Files that show nearly the same (`likeness`), a file of each content; those of a set are linked."""
        return [
            [self._files_of[content][0] for content in group] for group in self._near_groups if len(group) > 1
        ]

    def near_copies_between_parts(self) -> list[FilePair]:
        """A file of train (of val, if train has none) and each file of another part that is linked to it."""
        linked: dict[str, list[str]] = {}
        for first, second in self.facts.near:
            linked.setdefault(first, []).append(second)
            linked.setdefault(second, []).append(first)
        pairs = []
        for group in self._near_groups:
            files = [file for content in group for file in self._files_of[content]]
            part = min((file.part for file in files), key=PART_ORDER.index)
            at_home = {file.content: file for file in reversed(files) if file.part == part}
            for file in files:
                if file.part != part and file.content not in at_home:
                    nearest = next((c for c in linked[file.content] if c in at_home), next(iter(at_home)))
                    pairs.append((at_home[nearest], file))
        return sorted(pairs, key=lambda pair: (pair[0].path, pair[1].path))

    def copies_between_parts(self) -> list[FilePair]:
        """Images that stand in two given parts, as a file of each."""
        pairs = leaks(file for file in self.folder.files if file.content in self.facts.pictures)
        return [pair for found in pairs.values() for pair in found]

    def two_labels(self) -> list[FilePair]:
        """Images that stand under two classes, as a file of each."""
        pairs = []
        for same in self.duplicates():
            first_of_label = list({file.label: file for file in reversed(same)}.values())[::-1]
            pairs += list(pairwise(first_of_label))
        return pairs

    def near_copies_of_two_labels(self) -> list[FilePair]:
        """Near copies under different classes, a pair for each set of them at least."""
        files = self._files_of
        pairs = [(files[a][0], files[b][0]) for a, b in self.facts.near if a in files and b in files]
        return [(one, other) for one, other in pairs if one.label != other.label]

    def single_classes(self) -> list[str]:
        """Classes with one image to learn from."""
        part = "train" if "train" in self.folder.parts else "images"
        return [name for name, row in self.counts().items() if row.get(part) == 1]

    def imbalance(self) -> dict[str, Any] | None:
        """The largest and the smallest class, where the one has many times the images of the other."""
        part = "train" if "train" in self.folder.parts else "images"
        counts = {name: row.get(part, 0) for name, row in self.counts().items()}
        largest, smallest = max(counts, key=lambda n: counts[n]), min(counts, key=lambda n: counts[n])
        if counts[largest] < IMBALANCE * max(1, counts[smallest]):
            return None
        return {
            "largest": largest,
            "n_largest": counts[largest],
            "smallest": smallest,
            "n_smallest": counts[smallest],
        }

    def warnings(self) -> list[str]:
        """What a search should not begin without having said, a line each."""
        lines = [
            _some_pairs(self.copies_between_parts(), "Images stand in two parts"),
            _some_pairs(self.near_copies_between_parts(), "Near copies stand in two parts"),
            _some_pairs(self.two_labels(), "Images stand under two classes"),
            _some_pairs(self.near_copies_of_two_labels(), "Near copies stand under two classes"),
            _some([_with_size(file) for file in self.tiny()], f"Images are less than {TINY} px wide or high"),
            _some(
                [_with_size(file) for file in self.extreme_shapes()],
                f"Images are more than {EXTREME} times as long as wide, and are squeezed to a square",
            ),
            _some([shown(name) for name in self.single_classes()], "Classes have one image to learn from"),
        ]
        if found := self.imbalance():
            lines.append(
                f"Class {shown(found['largest'])} has {found['n_largest']:,} images and "
                f"{shown(found['smallest'])} {found['n_smallest']:,}: --set class_weights=balanced helps."
            )
        return [line for line in lines if line]

    @cached_property
    def _files_of(self) -> dict[str, list[LabelledFile]]:
        files: dict[str, list[LabelledFile]] = {}
        for file in self.folder.files:
            files.setdefault(file.content, []).append(file)
        return files

    @cached_property
    def _near_groups(self) -> list[list[str]]:
        return near_groups(self._files_of, self.facts.near)

    def _sized(self, is_meant: Callable[[int, int], bool]) -> list[Sized]:
        pictures = self.facts.pictures
        return [
            (file.path, facts.width, facts.height)
            for file in self.folder.files
            if (facts := pictures.get(file.content)) and is_meant(facts.width, facts.height)
        ]


def to_json(audit: Audit) -> dict[str, Any]:
    """All findings as JSON's types. Paths that are not UTF-8 have their bytes as lone surrogates."""
    folder = audit.folder
    return {
        "name": folder.name,
        "root": str(folder.root),
        "n_files": len(folder.files),
        "classes": audit.counts(),
        "formats": audit.formats(),
        "sizes": audit.sizes(),
        "unreadable": [{"path": str(p), "reason": reason} for p, reason in audit.unreadable_files()],
        "misnamed": [{"path": str(p), "format": actual} for p, actual in audit.misnamed()],
        "tiny": _sized_json(audit.tiny()),
        "extreme_shapes": _sized_json(audit.extreme_shapes()),
        "duplicates": [[str(file.path) for file in same] for same in audit.duplicates()],
        "near_copies": [[str(file.path) for file in same] for same in audit.near_copies()],
        "copies_between_parts": _pairs_json(audit.copies_between_parts()),
        "near_copies_between_parts": _pairs_json(audit.near_copies_between_parts()),
        "two_labels": _pairs_json(audit.two_labels()),
        "near_copies_of_two_labels": _pairs_json(audit.near_copies_of_two_labels()),
        "single_classes": audit.single_classes(),
        "imbalance": audit.imbalance(),
        "warnings": audit.warnings(),
        "notices": list(folder.notices),
    }


def to_short_json(audit: Audit, split: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The findings for a search's summary: the counts whole, of each list the first, its length in `totals`.

    Args:
        split: the images that are used, by class and part.
    """
    found = to_json(audit)
    lists = {name: value for name, value in found.items() if isinstance(value, list)}
    totals = {name: len(value) for name, value in lists.items() if value}
    cut = {name: value[:MAX_LISTED] for name, value in lists.items()}
    return {**found, **cut, "split": {name: dict(row) for name, row in split.items()}, "totals": totals}


def _pairs_json(pairs: Iterable[FilePair]) -> list[list[str]]:
    return [[str(one.path), str(other.path)] for one, other in pairs]


def _sized_json(files: Iterable[Sized]) -> list[dict[str, Any]]:
    return [{"path": str(path), "width": width, "height": height} for path, width, height in files]


def _with_size(file: Sized) -> str:
    path, width, height = file
    return f"{shown(path)} ({width} x {height})"


def _some_pairs(pairs: Sequence[FilePair], what: str) -> str:
    return _some([f"{shown(one.path)} = {shown(other.path)}" for one, other in pairs], what)


def _some(items: Sequence[str], what: str) -> str:
    if not items:
        return ""
    more = f" and {len(items) - N_EXAMPLES:,} more" if len(items) > N_EXAMPLES else ""
    return f"{what} ({len(items):,}): {', '.join(items[:N_EXAMPLES])}{more}."


NAME_WIDTH = 60  # of a class, in the table
N_SPELT_OUT = 20  # files of a kind that the text names; the JSON has them all


def to_text(audit: Audit) -> str:
    """The findings as a table and a few lines, for a terminal."""
    folder = audit.folder
    lines = [f"{shown(folder.name)}: {len(folder.files):,} images in {len(folder.classes)} classes", ""]
    lines += _table(audit.counts())
    lines += ["", f"formats: {', '.join(f'{name} {n:,}' for name, n in audit.formats().items()) or 'none'}"]
    for name, size in audit.sizes().items():
        lines.append(f"{name}: {size['min']:g} to {size['max']:g} px, median {size['median']:g}")
    unreadable = [f"{shown(path)}: {reason}" for path, reason in audit.unreadable_files()]
    misnamed = [f"{shown(path)}: holds {actual}" for path, actual in audit.misnamed()]
    tiny, shapes = ([_with_size(file) for file in files] for files in (audit.tiny(), audit.extreme_shapes()))
    wide = f"more than {EXTREME} times as long as wide"
    named = "named after another format (read all the same)"
    sections = [  # items, and what their number stands before: many, one
        (unreadable, "cannot be read", "cannot be read"),
        (misnamed, f"are {named}", f"is {named}"),
        (tiny, f"are less than {TINY} px wide or high", f"is less than {TINY} px wide or high"),
        (shapes, f"are {wide}", f"is {wide}"),
        (
            _equations(audit.duplicates()),
            "sets of files have the same content",
            "set of files has the same content",
        ),
        (
            _equations(audit.near_copies()),
            "sets of files show nearly the same",
            "set of files shows nearly the same",
        ),
        (
            _equations(audit.copies_between_parts()),
            "times the same image stands in two parts",
            "time the same image stands in two parts",
        ),
        (
            _equations(audit.near_copies_between_parts()),
            "near copies stand in two parts",
            "near copy stands in two parts",
        ),
        (_equations(audit.two_labels()), "images stand under two classes", "image stands under two classes"),
        (
            _equations(audit.near_copies_of_two_labels()),
            "near copies stand under two classes",
            "near copy stands under two classes",
        ),
    ]
    for items, many, one in sections:
        lines += _section(one if len(items) == 1 else many, items)
    warnings = [f"warning: {text}" for text in audit.warnings()]
    return "\n".join([*lines, "", *warnings, *(f"note: {notice}" for notice in folder.notices)])


def _table(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    parts = list(next(iter(counts.values()), {}))
    shown_names = [shown(name) for name in counts]
    names = [name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…" for name in shown_names]
    width = max(len("class"), *map(len, names))
    total = {part: sum(row[part] for row in counts.values()) for part in parts}
    rows = [*zip(names, counts.values(), strict=True), ("all", total)]
    header = "class".ljust(width) + "".join(part.rjust(9) for part in parts)
    return [header] + [f"{name.ljust(width)}{''.join(f'{row[p]:9,}' for p in parts)}" for name, row in rows]


def _section(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = [f"  ... and {len(items) - N_SPELT_OUT:,} more"] if len(items) > N_SPELT_OUT else []
    return ["", f"{len(items):,} {title}:", *(f"  {item}" for item in items[:N_SPELT_OUT]), *more]


def _equations(sets: Iterable[Sequence[LabelledFile]]) -> list[str]:
    return [" = ".join(shown(file.path) for file in same) for same in sets]
