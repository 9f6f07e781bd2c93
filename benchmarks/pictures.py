"""The pictures of the README: what its first command prints, recorded while it runs.

`python -m benchmarks.pictures` runs the search in an empty folder, with the user's cache, and writes
`.github/search.svg`.
"""

import io
import os
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tune_inat.conduct import conduct_search
from tune_inat.progress import Terminal
from tune_inat.settings import make_settings

PICTURE = Path(__file__).parents[1] / ".github" / "search.svg"
COMMAND = "python -m tune_inat.search --space grid"
WIDTH = 92  # characters


def record_search(picture: Path) -> None:
    """Run the README's first search and save what it prints as an SVG."""
    # Not interactive: a live table would be recorded each time that it is drawn.
    console = Console(
        file=io.StringIO(),
        record=True,
        width=WIDTH,
        force_terminal=True,
        force_interactive=False,
        highlight=False,
    )
    console.print(Text.assemble(("$ ", "bold green"), (COMMAND, "bold")))
    settings = make_settings(space="grid")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        conduct_search(settings, Terminal(console=console, results=console), started=time.monotonic())
    picture.parent.mkdir(exist_ok=True)
    picture.write_text(console.export_svg(title=COMMAND), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "offline")
    record_search(PICTURE)
    sys.stdout.write(f"Written: {PICTURE.relative_to(PICTURE.parents[1])}\n")
