"""The parts of a report on the search itself, from its leaderboard to how to do it again."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import tune_inat.report_charts as charts
from tune_inat.report_facts import ReportedTrial, SearchToReport
from tune_inat.report_page import (
    MISSING,
    Cell,
    Column,
    Html,
    Section,
    chart,
    element,
    join,
    number,
    paragraph,
    table,
    value_text,
)
from tune_inat.report_study import MAX_CONTOUR_TRIALS, StudyCharts, study_charts
from tune_inat.report_times import WorkingTime
from tune_inat.tables import amount, count, duration

METRICS = ("val_accuracy", "val_loss", "val_macro_f1", "val_ece")
N_IN_TABLE = 200  # rows of a small table


def leaderboard_section(search: SearchToReport) -> Section:
    """All trials, best first."""
    metrics = list(dict.fromkeys([search.metric.name, *METRICS]))
    columns = [Column("rank", True), Column("trial"), Column("status")]
    columns += [Column(metrics[0].replace("_", " "), True)]
    columns += [Column("p against best", True)] if search.tests else []
    names = [name for name in search.varied if name != "epochs"]
    columns += [Column(name, _is_numeric(search, name)) for name in names]
    columns += [Column("epochs", True), Column("trained", True), Column("seconds", True)]
    columns += [Column(name.replace("_", " "), True) for name in metrics[1:]]
    rows = [
        _trial_row(search, rank, trial, metrics, names) for rank, trial in enumerate(search.trials, start=1)
    ]
    text = (
        "Metrics are those of each trial's best epoch. The head of a column sorts by it. Epochs are those "
        "that the trial came to; trained says how many of them this search trained itself. In print the "
        "first 40 rows are shown."
    )
    if search.tests:
        text += " Tie: the validation images cannot tell the trial from the best."
    caption = f"{len(rows):,} trials, best {search.metric.name.replace('_', ' ')} first"
    board = table(caption, columns, rows, name="leaderboard", header_column=1)
    return Section("leaderboard", "Leaderboard", join([paragraph(text), board]))


def curves_section(search: SearchToReport) -> Section:
    """Learning curves."""
    figure, n_drawn = charts.curves(search.trials, search.metric)
    if not n_drawn:
        body = paragraph("No trial's epochs are in the journal (trials.jsonl), so there are no curves.")
        return Section("curves", "Learning curves", body)
    n_coloured = min(n_drawn, charts.N_HIGHLIGHTED)
    text = f"{n_drawn:,} of {len(search.trials):,} trials; the best {n_coloured} in colour."
    best = search.best
    if best is not None and best.best is not None and best.rows:
        first, value = best.rows[0].get(search.metric.name), search.value(best)
        text += (
            f" The best, {best.trial_id}, went from {number(first)} after its first epoch to "
            f"{number(value)} at epoch {best.best['epoch']:g} of {best.epochs}."
        )
    title = f"{search.metric.name.replace('_', ' ')} over the epochs"
    return Section("curves", "Learning curves", chart("curves", figure, title=title, text=text))


def parameters_section(search: SearchToReport) -> Section:
    """What Optuna says of the parameters."""
    found = study_charts(search)
    if isinstance(found, str):
        return Section("parameters", "Parameters", paragraph(found))
    return Section("parameters", "Parameters", _parameter_charts(search, found))


def rungs_section(search: SearchToReport) -> Section:
    """Who was stopped where."""
    stopped = [trial for trial in search.trials if trial.status == "STOPPED"]
    stopping = search.asked.get("early_stopping")
    if not stopped:
        text = (
            "Early stopping was on, and has stopped no trial."
            if stopping
            else "This search stops no trial early: each runs all of its epochs."
        )
        return Section("rungs", "Early stopping", paragraph(text))
    text = _stopping_in_words(stopping, len(stopped), len(search.trials))
    figure = chart(
        "rungs",
        charts.rungs(search.trials),
        title="Where trials ended",
        text="A bar for each number of epochs; the table below has the same numbers.",
        height=320,
    )
    counts = Counter((trial.epochs, trial.status) for trial in search.trials if trial.epochs)
    statuses = [
        name
        for name in ("TERMINATED", "STOPPED", "ERROR", "RUNNING", "SKIPPED")
        if any(status == name for _, status in counts)
    ]
    epochs = sorted({n for n, _ in counts})
    rows = [[str(n), *(f"{counts[n, status]:,}" for status in statuses)] for n in epochs]
    columns = [Column("epochs", True), *(Column(status, True) for status in statuses)]
    board = table("Trials by the epochs that they came to and how they ended", columns, rows)
    return Section("rungs", "Early stopping", join([paragraph(text), figure, board]))


def timeline_section(search: SearchToReport) -> Section:
    """What was planned and measured, and which trial ran where and when."""
    title, work = "Time and work", _work_table(search)
    timed = [trial for trial in search.trials if trial.started is not None]
    if not timed:
        body = paragraph("The journal of this search has no times, so there is no timeline.")
        return Section("timeline", title, join([work, body]))
    time = WorkingTime(timed)
    workers = Counter(trial.worker or "unknown" for trial in timed)
    figure = chart(
        "timeline",
        charts.timeline(timed, time),
        title="Trials over the processes that ran them",
        text=(
            f"{count(len(timed), 'trial')} in {count(len(workers), 'process', 'processes')} within "
            f"{duration(time.seconds)}{_without_pauses(time)}. A trial whose epochs were there already takes "
            "next to no time."
        ),
        height=min(900, 170 + 36 * len(workers)),
    )
    busy: defaultdict[str, float] = defaultdict(float)
    for trial in timed:
        start, end = time.span(trial)
        busy[trial.worker or "unknown"] += end - start
    rows = [[worker, f"{n:,}", duration(busy[worker])] for worker, n in workers.most_common(N_IN_TABLE)]
    board = table(
        "Processes, by machine, device and process id",
        [Column("process"), Column("trials", True), Column("busy", True)],
        rows,
    )
    return Section("timeline", title, join([work, figure, board]))


def _without_pauses(time: WorkingTime) -> str:
    if not time.pauses:
        return ""
    many = len(time.pauses) > 1
    pauses = f"{len(time.pauses)} pauses, together" if many else "a pause of"
    return f" of work, with {pauses} {duration(time.paused_seconds)}"


def recipe_section(search: SearchToReport) -> Section:
    """How to do it again."""
    summary = search.summary
    parts: list[Html] = []
    if summary.get("command"):
        parts += [
            paragraph("The command of this search:"),
            element("pre", element("code", str(summary["command"]))),
        ]
    else:
        parts.append(paragraph("The command is known when the search has ended for the first time."))
    facts = [("seed", summary.get("seed", _seed(search))), ("search space", summary.get("space"))]
    facts += [("images", search.data.get("fingerprint") or search.identity.get("images"))]
    facts += [("precision", search.identity.get("precision"))]
    versions = summary.get("versions")
    facts += list(versions.items()) if isinstance(versions, dict) else []
    rows = [[name, str(value)] for name, value in facts if value is not None]
    parts.append(table("Seed, inputs and versions", [Column("what"), Column("value")], rows))
    if search.best is not None:
        rows = [[name, value_text(value)] for name, value in search.best.config.items()]
        parts.append(element("h3", "The best trial's configuration"))
        parts.append(table(f"Trial {search.best.trial_id}", [Column("parameter"), Column("value")], rows))
    return Section("again", "Do it again", join(parts))


def _trial_row(
    search: SearchToReport, rank: int, trial: ReportedTrial, metrics: Sequence[str], names: Sequence[str]
) -> list[str | Cell]:
    best: Mapping[str, float] = trial.best or {}
    row: list[str | Cell] = [Cell(str(rank), float(rank)), trial.trial_id]
    row.append(element("span", trial.status, class_=f"status-{trial.status}"))
    values = [Cell(number(best.get(name)), _order(best.get(name))) for name in metrics]
    row.append(values[0])
    if search.tests:
        row.append(_p_value(search, trial))
    row += [Cell(value_text(trial.config.get(name)), _order(trial.config.get(name))) for name in names]
    epochs, asked = trial.epochs, trial.config.get("epochs")
    row.append(Cell(str(epochs) if epochs == asked else f"{epochs} of {asked}", float(epochs)))
    row += [Cell(f"{trial.epochs_trained:,}", float(trial.epochs_trained))]
    return [*row, Cell(f"{trial.seconds:,.1f}", trial.seconds), *values[1:]]


def _p_value(search: SearchToReport, trial: ReportedTrial) -> Cell:
    test = search.tests.get(trial.trial_id)
    if trial is search.best:
        return Cell("best", 1.0)
    if test is None:
        return Cell(MISSING, None)
    text = "<0.001" if test.adjusted_p < 0.001 else f"{test.adjusted_p:.3f}"
    return Cell(f"{text} tie" if test.is_tie else text, test.adjusted_p)


def _parameter_charts(search: SearchToReport, found: StudyCharts) -> Html:
    label = search.metric.name.replace("_", " ")
    names = list(found.importances)
    shares = ", ".join(f"{name} {share:.2f}" for name, share in found.importances.items())
    better = "lower" if search.metric.goal == "minimize" else "higher"
    blue = "" if search.metric.goal == "maximize" else ", turned round: blue is low"
    guess = " From so few trials it is a rough guess." if found.n_complete < 10 * len(names) else ""
    parts = [
        paragraph(
            f"From the {found.n_complete:,} trials that came to their end, as an Optuna study; parameters "
            "that are the same in all of them are left out."
        ),
    ]
    if found.parallel is not None:
        parts.append(
            chart(
                "importances",
                charts.importances(found.importances),
                title="How much each parameter matters",
                text=f"By {found.method}: {shares}. It says what mattered within what was tried.{guess}",
                height=120 + 34 * len(names),
            )
        )
        parts.append(
            chart(
                "parallel",
                found.parallel,
                title="Parallel coordinates",
                is_wide=True,
                text=f"A line for each trial, blue where {label} is good, orange where it is poor{blue}; "
                f"{better} is better. The leaderboard has the same values as a table.",
                height=420,
            )
        )
    each = f"each parameter ({', '.join(names[:6])})" if len(names) > 1 else names[0]
    parts.append(
        chart(
            "slices",
            found.slices,
            title="Slices" if len(names) > 1 else "Slice",
            is_wide=len(names) > 1,
            text=f"The {label} of each trial over {each}.",
            height=360,
        )
    )
    if found.contour is not None:
        few = (
            f", {MAX_CONTOUR_TRIALS} trials from best to worst" if found.n_contour < found.n_complete else ""
        )
        parts.append(
            chart(
                "contour",
                found.contour,
                title="Contour",
                text=f"The {label} over the two most important parameters, {' and '.join(names[:2])}{few}; "
                "between trials it is a guess. Where trials share a point, the best counts.",
                height=440,
            )
        )
    return join(parts)


def _work_table(search: SearchToReport) -> Html:
    """What the last run of the command was to do and did; nothing where the search has not ended."""
    planned, measured, reuse = (_part(search, name) for name in ("planned", "measured", "reuse"))
    if not measured:
        return Html("")
    rows = [
        [label, form(planned[name]) if planned.get(name) else MISSING, form(measured.get(name))]
        for label, name, form in (
            ("time", "seconds", _time),
            ("epochs trained", "epochs", _amount),
            ("written to the cache", "bytes", _bytes),
        )
    ]
    for label, name in (
        ("images decoded", "pixels_decoded"),
        ("images run through frozen layers", "prefix_images"),
    ):
        if name in reuse:
            rows.append([label, MISSING, _amount(reuse[name])])
    columns = [Column("what"), Column("planned", True), Column("measured", True)]
    return table(
        "The last run of the command that had trials to run: what the plan said, and what it came to",
        columns,
        rows,
    )


def _part(search: SearchToReport, name: str) -> Mapping[str, Any]:
    part = search.summary.get(name)
    return part if isinstance(part, dict) else {}


def _time(seconds: Any) -> str:
    return duration(seconds) if isinstance(seconds, int | float) else MISSING


def _amount(n: Any) -> str:
    return f"{n:,}" if isinstance(n, int) else MISSING


def _bytes(n: Any) -> str:
    return amount(n, "bytes") if isinstance(n, int | float) else MISSING


def _stopping_in_words(stopping: Any, n_stopped: int, n_trials: int) -> str:
    text = f"ASHA has stopped {n_stopped:,} of {n_trials:,} trials early."
    if isinstance(stopping, dict) and "grace_period" in stopping:
        eta = stopping.get("reduction_factor")
        text += (
            f" Its first rung is after epoch {stopping['grace_period']:g}, each next one {eta:g} times "
            f"later; at each, the best 1/{eta:g} of the trials go on."
        )
    return text


def _seed(search: SearchToReport) -> Any:
    seeds = {trial.config.get("seed") for trial in search.trials}
    return seeds.pop() if len(seeds) == 1 else None


def _is_numeric(search: SearchToReport, name: str) -> bool:
    return all(_order(trial.config.get(name)) is not None for trial in search.trials)


def _order(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
