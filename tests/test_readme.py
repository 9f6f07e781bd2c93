"""The README is true: its tables are those of the code, its commands exist, its links lead somewhere."""

import re
import shlex

import pytest
from pydantic import BaseModel

from tests.readme import README, option_rows, parameter_rows
from tune_inat.config import TrialConfig
from tune_inat.search import SET_HELP
from tune_inat.settings import SearchSettings
from tune_inat.space import shipped_spaces

TEXT = README.read_text()
COMMANDS = re.findall(r"python -m tune_inat\.(\w+)((?: [^\n`#]*)?)", TEXT.replace("\\\n", " "))


@pytest.mark.parametrize("row", [*parameter_rows(), *option_rows(), f"| `--set KEY=VALUE` | {SET_HELP} |"])
def test_table_row_is_current(row: str) -> None:
    assert row in TEXT.splitlines()


@pytest.mark.parametrize("model", [TrialConfig, SearchSettings])
def test_every_choice_is_named_where_it_is_described(model: type[BaseModel]) -> None:
    choices = {
        (name, value)
        for name, schema in model.model_json_schema()["properties"].items()
        for kind in (schema, *schema.get("anyOf", ()))
        for value in (*kind.get("enum", ()), *([kind["const"]] if "const" in kind else []))
    }
    assert len(choices) >= 7
    for name, value in choices:
        field = model.model_fields[name]
        assert re.search(rf"\b{value}\b", f"{field.default} {field.description}"), (name, value)


def test_every_search_command_has_options_and_spaces_that_exist() -> None:
    known = {f"--{name.replace('_', '-')}" for name in SearchSettings.model_fields}
    known |= {"--no-reuse", "--no-cpu-trials", "--set", "--json"}
    searches = [shlex.split(arguments) for module, arguments in COMMANDS if module == "search"]
    assert len(searches) >= 3
    for words in searches:
        assert {word for word in words if word.startswith("--")} <= known
        space = words[words.index("--space") + 1]
        assert space in shipped_spaces() or space.endswith(".yaml")


def test_every_file_that_is_linked_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (README.parent / target).exists()
