"""`report.html` of a search, a page that holds all it needs: `python -m tune_inat.report runs/NAME`."""

import hashlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from tune_inat.disk import writing
from tune_inat.elsewhere import folder_at, send_to
from tune_inat.errors import printable, run_command
from tune_inat.leaderboard import BEST_MODEL_FOLDER, PREDICTIONS_FILE, read_summary
from tune_inat.ledger import LEDGER_FILE
from tune_inat.remote import is_uri
from tune_inat.report_facts import are_trials, read_search_to_report
from tune_inat.store import write_atomically

REPORT_FILE = "report.html"
TOP_CHARACTERS = 1_000  # of a page, in which it says what it was made of


def write_report(folder: Path) -> Path:
    """Write the report of a search, whether it has ended or not, into the search's folder.

    The same folder gives the same page. It holds all it needs: no network, no other file.

    Raises:
        UserError: there is no such folder, or it holds no search.
        ResourceError: the page cannot be written there.
    """
    search = read_search_to_report(folder)
    from tune_inat.report_lead import lead
    from tune_inat.report_model import (
        audit_section,
        model_sections,
    )  # Optuna and plotly, for a real search only
    from tune_inat.report_page import page
    from tune_inat.report_sections import (
        curves_section,
        leaderboard_section,
        parameters_section,
        recipe_section,
        rungs_section,
        timeline_section,
    )

    sections = [
        leaderboard_section(search),
        curves_section(search),
        parameters_section(search),
        rungs_section(search),
        timeline_section(search),
        *model_sections(search),
        audit_section(search),
        recipe_section(search),
    ]
    content = page(f"{search.name}: report of a search", lead(search), sections, made_of=_made_of(folder))
    path = folder / REPORT_FILE
    with writing(path):
        write_atomically(path, content.encode("utf-8", "backslashreplace"))
    return path


def is_current(folder: Path) -> bool:
    """Whether a search's folder has a report, made of what the folder holds now but for the times taken."""
    from tune_inat.report_page import made_of_mark

    try:
        with (folder / REPORT_FILE).open(encoding="utf-8", errors="replace") as file:
            return made_of_mark(_made_of(folder)) in file.read(TOP_CHARACTERS)
    except OSError:
        return False


def _made_of(folder: Path) -> str:
    """The hash of what a report shows."""
    digest = hashlib.sha256()
    for name in (LEDGER_FILE, PREDICTIONS_FILE, f"{BEST_MODEL_FOLDER}/config.json"):
        with suppress(OSError):
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
        digest.update(name.encode())
    summary = read_summary(folder) or {}
    trials = summary["trials"] if are_trials(summary.get("trials")) else []
    shown = [(trial.get("trial_id"), trial.get("status")) for trial in trials]
    digest.update(repr((summary.get("status"), shown)).encode())
    return digest.hexdigest()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(folder: Annotated[str, typer.Argument(help="The folder of a search: runs/NAME, or a URI.")]) -> None:
    """Write the report of a search to report.html in its folder; of one that still runs, too."""
    with folder_at(folder, is_wanted=_is_wanted) as place:
        report = write_report(place)
        written = send_to(folder, report, REPORT_FILE) if is_uri(folder) else str(report)
    sys.stdout.write(f"{printable(written)}\n")


def _is_wanted(name: str) -> bool:
    """Whether a report needs a file of a search: neither weights nor W&B's runs."""
    return not name.startswith("wandb/") and not name.endswith((".safetensors", ".onnx"))


if __name__ == "__main__":
    run_command(app)
