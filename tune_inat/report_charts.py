"""The charts of a report that Optuna does not draw, as plotly's JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tune_inat.metrics import CalibrationBins
from tune_inat.objective import Metric
from tune_inat.report_facts import ReportedTrial
from tune_inat.report_page import Figure, chart_text
from tune_inat.report_times import WorkingTime

N_HIGHLIGHTED = 5  # curves that stand out
MAX_CURVES = 300
MAX_BARS = 2_000
MAX_TICKS = 20  # epochs that each have a tick
MAX_HEATMAP = 40  # classes; beyond, names cannot be read
MAX_NUMBERED = 15  # classes whose cells have room for a number
HIGHLIGHTS = ("var(--accent)", "var(--second)", "#2e9e6b", "#b0568f", "#8d7a2b")
STATUS_COLOURS = {
    "TERMINATED": "var(--accent)",
    "STOPPED": "var(--second)",
    "ERROR": "var(--bad)",
    "RUNNING": "var(--good)",
    "SKIPPED": "var(--faint)",
}


def curves(trials: Sequence[ReportedTrial], metric: Metric) -> tuple[Figure, int]:
    """The metric of each trial over its epochs, the best ones in colours; and how many trials are drawn."""
    able = [trial for trial in trials if trial.rows and metric.name in trial.rows[0]]
    if len(able) > MAX_CURVES:
        able = [able[round(place * (len(able) - 1) / (MAX_CURVES - 1))] for place in range(MAX_CURVES)]
    first, others = able[:N_HIGHLIGHTED], able[N_HIGHLIGHTED:]
    xs: list[float | None] = []
    ys: list[float | None] = []
    for trial in others:
        xs += [*(row["epoch"] for row in trial.rows), None]
        ys += [*(row[metric.name] for row in trial.rows), None]
    data: list[dict[str, Any]] = []
    if others:
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": xs,
                "y": ys,
                "name": "all others",
                "opacity": 0.55,
            }
            | {"line": {"width": 1, "color": "var(--faint)"}, "marker": {"size": 3}, "hoverinfo": "skip"}
        )
    for trial, colour in reversed(list(zip(first, HIGHLIGHTS, strict=False))):
        data.append(
            {"type": "scatter", "mode": "lines+markers", "name": chart_text(trial.trial_id)}
            | {"x": [row["epoch"] for row in trial.rows], "y": [row[metric.name] for row in trial.rows]}
            | {"line": {"width": 2.2, "color": colour}, "marker": {"size": 6, "color": colour}}
        )
    layout = _axes("epoch", metric.name.replace("_", " "))
    layout["legend"] |= {"traceorder": "reversed"}
    longest = max((trial.epochs for trial in able), default=0)
    layout["xaxis"] |= {"tickformat": "d", "dtick": 1} if longest <= MAX_TICKS else {"tickformat": "d"}
    return {"data": data, "layout": layout}, len(able)


def rungs(trials: Sequence[ReportedTrial]) -> Figure:
    """How many trials ended after each epoch, by how they ended."""
    counts = Counter((trial.status, trial.epochs) for trial in trials if trial.epochs)
    data = []
    for status in ("TERMINATED", "STOPPED", "ERROR", "RUNNING"):
        bars = sorted((epochs, n) for (found, epochs), n in counts.items() if found == status)
        if bars:
            data.append(
                {"type": "bar", "name": status, "x": [str(x) for x, _ in bars], "y": [n for _, n in bars]}
                | {"marker": {"color": STATUS_COLOURS[status]}}
            )
    layout = _axes("epochs that the trial came to", "trials") | {"barmode": "stack", "bargap": 0.35}
    in_order = [str(epochs) for epochs in sorted({epochs for _, epochs in counts})]
    layout["xaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": in_order}
    layout["showlegend"] = True
    return {"data": data, "layout": layout}


def timeline(trials: Sequence[ReportedTrial], time: WorkingTime) -> Figure:
    """When each trial ran in which process, in seconds of work; a line stands where the search paused."""
    data = []
    for status, colour in STATUS_COLOURS.items():
        chosen = [trial for trial in trials if trial.status == status and trial.started is not None][
            :MAX_BARS
        ]
        if chosen:
            spans = [tuple(map(time.at, time.span(trial))) for trial in chosen]
            data.append(
                {"type": "bar", "orientation": "h", "name": status, "base": [begin for begin, _ in spans]}
                | {"x": [end - begin for begin, end in spans]}
                | {"y": [chart_text(trial.worker or "unknown") for trial in chosen]}
                | {"customdata": [chart_text(trial.trial_id) for trial in chosen]}
                | {"hovertemplate": "%{customdata}: %{base:.1f} s, for %{x:.1f} s<extra>%{y}</extra>"}
                | {"marker": {"color": colour, "line": {"width": 1, "color": "var(--page)"}}}
            )
    layout = _axes("seconds since the first trial began", "") | {"barmode": "overlay", "showlegend": True}
    layout["yaxis"]["type"] = "category"
    if time.pauses:
        layout["xaxis"]["title"]["text"] += ", without pauses (dotted)"
        dotted = {"type": "line", "yref": "paper", "y0": 0, "y1": 1}
        dotted["line"] = {"dash": "dot", "width": 1, "color": "var(--muted)"}
        layout["shapes"] = [dotted | dict.fromkeys(("x0", "x1"), time.at(it.end)) for it in time.pauses]
    return {"data": data, "layout": layout}


def importances(shares: Mapping[str, float]) -> Figure:
    """A bar for each parameter, the most important at the top."""
    names = [chart_text(name) for name in shares][::-1]
    values = list(shares.values())[::-1]
    trace = {"type": "bar", "orientation": "h", "x": values, "y": names, "marker": {"color": "var(--accent)"}}
    texts = {"text": [f"{value:.2f}" for value in values], "textposition": "outside", "cliponaxis": False}
    return {"data": [trace | texts], "layout": _axes("share of the importance", "")}


def confusion(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """A heatmap of the shares of each class: a row for each class, a column for each prediction."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    names = _distinct(classes)
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": shares.round(4).tolist(),
        "x": names,
        "y": names,
        "customdata": counts.tolist(),
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "var(--heat0)"], [1, "var(--heat1)"]],
        "colorbar": {"title": {"text": "share"}, "thickness": 12},
        "hovertemplate": "%{y} taken for %{x}: %{customdata} images (%{z:.1%})<extra></extra>",
        "xgap": 1,
        "ygap": 1,
    }
    if len(classes) <= MAX_NUMBERED:
        trace["text"] = [[str(n) if n else "" for n in row] for row in counts.tolist()]
        trace["texttemplate"] = "%{text}"
    layout = _axes("predicted class", "true class")
    layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
    layout["xaxis"] |= {"type": "category", "tickangle": -40}
    return {"data": [trace], "layout": layout}


def calibration(before: CalibrationBins, after: CalibrationBins) -> Figure:
    """The share that is right over the confidence, before and after temperature."""
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 1],
        "y": [0, 1],
        "name": "perfect",
        "hoverinfo": "skip",
    }
    data: list[dict[str, Any]] = [diagonal | {"line": {"dash": "dot", "color": "var(--muted)", "width": 1}}]
    for bins, name, colour, symbol in (
        (before, "before", "var(--second)", "circle-open"),
        (after, "after temperature", "var(--accent)", "circle"),
    ):
        data.append(
            {"type": "scatter", "mode": "lines+markers", "name": name, "customdata": bins.counts.tolist()}
            | {"x": bins.confidence.round(4).tolist(), "y": bins.accuracy.round(4).tolist()}
            | {
                "line": {"color": colour, "width": 2},
                "marker": {"symbol": symbol, "size": 8, "color": colour},
            }
            | {"hovertemplate": "confidence %{x:.3f}, right %{y:.3f}, %{customdata} images"}
        )
    layout = _axes("confidence", "share that is right")
    layout["xaxis"]["range"] = layout["yaxis"]["range"] = [-0.02, 1.04]
    return {"data": data, "layout": layout}


def _axes(x: str, y: str) -> dict[str, Any]:
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, "legend": legend}


def _distinct(names: Sequence[str]) -> list[str]:
    """Names for an axis; two that look the same once cut get a number, or plotly would make them one."""
    shown = [chart_text(name, 28) for name in names]
    seen = Counter(shown)
    return [f"{text} ({number})" if seen[text] > 1 else text for number, text in enumerate(shown, start=1)]
