"""The README is true: its tables are those of the code, its commands exist, its links lead somewhere."""

import re
import shlex

import pytest

from tests.readme import README, option_rows, parameter_rows
from tune_inat.settings import SearchSettings
from tune_inat.space import shipped_spaces

TEXT = README.read_text()
COMMANDS = re.findall(r"python -m tune_inat\.(\w+)((?: [^\n`#]*)?)", TEXT.replace("\\\n", " "))


@pytest.mark.parametrize("row", [*parameter_rows(), *option_rows()])
def test_table_row_is_current(row: str) -> None:
    assert row in TEXT.splitlines()


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
