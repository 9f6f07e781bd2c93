"""The tables of a search, for the terminal: its trials while they run, and the leaderboard at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tune_inat.errors import printable
from tune_inat.standings import LiveTrial, Standings, epochs_asked, epochs_done, tries

MAX_RUNNING = 16  # rows of a live table
MAX_LEADERS = 3
MAX_RANKED = 20  # rows of a leaderboard
MAX_CUTS = 4  # named in a line
MAX_VALUE = 20  # characters of a parameter's value
NARROW, MIN_BAR, EPOCH_BAR, TOTAL_BAR = 72, 5, 12, 24  # columns
BAR_STEPS = 1000  # of a bar that shows a share
GAP = 2  # columns between two columns of a table
STATUS_STYLES = {"ERROR": "red", "STOPPED": "yellow", "SKIPPED": "dim"}
DROPPED_WHEN_NARROW = ("time", "#", "val loss", "status")
KEPT_PARAMETERS = 3  # that a leaderboard would rather show than those
TITLES = {"val_accuracy": "val acc"}  # of columns that would be much wider than what is in them


class LiveTable:
    """How far a search has come, the trials that run with bars of their epochs, and those that lead."""

    def __init__(self, standings: Standings, elapsed: float) -> None:
        self._standings = standings
        self._elapsed = elapsed

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw what fits: of many trials the first, of many parameters the first."""
        standings = self._standings
        running, leaders = standings.running, standings.leaders(MAX_LEADERS)
        visible = running[: max(1, min(MAX_RUNNING, console.height - MAX_LEADERS - 6))]
        yield self._headline(len(running), options.max_width)
        if not running and not leaders:
            return
        table = _new_table()
        table.add_column("trial", no_wrap=True)
        bar = EPOCH_BAR if options.max_width >= NARROW else MIN_BAR
        shown = (*visible, *leaders)
        done = max(len(_how_far(trial)) for trial in shown)
        room = options.max_width - (8 + bar + max(5, done) + 8 + 9 + 5 * GAP)
        names = _fitting(
            {name: [short(t.config[name]) for t in shown] for name in standings.varied_names}, room
        )
        for name in names:
            table.add_column(name, no_wrap=True)
        table.add_column("epochs", width=bar)
        table.add_column("", no_wrap=True)
        table.add_column(_title(standings.metric.name), justify="right", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        for trial in visible:
            table.add_row(*self._row(trial, names, standings.value(trial), bar))
        if len(running) > len(visible):
            table.add_row(Text(f"+{len(running) - len(visible):,} more", style="dim"))
        if leaders:
            table.add_row()
            table.add_row(Text("best", style="dim"))
        for trial in leaders:
            table.add_row(*self._row(trial, names, standings.best[trial.trial_id], bar), style="green")
        yield table

    def _headline(self, n_running: int, width: int) -> Table:
        """How many trials are done and run, how fast, how long the rest takes; as a bar, the work done."""
        standings = self._standings
        is_over = standings.n_done >= standings.total
        left = None if is_over else standings.seconds_left(self._elapsed)
        state = "all ended" if is_over else f"{n_running} running" if standings.trials else "starting"
        line = Table.grid(padding=(0, GAP, 0, 0))
        texts = [
            Text("trials", style="bold"),
            Text(f"{standings.n_done:,}/{standings.total:,}"),
            Text(state, style="dim"),
        ]
        if left is not None:
            texts += [Text(f"about {estimate(left)} left", style="dim")]
        if left is not None and self._elapsed > 0 and width >= NARROW:
            texts.insert(-1, Text(rate(standings.n_epochs, self._elapsed, "epochs"), style="dim"))
        for text in texts:
            text.no_wrap = True
        room = width - sum(len(text) + GAP for text in texts)
        bar = _bar(BAR_STEPS, round(standings.share_done * BAR_STEPS), max(MIN_BAR, min(TOTAL_BAR, room)))
        line.add_row(texts[0], bar, *texts[1:])
        return line

    def _row(self, trial: LiveTrial, names: Sequence[str], value: float | None, bar: int) -> list[Any]:
        done, asked = epochs_done(trial), epochs_asked(trial)
        return [
            Text(printable(trial.trial_id)),
            *(Text(short(trial.config[name])) for name in names),
            _bar(asked, done, bar),
            Text(_how_far(trial)),
            Text(number(value)),
            Text(duration(trial.seconds)),
        ]


def ended_line(standings: Standings, trial: LiveTrial, n_done: int, elapsed: float) -> str:
    """One line about a trial that has ended as the `n_done`th, for a log."""
    done, asked = epochs_done(trial), epochs_asked(trial)
    best = standings.best.get(trial.trial_id)
    said = [f"{trial.status} after {done} of {asked} epochs", duration(trial.seconds)]
    if best is not None:
        said.insert(1, f"{standings.metric.name} {number(best)}")
    if tries(trial) > 1:
        said.append(f"{tries(trial)} tries")
    said += [f"{name} {short(trial.config[name])}" for name in standings.varied_names]
    left = standings.seconds_left(elapsed)
    if left is not None and n_done < standings.total:
        said.append(f"about {estimate(left)} left")
    return f"{n_done}/{standings.total} trials: {trial.trial_id} {', '.join(said)}"


def leaderboard_table(
    trials: Sequence[Mapping[str, Any]], varied: Sequence[str], metric: str, width: int
) -> Table:
    """The best trials, from `summary.json`'s list of trials, with those varied parameters that fit."""
    ranked = trials[:MAX_RANKED]
    metrics = list(dict.fromkeys((metric, "val_accuracy", "val_loss")))
    cells = {
        "#": [str(rank) for rank in range(1, len(ranked) + 1)],
        "trial": [printable(trial["trial_id"]) for trial in ranked],
        "epochs": [_epochs(trial) for trial in ranked],
        **{_title(name): [number(trial[name]) for trial in ranked] for name in metrics},
        "status": [trial["status"] for trial in ranked],
        "time": [duration(trial["seconds"]) for trial in ranked],
    }
    parameters = {
        name: [short(trial["config"][name]) for trial in ranked] for name in varied if name != "epochs"
    }
    first = dict(list(parameters.items())[:KEPT_PARAMETERS])
    for title in DROPPED_WHEN_NARROW:
        if _total_width({**cells, **first}) > width and title != _title(metric):
            del cells[title]
    names = _fitting(parameters, width - _total_width(cells))
    order = [title for title in cells if title in ("#", "trial")]
    order += [*names, *(title for title in cells if title not in order)]
    table = _new_table()
    for title in order:
        is_text = title in (*names, "trial", "status")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    for index, trial in enumerate(ranked):
        style = "bold green" if index == 0 and trial["status"] != "ERROR" else ""
        row = [Text((cells | parameters)[title][index]) for title in order]
        if "status" in order:
            row[order.index("status")].stylize(STATUS_STYLES.get(trial["status"], ""))
        table.add_row(*row, style=style)
    return table


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """A plan in three lines at most: the trials, what their frozen layers leave behind, what all takes."""
    n, n_finished = plan["n_trials"], plan["n_finished"]
    if n == n_finished:
        return [f"{'The trial is' if n == 1 else f'All {n:,} trials are'} done: nothing is left to train."]
    done = f", {n_finished:,} of them done" if n_finished else ""
    families = count(plan["n_families"], "family", "families")
    like = "like so many random ones" if plan["is_representative"] else families
    lines = [
        f"{count(n, 'trial')}{done} ({like}): {count(plan['epochs_asked'], 'epoch')} asked for, "
        f"{plan['epochs_to_train']:,} to train."
    ]
    reads = {(cut["model"], cut["reads"]): cut["n_bytes"] for cut in plan["cuts"] if cut["n_bytes"]}
    if reads:
        shown = [f"{printable(name)} ({amount(size, 'bytes')})" for (_, name), size in reads.items()]
        more = f" and {len(shown) - MAX_CUTS:,} more" if len(shown) > MAX_CUTS else ""
        lines.append(f"Frozen layers run once, up to {', '.join(shown[:MAX_CUTS])}{more}.")
    devices = plan["devices"]
    share = f"{devices['cpus_per_trial']:,} cores" if devices["cpus_per_trial"] > 1 else "one core"
    if devices["gpus_per_trial"]:
        share = f"{_gpus(devices['gpus_per_trial'])} and {share}"
    at_a_time = devices["max_concurrent"]
    trials = (
        f"{at_a_time:,} trials at a time with {share} each"
        if at_a_time > 1
        else f"One trial at a time with {share}"
    )
    lines.append(
        f"{trials}, {plan['precision']}: about {estimate(plan['seconds']['total'])}, "
        f"{amount(plan['memory']['total'], 'bytes')} of memory, at most "
        f"{amount(plan['disk']['total'], 'bytes')} of disk."
    )
    return lines


def _gpus(n: float) -> str:
    """So much of a GPU, or so many: `0.25 of a GPU`, `a GPU`, `2 GPUs`."""
    if n == 1:
        return "a GPU"
    return f"{n:g} of a GPU" if n < 1 else f"{n:g} GPUs"


def plan_tables(plan: Mapping[str, Any], width: int) -> list[Table]:
    """What a plan says of the cuts, and of time, memory and disk."""
    cuts = _new_table()
    models = {cut["model"] for cut in plan["cuts"]}
    titles = ["cut", "trials", "read at", "size", "images to run"]
    for title in (["model"] if len(models) > 1 else []) + titles:
        is_text = title in ("model", "cut", "read at")
        cuts.add_column(title, justify="left" if is_text else "right", no_wrap=width >= NARROW)
    for cut in plan["cuts"]:
        row = [
            printable(cut["cut"]),
            f"{cut['n_trials']:,}",
            printable(cut["reads"]),
            amount(cut["n_bytes"], "bytes") if cut["n_bytes"] else "-",
            f"{cut['n_images']:,}" if cut["n_images"] else "in the cache" if cut["n_bytes"] else "each epoch",
        ]
        cuts.add_row(*([printable(cut["model"])] if len(models) > 1 else []), *row)
    sums = _new_table()
    sums.show_header = False
    sums.add_column()
    sums.add_column(justify="right")
    sums.add_column()
    for part in plan["pixels"]:
        views = f", {part['views']} views" if part["views"] else ""
        kept = "" if part["n_to_decode"] else "in the cache"
        sums.add_row(
            f"images at {part['image_size']} px{views}", f"{part['n_to_decode']:,}", kept or "to decode"
        )
    for name, seconds in plan["seconds"].items():
        sums.add_row(f"time: {name}", duration(seconds), "")
    for name, n_bytes in plan["memory"].items():
        sums.add_row(f"memory: {name}", amount(n_bytes, "bytes"), "")
    for name, n_bytes in plan["disk"].items():
        sums.add_row(f"disk: {name}", amount(n_bytes, "bytes"), "at most" if name == "states" else "")
    return [cuts, sums]


def count(n: int, one: str, many: str | None = None) -> str:
    """So many of something: `1 trial`, `1,200 trials`."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def duration(seconds: float) -> str:
    """A time as people say it: `0.4 s`, `12 s`, `3 min 20 s`, `1 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def estimate(seconds: float) -> str:
    """A time that is not known so well: `12 s`, `4 min`, `2 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{round(seconds / 3600)} h"


def amount(n: float, unit: str) -> str:
    """A count with its unit; bytes in the power of 1,000 that suits them."""
    if unit != "bytes":
        return f"{n:,.0f} {unit}".rstrip()
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        if n >= 10**power:
            return f"{n / 10**power:.1f} {prefix}B"
    return f"{n:.0f} B"


def rate(n: float, seconds: float, unit: str) -> str:
    """How fast something goes: `622 images/s`, `1.5 MB/s`; where that is slow, `2.4 epochs/min`."""
    if unit == "bytes":
        return f"{amount(n / seconds, unit)}/s"
    each, period = (n / seconds, "s") if n >= seconds else (60 * n / seconds, "min")
    return f"{each:,.0f} {unit}/{period}" if each >= 9.95 else f"{each:.1f} {unit}/{period}"


def number(value: float | None) -> str:
    """A metric with four decimals, `-` for none."""
    return "-" if value is None else f"{value:.4f}"


def short(value: Any) -> str:
    """A parameter's value in few characters, safe for a terminal."""
    text = f"{value:.3g}" if isinstance(value, float) else printable(str(value)).replace("\n", " ")
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def _how_far(trial: LiveTrial) -> str:
    """`3/5`, and which try it is where one has failed."""
    epochs = f"{epochs_done(trial)}/{epochs_asked(trial)}"
    return f"{epochs} try {tries(trial)}" if tries(trial) > 1 else epochs


def _bar(total: int, done: int, width: int) -> ProgressBar:
    return ProgressBar(max(1, total), done, width=width, complete_style="cyan", finished_style="green")


def _new_table() -> Table:
    """A table whose columns are `GAP` apart; the box draws one of these."""
    return Table(
        box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim"
    )


def _title(metric: str) -> str:
    return TITLES.get(metric, metric.replace("_", " "))


def _epochs(trial: Mapping[str, Any]) -> str:
    done, asked = trial["epochs"], trial["config"]["epochs"]
    return str(done) if done == asked else f"{done}/{asked}"


def _width(title: str, column: Sequence[str]) -> int:
    return max(len(title), *(len(cell) for cell in column)) if column else len(title)


def _total_width(columns: Mapping[str, Sequence[str]]) -> int:
    return sum(_width(title, column) + GAP for title, column in columns.items()) - GAP


def _fitting(columns: Mapping[str, Sequence[str]], room: int) -> list[str]:
    """The first columns for which there is room."""
    names: list[str] = []
    for name, column in columns.items():
        room -= _width(name, column) + GAP
        if room < 0:
            break
        names.append(name)
    return names
