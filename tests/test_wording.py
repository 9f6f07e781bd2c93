"""Tests of `wording`."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tune_inat.wording import complaint, did_you_mean, nearest_word, short, shown

NAMES = ("freeze", "batch_size", "weight_decay", "lr")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("freeze_ratio", "freeze"), ("Batch-Size", "batch_size"), ("weight decay", "weight_decay")],
)
def test_the_nearest_word_is_suggested_whatever_its_case_and_hyphens(word: str, meant: str) -> None:
    assert did_you_mean(word, NAMES) == f'Did you mean "{meant}"?'


def test_where_no_word_is_near_all_are_listed() -> None:
    assert did_you_mean("zzz", NAMES) == "There are: freeze, batch_size, weight_decay, lr."
    assert nearest_word("zzz", NAMES) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing (null)"),
        (True, "true"),
        ("a", '"a"'),
        (32.0, "32"),
        (1e-3, "0.001"),
        (float("nan"), "nan"),
        ([1], "a list"),
        ({}, "a mapping"),
    ],
)
def test_values_are_shown_as_their_author_would_write_them(value: Any, text: str) -> None:
    assert shown(value) == text


def test_long_values_are_cut_short() -> None:
    assert len(shown("x" * 10_000)) < 100
    assert len(shown(10**5000)) < 100
    assert short(-4.753424308822899) == "-4.75342"


class Limits(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    above: Annotated[float, Field(gt=0)] = 1
    least: Annotated[int, Field(ge=1)] = 1
    below: Annotated[float, Field(lt=1)] = 0
    most: Annotated[float, Field(le=1)] = 0
    word: Literal["adam", "sgd"] = "adam"
    text: str = ""
    numbers: Annotated[list[float], Field(min_length=1)] = [1.0]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"above": 0}, "0 is not above 0."),
        ({"least": 0}, "0 is below the minimum of 1."),
        ({"below": 1.0}, "1 is not below 1."),
        ({"most": 1.5}, "1.5 is above the maximum of 1."),
        ({"most": float("nan")}, "nan is not a finite number."),
        ({"word": "Adam"}, '"Adam" is not one of adam, sgd. Did you mean "adam"?'),
        ({"least": 2.5}, "2.5 stands where a whole number belongs."),
        ({"text": 2024}, "2024 stands where text belongs. Put it in quotes."),
        ({"numbers": 3}, "3 stands where a list belongs."),
        ({"numbers": []}, "it is empty."),
    ],
)
def test_pydantic_errors_become_sentences(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Limits(**values)
    assert [complaint(dict(error)) for error in caught.value.errors()] == [sentence]
