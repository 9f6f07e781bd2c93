"""Where images come from: the sample, iNaturalist-12K, a URI or a path, each as a folder on this machine."""

import difflib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from tune_inat.archive import unpack
from tune_inat.disk import make_folder, writing
from tune_inat.download import download
from tune_inat.errors import DataError
from tune_inat.folders import PARTS, Part, is_image_name, shown
from tune_inat.meter import Meter
from tune_inat.remote import copy_images, hide_secrets, is_uri

SAMPLE = "sample"
INATURALIST12K = "inaturalist12k"
N_SAMPLE = 1_797
NAMES = frozenset({SAMPLE, INATURALIST12K})
ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})
MAX_SHOWN = 200  # characters of a path that cannot be one


@dataclass(frozen=True)
class Archive:
    """A published data set: a zip archive with one folder, and what must be in it.

    Attributes:
        folder: the name of the folder in the archive.
        n_classes: class folders in each part.
        n_images: image files by the part's folder.
        parts: what the folders of parts mean to us.
    """

    url: str
    folder: str
    n_classes: int
    n_images: Mapping[str, int]
    parts: Mapping[str, Part]


INATURALIST = Archive(
    url="https://storage.googleapis.com/wandb_datasets/nature_12K.zip",
    folder="inaturalist_12K",
    n_classes=10,
    n_images={"train": 9_999, "val": 2_000},
    parts={"train": "train", "val": "test"},  # its val/ is what others report as the test accuracy
)


@dataclass(frozen=True)
class Origin:
    """A folder on this machine, and how to read it."""

    name: str
    root: Path
    parts: Mapping[str, Part] = field(default_factory=lambda: PARTS)
    notices: tuple[str, ...] = ()


def locate(source: str, *, cache: Path, meter: Meter, inaturalist: Archive = INATURALIST) -> Origin:
    """Bring a data set to this machine, unless it is there, and say where it is.

    Args:
        source: `sample`, `inaturalist12k`, a URI or a path.
        cache: an existing folder of ours.
        inaturalist: where iNaturalist-12K is published; tests have their own.

    Raises:
        DataError: there is no such thing, or it cannot be had.
        ResourceError: the disk has no room.
    """
    if source == SAMPLE:
        return Origin(SAMPLE, _write_sample(cache / "data"))
    if source == INATURALIST12K:
        return _find_inaturalist(inaturalist, cache, meter)
    if is_uri(source):
        root = copy_images(source, cache / "remote", is_wanted=is_image_name, meter=meter)
        return Origin(hide_secrets(source), root)
    return Origin(source, _check_path(source))


def is_known_by_name(source: str) -> bool:
    """Whether a source is neither a path nor a URI."""
    return source in NAMES


def _write_sample(home: Path) -> Path:
    """scikit-learn's 1,797 scans of handwritten digits (8 x 8, 17 grays) as PNG files in class folders.

    Not an entry of the store, which syncs each file to the disk: with so many that takes seconds. A file
    that power loss has emptied is noticed here.
    """
    folder, aside = home / SAMPLE, home / f".{SAMPLE}.part"
    with _locked(home, SAMPLE):
        if sum(path.stat().st_size > 0 for path in folder.glob("*/*.png")) != N_SAMPLE:
            for old in (folder, aside):
                shutil.rmtree(old, ignore_errors=True)
            with writing(aside):
                _write_digits(aside)
                aside.rename(folder)
    return folder


def _write_digits(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        class_folder = folder / str(label)
        class_folder.mkdir(parents=True, exist_ok=True)
        gray = (image * 255 / 16).round().astype("uint8")
        Image.fromarray(gray).save(class_folder / f"{number:04d}.png")


def _find_inaturalist(archive: Archive, cache: Path, meter: Meter) -> Origin:
    """The folder that lies here, else the one in the cache, else a download."""
    here = Path.cwd() / archive.folder
    if not here.is_dir():
        root = _fetch(archive, cache / "data", meter)
        return Origin(INATURALIST12K, root, archive.parts)
    notices = [f"{shown(here)}: used as it is."]
    notices += [f"{shown(here)}: {fault}" for fault in _count_faults(here, archive)]
    return Origin(INATURALIST12K, here, archive.parts, tuple(notices))


def _fetch(archive: Archive, home: Path, meter: Meter) -> Path:
    folder, aside = home / archive.folder, home / f".{archive.folder}.part"
    zip_file = home / archive.url.rpartition("/")[2]
    with _locked(home, archive.folder):
        if folder.is_dir():
            return folder
        download(archive.url, zip_file, meter=meter)
        try:
            unpack(zip_file, aside, meter=meter)
            if faults := _count_faults(aside / archive.folder, archive):
                raise DataError([f"{zip_file}: {fault}" for fault in faults])
        except DataError as error:
            zip_file.unlink()
            shutil.rmtree(aside, ignore_errors=True)
            again = f"{zip_file}: removed. The same command downloads it anew."
            raise DataError([*error.problems, again]) from error
        (aside / archive.folder).rename(folder)
        shutil.rmtree(aside)
        zip_file.unlink()
    return folder


@contextmanager
def _locked(home: Path, name: str) -> Iterator[None]:
    make_folder(home)
    with FileLock(home / f"{name}.lock"):
        yield


def _count_faults(root: Path, archive: Archive) -> list[str]:
    """How a folder differs from what was published."""
    faults = []
    for part, n_images in archive.n_images.items():
        found: dict[str, int] = {}
        for path in (root / part).glob("*/*"):
            if is_image_name(path.relative_to(root).as_posix()):
                found[path.parent.name] = found.get(path.parent.name, 0) + 1
        if (len(found), sum(found.values())) != (archive.n_classes, n_images):
            faults.append(
                f"{part}/ has {sum(found.values()):,} images in {len(found)} classes; "
                f"published were {n_images:,} in {archive.n_classes}."
            )
    return faults


def _check_path(source: str) -> Path:
    if not source.strip() or "\0" in source:
        raise DataError("The data's path is empty or holds a NUL.")
    try:
        path = Path(source).expanduser().absolute()
        if path.is_dir():
            return path
        exists = path.exists()
        near = [] if exists else _near_names(source) or _near_paths(path)
    except (OSError, RuntimeError) as error:  # a name that is too long, a user that there is not
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise DataError(f"{shown(source[:MAX_SHOWN])}: cannot be looked for ({reason}).") from error
    if path.suffix.lower() in ARCHIVE_SUFFIXES and exists:
        raise DataError(f"{shown(path)}: is an archive. Unpack it and give the folder.")
    if exists:
        raise DataError(f"{shown(path)}: is a file. Give a folder of class folders.")
    hint = f" Did you mean {shown(near[0])}?" if near else ""
    raise DataError(f"{shown(path)}: there is no such folder.{hint}")


def _near_names(source: str) -> list[str]:
    return difflib.get_close_matches(source, (SAMPLE, INATURALIST12K), n=1)


def _near_paths(path: Path) -> list[str]:
    """Folders whose names are like the first part of a path that does not exist."""
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    try:
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []
    return [str(missing.with_name(name)) for name in difflib.get_close_matches(missing.name, names, n=1)]
