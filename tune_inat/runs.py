"""The folder of a search: which one it is, whose it is, and that only one search writes to it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tune_inat.disk import writing
from tune_inat.errors import ResourceError, UserError
from tune_inat.store import LOCK_FILE, is_half_written, write_atomically
from tune_inat.wording import shown

IDENTITY_FILE = "search.json"
CPUS_KEY = "cpus_per_trial"  # in that file, beside the identity
STUDY_FILE = "optuna.db"
MAX_SHORT_NAME = 40  # characters of a part of a folder's name


def short_name(source: str) -> str:
    """What people call a file, a folder or a URI: its last part, fit to be a part of a folder's name."""
    place = source.split("?")[0] if "://" in source else str(Path(source).resolve())
    last = re.split(r"[/\\]", place.rstrip("/\\"))[-1]
    return re.sub(r"[^\w.-]+", "_", last).strip("._-")[:MAX_SHORT_NAME] or "images"


def work_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a search's trials are about, whatever its space: this stays the same when the space grows."""
    return {key: value for key, value in identity.items() if key != "space"}


def find_run_folder(
    storage: Path,
    name: str | None,
    proposed: str,
    identity: Mapping[str, Any],
    *,
    place: Callable[[Path, str], str] = lambda folder, file: str(folder / file),
) -> Path:
    """The folder of a search: the same command comes back to the same one.

    Args:
        storage: where the folders of searches are.
        name: the user's name for the search; `None` takes the first of `proposed`, `proposed-2`, ... that is
            free or holds this very search.
        identity: what makes it this search. Its `space` may change under the user's own name: then the
            search is widened or narrowed, and what it has trained counts on.
        place: a folder, or a file in it, as it is shown.

    Raises:
        UserError: the name belongs to a search on other images or with other settings.
    """
    if name is None:
        number = 1
        while True:
            folder = storage / (proposed if number == 1 else f"{proposed}-{number}")
            if _read_identity(folder) in (None, identity):
                return folder
            number += 1
    folder = storage / name
    known = _read_identity(folder)
    if known is not None:
        if not known and (folder / IDENTITY_FILE).exists():
            raise UserError(
                f"--name {name}: {place(folder, IDENTITY_FILE)} is damaged, so nobody knows which search "
                "this is. Choose another name: what its trials had trained comes from the cache."
            )
        if not known:
            raise UserError(
                f"--name {name}: {place(folder, '')} holds other files, not a search. Choose another name."
            )
        if other := _differences(known, identity):
            raise UserError(
                f"--name {name}: {place(folder, '')} holds a search with other {', '.join(other)}. Choose "
                "another name."
            )
    return folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a search's folder and hold it; the lock dies with its owner. A folder left empty is removed.

    What killed searches have left half written goes.

    Raises:
        ResourceError: another search holds the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ResourceError(
            f"{folder}: another search is writing here. Wait for it, or give this one another --name."
        ) from error
    except OSError as error:
        raise ResourceError(
            f"{folder}: the search's folder cannot be written ({error.strerror}). Choose another --storage."
        ) from error
    try:
        for left in filter(is_half_written, folder.rglob(".*.tmp")):
            left.unlink(missing_ok=True)
        yield
    finally:
        if _is_free(folder):  # the search was refused: its name is not taken
            (folder / LOCK_FILE).unlink(missing_ok=True)
            folder.rmdir()
        lock.release()


def keep_identity(folder: Path, identity: Mapping[str, Any], *, cpus_per_trial: int | None = None) -> None:
    """Write down whose folder it is from now on; weights files that an earlier space named count on.

    Args:
        cpus_per_trial: see `kept_cpus`; `None` leaves it as it was.
    """
    kept = dict(identity)
    if "weights" in identity:
        known = (_read_identity(folder) or {}).get("weights", {})
        kept["weights"] = {**known, **identity["weights"]}
    cpus = cpus_per_trial or kept_cpus(folder)
    if cpus is not None:
        kept[CPUS_KEY] = cpus
    with writing(folder):
        write_atomically(folder / IDENTITY_FILE, (json.dumps(kept, indent=2) + "\n").encode())


def kept_cpus(folder: Path) -> int | None:
    """The cores that each trial of a search got so far, `None` if that is not known.

    The order of a sum depends on them, so a search that goes on should not change them.
    """
    cpus = _read_file(folder).get(CPUS_KEY)
    return cpus if isinstance(cpus, int) and cpus > 0 else None


def _read_identity(folder: Path) -> dict[str, Any] | None:
    """What a folder's search is; `None` where the folder is free, an empty mapping where it says nothing."""
    if not folder.exists() or _is_free(folder):
        return None
    return {key: value for key, value in _read_file(folder).items() if key != CPUS_KEY}


def _read_file(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / IDENTITY_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_free(folder: Path) -> bool:
    """Whether nothing is there but a lock, and what a process left that was killed as it began."""
    return all(entry.name == LOCK_FILE or is_half_written(entry) for entry in folder.iterdir())


def _differences(known: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """What another search's work differs in, in words; of its parameters, those that do."""
    other = [key for key, value in work_identity(identity).items() if not _agrees(key, known.get(key), value)]
    there, here = known.get("parameters"), identity.get("parameters")
    if "parameters" not in other or not (isinstance(there, Mapping) and isinstance(here, Mapping)):
        return other
    changed = [name for name in dict.fromkeys((*here, *there)) if here.get(name) != there.get(name)]
    if "seed" in changed and "images" in other:  # another seed splits the same images otherwise
        other.remove("images")
    at = other.index("parameters")
    other[at : at + 1] = [
        f"{name} ({_value(there, name)} there, {_value(here, name)} here)" for name in changed
    ]
    return other


def _value(parameters: Mapping[str, Any], name: str) -> str:
    return shown(parameters[name]) if name in parameters else "not given"


def _agrees(key: str, known: Any, value: Any) -> bool:
    """Of weights, the files that both searches name count: a space may have grown by others."""
    if key == "weights":
        return all((known or {}).get(file, content) == content for file, content in value.items())
    return bool(known == value)
