"""Search spaces: a W&B sweep file as what a search is to try, in our parameters' names and types."""

import itertools
import json
import math
import random
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tune_inat.distributions import Distribution, identity
from tune_inat.errors import EXIT_DONE, EXIT_USAGE, SpaceError, run_command
from tune_inat.objective import DEFAULT_METRIC, GOALS, METRICS, Metric, metric_name
from tune_inat.parameters import canonical_name, check_value, fit_distribution, leaf_name, unknown_name
from tune_inat.sweep import MAX_GRID, EarlyStopping, Sweep, parse_sweep
from tune_inat.sweep_report import SweepReport
from tune_inat.sweep_schema import Findings
from tune_inat.wording import did_you_mean
from tune_inat.yaml_lines import MAX_BYTES, Finding, Leaf, read_yaml

TEST_HINT = "The test images are read once, for the best trial; val_accuracy is of the validation images."


@dataclass(frozen=True)
class SearchSpace:
    """What to try, by which method, and which trial is the best.

    Attributes:
        source: the file, as messages call it.
        parameters: by our names, in the order of the file. Their values are of the trials' types.
        run_cap: at most so many trials, if the file says so.
        notices: what a reader should know, a sentence each.
    """

    source: str
    name: str | None
    description: str | None
    project: str | None
    entity: str | None
    method: Literal["grid", "random", "bayes"]
    metric: Metric
    parameters: Mapping[str, Distribution]
    early_stopping: EarlyStopping | None
    run_cap: int | None
    notices: tuple[str, ...]

    @property
    def grid_size(self) -> int:
        """How many points `grid` has."""
        return math.prod(len(distribution.values or ()) for distribution in self.parameters.values())

    def grid(self) -> tuple[dict[str, Any], ...]:
        """Every combination of the listed values; the first parameter changes slowest, the last fastest."""
        axes = [distribution.values or () for distribution in self.parameters.values()]
        return tuple(dict(zip(self.parameters, point, strict=True)) for point in itertools.product(*axes))

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """One point, each parameter drawn from its distribution."""
        return {name: distribution.ppf(rng.random()) for name, distribution in self.parameters.items()}

    def identity(self) -> dict[str, Any]:
        """The meaning in JSON's types: equal for two files that ask for the same, however they are written.

        How many trials to run is no part of it, so that a search can be made longer.
        """
        return {
            "method": self.method,
            "metric": asdict(self.metric),
            "parameters": {name: identity(distribution) for name, distribution in self.parameters.items()},
            "early_stopping": asdict(self.early_stopping) if self.early_stopping else None,
        }


def load_space(name_or_path: str, *, fixed: Collection[str] = ()) -> SearchSpace:
    """The search space of a shipped name or of a sweep file.

    Args:
        fixed: the parameters that the command sets for all trials; a space may not vary them as well.

    Raises:
        SpaceError: with everything that is wrong with the file, or that we do not have.
    """
    reading = _examine(name_or_path, fixed)
    if reading.space is None or reading.findings.refusals or reading.findings.misfits:
        raise SpaceError(reading.complaints)
    return reading.space


def read_sweep(name_or_path: str) -> SweepReport:
    """A sweep file as W&B means it, also with parameters and metrics that we do not have.

    In a file with such parameters, written for another program, a number that makes no sense to us (0 epochs)
    may well make sense: it is refused by a search, and no mistake in the file.

    Raises:
        SpaceError: with everything that is wrong with the file.
    """
    reading = _examine(name_or_path, ())
    is_foreign = any(canonical_name(leaf_name(path)) is None for path in reading.sweep.names)
    if reading.space is None or (reading.findings.misfits and not is_foreign):
        raise SpaceError(reading.complaints)
    return SweepReport(reading.source, reading.sweep, reading.complaints, reading.space.notices)


def shipped_spaces() -> dict[str, Path]:
    """The files of the spaces that come with tune_inat, by name."""
    package = Path(__file__).parent
    installed, checkout = package / "search_spaces", package.parent / "search_spaces"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def parse_settings(texts: Collection[str]) -> dict[str, Any]:
    """The parameters and values of all `--set key=value`.

    Raises:
        SpaceError: with everything that is wrong with them; a parameter given twice is wrong, too.
    """
    settings: dict[str, Any] = {}
    problems: list[str] = []
    for text in texts:
        try:
            name, value = parse_setting(text)
        except SpaceError as error:
            problems += error.problems
            continue
        if name in settings:
            problems.append(f"--set {text}: {name} is set twice.")
        settings[name] = value
    if problems:
        raise SpaceError(problems)
    return settings


def parse_setting(text: str) -> tuple[str, Any]:
    """The parameter and the value of one `--set key=value`; the value is read as YAML reads it.

    Raises:
        SpaceError: there is no such parameter, or it cannot have this value.
    """
    spelled, equals, value_text = (part.strip() for part in text.partition("="))
    if not equals or not spelled or not value_text:
        raise SpaceError(f"--set {text}: it has to be key=value, such as lr=1e-3.")
    name = canonical_name(spelled)
    if name is None:
        raise SpaceError(f"--set {text}: {unknown_name(spelled)}")
    node, problems = read_yaml(value_text.encode(errors="surrogateescape"))
    if problems or not isinstance(node, Leaf):
        raise SpaceError(f"--set {text}: {problems[0].text if problems else f'{name} takes one value.'}")
    checked = check_value(name, node.value)
    if not checked.is_fine:
        raise SpaceError(f"--set {text}: {checked.misfit or checked.refusal}")
    return name, checked.value


@dataclass(frozen=True)
class _Reading:
    """A file that was read. There is a search space if W&B would find no problem with it."""

    source: str
    sweep: Sweep
    findings: Findings
    space: SearchSpace | None

    @property
    def complaints(self) -> tuple[str, ...]:
        """All that keeps a search from using it."""
        findings = self.findings
        return _sentences(self.source, findings.problems + findings.misfits + findings.refusals)


def _examine(name_or_path: str, fixed: Collection[str]) -> _Reading:
    source, content = _content(name_or_path)
    sweep, findings = parse_sweep(content)
    parameters = _our_parameters(sweep, fixed, findings)
    metric = _our_metric(sweep, findings)
    head = sweep.head
    if findings.problems or head is None:
        return _Reading(source, sweep, findings, None)
    space = SearchSpace(
        source=source,
        name=head.name,
        description=head.description,
        project=head.project,
        entity=head.entity,
        method=head.method,
        metric=metric,
        parameters=parameters,
        early_stopping=sweep.early_stopping,
        run_cap=head.run_cap,
        notices=_sentences(source, findings.notices),
    )
    if head.method == "grid" and space.grid_size > MAX_GRID:
        text = f"the grid has {space.grid_size:,} trials; at most {MAX_GRID:,} fit. Use method random."
        findings.refusals.append(Finding(0, text))
    return _Reading(source, sweep, findings, space)


def _content(name_or_path: str) -> tuple[str, bytes]:
    """What messages call the file, and its bytes, one more than are read if it is too large."""
    shipped = shipped_spaces()
    path = shipped.get(name_or_path, Path(name_or_path).expanduser())
    source = path.name if name_or_path in shipped else name_or_path
    try:
        if path.is_file():
            with path.open("rb") as file:
                return source, file.read(MAX_BYTES + 1)
        exists = path.exists()
    except OSError as error:
        raise SpaceError(f"{source}: it cannot be read ({error.strerror}).") from error
    if exists:
        raise SpaceError(
            f"{source}: it is no file. A search space is a YAML file or one of {', '.join(shipped)}."
        )
    raise SpaceError(
        f"{source}: there is no such file or shipped space. {did_you_mean(name_or_path, tuple(shipped))}"
    )


def _our_parameters(sweep: Sweep, fixed: Collection[str], findings: Findings) -> dict[str, Distribution]:
    readable = {parameter.path: parameter for parameter in sweep.parameters}
    ours: dict[str, Distribution] = {}
    lines: dict[str, int] = {}
    strangers: list[str] = []
    for path, line in sweep.names.items():
        spelled, dotted = leaf_name(path), ".".join(path)
        name = canonical_name(spelled)
        if name is None:  # all our names are told once, not with each one that we lack
            findings.refusals.append(Finding(line, unknown_name(spelled, with_list=not strangers)))
            strangers.append(spelled)
        elif name in lines:
            text = f"{dotted}: {name} is in line {lines[name]} already."
            findings.refusals.append(Finding(line, text))
        elif name in fixed:
            text = f"{dotted}: the command sets {name} as well. Leave one of the two out."
            findings.refusals.append(Finding(line, text))
        else:
            lines[name] = line
            distribution = fit_distribution(name, readable[path], findings) if path in readable else None
            if distribution is not None:
                ours[name] = distribution
    return ours


def _our_metric(sweep: Sweep, findings: Findings) -> Metric:
    if sweep.metric is None:
        if sweep.method != "bayes":
            text = f"no metric is named, so the best trial is the one with the highest {DEFAULT_METRIC.name}."
            findings.notices.append(Finding(0, text))
        return DEFAULT_METRIC
    spelled, goal = sweep.metric.name, sweep.metric.goal
    name = metric_name(spelled)
    if name is None:
        hint = TEST_HINT if "test" in spelled.lower() else did_you_mean(spelled, METRICS)
        text = f'metric.name: there is no metric "{spelled}". {hint}'
        findings.refusals.append(Finding(sweep.metric_line, text))
        return DEFAULT_METRIC
    if goal is None and GOALS[name] == "maximize":
        text = f"metric: no goal is given. W&B would minimize; a search maximizes {name}."
        findings.notices.append(Finding(sweep.metric_line, text))
    if goal is not None and goal != GOALS[name]:
        text = f"metric: ATTENTION, the goal is to {goal} {name}: the WORST trial will count as the best."
        findings.notices.append(Finding(sweep.metric_line, text))
    return Metric(name, goal or GOALS[name])


def _sentences(source: str, findings: Collection[Finding]) -> tuple[str, ...]:
    """Findings in the order of their lines, each with its file and line."""
    ordered = sorted(dict.fromkeys(findings), key=lambda finding: finding.line)
    sentences = (f"{source}, line {line}: {text}" if line else f"{source}: {text}" for line, text in ordered)
    return tuple(sentence.replace("\n", "\\n") for sentence in sentences)  # a key may hold line breaks


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="a W&B sweep file (YAML), or the name of a shipped space")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Is this a sound W&B sweep, and what of it would a search use?"""
    try:
        report = read_sweep(file)
    except SpaceError as error:
        if as_json:
            _print_json({"file": file, "sound": False, "problems": error.problems})
        raise
    if as_json:
        _print_json(report.described())
    else:
        report.print()
    raise typer.Exit(EXIT_USAGE if report.all_refusals() else EXIT_DONE)


def _print_json(value: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    run_command(app)
