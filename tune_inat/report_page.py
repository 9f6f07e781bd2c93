"""HTML of a report: elements that escape their text, tables, charts, and the page around them."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from tune_inat.errors import printable
from tune_inat.wording import short

VOID = frozenset({"img", "input", "meta", "br", "link"})
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
MISSING = "\N{EN DASH}"  # the cell of a value that is not there
Figure = dict[str, Any]  # plotly's JSON: data, layout


class Html(str):
    """Text that is markup already. Any other text is escaped where it enters a page."""

    __slots__ = ()


@dataclass(frozen=True)
class Column:
    """A table's column. `is_number` puts it flush right."""

    title: str
    is_number: bool = False


@dataclass(frozen=True)
class Cell:
    """A table's cell that is sorted by `order`: a number, or `None` for what comes last."""

    content: str
    order: float | None


@dataclass(frozen=True)
class Section:
    """A part of the page. `anchor` is its id."""

    anchor: str
    title: str
    body: Html


def escape(text: str) -> Html:
    """Text as HTML; markup stays what it is. Control and direction characters show as escapes."""
    return text if isinstance(text, Html) else Html(html.escape(printable(str(text))))


def element(name: str, *children: str, **attributes: str | bool | None) -> Html:
    """An element. `class_` is class, `aria_label` is aria-label; `True` has no value, `None` is left out."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Parts one after another."""
    return Html("".join(escape(part) for part in parts))


def paragraph(*children: str, class_: str | None = None) -> Html:
    """A paragraph."""
    return element("p", *children, class_=class_)


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[str | Cell]],
    *,
    name: str | None = None,
    header_column: int = 0,
) -> Html:
    """A table in a box that scrolls. With a `name` its columns can be sorted and its rows filtered.

    Args:
        header_column: whose cells name their rows.
    """
    heads = [_head(column, is_sortable=name is not None) for column in columns]
    body = [_row(row, columns, header_column) for row in rows]
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        element("tbody", *body),
        id=f"{name}-table" if name else None,
        class_="sortable" if name else None,
    )
    box = element("div", content, class_="scroll", tabindex="0", role="region", aria_label=caption)
    if name is None:
        return box
    counted = element("span", f"{len(body):,} rows", id=f"{name}-table-count", role="status")
    label = element("label", "Filter rows ", element("input", type="search", data_filters=f"{name}-table"))
    return join([element("p", label, counted, class_="filter"), box])


def chart(
    name: str, figure: Figure, *, title: str, text: str, height: int = 380, is_wide: bool = False
) -> Html:
    """A chart with its caption; `text` says in words what it shows, also to those who do not see it."""
    plot = element(
        "div", id=f"{name}-plot", class_="plot", role="img", aria_label=title, style=f"height:{height}px"
    )
    if is_wide:  # on a small screen it scrolls
        plot = element(
            "div", plot, class_="wide", tabindex="0", role="region", aria_label=f"{title}, a chart"
        )
    data = Html(f'<script type="application/json" id="{name}-plot-data">{script_json(figure)}</script>')
    caption = element("figcaption", element("strong", title), " ", element("span", text))
    return element("figure", caption, plot, data, class_="chart")


def chart_text(text: Any, limit: int = 40) -> str:
    """Foreign text for a chart: plotly reads some tags, so they are escaped; long text is cut."""
    plain = printable(str(text)).replace("\n", " ")
    return html.escape(plain if len(plain) <= limit else f"{plain[: limit - 1]}…", quote=False)


def number(value: float | None) -> str:
    """A metric with four decimals."""
    return MISSING if value is None else f"{value:.4f}"


def value_text(value: Any) -> str:
    """A parameter's value with as many digits as tell trials apart."""
    if value is None:
        return MISSING
    return short(float(f"{value:.4g}")) if isinstance(value, float) else str(value)


def count(values: Mapping[str, Any], name: str) -> str:
    """A whole number by its name."""
    value = values.get(name)
    return f"{value:,}" if isinstance(value, int) else MISSING


def script_json(value: Any) -> str:
    """JSON that can stand in a script element whatever it holds; numbers that JSON lacks are null."""
    text = json.dumps(_finite(value), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(title: str, lead: Html, sections: Sequence[Section], *, made_of: str) -> str:
    """The whole document, with styles and scripts inside it; `made_of` tells later what it was made of."""
    from plotly.offline import get_plotlyjs

    links = [element("li", element("a", part.title, href=f"#{part.anchor}")) for part in sections]
    contents = element("nav", element("ul", *links), aria_label="Contents")
    parts = [_section(part) for part in sections]
    no_script = element("noscript", paragraph("The charts need JavaScript; all tables are here without it."))
    head = join(
        [
            Html('<meta charset="utf-8">'),
            made_of_mark(made_of),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            Html('<link rel="icon" href="data:,">'),
            element("title", title),
            Html(f"<style>{_asset('report.css')}</style>"),
        ]
    )
    scripts = f"<script>{_in_script(get_plotlyjs())}</script><script>{_asset('report.js')}</script>"
    body = join([element("header", lead), contents, element("main", no_script, *parts), Html(scripts)])
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>{body}</body>\n</html>\n'


def made_of_mark(made_of: str) -> Html:
    """What stands near the top of a page that was made of this."""
    return Html(f'<meta name="made-of"{_attribute("content", made_of)}>')


def _attribute(key: str, value: str | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(printable(value))}"'


def _head(column: Column, *, is_sortable: bool) -> Html:
    content: str = column.title
    if is_sortable:
        content = element("button", column.title, type="button")
    class_ = "number" if column.is_number else None
    return element("th", content, scope="col", class_=class_, aria_sort="none" if is_sortable else None)


def _row(row: Sequence[str | Cell], columns: Sequence[Column], header_column: int) -> Html:
    cells = []
    for index, (cell, column) in enumerate(zip(row, columns, strict=True)):
        content, order = (cell.content, cell.order) if isinstance(cell, Cell) else (cell, None)
        is_header = index == header_column
        cells.append(
            element(
                "th" if is_header else "td",
                content,
                scope="row" if is_header else None,
                class_="number" if column.is_number else None,
                data_order=None if order is None else repr(order),
            )
        )
    return element("tr", *cells)


def _section(part: Section) -> Html:
    heading = element("h2", part.title, id=f"{part.anchor}-title")
    return element("section", heading, part.body, id=part.anchor, aria_labelledby=f"{part.anchor}-title")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_script(source: str) -> str:
    """A script that cannot close its own element, and does not open a comment in it."""
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _asset(name: str) -> str:
    return (files("tune_inat") / "report_assets" / name).read_text(encoding="utf-8")
