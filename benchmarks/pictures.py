"""The pictures of the README, of a search that runs while they are made.

`python -m benchmarks.pictures` runs the README's first command in an empty folder with an empty cache, and
writes to `.github/`: what it printed (`search.svg`), the first screen of its report (`report.png`, where
there is Chromium) and what its trials shared (`reuse.svg`).
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from benchmarks.reuse_figure import draw_reuse
from tune_inat.board import TrialBoard
from tune_inat.meter import Advance
from tune_inat.progress import Terminal
from tune_inat.report import REPORT_FILE
from tune_inat.search import run_search
from tune_inat.settings import make_settings
from tune_inat.standings import Standings
from tune_inat.store import CACHE_VARIABLE

FOLDER = Path(__file__).parents[1] / ".github"
COMMAND = "python -m tune_inat.search --space grid"
WIDTH = 92  # characters
SCREEN = (1280, 880)  # pixels of the report that are shown


class Afterwards(Terminal):
    """A terminal as it looks when all is over: what is drawn over while a search runs is never drawn."""

    @contextmanager
    def _bar(self, work: Any) -> Iterator[Advance]:
        yield work.advance

    @contextmanager
    def trials(self, total: int, *others: Any) -> Iterator[TrialBoard]:
        """Show no live table."""
        yield TrialBoard(Standings(total=total), time.monotonic, warn=self.warn)


def record_search(picture: Path) -> tuple[Path, dict[str, Any]]:
    """Run the README's first search in this folder and save what it leaves on a terminal as an SVG.

    Returns:
        The search's folder and its summary.
    """
    console = Console(
        file=io.StringIO(),
        record=True,
        width=WIDTH,
        force_terminal=True,
        force_interactive=True,
        highlight=False,
    )
    console.print(Text.assemble(("$ ", "bold green"), (COMMAND, "bold")))
    result = run_search(make_settings(space="grid"), Afterwards(console=console, results=console))
    picture.write_text(console.export_svg(title="tune_inat"), encoding="utf-8")
    return result.folder, result.summary


def photograph_report(report: Path, picture: Path) -> bool:
    """Save the first screen of a report as a PNG; says whether there is a browser to do it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return False
    flags = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=9000",
    )
    size = f"--window-size={SCREEN[0]},{SCREEN[1]}"
    command = [chromium, *flags, size, f"--screenshot={picture}", report.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return True


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--into", type=Path, default=FOLDER, help="the folder of the pictures")
    into = parser.parse_args().into.resolve()
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chdir(scratch):
        os.environ |= {CACHE_VARIABLE: str(Path(scratch, "cache")), "WANDB_MODE": "offline"}
        folder, summary = record_search(into / "search.svg")
        (into / "reuse.svg").write_text(draw_reuse(summary), encoding="utf-8")
        has_browser = photograph_report(folder / REPORT_FILE, into / "report.png")
    sys.stdout.write(f"Written: search.svg, reuse.svg{', report.png' if has_browser else ''}\n")
    if not has_browser:
        sys.stdout.write("There is no chromium here: report.png stays as it is.\n")


if __name__ == "__main__":
    main()
