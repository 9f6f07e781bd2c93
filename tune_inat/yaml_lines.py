"""YAML in which every value knows its line, and whose mistakes are all found at once."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 20  # of mappings and lists in one another
MAX_ALIASES = 100
MAX_NODES = 20_000  # with aliases written out; PyYAML reads some 40,000 a second

_TOO_MANY = f"it has more than {MAX_NODES:,} keys and values."
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float")}
_TEXT_TAGS = {f"{_TAG}{name}" for name in ("str", "timestamp", "value", "merge")}
_NUMBER = re.compile(r"[-+]?(\d+|(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?)")
_MAX_DIGITS = 300  # of a number; a longer one is no sensible value, and Python balks at 4,300


class Finding(NamedTuple):
    """Something that a reader of the file should know, in a whole sentence. Line 0: of the file itself."""

    line: int
    text: str


@dataclass(frozen=True)
class Leaf:
    """A single value: text, a number, true, false or nothing."""

    line: int
    value: Any

    def plain(self) -> Any:
        """The value itself."""
        return self.value


@dataclass(frozen=True)
class Listing:
    """A list."""

    line: int
    items: Sequence["Node"]

    def plain(self) -> list[Any]:
        """As Python's list."""
        return [item.plain() for item in self.items]


@dataclass(frozen=True)
class Table:
    """A mapping.

    Attributes:
        line: of the key that it is the value of, if it is; what it lacks is missing there.
        key_lines: the line of each key; its value may begin on a later one.
    """

    line: int
    nodes: Mapping[str, "Node"] = field(default_factory=dict)
    key_lines: Mapping[str, int] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As Python's dict."""
        return {key: node.plain() for key, node in self.nodes.items()}

    def line_of(self, path: Sequence[str | int]) -> int:
        """The line of the value at a path, or of the last step towards it that exists."""
        line = self.line
        node: Node = self
        for step in path:
            if isinstance(node, Table) and isinstance(step, str) and step in node.nodes:
                line, node = node.key_lines[step], node.nodes[step]
            elif isinstance(node, Listing) and isinstance(step, int) and step < len(node.items):
                node = node.items[step]
                line = node.line
            else:
                break
        return line


Node = Leaf | Listing | Table


def read_yaml(content: bytes) -> tuple[Node | None, list[Finding]]:
    """The tree of a YAML document and all that is wrong with it; no tree if it is not YAML at all.

    It is read as PyYAML's safe loader reads it, but `1e-3` is a number, keys are always text, a key may
    not be given twice, and tags like `!!python/object` are refused.
    """
    if len(content) > MAX_BYTES:
        text = f"it has {len(content):,} bytes; at most {MAX_BYTES:,} are read."
        return None, [Finding(0, text)]
    try:
        loader = _BoundedLoader(content)
        root = loader.get_single_node()
    except _TooMuchError as error:
        return None, [Finding(error.line, str(error))]
    except yaml.YAMLError as error:
        return None, [_syntax_error(error, content)]
    if root is None:
        return None, [Finding(0, "the file is empty.")]
    reader = _Reader(loader)
    try:
        return reader.read(root), reader.findings
    except _TooMuchError as error:
        return None, [*reader.findings, Finding(error.line, str(error))]


def number_in(text: str) -> int | float | None:
    """The number that a text spells in decimal digits, with or without a point or an exponent."""
    if not _NUMBER.fullmatch(text.strip()):
        return None
    is_whole = text.strip().lstrip("+-").isdigit() and len(text) <= _MAX_DIGITS
    return int(text) if is_whole else float(text)


class _TooMuchError(Exception):
    """A document that would take too long to read."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with limits on what makes it slow or overflow the stack."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._depth = 0
        self._n_aliases = 0
        self._n_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count on the way down, then do as PyYAML does."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        self._n_aliases += isinstance(event, yaml.AliasEvent)
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES:
            raise _TooMuchError(line, _TOO_MANY)
        if self._n_aliases > MAX_ALIASES:
            raise _TooMuchError(line, f"there are more than {MAX_ALIASES} aliases (*name).")
        if self._depth == MAX_DEPTH:
            raise _TooMuchError(line, f"mappings and lists are nested more than {MAX_DEPTH} deep.")
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Reader:
    """Turns PyYAML's nodes into ours and collects what is wrong with them."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self.findings: list[Finding] = []
        self._loader = loader
        self._n_nodes = 0
        self._above: list[yaml.Node] = []

    def read(self, node: yaml.Node) -> Node:
        line = _line(node)
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES:
            raise _TooMuchError(line, _TOO_MANY)
        if any(node is other for other in self._above):
            raise _TooMuchError(line, "an alias (*name) stands within what it stands for.")
        self._above.append(node)
        try:
            if isinstance(node, yaml.ScalarNode):
                return Leaf(line, self._scalar(node))
            if isinstance(node, yaml.SequenceNode):
                self._check_tag(node, "seq")
                return Listing(line, [self.read(item) for item in node.value])
            assert isinstance(node, yaml.MappingNode), node
            self._check_tag(node, "map")
            return self._table(node)
        finally:
            self._above.pop()

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag in _TEXT_TAGS:
            number = number_in(node.value) if self._is_bare_text(node) else None
            return node.value if number is None else number
        if node.tag not in _SCALAR_TAGS:
            self._check_tag(node, "str")
            return node.value
        if len(node.value) <= _MAX_DIGITS:  # `1:1:1:...`, in base 60, takes half a minute for a megabyte
            with suppress(ValueError, LookupError):  # `!!int x`, `0x_`, `!!bool maybe`
                return self._loader.construct_object(node)
        self._find(node, f'"{node.value[:40]}" cannot be read as {node.tag.removeprefix(_TAG)}.')
        return node.value

    def _is_bare_text(self, node: yaml.ScalarNode) -> bool:
        """Whether YAML 1.1 takes a value for text without being told so by quotes or a tag."""
        text = f"{_TAG}str"
        implied = self._loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        return node.style is None and node.tag == implied == text

    def _table(self, node: yaml.MappingNode) -> Table:
        nodes: dict[str, Node] = {}
        key_lines: dict[str, int] = {}
        merged: list[Table] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged.extend(self._merged(value_node))
                continue
            value = self.read(value_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._find(key_node, "a key must be a word, not a list or a mapping.")
                continue
            key, line = key_node.value, _line(key_node)
            if key in nodes:
                self._find(key_node, f'"{key}" is given twice: it is in line {key_lines[key]} already.')
                continue
            nodes[key] = replace(value, line=line) if isinstance(value, Table) else value
            key_lines[key] = line
        for table in merged:  # what the mapping says itself goes before what it merges, as YAML has it
            nodes = {**table.nodes, **nodes}
            key_lines = {**table.key_lines, **key_lines}
        return Table(_line(node), nodes, key_lines)

    def _merged(self, node: yaml.Node) -> list[Table]:
        read = self.read(node)
        tables = read.items if isinstance(read, Listing) else [read]
        if not all(isinstance(table, Table) for table in tables):
            self._find(node, "only mappings can be merged with <<.")
        return [table for table in tables if isinstance(table, Table)]

    def _check_tag(self, node: yaml.Node, expected: str) -> None:
        if node.tag != f"{_TAG}{expected}":
            tag = node.tag.replace(_TAG, "!!")
            self._find(node, f"the tag {tag} has no place here; write the value itself.")

    def _find(self, node: yaml.Node, text: str) -> None:
        self.findings.append(Finding(_line(node), text))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_error(error: yaml.YAMLError, content: bytes) -> Finding:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        text = f"this is not YAML: {', '.join(filter(None, (error.context, error.problem)))}."
        if "'\\t'" in text:
            text += " Indent with spaces, not with tabs."
        return Finding(mark.line + 1 if mark else 0, text)
    position = getattr(error, "position", 0)
    line = content[:position].count(b"\n") + 1
    return Finding(line, f"this is not text in UTF-8: {getattr(error, 'reason', error)}.")
