"""Tests of `yaml_lines`."""

import math
import random
from typing import Any

import pytest
import yaml

from tune_inat.yaml_lines import MAX_ALIASES, MAX_BYTES, MAX_NODES, Leaf, Table, number_in, read_yaml


def plain(text: str) -> Any:
    root, findings = read_yaml(text.encode())
    assert findings == []
    assert root is not None
    return root.plain()


def sole_finding(content: bytes) -> tuple[int, str]:
    _, findings = read_yaml(content)
    assert len(findings) == 1, findings
    return findings[0].line, findings[0].text


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [x, 2.5, true, null, 'quoted']\nc: {d: .5, e: 0x10, f: 1_000}",
        "base: &base {a: 1, b: 2}\nother:\n  <<: *base\n  b: 3\nthird:\n  <<: [*base, {c: 4}]",
        "a: |\n  two\n  lines\nb: >\n  folded\n  text",
        "a: !!str 5\nb: !!float 5\nc: off\nd: ~",
        "\ufeffa: ä",
    ],
)
def test_documents_are_read_as_pyyaml_reads_them(text: str) -> None:
    assert plain(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("-2E5", -2e5), ("1.e1", 10.0), (".5", 0.5), ("08", 8), ("+3", 3)]
)
def test_bare_numbers_are_numbers_also_where_yaml_1_1_has_text(text: str, value: float) -> None:
    assert plain(f"a: {text}") == {"a": value}


@pytest.mark.parametrize("text", ["1e-3", "5"])
def test_quoted_numbers_stay_text(text: str) -> None:
    assert plain(f'a: "{text}"') == {"a": text}


@pytest.mark.parametrize("text", ["2020-01-01", "1e", "e5", "1.2.3", "12 cm", "nan", "inf", ""])
def test_what_is_no_number_is_none(text: str) -> None:
    assert number_in(text) is None


def test_a_number_beyond_all_floats_is_infinite() -> None:
    assert number_in("1e999") == math.inf
    assert number_in("9" * 5000) == math.inf


@pytest.mark.parametrize(
    ("path", "line"), [(["a"], 1), (["b"], 2), (["b", "c", 0], 4), (["b", "c", 1, "y"], 5)]
)
def test_every_value_knows_its_line(path: list[str | int], line: int) -> None:
    root, _ = read_yaml(b"a: 1\nb:\n  c:\n    - x\n    - y: 2\n")
    assert isinstance(root, Table)
    assert root.line_of(path) == line


def test_the_line_of_what_is_missing_is_that_of_where_it_would_be() -> None:
    root, _ = read_yaml(b"a: 1\nb:\n  c: 2\n")
    assert isinstance(root, Table)
    assert root.line_of(["b", "no such key"]) == 2


@pytest.mark.parametrize(
    ("content", "line", "text"),
    [
        (b"", 0, "the file is empty"),
        (b"# only a comment\n", 0, "the file is empty"),
        (b"a: 1\nb: 2\na: 3", 3, '"a" is given twice: it is in line 1 already'),
        (
            b"a: 1\nb: !!python/object/apply:os.system [ls]",
            2,
            "the tag !!python/object/apply:os.system has no",
        ),
        (b"a: !mine 3", 1, "the tag !mine has no place here"),
        (b"a: !!set {x}", 1, "the tag !!set has no place here"),
        (b"a: !!binary aGk=", 1, "the tag !!binary has no place here"),
        (b"a: !!int three", 1, '"three" cannot be read as int'),
        (b"a: 0x_", 1, '"0x_" cannot be read as int'),
        (b"a: " + b"1" * 5000, 1, "cannot be read as int"),
        (b"? [1, 2]\n: 3", 1, "a key must be a word"),
        (b"a: 1\n<<: 3", 2, "only mappings can be merged"),
        (b"a: b: c", 1, "this is not YAML: mapping values are not allowed here"),
        (b"a:\n\tb: 1", 2, "Indent with spaces, not with tabs"),
        (b"a: [1,\nb: 2", 2, "this is not YAML: while parsing a flow sequence"),
        (b"a: 1\n---\nb: 2", 2, "another document"),
        (b"a: *nobody", 1, "undefined alias"),
        (b"a: &a [*a]", 1, "stands within what it stands for"),
        (b"a: 1\nb: \xff", 2, "not text in UTF-8"),
        (b"a: \x00", 1, "not text in UTF-8"),
        (b"[" * 100_000, 1, "nested more than 20 deep"),
        (b"x" * (MAX_BYTES + 1), 0, "at most 1,000,000 are read"),
        (b"a: [" + b"1," * MAX_NODES + b"]", 1, "more than 20,000 keys and values"),
        (b"a: &a 1\nb: [" + b"*a," * (MAX_ALIASES + 1) + b"]", 2, "more than 100 aliases"),
    ],
)
def test_mistakes_are_found_with_their_lines(content: bytes, line: int, text: str) -> None:
    found_line, found_text = sole_finding(content)
    assert found_line == line
    assert text in found_text


def test_aliases_that_multiply_are_stopped() -> None:
    layers = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    layers += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]  # 9^10 values
    assert "more than 20,000" in sole_finding("\n".join(layers).encode())[1]


def test_all_mistakes_of_a_file_are_found_at_once() -> None:
    _, findings = read_yaml(b"a: 1\na: 2\nb: !x 3\nc: {d: 1, d: 2}\n")
    assert [finding.line for finding in findings] == [2, 3, 4]


def test_no_bytes_whatever_raise() -> None:
    rng = random.Random(0)
    alphabet = b"a1: \n-[]{}&*!<>|'\"#%?,\t.e\xff\x00~"
    for _ in range(600):
        content = bytes(rng.choice(alphabet) for _ in range(rng.randrange(1, 40)))
        root, findings = read_yaml(content)
        assert root is not None or findings, content


def test_a_lone_value_is_a_leaf() -> None:
    assert read_yaml(b"0.5") == (Leaf(1, 0.5), [])
