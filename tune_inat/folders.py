"""A folder of class folders, or one with train/ val/ test/, as a list of labelled files."""

import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tune_inat.errors import DataError, printable

Part = Literal["train", "val", "test", ""]  # "": we split it ourselves

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
)
PARTS: Mapping[str, Part] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
FOREIGN_FOLDERS = frozenset({"__MACOSX", "@eaDir", "lost+found"})  # left by archives and file systems
N_NAMES = 5  # that a notice spells out
N_PROBLEMS = 20  # of one kind that an error spells out

Hasher = Callable[[Sequence[Path]], tuple[Mapping[Path, str], Mapping[Path, str]]]


@dataclass(frozen=True)
class LabelledFile:
    """An image file. `label` counts into the folder's classes; `content` is the hash of the file's bytes."""

    path: Path
    label: int
    part: Part
    content: str


@dataclass(frozen=True)
class ImageFolder:
    """All that a folder holds, before any image is decoded.

    Attributes:
        classes: the class names, sorted; always valid Unicode, composed (NFC).
        files: sorted by part, label and path.
        parts: those that the folder gives; `("",)` leaves the split to us.
        notices: what was passed over, for people.
        unreadable: files and folders that the file system does not hand out, each with the reason.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    files: tuple[LabelledFile, ...]
    parts: tuple[Part, ...]
    notices: tuple[str, ...]
    unreadable: tuple[tuple[Path, str], ...]


def read_folder(
    root: Path, *, name: str, hash_files: Hasher, parts: Mapping[str, Part] = PARTS
) -> ImageFolder:
    """Find the labelled images below a folder.

    Class folders are walked to their depth, symbolic links followed once. Hidden files and folders do not
    count, nor do files whose names are not those of images.

    Args:
        root: a folder.
        name: what the data set is called.
        hash_files: gives the contents' hashes, and a reason for each file that has none.
        parts: the meaning of folder names, in lower case.

    Raises:
        DataError: the folder's shape makes no sense. It names all that is wrong.
    """
    survey = _Survey()
    parted = _find_parts(root, parts, survey)
    found = {part: _find_classes(folder, survey) for part, folder in parted.items()}
    first: Part = "train" if "train" in found else ""
    classes = tuple(sorted(found[first]))
    survey.check_classes(parted[first], found[first])
    for part in [part for part in found if part != first]:
        survey.check_against(classes, parted[part], found[part])
    if survey.problems:
        raise DataError([*survey.problems, *_as_problems(survey.unreadable)])
    placed = [
        (part, label, path)
        for part, by_class in found.items()
        for label, class_name in enumerate(classes)
        for path in by_class.get(class_name, ())
    ]
    contents, unreadable = hash_files([path for _, _, path in placed])
    if not contents:
        raise DataError(_as_problems(sorted(unreadable.items())))
    return ImageFolder(
        name=name,
        root=root,
        classes=classes,
        files=tuple(
            LabelledFile(path, label, part, contents[path])
            for part, label, path in sorted(placed)
            if path in contents
        ),
        parts=tuple(parted),
        notices=survey.all_notices(),
        unreadable=(*survey.unreadable, *sorted(unreadable.items())),
    )


def is_image_name(path: str) -> bool:
    """Whether a relative path (with slashes) is one that `read_folder` would take for an image's."""
    *folders, file = path.split("/")
    return not any(_is_passed_over(name) for name in (*folders, file)) and _suffix(file) in IMAGE_SUFFIXES


def shown(path: Path | str) -> str:
    """A path as one line of text, whatever its name is made of."""
    return printable(str(path)).replace("\n", "\\n")


def name_some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    listed = ", ".join(shown(name) for name in names[:N_NAMES])
    return listed if len(names) <= N_NAMES else f"{listed} and {len(names) - N_NAMES} more"


@dataclass
class _Survey:
    """What is noticed on the way through a folder."""

    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # by suffix
    hidden: list[Path] = field(default_factory=list)  # images and folders within class folders
    nested: Counter[Path] = field(default_factory=Counter)  # images, by the folder below a class folder
    _listed: dict[Path, list[Path]] = field(default_factory=dict)

    def entries(self, folder: Path) -> Iterator[tuple[Path, bool]]:
        """The entries of a folder, sorted, each with whether it is a folder (links followed)."""
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            self.unreadable.append((folder, f"cannot be listed ({os.strerror(error.errno or 0)})"))
            return
        for entry in entries:
            if not entry.name.startswith("._") and entry.name not in FOREIGN_FOLDERS:
                yield folder / entry.name, _is_folder(entry)

    def subfolders(self, folder: Path) -> list[Path]:
        """The visible folders in a folder. Files beside them are counted as ignored, once."""
        if folder in self._listed:
            return self._listed[folder]
        subfolders, n_images = [], 0
        for path, is_folder in self.entries(folder):
            if path.name.startswith("."):
                continue
            if is_folder:
                subfolders.append(path)
            elif _suffix(path.name) in IMAGE_SUFFIXES:
                n_images += 1
            else:
                self.ignored[_suffix(path.name)] += 1
        if n_images and subfolders:
            beside = "1 image that lies" if n_images == 1 else f"{n_images} images that lie"
            self.notices.append(f"{shown(folder)}: ignored {beside} beside the class folders.")
        self._listed[folder] = subfolders
        return subfolders

    def images(self, folder: Path) -> list[Path]:
        """All image files of a class folder. Each folder below it is visited once, those around it never."""
        images, waiting = [], [folder]
        seen = {_identity(around) for around in folder.parents}
        while waiting:
            current = waiting.pop()
            identity = _identity(current)
            if identity in seen:
                continue
            seen.add(identity)
            for path, is_folder in self.entries(current):
                is_image = not is_folder and _suffix(path.name) in IMAGE_SUFFIXES
                if path.name.startswith("."):
                    self.hidden += [path] if is_folder or is_image else []
                elif is_folder:
                    waiting.append(path)
                elif is_image:
                    images.append(path)
                    self.nested[current] += current != folder
                else:
                    self.ignored[_suffix(path.name)] += 1
        return images

    def check_classes(self, folder: Path, by_class: Mapping[str, list[Path]]) -> None:
        """Say what is wrong with the classes to learn."""
        if not by_class:
            self.problems.append(
                f"{shown(folder)}: has no class folders. Put the images of each class into a folder "
                "that has the class's name."
            )
        elif not any(by_class.values()):
            known = " ".join(sorted(IMAGE_SUFFIXES))
            self.problems.append(f"{shown(folder)}: its folders have no images ({known}).")
        else:
            empty = [name for name in sorted(by_class) if not by_class[name]]
            self.problems += [_why_empty(folder / name) for name in empty]
            self.notices += [
                f"{shown(folder)}: {name_some([_quoted(name) for name in same])} are {len(same)} classes, "
                "though the names differ in case, spaces or the form of characters only."
                for same in _group_by_look(by_class)
                if len(same) > 1
            ]
        if len(by_class) == 1:
            only = folder / next(iter(by_class))
            hint = f" Did you mean {shown(only)}?" if self.subfolders(only) else ""
            self.problems.append(f"{shown(folder)}: has only one class; two are needed.{hint}")

    def check_against(self, classes: Sequence[str], folder: Path, by_class: Mapping[str, list[Path]]) -> None:
        """Hold the classes of val/ or test/ against those of train/."""
        filled = [name for name in sorted(by_class) if by_class[name]]
        if not filled:
            self.problems.append(
                f"{shown(folder)}: has no class folders with images, so no labels. "
                f"Move it elsewhere, or give {shown(folder.parent / 'train')} alone."
            )
            return
        for name in filled:
            if name not in classes:
                self.problems.append(
                    f"{shown(folder / name)}: train has no such class.{_nearest(name, classes)}"
                )
        if missing := [name for name in classes if name not in filled]:
            self.notices.append(f"{shown(folder)}: has no images of {name_some(missing)}.")

    def all_notices(self) -> tuple[str, ...]:
        """The notices, with those on what lies in depth and on what was passed over for its name."""
        notices = list(self.notices)
        if n_nested := self.nested.total():
            images = "1 image" if n_nested == 1 else f"{n_nested:,} images"
            folders = [str(folder) for folder, n in self.nested.items() if n]
            notices.append(f"Took {images} from folders within those of classes: {name_some(folders)}.")
        if self.hidden:
            names = name_some([str(path) for path in self.hidden])
            notices.append(f"Passed over what is hidden ({len(self.hidden):,}): {names}.")
        n_ignored = self.ignored.total()
        if not n_ignored:
            return tuple(notices)
        kinds = ", ".join(
            f"{shown(suffix) or 'no suffix'} {n}" for suffix, n in self.ignored.most_common(N_NAMES)
        )
        files = (
            "1 file that is no image by its name"
            if n_ignored == 1
            else f"{n_ignored} files that are no images by their names"
        )
        return (*notices, f"Ignored {files}: {kinds}.")


def _find_parts(root: Path, parts: Mapping[str, Part], survey: _Survey) -> dict[Part, Path]:
    """The folders of class folders, by part."""
    folders = survey.subfolders(root)
    by_part: dict[Part, list[Path]] = {}
    for folder in folders:
        if part := parts.get(folder.name.lower()):
            by_part.setdefault(part, []).append(folder)
    if doubled := [same for same in by_part.values() if len(same) > 1]:
        raise DataError(
            [
                f"{shown(root)}: {name_some([f.name for f in same])} mean the same: keep one."
                for same in doubled
            ]
        )
    n_parts = len(by_part)
    if n_parts and "train" not in by_part and n_parts == len(folders):
        raise DataError(f"{shown(root)}: has {name_some([f.name for f in folders])}, but no train.")
    if "train" not in by_part or (n_parts == 1 and len(folders) > 1):
        return {"": root}  # class folders, one of which may well be called "train"
    if n_parts == 1:
        survey.notices.append(f"{shown(root)}: has only train: val and test are split from it.")
        return {"": by_part["train"][0]}
    if extra := [folder.name for folder in folders if parts.get(folder.name.lower()) is None]:
        survey.notices.append(f"{shown(root)}: ignored {name_some(extra)} beside train.")
    return {part: same[0] for part, same in by_part.items()}


def _find_classes(folder: Path, survey: _Survey) -> dict[str, list[Path]]:
    """The images of each class folder, by class name."""
    found: dict[str, list[Path]] = {}
    for class_folder in survey.subfolders(folder):
        name = _class_name(class_folder)
        if name in found:
            survey.notices.append(
                f"{shown(folder)}: two folders are called {shown(name)}: taken as one class."
            )
        found[name] = found.get(name, []) + survey.images(class_folder)
    return found


def _as_problems(unreadable: Sequence[tuple[Path, str]]) -> list[str]:
    return [f"{shown(path)}: {reason}." for path, reason in unreadable[:N_PROBLEMS]]


def _class_name(folder: Path) -> str:
    """The folder's name as valid Unicode, so that file systems that spell it otherwise agree on it."""
    return unicodedata.normalize("NFC", os.fsencode(folder.name).decode("utf-8", "backslashreplace"))


def _look(name: str) -> str:
    """What is the same for names that differ in case, spaces or the form of characters only."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _why_empty(folder: Path) -> str:
    if folder.is_symlink():  # each folder is read once
        return (
            f"{shown(folder)}: has no images of its own: it is a link to {_quoted(shown(folder.readlink()))}."
        )
    return f"{shown(folder)}: has no images."


def _group_by_look(names: Iterable[str]) -> list[list[str]]:
    by_look: dict[str, list[str]] = {}
    for name in sorted(names):
        by_look.setdefault(_look(name), []).append(name)
    return list(by_look.values())


def _quoted(name: str) -> str:
    return f'"{name}"'


def _nearest(name: str, classes: Sequence[str]) -> str:
    same = [known for known in classes if _look(known) == _look(name)]
    if same:
        names = f"{_quoted(shown(same[0]))} and {_quoted(shown(name))}"
        return f" {names} differ in case, spaces or the form of characters only: give both the same name."
    by_folded = {known.casefold(): known for known in classes}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f" Did you mean {shown(by_folded[near[0]])}?" if near else ""


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name in FOREIGN_FOLDERS


def _identity(folder: Path) -> tuple[int, int] | Path:
    """What is the same for a folder under all its names."""
    try:
        status = folder.stat()
    except OSError:  # listing it will say what is wrong
        return folder
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: hashing will say what is wrong with it
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  # names by the thousand
