"""Compare searches: `python -m tune_inat.results runs/*` is a table of what each found and took."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_inat.comparison import SORT_KEYS, DataFacts, SearchFacts, compare_searches, to_csv
from tune_inat.elsewhere import folders_at
from tune_inat.errors import UserError, printable, run_command
from tune_inat.progress import LOG_WIDTH
from tune_inat.tables import duration, number, short

GAP = 2  # columns between two columns of a table
MAX_NAME, MIN_NAME = 40, 12  # columns of a search's name; in a narrow terminal it has a third of the width
MAX_MODEL, MIN_PARAMETERS = 28, 24  # columns
PARAMETERS = "of the best trial"
BY_IMPORTANCE = (  # what is in a table if all does not fit
    *("search", "test acc", "val", "interval", "done", "failed", "stopped", "left", "epochs", "time"),
    *("model", PARAMETERS, "method", "space", "written"),
)
LEFT_ALIGNED = ("search", "space", "method", "model", PARAMETERS)
ONLY_WHERE_ANY = ("failed", "stopped", "left")
STYLES = {"failed": "red", "stopped": "yellow", "left": "yellow"}


@dataclass(frozen=True)
class Comparison:
    """The tables of a comparison, one for each group of searches on the same images.

    Attributes:
        searches: in groups; within one, in the order of its rows.
    """

    searches: Sequence[Sequence[SearchFacts]]

    def print_to(self, console: Console) -> None:
        """Print what fits into the console's width: the columns that matter most, none of them cut."""
        columns = self._columns(console.width)
        for group in self.searches:
            heading = Text.assemble((_line(group[0].data.name), "bold"), _images(group[0].data))
            console.print(heading, soft_wrap=True)
            console.print(self._table(group, columns), soft_wrap=not console.is_terminal)
            console.print()
        for line in self._legend(columns):
            console.print(Text(line, style="dim"), soft_wrap=not console.is_terminal)

    def _columns(self, width: int) -> dict[str, int]:
        """Titles in their order with their widths, the same for all groups: they are read down."""
        searches = [search for group in self.searches for search in group]
        widths: dict[str, int] = {}
        room = width + GAP
        for title in BY_IMPORTANCE:
            cells = [self._text(title, search) for search in searches]
            if title in ONLY_WHERE_ANY and not any(cell != "0" for cell in cells):
                continue
            wanted = max(cell_len(text) for text in (self._heading(title), *cells))
            if title == "search":
                wanted = min(wanted, MAX_NAME, max(MIN_NAME, width // 3))
            needed = min(wanted, MIN_PARAMETERS) if title == PARAMETERS else wanted
            if needed + GAP <= room:
                widths[title] = needed
                room -= needed + GAP
        if PARAMETERS in widths:
            wanted = max(cell_len(CELLS[PARAMETERS](search)) for search in searches)
            widths[PARAMETERS] += max(0, min(room, wanted - widths[PARAMETERS]))
        return {title: widths[title] for title in CELLS if title in widths}

    def _table(self, group: Sequence[SearchFacts], columns: Mapping[str, int]) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            padding=(0, GAP - 1, 0, 0),
            pad_edge=False,
            show_edge=False,
            header_style="dim",
        )
        for title, width in columns.items():
            table.add_column(
                self._heading(title),
                width=width,
                justify="left" if title in LEFT_ALIGNED else "right",
                no_wrap=True,
            )
        best = max(group, key=lambda search: search.test_accuracy or 0.0)
        for search in group:
            row = [self._cell(title, search, width) for title, width in columns.items()]
            is_best = len(group) > 1 and search is best and search.test_accuracy is not None
            table.add_row(*row, style="bold green" if is_best else "")
        return table

    def _cell(self, title: str, search: SearchFacts, width: int) -> Text:
        text = self._text(title, search)
        if title == "search":
            text = _squeezed(text, width)
        elif title == PARAMETERS:
            text = _parameters(search, width)
        return Text(text, style=STYLES.get(title, "") if text != "0" else "")

    def _text(self, title: str, search: SearchFacts) -> str:
        """What a cell says if there is room for all of it."""
        if title == "val" and self._metric() is None:
            return f"{_line(search.metric).removeprefix('val_')} {number(search.metric_value)}"
        return CELLS[title](search)

    def _heading(self, title: str) -> str:
        metric = self._metric()
        if title != "val":
            return title
        if metric is None:
            return "best val"
        return "val acc" if metric == "val_accuracy" else _line(metric).replace("_", " ")

    def _metric(self) -> str | None:
        """The metric of all searches, `None` where they looked at several."""
        names = {search.metric for group in self.searches for search in group}
        return names.pop() if len(names) == 1 else None

    def _legend(self, columns: Mapping[str, int]) -> list[str]:
        lines = []
        if "interval" in columns:
            lines.append("interval: where the test accuracy lies with 95 % confidence")
        if "epochs" in columns:
            lines.append("epochs: trained, of those that the trials asked for")
        if "time" in columns and any(search.was_continued for group in self.searches for search in group):
            lines.append("+ after a time: of the last run of the command only, the search began before it")
        if len(self.searches) > 1:
            lines.append("Accuracies on different images cannot be compared.")
        return lines


def _line(text: str) -> str:
    """Foreign text as one line that cannot drive the terminal."""
    return printable(text).replace("\n", " ")


def _images(data: DataFacts) -> str:
    parts = [f"{count:,} {part}" for part, count in (("train", data.train), ("val", data.val))]
    parts += [f"{data.test:,} test"] if data.test else []
    return f": {data.classes:,} classes, {', '.join(parts)} images ({_line(data.fingerprint[:8])})"


def _trial_parameters(search: SearchFacts) -> list[str]:
    return [f"{_line(name)} {short(value)}" for name, value in search.varied.items()]


def _parameters(search: SearchFacts, width: int) -> str:
    """As many of the best trial's varied parameters as there is room for."""
    items = _trial_parameters(search)
    text = ", ".join(items)
    while cell_len(text) > width:
        items = items[:-1]
        text = ", ".join([*items, "..."])
    return text


def _squeezed(text: str, width: int) -> str:
    """A name in so many columns; its ends tell most."""
    if cell_len(text) <= width:
        return text
    end = (width - 3) // 2
    reversed_end = set_cell_size(text[::-1], end)
    return set_cell_size(text, width - 3 - end) + "..." + reversed_end[::-1]


def _models(search: SearchFacts) -> str:
    names = [_squeezed(_line(model), MAX_MODEL) for model in search.models]
    return names[0] if len(names) == 1 else f"{names[0]} +{len(names) - 1}" if names else "-"


def _interval(search: SearchFacts) -> str:
    if search.test_interval is None:
        return "-"
    low, high = search.test_interval
    return f"{low:.3f}-{high:.3f}"


CELLS: Mapping[str, Callable[[SearchFacts], str]] = {  # in the order of the columns
    "search": lambda search: _line(search.name),
    "space": lambda search: short(Path(search.space).name),
    "method": lambda search: short(search.method),
    "model": _models,
    "done": lambda search: f"{search.done:,}",
    "stopped": lambda search: f"{search.stopped:,}",
    "failed": lambda search: f"{search.failed:,}",
    "left": lambda search: f"{search.left:,}",
    PARAMETERS: lambda search: ", ".join(_trial_parameters(search)),
    "val": lambda search: number(search.metric_value),
    "test acc": lambda search: number(search.test_accuracy),
    "interval": _interval,
    "epochs": lambda search: f"{search.epochs_trained:,}/{search.epochs_asked:,}",
    "time": lambda search: duration(search.wall_seconds) + ("+" if search.was_continued else ""),
    "written": lambda search: search.written.astimezone().strftime("%Y-%m-%d %H:%M"),
}


def open_console() -> Console:
    """Stdout, as wide as the terminal; a file or a pipe has room for `LOG_WIDTH` columns."""
    is_terminal = sys.stdout.isatty()
    return Console(markup=False, emoji=False, highlight=False, width=None if is_terminal else LOG_WIDTH)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    folders: Annotated[
        list[str], typer.Argument(help="Folders of searches: runs/NAME, runs/*, or s3://bucket/runs.")
    ],
    sort: Annotated[str, typer.Option(help=f"The order: {', '.join(SORT_KEYS)}.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of tables.")] = False,
) -> None:
    """Compare searches by what they found and took; those on the same images stand together."""
    if as_json and as_csv:
        raise UserError("--json and --csv: one of them.")
    groups, notices = compare_searches(folders_at(folders), sort=sort)
    for notice in notices:
        sys.stderr.write(f"Skipped: {printable(notice)}\n")
    searches = [search for group in groups for search in group]
    if as_json:
        sys.stdout.write(json.dumps([search.to_json() for search in searches], indent=2) + "\n")
    elif as_csv:
        sys.stdout.write(to_csv(searches).encode(errors="backslashreplace").decode())
    else:
        Comparison(groups).print_to(open_console())


if __name__ == "__main__":
    run_command(app)
