"""What the comparison is to show, and whether it does."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.rows import RowName

FASTER_THAN_PLAIN: Mapping[str, float] = {"sample": 8.0, "photos": 12.0}  # by subject
OVER_FLOOR, BEYOND_FLOOR_SECONDS = 1.3, 10.0  # what Ray, W&B, reading and saving may add
AGAIN_SECONDS = 12.0


@dataclass(frozen=True)
class Goal:
    """A claim, the numbers that it is held against, and whether it is reached; `None`: rows are missing."""

    claim: str
    found: str
    is_reached: bool | None

    def __str__(self) -> str:
        verdict = {True: "reached", False: "NOT reached", None: "not measured"}[self.is_reached]
        return f"{verdict}: {self.claim}{self.found and f' ({self.found})'}"


def check_goals(subject: str, seconds: Mapping[RowName, float]) -> list[Goal]:
    """All goals of a subject, from the wall seconds of the rows that were run."""
    a, b, c, d, e = (seconds.get(row) for row in ("a", "b", "c", "d", "e"))
    factor = FASTER_THAN_PLAIN[subject]
    faster = f"tune_inat (c) is at least {factor:g} times faster than the plain loop (a)"
    near = f"(c) takes at most {OVER_FLOOR:g} times the floor (e) and {BEYOND_FLOOR_SECONDS:g} s"
    again = f"the same command again (d) takes less than {AGAIN_SECONDS:g} s"
    by_hand = "Ray Tune by hand (b) is slower than (c) by as much as (a), or more"
    goals = []
    if a is None or c is None:
        goals.append(Goal(faster, "", None))
    else:
        goals.append(Goal(faster, f"{a / c:.1f} times", a >= factor * c))
    if c is None or e is None:
        goals.append(Goal(near, "", None))
    else:
        limit = OVER_FLOOR * e + BEYOND_FLOOR_SECONDS
        goals.append(Goal(near, f"{c:.1f} s of {limit:.1f} s", c <= limit))
    if d is None:
        goals.append(Goal(again, "", None))
    else:
        goals.append(Goal(again, f"{d:.1f} s", d < AGAIN_SECONDS))
    if a is None or b is None or c is None:
        goals.append(Goal(by_hand, "", None))
    else:
        goals.append(Goal(by_hand, f"{b / c:.1f} and {a / c:.1f} times", b >= a))
    return goals
