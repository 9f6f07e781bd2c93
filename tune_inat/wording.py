"""Mistakes in words: what was found, and what would be right."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

MAX_SHOWN = 60  # characters of a value that are quoted back
MAX_DIGITS = 12  # of a number that is shown whole


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A sentence to put after "there is no such thing": the nearest known word, else all of them."""
    nearest = nearest_word(word, known)
    if nearest is not None:
        return f'Did you mean "{nearest}"?'
    return f"There {'is' if len(known) == 1 else 'are'}: {', '.join(known)}."


def nearest_word(word: str, known: Collection[str]) -> str | None:
    """The known word that looks most like `word`; upper case, spaces and hyphens do not count."""
    by_look = {_look(candidate): candidate for candidate in known}
    matches = get_close_matches(_look(word), by_look, n=1)
    return by_look[matches[0]] if matches else None


def shown(value: Any) -> str:
    """A value of a YAML file as its author would write it, cut short when long."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, float):
        return short(value)
    text = f'"{value}"' if isinstance(value, str) else _digits(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def short(number: float) -> str:
    """A number as a reader would write it: `0.001`, `32`, `1e-05`; the ends of long ones are left out."""
    text = repr(number).removesuffix(".0")
    return text if len(text) <= MAX_DIGITS else f"{number:.6g}"


def complaint(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors (an item of `ValidationError.errors()`) as a sentence about its input."""
    found, limits, kind = shown(error["input"]), error.get("ctx", {}), error["type"]
    match kind:
        case "greater_than":
            return f"{found} is not above {short(limits['gt'])}."
        case "greater_than_equal":
            return f"{found} is below the minimum of {short(limits['ge'])}."
        case "less_than":
            return f"{found} is not below {short(limits['lt'])}."
        case "less_than_equal":
            return f"{found} is above the maximum of {short(limits['le'])}."
        case "literal_error":
            allowed = _words_in(limits["expected"])
            nearest = nearest_word(str(error["input"]), allowed)
            tail = f' Did you mean "{nearest}"?' if nearest else ""
            return f"{found} is not {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}.{tail}"
        case "finite_number":
            return f"{found} is not a finite number."
        case "too_short" | "string_too_short":
            return "it is empty."
    needed = _NEEDED.get(kind)
    if needed is not None:
        quotes = " Put it in quotes." if needed == "text" and isinstance(error["input"], int | float) else ""
        return f"{found} stands where {needed} belongs.{quotes}"
    return f"{found}: {error['msg']}."


_NEEDED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
}


def _words_in(expected: str) -> list[str]:
    """The words of pydantic's `'a', 'b' or 'c'`."""
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _look(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")


def _digits(number: Any) -> str:
    try:
        return str(number)
    except ValueError:  # Python refuses to print more than 4,300 digits
        return "a number of thousands of digits"
