"""The figure of what trials share: drawn from a search's summary, so that it shows what was done."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from tune_inat.tables import amount

WIDTH = 940
INK, DIM, LINE, KEPT, TRAINED, PAPER = "#1f2328", "#59636e", "#8c959f", "#ddf4ff", "#1a7f37", "#ffffff"
FONT = "font-family='ui-sans-serif, system-ui, sans-serif'"
TOP, CUT_HEIGHT = 96, 108  # of the rows of cuts
PIXELS_X, CUTS_X, TRIALS_X, BOX_WIDTH = 150, 330, 560, 150
SQUARE, STEP = 15, 19  # pixels of an epoch's square, and from one to the next


def draw_reuse(summary: Mapping[str, Any]) -> str:
    """The three kinds of reuse of one search, as an SVG.

    Args:
        summary: the content of `summary.json` of a search that ran whole, on an empty cache.
    """
    order = ("freeze", "batch_size")
    trials = sorted(
        summary["trials"],
        key=lambda trial: (*(trial["config"][name] for name in order), -trial["config"]["epochs"]),
    )
    plan = summary["planned"]["plan"]
    cuts = [cut for cut in plan["cuts"] if cut["n_bytes"]]
    height = TOP + CUT_HEIGHT * len(cuts) + 44
    middle = TOP + CUT_HEIGHT * len(cuts) / 2 - 10
    n_bytes = sum(3 * part["image_size"] ** 2 * part["n_images"] for part in plan["pixels"])
    n_images, asked = summary["reuse"]["pixels_decoded"], summary["reuse"]["epochs_asked"]
    parts = [
        *_title(16, "1. decode once", "every image, by content"),
        *_title(CUTS_X - 20, "2. frozen layers once", "activations at each cut"),
        *_title(TRIALS_X, "3. shared epochs once", "trials that differ in epochs are one family"),
        *_box(16, middle - 26, 100, 52, [f"{n_images:,}", "images"], fill=PAPER),
        *_arrow(116, middle, PIXELS_X, middle),
        *_box(PIXELS_X, middle - 26, 120, 52, ["pixels", amount(n_bytes, "bytes")]),
    ]
    for row, cut in enumerate(cuts):
        y = TOP + CUT_HEIGHT * row
        parts += _arrow(PIXELS_X + 120, middle, CUTS_X, y + 36)
        parts += _box(CUTS_X, y + 8, BOX_WIDTH, 56, [cut["reads"], amount(cut["n_bytes"], "bytes")])
        parts += _arrow(CUTS_X + BOX_WIDTH, y + 36, TRIALS_X - 8, y + 36)
        parts += _families([trial for trial in trials if trial["did"]["cut"] == cut["cut"]], y)
    trained = summary["reuse"]["epochs_trained"]
    parts += _text(
        16, height - 16, f"{len(trials)} trials ask for {asked} epochs; {trained} are trained.", INK
    )
    parts += _square(TRIALS_X, height - 28, is_trained=True)
    parts += _text(TRIALS_X + 22, height - 16, "trained")
    parts += _square(TRIALS_X + 90, height - 28, is_trained=False)
    parts += _text(TRIALS_X + 112, height - 16, "taken from the longer trial")
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' {FONT} role='img'>"
    label = f"<title>{asked} epochs asked for, {trained} trained</title>"
    paper = f"<rect width='{WIDTH}' height='{height}' rx='8' fill='{PAPER}'/>"
    return "\n".join([head, label, paper, *parts, "</svg>\n"])


def _families(trials: Sequence[Mapping[str, Any]], y: float) -> Iterator[str]:
    """The trials of one cut, each a row of epochs, longest first within each family."""
    families: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        own = {name: value for name, value in trial["config"].items() if name != "epochs"}
        families.setdefault(str(sorted(own.items())), []).append(trial)
    row = y + 4
    for family in families.values():
        for index, trial in enumerate(family):
            for epoch in range(trial["config"]["epochs"]):
                yield from _square(TRIALS_X + STEP * epoch, row, is_trained=index == 0)
            config = trial["config"]
            said = (
                f"freeze {config['freeze']:g}, batch size {config['batch_size']}, epochs {config['epochs']}"
            )
            yield from _text(TRIALS_X + STEP * 7 + 8, row + 12, said)
            row += STEP
        row += 8


def _title(x: float, title: str, under: str) -> Iterator[str]:
    yield f"<text x='{x}' y='34' font-size='16' font-weight='600' fill='{INK}'>{escape(title)}</text>"
    yield f"<text x='{x}' y='56' font-size='13' fill='{DIM}'>{escape(under)}</text>"


def _box(
    x: float, y: float, width: float, height: float, lines: Sequence[str], fill: str = KEPT
) -> Iterator[str]:
    yield (
        f"<rect x='{x}' y='{y:g}' width='{width}' height='{height}' rx='6' fill='{fill}' stroke='{LINE}'/>"
    )
    for number, line in enumerate(lines):
        style = f"font-size='13' fill='{INK if number == 0 else DIM}' text-anchor='middle'"
        yield f"<text x='{x + width / 2:g}' y='{y + 22 + 20 * number:g}' {style}>{escape(line)}</text>"


def _arrow(x1: float, y1: float, x2: float, y2: float) -> Iterator[str]:
    yield f"<line x1='{x1}' y1='{y1:g}' x2='{x2 - 6}' y2='{y2:g}' stroke='{LINE}' stroke-width='1.5'/>"
    yield f"<path d='M{x2 - 7} {y2 - 4:g} L{x2} {y2:g} L{x2 - 7} {y2 + 4:g} Z' fill='{LINE}'/>"


def _square(x: float, y: float, *, is_trained: bool) -> Iterator[str]:
    fill = f"fill='{TRAINED}'" if is_trained else f"fill='{PAPER}' stroke='{TRAINED}' stroke-dasharray='2 2'"
    yield f"<rect x='{x}' y='{y:g}' width='{SQUARE}' height='{SQUARE}' rx='3' {fill}/>"


def _text(x: float, y: float, text: str, fill: str = DIM) -> Iterator[str]:
    yield f"<text x='{x}' y='{y:g}' font-size='13' fill='{fill}'>{escape(text)}</text>"
