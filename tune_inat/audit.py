"""What a folder of labelled images holds, and what is wrong with it: for people and for scripts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tune_inat.folders import ImageFolder, shown
from tune_inat.meter import Meter
from tune_inat.pictures import PictureFacts, UnreadableImage, inspect_picture, strict_pillow

N_LISTED = 20  # files that the text spells out; the JSON has them all
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


@dataclass(frozen=True)
class Audit:
    """The findings on a folder.

    Attributes:
        folder: what was looked at.
        facts: format and size of each readable image, by content.
        unreadable: why each other image cannot be read, by content.
        duplicates: the paths of each content that is there more than once.
    """

    folder: ImageFolder
    facts: Mapping[str, PictureFacts]
    unreadable: Mapping[str, str]
    duplicates: tuple[tuple[Path, ...], ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """The number of files by class and part, the unreadable included."""
        parts = dict.fromkeys(PART_NAMES[file.part] for file in self.folder.files)
        counts = {name: dict.fromkeys(parts, 0) for name in self.folder.classes}
        for file in self.folder.files:
            counts[self.folder.classes[file.label]][PART_NAMES[file.part]] += 1
        return counts

    def unreadable_files(self) -> list[tuple[Path, str]]:
        """Each file that cannot be read, with its reason."""
        damaged = [
            (file.path, self.unreadable[file.content])
            for file in self.folder.files
            if file.content in self.unreadable
        ]
        return [*self.folder.unreadable, *damaged]

    def misnamed(self) -> list[tuple[Path, str]]:
        """Each file whose suffix is of another format than its content, with its format."""
        return [
            (file.path, facts.format)
            for file in self.folder.files
            if (facts := self.facts.get(file.content))
            and file.path.suffix.lower() not in SUFFIXES[facts.format]
        ]

    def sizes(self) -> dict[str, dict[str, float]]:
        """The least, the middle and the greatest width and height in pixels."""
        if not self.facts:
            return {}
        widths = [facts.width for facts in self.facts.values()]
        heights = [facts.height for facts in self.facts.values()]
        return {
            name: {"min": min(values), "median": median(values), "max": max(values)}
            for name, values in (("width", widths), ("height", heights))
        }

    def formats(self) -> dict[str, int]:
        """The number of readable files by format, the commonest first."""
        found = Counter(
            self.facts[file.content].format for file in self.folder.files if file.content in self.facts
        )
        return dict(found.most_common())


def audit_folder(folder: ImageFolder, *, n_workers: int, meter: Meter) -> Audit:
    """Decode every image of a folder once and say what is there."""
    paths: dict[str, list[Path]] = {}
    for file in folder.files:
        paths.setdefault(file.content, []).append(file.path)
    facts: dict[str, PictureFacts] = {}
    unreadable: dict[str, str] = {}
    with (
        meter.task("Checking images", len(paths), "images") as advance,
        ThreadPoolExecutor(n_workers, thread_name_prefix="audit") as pool,
        strict_pillow(),
    ):
        found = pool.map(_inspect, (same[0] for same in paths.values()))
        for content, result in zip(paths, found, strict=True):
            if isinstance(result, PictureFacts):
                facts[content] = result
            else:
                unreadable[content] = result
            advance(1)
    duplicates = tuple(tuple(same) for same in paths.values() if len(same) > 1)
    return Audit(folder, facts, unreadable, duplicates)


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
        "duplicates": [[str(path) for path in same] for same in audit.duplicates],
        "notices": list(folder.notices),
    }


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
    duplicates = [" = ".join(shown(path) for path in same) for same in audit.duplicates]
    lines += _section("cannot be read", unreadable)
    lines += _section("are named after another format (read all the same)", misnamed)
    lines += _section("sets of files have the same content", duplicates)
    return "\n".join(lines + [f"note: {notice}" for notice in folder.notices])


def _table(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    parts = list(next(iter(counts.values()), {}))
    width = max(len("class"), *(len(shown(name)) for name in counts))
    total = {part: sum(row[part] for row in counts.values()) for part in parts}
    rows = [(shown(name), row) for name, row in counts.items()] + [("all", total)]
    header = "class".ljust(width) + "".join(part.rjust(9) for part in parts)
    return [header] + [f"{name.ljust(width)}{''.join(f'{row[p]:9,}' for p in parts)}" for name, row in rows]


def _section(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = [f"  ... and {len(items) - N_LISTED} more"] if len(items) > N_LISTED else []
    return ["", f"{len(items)} {title}:", *(f"  {item}" for item in items[:N_LISTED]), *more]


def _inspect(path: Path) -> PictureFacts | str:
    try:
        return inspect_picture(path)
    except UnreadableImage as error:
        return error.reason
