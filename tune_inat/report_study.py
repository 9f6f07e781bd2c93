"""The trials of a search, of a grid as well, as an Optuna study: what its importances and plots show."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from tune_inat.report_facts import ReportedTrial, SearchToReport
from tune_inat.report_page import Figure, chart_text

MIN_TRIALS = 4  # fewer say nothing of two parameters
MIN_TRIALS_OF_ONE = 2
MAX_FANOVA_TRIALS = 300  # fANOVA's forest takes seconds beyond that
MAX_CONTOUR_TRIALS = 60  # a contour has a cell for each pair of values
MAX_PARAMETERS = 8
MAX_SLICES = 6
MAX_HOVERED = 150  # lines that are drawn one by one
N_SHADES = 12
LOG_RATIO = 30.0  # positive values that are spread so far belong on a logarithmic axis
SCALE = [[0.0, "#c2692a"], [0.5, "#8a8f98"], [1.0, "#2f7fd1"]]  # readable on white and on black
SEED = 0


@dataclass(frozen=True)
class StudyCharts:
    """What Optuna makes of the trials.

    Attributes:
        importances: of each varied parameter, the most important first; they sum up to 1.
        method: how they were found, in words.
        parallel: the coordinates of each trial; `None` where one parameter varies: `slices` has it all.
        slices: the metric over each parameter; `contour` over two.
        n_complete: trials that came to their end, of which all this is.
    """

    importances: Mapping[str, float]
    method: str
    parallel: Figure | None
    slices: Figure
    contour: Figure | None
    n_complete: int
    n_contour: int


def study_charts(search: SearchToReport) -> StudyCharts | str:
    """All charts of a search's study, or why there are none."""
    done = [
        trial for trial in search.trials if trial.status == "TERMINATED" and search.value(trial) is not None
    ]
    done = [trial for trial in done if math.isfinite(search.value(trial) or 0.0)]
    varied = [name for name in search.varied if len({repr(trial.config.get(name)) for trial in done}) > 1]
    if not varied:
        return "Among the trials that came to their end no parameter varies: there is nothing to compare."
    if len(done) < (least := MIN_TRIALS if len(varied) > 1 else MIN_TRIALS_OF_ONE):
        return f"{len(done)} trials came to their end; with fewer than {least} this would say nothing."
    if len({search.value(trial) for trial in done}) < 2:
        return "All trials that came to their end have the same metric: no parameter made a difference."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's importances and plots warn that they are experimental
        return _charts(search, done, varied)


def _charts(search: SearchToReport, done: Sequence[ReportedTrial], varied: Sequence[str]) -> StudyCharts:
    study = _study(search, done, varied)
    is_alone = len(varied) == 1
    importances, method = ({varied[0]: 1.0}, "") if is_alone else _importances(study, len(done))
    names = sorted(varied, key=lambda name: (-importances.get(name, 0.0), varied.index(name)))
    shown = names[:MAX_PARAMETERS]
    few = done if len(done) <= MAX_CONTOUR_TRIALS else _evenly(done, MAX_CONTOUR_TRIALS)
    label = search.metric.name
    from optuna import visualization

    contour_study = study if few is done else _study(search, few, varied)
    contour = None
    if not is_alone and all(len({repr(trial.config.get(name)) for trial in few}) > 1 for name in names[:2]):
        contour = _plain(
            visualization.plot_contour(contour_study, params=names[:2], target=_value, target_name=label)
        )
    return StudyCharts(
        importances=importances,
        method=method,
        parallel=None
        if is_alone
        else _parallel(
            _plain(
                visualization.plot_parallel_coordinate(study, params=shown, target=_value, target_name=label)
            ),
            minimize=search.metric.goal == "minimize",
        ),
        slices=_slices(
            _plain(
                visualization.plot_slice(study, params=shown[:MAX_SLICES], target=_value, target_name=label)
            )
        ),
        contour=contour,
        n_complete=len(done),
        n_contour=len(few),
    )


def _study(search: SearchToReport, trials: Sequence[ReportedTrial], varied: Sequence[str]) -> optuna.Study:
    """A study in memory of these trials, worst first: a contour shows the last one of a point."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction=search.metric.goal)
    finally:
        optuna.logging.set_verbosity(verbosity)
    distributions = {
        name: _distribution(search, name, [t.config.get(name) for t in trials]) for name in varied
    }
    study.add_trials(
        [
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                value=search.value(trial),
                params={name: _param(distributions[name], trial.config.get(name)) for name in varied},
                distributions=distributions,
            )
            for trial in reversed(trials)
        ]
    )
    return study


def _distribution(search: SearchToReport, name: str, values: Sequence[Any]) -> BaseDistribution:
    """Numbers keep their order, on a logarithmic axis if they were drawn so; all else is words."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return CategoricalDistribution(list(dict.fromkeys(chart_text(value) for value in values)))
    low, high = min(numbers), max(numbers)
    asked = json.dumps(search.asked.get("parameters", {}).get(name, {}))
    is_log = low > 0 and ("Log" in asked or high / low >= LOG_RATIO)
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(int(low), int(high), log=is_log)
    return FloatDistribution(float(low), float(high), log=is_log)


def _param(distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return chart_text(value)
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def _importances(study: optuna.Study, n_trials: int) -> tuple[dict[str, float], str]:
    if n_trials <= MAX_FANOVA_TRIALS:
        evaluator: Any = FanovaImportanceEvaluator(seed=SEED)
        method = f"fANOVA (Hutter et al., ICML 2014), random forest with seed {SEED}"
    else:
        evaluator, method = PedAnovaImportanceEvaluator(), "PED-ANOVA (Watanabe et al., IJCAI 2023)"
    found = get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}, method


def _value(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _evenly(trials: Sequence[ReportedTrial], n: int) -> list[ReportedTrial]:
    """`n` of the trials, from the best to the worst."""
    return [trials[round(place * (len(trials) - 1) / (n - 1))] for place in range(n)]


def _plain(figure: Any) -> Figure:
    """A figure of Optuna's as JSON, in our colours and without its template and title."""
    content: Figure = json.loads(figure.to_json())
    layout = {
        key: value
        for key, value in content["layout"].items()
        if key not in ("template", "title", "width", "height")
    }
    for trace in content["data"]:
        _recolour(trace)
        if trace["type"] == "contour":
            trace["line"] = {"width": 0}  # lines between so few trials would look like knowledge
    return {"data": content["data"], "layout": layout}


def _recolour(trace: dict[str, Any]) -> None:
    for part in (trace, trace.get("marker", {}), trace.get("line", {})):
        if "colorscale" in part:
            part["colorscale"] = SCALE
            part["reversescale"] = False
    marker = trace.get("marker", {})
    if isinstance(marker.get("color"), str):
        marker["color"] = "var(--text)"
    if "line" in marker:
        marker["line"] = {"width": 0.5, "color": "var(--page)"}
    if isinstance(marker.get("colorbar"), dict):
        marker["colorbar"] = {**marker["colorbar"], "x": 1.02}


def _slices(figure: Figure) -> Figure:
    """Slices in one colour: Optuna's show the order of the trials, which is their rank here."""
    for trace in figure["data"]:
        trace["marker"] = {"color": "var(--accent)", "size": 6, "opacity": 0.75}
    return figure


def _parallel(figure: Figure, *, minimize: bool) -> Figure:
    """Optuna's parallel coordinates in our colours; many lines of similar metric share a trace."""
    lines = [trace for trace in figure["data"] if trace["mode"] == "lines"]
    data = []
    for group in _by_metric(lines) if len(lines) > MAX_HOVERED else [[line] for line in lines]:
        height = float(group[0]["y"][0])
        trace = {"type": "scatter", "mode": "lines", "opacity": 0.7, "showlegend": False}
        colour = _shade(1.0 - height if minimize else height)
        trace |= {"line": {"width": 1.4, "color": colour}}
        if len(group) == 1:
            trace |= {key: group[0][key] for key in ("x", "y", "customdata", "hovertemplate")}
        else:
            trace |= {key: [v for line in group for v in (*line[key], None)] for key in ("x", "y")}
            trace |= {"hoverinfo": "skip"}
        data.append(trace)
    layout = figure["layout"] | {"showlegend": False, "margin": {"l": 60, "r": 20, "t": 40, "b": 10}}
    layout["xaxis"] |= {"side": "top", "fixedrange": True}
    for note in layout.get("annotations", ()):
        note["font"] = {"size": 10.5, "color": "var(--text)"}
        note["bgcolor"] = "var(--page)"
    return {"data": data, "layout": layout}


def _by_metric(lines: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Lines in groups of similar height on the first axis."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(min(int(line["y"][0] * N_SHADES), N_SHADES - 1), []).append(line)
    return [groups[shade] for shade in sorted(groups)]


def _shade(place: float) -> str:
    """The colour at 0..1 of `SCALE`."""
    lower = 0 if place < 0.5 else 1
    start, end = (tuple(bytes.fromhex(str(SCALE[lower + step][1])[1:])) for step in (0, 1))
    share = place * 2 - lower
    return "rgb({},{},{})".format(*(round(a + (b - a) * share) for a, b in zip(start, end, strict=True)))
