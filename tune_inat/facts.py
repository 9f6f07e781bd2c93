"""What the images of a data set are: format, size, near copies; found once, kept by content."""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tune_inat.errors import DataError
from tune_inat.likeness import link_near_copies
from tune_inat.meter import Meter
from tune_inat.pictures import (
    PictureFacts,
    UnreachableImage,
    UnreadableImage,
    inspect_picture,
    strict_pillow,
)
from tune_inat.store import Store, hash_of, write_atomically

KIND = "facts"
VERSION = 1  # part of the key: raise it when the same files would give other facts
FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class ImageFacts:
    """What was found of each content.

    Attributes:
        pictures: of each readable image; signatures are left out, they have done their work.
        unreadable: why each other image cannot be read.
        near: pairs of near copies, see `likeness.link_near_copies`.
    """

    pictures: Mapping[str, PictureFacts] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    near: tuple[tuple[str, str], ...] = ()


def load_facts(
    store: Store,
    files: Mapping[str, Path],
    *,
    known: ImageFacts | None = None,
    n_workers: int,
    meter: Meter,
) -> ImageFacts:
    """The facts of all images; those that neither the store has nor `known` are decoded.

    Args:
        files: where an image of each content lies.
        known: what was found when images were decoded for another reason, with signatures.

    Raises:
        DataError: the disk fails to give files back. That is not kept: the next call tries again.
    """
    contents = sorted(files)

    def build(folder: Path) -> None:
        facts = _find(contents, files, known or ImageFacts(), n_workers, meter)
        write_atomically(folder / FACTS_FILE, json.dumps(_pack(contents, facts)).encode())

    folder = store.get_or_build(KIND, _key(contents), build)
    return _unpack(contents, json.loads((folder / FACTS_FILE).read_bytes()))


def has_facts(store: Store, contents: Iterable[str]) -> bool:
    """Whether the store has the facts of these contents."""
    return store.has(KIND, _key(sorted(contents)))


def _key(contents: list[str]) -> str:
    from PIL import __version__ as pillow_version

    return hash_of({"contents": contents, "finder": [VERSION, pillow_version]})


def _find(
    contents: list[str],
    files: Mapping[str, Path],
    known: ImageFacts,
    n_workers: int,
    meter: Meter,
) -> ImageFacts:
    pictures, unreadable = dict(known.pictures), dict(known.unreadable)
    unreachable: list[str] = []
    left = [content for content in contents if content not in pictures and content not in unreadable]
    with (
        meter.task("Checking images", len(left), "images") as advance,
        ThreadPoolExecutor(n_workers, thread_name_prefix="check") as pool,
        strict_pillow(),
    ):
        found = pool.map(_inspect, (files[content] for content in left))
        for content, result in zip(left, found, strict=True):
            if isinstance(result, PictureFacts):
                pictures[content] = result
            elif isinstance(result, UnreachableImage):
                unreachable.append(f"{files[content]}: {result.reason}.")
            else:
                unreadable[content] = result.reason
            advance(1)
    if unreachable:
        raise DataError(unreachable)
    return ImageFacts(pictures, unreadable, _near_copies(pictures))


def _inspect(path: Path) -> PictureFacts | UnreadableImage:
    try:
        return inspect_picture(path)
    except UnreadableImage as error:
        return error


def _near_copies(pictures: Mapping[str, PictureFacts]) -> tuple[tuple[str, str], ...]:
    told_apart = sorted(content for content, facts in pictures.items() if facts.signature)
    if not told_apart:
        return ()
    signatures = np.frombuffer(b"".join(pictures[content].signature for content in told_apart), np.int8)
    pairs = link_near_copies(signatures.reshape(len(told_apart), -1))
    return tuple((told_apart[first], told_apart[second]) for first, second in pairs.tolist())


def _pack(contents: list[str], facts: ImageFacts) -> dict[str, object]:
    """Facts as JSON, with contents by their number."""
    number = {content: position for position, content in enumerate(contents)}
    return {
        "pictures": [
            [number[content], picture.format, picture.width, picture.height]
            for content, picture in sorted(facts.pictures.items())
        ],
        "unreadable": {number[content]: reason for content, reason in facts.unreadable.items()},
        "near": [[number[first], number[second]] for first, second in facts.near],
    }


def _unpack(contents: list[str], packed: Mapping[str, object]) -> ImageFacts:
    pictures, unreadable, near = packed["pictures"], packed["unreadable"], packed["near"]
    assert isinstance(pictures, list)
    assert isinstance(unreadable, dict)
    assert isinstance(near, list)
    return ImageFacts(
        pictures={
            contents[number]: PictureFacts(file_format, width, height)
            for number, file_format, width, height in pictures
        },
        unreadable={contents[int(number)]: reason for number, reason in unreadable.items()},
        near=tuple((contents[first], contents[second]) for first, second in near),
    )
