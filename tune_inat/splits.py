"""Which image is in which part: train, val or test, as a folder gives them or as a seed draws them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from tune_inat.errors import DataError
from tune_inat.folders import ImageFolder, LabelledFile, Part, name_some, shown

HELD_OUT = 0.2  # of each class for test, then of the rest for val
N_LISTED = 20  # copies that an error spells out

Pair = tuple[str, str]  # of contents that are near copies
Parts = dict[Part, list[LabelledFile]]


def draw_parts(
    folder: ImageFolder, files: Sequence[LabelledFile], near: Sequence[Pair], seed: int
) -> tuple[Parts, list[str]]:
    """Files by part; where the folder leaves a part to us, it is drawn.

    A fifth of each class is held out, one image at least. Copies of an image go the same way, and so do near
    copies, unless they make up so much of a class that a part would get less than half of its share: then
    the near copies of that class are split as all other images are, and a notice says so.

    Args:
        files: the readable ones, sorted by content.

    Returns:
        The files of each part, and notices.

    Raises:
        DataError: a class with too few images, or a part without any.
    """
    given: Parts = {part: [file for file in files if file.part == part] for part in folder.parts}
    if "" in given:
        _check_counts(folder, given[""], n_parts=3)
        return _draw(folder, given[""], near, seed, ("test", "val"))
    if "val" in given:
        _check_counts(folder, given["train"], n_parts=1)
        notices: list[str] = []
    else:
        _check_counts(folder, given["train"], n_parts=2)
        drawn, notices = _draw(folder, given["train"], near, seed, ("val",))
        given |= drawn
    if empty := [part for part, in_part in given.items() if not in_part]:
        raise DataError([f"{shown(folder.root)}: no image of {part} can be read." for part in empty])
    return given, notices


def leaks(files: Iterable[LabelledFile]) -> dict[tuple[Part, Part], list[tuple[LabelledFile, LabelledFile]]]:
    """The images that stand in two of the given parts, as a file of each, by the two parts."""
    by_part: dict[Part, dict[str, LabelledFile]] = {}
    for file in files:
        by_part.setdefault(file.part, {}).setdefault(file.content, file)
    order: list[Part] = [part for part in ("train", "val", "test") if part in by_part]
    found = {
        (one, other): [(by_part[one][c], by_part[other][c]) for c in by_part[one] if c in by_part[other]]
        for one, other in combinations(order, 2)
    }
    return {parts: sorted(pairs, key=lambda pair: pair[0].path) for parts, pairs in found.items() if pairs}


def near_groups(contents: Iterable[str], near: Sequence[Pair]) -> list[list[str]]:
    """All contents, those that are linked as near copies together; groups and members in the order given."""
    leader = {content: content for pair in near for content in pair}

    def lead(content: str) -> str:
        while leader[content] != content:
            leader[content] = leader[leader[content]]
            content = leader[content]
        return content

    listed = dict.fromkeys(contents)
    for first, second in near:
        if first in listed and second in listed:
            leader[lead(second)] = lead(first)
    members: dict[str, list[str]] = {}
    for content in listed:
        members.setdefault(lead(content) if content in leader else content, []).append(content)
    return list(members.values())


def describe_leaks(files: Sequence[LabelledFile]) -> list[str]:
    """What is wrong with images that stand in two parts: a problem for each two parts, in several lines."""
    problems = []
    for (one, other), pairs in leaks(files).items():
        n_other = len({file.content for file in files if file.part == other})
        n = f"{len(pairs):,} images are" if len(pairs) > 1 else "1 image is"
        all_of_it = f"; {other} has no other" if len(pairs) == n_other else ""
        lines = [f"  {shown(first.path)} = {shown(second.path)}" for first, second in pairs[:N_LISTED]]
        if len(pairs) > N_LISTED:
            lines.append(f"  ... and {len(pairs) - N_LISTED:,} more")
        advice = "Keep each image in one part, or go on all the same with --allow-leakage."
        problems.append("\n".join([f"{n} both in {one} and in {other}{all_of_it}:", *lines, advice]))
    return problems


def _check_counts(folder: ImageFolder, files: Sequence[LabelledFile], *, n_parts: int) -> None:
    """Refuse classes that do not reach for one image in each part drawn from them."""
    counts: dict[int, int] = {}
    for label in _label_of(files).values():
        counts[label] = counts.get(label, 0) + 1
    needed = "1 is needed" if n_parts == 1 else f"{n_parts} are needed, one for each part drawn from them"
    problems = [
        f"{shown(folder.root)}: class {shown(name)} has {n_found} different readable images; {needed}."
        for label, name in enumerate(folder.classes)
        if (n_found := counts.get(label, 0)) < n_parts
    ]
    if problems:
        raise DataError(problems)


def _draw(
    folder: ImageFolder, files: list[LabelledFile], near: Sequence[Pair], seed: int, parts: Sequence[Part]
) -> tuple[Parts, list[str]]:
    """Hold out the parts one after the other; what is left is train."""
    label_of = _label_of(files)
    near = [pair for pair in near if pair[0] in label_of and pair[1] in label_of]
    one_by_one: set[int] = set()
    while True:
        drawn: Parts = {"train": files}
        short: set[int] = set()
        for number, part in enumerate(parts):
            n_after = len(parts) - number
            drawn["train"], drawn[part], missed = _hold_out(drawn["train"], near, seed, n_after)
            short |= missed
        if short <= one_by_one:
            break
        one_by_one |= short
        near = [pair for pair in near if not {label_of[pair[0]], label_of[pair[1]]} & one_by_one]
    if not one_by_one:
        return drawn, []
    names = name_some([folder.classes[label] for label in sorted(one_by_one)])
    return drawn, [
        f"{shown(folder.root)}: near copies make up too much of {names} to be kept in one part: "
        "images of one part look like images of another."
    ]


def _hold_out(
    files: list[LabelledFile], near: Sequence[Pair], seed: int, n_after: int
) -> tuple[list[LabelledFile], list[LabelledFile], set[int]]:
    """Split off a fifth of each class, one image at least. Copies and near copies go the same way.

    In each class without near copies it draws what scikit-learn's
    `train_test_split(contents, random_state=seed)` draws, without the two seconds that importing it takes.

    Args:
        n_after: how many parts are to be made of what is left.

    Returns:
        What is left, what is held out, and the labels that got less than half of their share of it.
    """
    label_of = _label_of(files)
    groups = _group(label_of, near)
    held: set[str] = set()
    short = set(label_of.values()) - set(groups)
    for label, units in groups.items():
        share = max(1, round(HELD_OUT * sum(map(len, units))))
        n_held, n_units = 0, len(units)
        for position in np.random.RandomState(seed).permutation(len(units)):
            unit = units[position]
            if n_held + len(unit) <= share and n_units > n_after:
                held.update(unit)
                n_held += len(unit)
                n_units -= 1
        if n_held < max(1.0, share / 2):
            short.add(label)
    return [f for f in files if f.content not in held], [f for f in files if f.content in held], short


def _label_of(files: Iterable[LabelledFile]) -> dict[str, int]:
    """The label of each content; the first, where it stands under two."""
    label_of: dict[str, int] = {}
    for file in files:
        label_of.setdefault(file.content, file.label)
    return label_of


def _group(label_of: Mapping[str, int], near: Sequence[Pair]) -> dict[int, list[list[str]]]:
    """What goes one way together: contents with their near copies, by the label of the first."""
    groups: dict[int, list[list[str]]] = {}
    for unit in near_groups(label_of, near):
        groups.setdefault(label_of[unit[0]], []).append(unit)
    return groups
