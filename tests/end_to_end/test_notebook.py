"""In a notebook a search shows what it does, in the cell, and a mistake without a traceback."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.end_to_end

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def run_cells(*cells: str, cwd: Path) -> Sequence[Any]:
    """The outputs of each cell of a notebook that a real kernel ran."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(
        notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": str(cwd)}}
    )
    client.execute()
    return [cell["outputs"] for cell in notebook.cells]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Any]:
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "one.yaml").write_text("method: grid\nparameters:\n  epochs:\n    values: [1]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_INAT_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_MODE", "disabled")
        return run_cells(
            "from tune_inat import search\n"
            "result = search('one.yaml', image_size=32, overrides={'freeze': 1.0})",
            "result.best['test_accuracy'] > 0.1",
            "search('grid', data='nowhere')",
            "from tune_inat.progress import Terminal\n"
            "with Terminal().task('Counting sheep', 100, 'sheep') as advance:\n"
            "    advance(40)",
            "from tune_inat.notebook import Canvas\ncanvas = Canvas()\ncanvas.draw('a table of trials')",
            cwd=folder,
        )


def text_of(cell: Sequence[Any]) -> str:
    """All that a cell printed, without its colours."""
    return ESCAPES.sub("", "".join(output["text"] for output in cell if output["output_type"] == "stream"))


def test_search_is_told_from_its_first_line_to_its_last(outputs: Sequence[Any]) -> None:
    lines = text_of(outputs[0]).splitlines()
    assert lines[0] == "Search space one.yaml on sample"
    assert any(line.startswith("Planning: ") for line in lines)
    assert any(line.startswith("Best:   trial ") for line in lines)
    assert lines[-1] == "Report: runs/one-sample/report.html"


def test_what_was_drawn_while_it_ran_is_gone_at_the_end(outputs: Sequence[Any]) -> None:
    drawn = [output for cell in outputs[:4] for output in cell if output["output_type"] == "display_data"]
    assert drawn
    assert {output["data"]["text/plain"] for output in drawn} == {""}


def test_result_is_there_for_the_next_cell(outputs: Sequence[Any]) -> None:
    assert [output["data"]["text/plain"] for output in outputs[1]] == ["True"]


def test_mistake_is_told_in_words_alone(outputs: Sequence[Any]) -> None:
    *_, error = outputs[2]
    assert error["ename"] == "DataError"
    assert len(error["traceback"]) == 1
    assert "nowhere" in error["traceback"][0]
    assert "Traceback" not in error["traceback"][0]


def test_long_step_says_what_it_has_done(outputs: Sequence[Any]) -> None:
    assert text_of(outputs[3]).startswith("Counting sheep: 40 sheep in ")


def test_what_runs_is_drawn_in_the_cell(outputs: Sequence[Any]) -> None:
    (drawn,) = outputs[4]
    assert drawn["data"]["text/plain"] == "a table of trials"
