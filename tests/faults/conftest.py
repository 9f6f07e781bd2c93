"""What tests of faults compare with: searches that nothing happened to."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.processes import new_search

Undisturbed = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Gives the summary of a sweep's search that ran to its end at once."""
    known: dict[str, dict[str, Any]] = {}

    def summary_of(text: str) -> dict[str, Any]:
        if text not in known:
            search = new_search(tmp_path_factory.mktemp("undisturbed"), text, "--wandb", "disabled")
            running = search.run()
            assert running.popen.returncode == 0, running.text
            known[text] = search.summary
        return known[text]

    return summary_of
