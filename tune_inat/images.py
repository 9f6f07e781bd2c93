"""Decoded once: every image of a data set as square uint8 pixels, memory-mapped and kept by content."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tune_inat.augment import Augment, draw_view, draws_of
from tune_inat.disk import check_room, reserve, writing
from tune_inat.errors import DataError
from tune_inat.interrupts import worker_threads
from tune_inat.meter import Meter
from tune_inat.pictures import (
    PictureFacts,
    UnreachableImage,
    UnreadableImage,
    read_and_inspect,
    read_picture,
    strict_pillow,
)
from tune_inat.store import Store, hash_of, write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

KIND = "pixels"
DECODER_VERSION = 2  # part of the key: raise it when the same file would give other pixels
ROWS_A_CHUNK = 256  # what a killed process has to decode again at most
PIXELS_FILE = "pixels.npy"
INDEX_FILE = "index.json"

# A JPEG is decoded at a half, quarter or eighth where that leaves this many times the pixels asked for on
# either side. Measured on coloured noise of several scales: at 2 the result differs from that of whole
# decoding by up to 1.9 gray levels on average, at 3 by less than 1. A crop keeps 0.67 of a side or more.
SPARE_SCALE = 3
SPARE_SCALE_OF_CROPS = 4

PixelArray = npt.NDArray[np.uint8]
PixelMap = np.memmap[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class View:
    """One of the augmented views of each image. All draws follow from seed, index and the image's content."""

    augment: Augment
    seed: int
    index: int


@dataclass(frozen=True)
class Pixels:
    """The decoded images of a data set.

    Attributes:
        array: (M, S, S, 3) uint8, read-only and memory-mapped. Rows that `row_of` does not name are void.
        row_of: the row of each readable image, by content.
        unreadable: why each other image cannot be read, by content.
        key: names these pixels in the store, and what is derived from them.
        n_decoded: images decoded by this call; 0 when all came from the store.
        facts: what was asked for of the images decoded by this call, by content.
    """

    array: PixelArray
    row_of: Mapping[str, int]
    unreadable: Mapping[str, str]
    key: str
    n_decoded: int
    facts: Mapping[str, PictureFacts] = field(default_factory=dict)


def decode(path: Path, size: int, view: View | None = None, content: str = "") -> PixelArray:
    """One image as (size, size, 3) uint8: the whole picture, squeezed to a square; or a view of it.

    Args:
        path: an image file in any format of `pictures.FORMATS`.
        size: side of the square in pixels.
        view: which augmented view; `None` is the plain picture.
        content: the hash of the file's bytes; the draws of a view depend on it.

    Raises:
        UnreadableImage: the file is no whole image, or cannot be read from the disk.
    """
    scale = SPARE_SCALE if view is None else SPARE_SCALE_OF_CROPS
    return _to_square(read_picture(path, at_least=scale * size), size, view, content)


def augment(picture: PixelArray, size: int, view: View, content: str) -> PixelArray:
    """A view, (size, size, 3), of an image that is at hand as an array, (H, W, 3) uint8."""
    from PIL import Image

    return _to_square(Image.fromarray(np.ascontiguousarray(picture)), size, view, content)


def decode_batch(
    files: Sequence[tuple[str, Path]], size: int, view: View | None, *, pool: Executor
) -> PixelArray:
    """Decode (content, path) pairs with a pool of threads to (N, size, size, 3), in the order given.

    Made for `views: fresh`, where each epoch draws anew: give `view` the epoch as its index.

    Raises:
        DataError: a file cannot be read any more.
    """

    def decode_one(file: tuple[str, Path]) -> PixelArray:
        content, path = file
        try:
            return decode(path, size, view, content)
        except UnreadableImage as error:
            raise DataError(f"{path}: {error.reason}.") from error

    batch = np.empty((len(files), size, size, 3), np.uint8)
    with strict_pillow():
        for row, pixels in enumerate(pool.map(decode_one, files)):
            batch[row] = pixels
    return batch


def decode_rows(
    files: Sequence[tuple[str, Path]], size: int, view: View | None, *, n_workers: int
) -> PixelArray:
    """Decode (content, path) pairs to the rows (N, size, size, 3) of `load_pixels`, zeros where unreadable.

    Raises:
        DataError: the disk fails to give files back.
    """
    rows = np.zeros((len(files), size, size, 3), np.uint8)

    def fill(row: int) -> str | None:
        content, path = files[row]
        try:
            rows[row] = decode(path, size, view, content)
        except UnreachableImage as error:
            return f"{path}: {error.reason}."
        except UnreadableImage:
            return None
        return None

    with worker_threads(n_workers, "decode") as pool, strict_pillow():
        problems = [problem for problem in pool.map(fill, range(len(files))) if problem is not None]
    if problems:
        raise DataError(problems)
    return rows


def load_pixels(
    store: Store,
    files: Mapping[str, Path],
    *,
    size: int,
    view: View | None = None,
    n_workers: int,
    meter: Meter,
    with_facts: bool = False,
) -> Pixels:
    """All images at one size, decoded by `n_workers` threads unless the store has them.

    Args:
        files: where an image of each content lies. Rows are in the order of sorted contents.
        with_facts: keep the facts of the images that are decoded now; of plain pictures, not of views.

    Raises:
        DataError: the disk fails to give files back. That is not kept: the next call tries again.
        ResourceError: the pixels do not fit on the cache's disk.
    """
    contents = sorted(files)
    key = pixels_key(contents, size=size, view=view)
    n_decoded = 0
    facts: dict[str, PictureFacts] | None = {} if with_facts else None

    def build(folder: Path) -> None:
        nonlocal n_decoded
        decoding = _Decoding(folder, [(content, files[content]) for content in contents], size, view, facts)
        n_decoded = decoding.run(n_workers, meter)

    folder = store.get_or_build(KIND, key, build)
    unreadable = _read_index(folder)[1]
    return Pixels(
        array=np.load(folder / PIXELS_FILE, mmap_mode="r"),
        row_of={content: row for row, content in enumerate(contents) if content not in unreadable},
        unreadable=unreadable,
        key=key,
        n_decoded=n_decoded,
        facts=facts or {},
    )


def has_pixels(store: Store, contents: Iterable[str], *, size: int, view: View | None = None) -> bool:
    """Whether the store has the decoded images of these contents, whole."""
    return store.has(KIND, pixels_key(sorted(contents), size=size, view=view))


def pixels_key(contents: Sequence[str], *, size: int, view: View | None = None) -> str:
    """The store's key for the pixels of these contents. It changes with the decoder, so with Pillow."""
    from PIL import __version__ as pillow_version

    decoder = [DECODER_VERSION, pillow_version]
    seen = None if view is None else asdict(view)
    return hash_of({"contents": sorted(contents), "size": size, "view": seen, "decoder": decoder})


def _to_square(picture: "Image", size: int, view: View | None, content: str) -> PixelArray:
    from PIL.Image import Resampling

    if view is None:
        square = picture.resize((size, size), Resampling.BICUBIC)  # with antialiasing, as always in Pillow
    else:
        square = draw_view(picture, size, view.augment, draws_of(view.seed, content, view.index))
    return np.asarray(square)


class _Decoding:
    """Decoding files to the rows of a memory-mapped array; it goes on where a killed process stopped."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[tuple[str, Path]],
        size: int,
        view: View | None,
        facts: dict[str, PictureFacts] | None,
    ) -> None:
        self.folder = folder
        self.files = files
        self.size = size
        self.view = view
        self.facts = facts  # filled, where they are asked for

    def run(self, n_workers: int, meter: Meter) -> int:
        """Decode what is not done. Returns the number of images decoded."""
        pixels, n_done, unreadable = self._begin()
        n_before = n_done
        title = f"Decoding images at {self.size} px"
        with (
            meter.task(title, len(self.files) - n_done, "images") as advance,
            worker_threads(n_workers, "decode") as pool,
            strict_pillow(),
        ):
            while n_done < len(self.files):
                rows = range(n_done, min(n_done + ROWS_A_CHUNK, len(self.files)))
                unreachable = []
                for row, error in zip(rows, pool.map(lambda row: self._fill(pixels, row), rows), strict=True):
                    content, path = self.files[row]
                    if isinstance(error, UnreachableImage):
                        unreachable.append(f"{path}: {error.reason}.")
                    elif error is not None:
                        unreadable[content] = error.reason
                    advance(1)
                if unreachable:
                    raise DataError(unreachable)
                n_done = rows.stop
                self._record(pixels, n_done, unreadable)
        return n_done - n_before

    def _fill(self, pixels: PixelArray, row: int) -> UnreadableImage | None:
        content, path = self.files[row]
        try:
            if self.facts is None or self.view is not None:
                pixels[row] = decode(path, self.size, self.view, content)
            else:
                picture, self.facts[content] = read_and_inspect(path, at_least=SPARE_SCALE * self.size)
                pixels[row] = _to_square(picture, self.size, None, content)
        except UnreadableImage as error:
            return error
        return None

    def _begin(self) -> tuple[PixelMap, int, dict[str, str]]:
        """The array, how many of its rows are done, and which of those are unreadable."""
        path, shape = self.folder / PIXELS_FILE, (len(self.files), self.size, self.size, 3)
        with suppress(OSError, ValueError, KeyError, TypeError):  # none there, or not whole: begun anew
            n_done, unreadable = _read_index(self.folder)  # written after the rows that it counts
            pixels = open_whole(path)
            if pixels.shape == shape and pixels.dtype == np.uint8:
                return pixels, n_done, unreadable
        check_room(self.folder, math.prod(shape), "the decoded images")
        with writing(path):
            pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            reserve(path)
        return pixels, 0, {}

    def _record(self, pixels: PixelMap, n_done: int, unreadable: dict[str, str]) -> None:
        pixels.flush()
        index = {"n_done": n_done, "unreadable": unreadable}
        write_atomically(self.folder / INDEX_FILE, json.dumps(index).encode())


def open_whole(path: Path) -> Any:
    """An array on the disk, to go on with.

    Raises:
        OSError: there is none.
        ValueError: it is longer or shorter than it says: "r+" alone would fill up what is missing with zeros.
    """
    looked_at = np.lib.format.open_memmap(path, mode="r")
    if path.stat().st_size != looked_at.offset + looked_at.nbytes:
        raise ValueError(f"{path}: not whole")
    return np.lib.format.open_memmap(path, mode="r+")


def _read_index(folder: Path) -> tuple[int, dict[str, str]]:
    index = json.loads((folder / INDEX_FILE).read_bytes())
    return index["n_done"], index["unreadable"]
