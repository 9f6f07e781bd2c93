"""A W&B sweep file as W&B means it, whatever its parameters are called."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tune_inat.distributions import Choice, Distribution, Rounded, grid_length, grid_values
from tune_inat.sweep_schema import (
    AGENT_KEYS,
    EXPONENT_KINDS,
    KINDS,
    PARAMETER_KEYS,
    Findings,
    HyperbandSection,
    MetricSection,
    Section,
    SweepParameter,
    SweepSection,
    as_number,
    check_section,
    inconsistencies,
)
from tune_inat.wording import did_you_mean, shown
from tune_inat.yaml_lines import Finding, Listing, Node, Table, read_yaml

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # of a parameter, in W&B's schema
Names = dict[tuple[str, ...], int]

MAX_RUNGS = 100  # as with W&B: more would be one after each epoch
MAX_GRID = 100_000  # trials; a larger grid is a mistake, and would fill the memory before it starts
DEFAULT_TRIALS = 32  # of a random or bayes search without run_cap, which W&B takes as endless


@dataclass(frozen=True)
class EarlyStopping:
    """W&B's hyperband as ASHA takes it (Li et al., "A System for Massively Parallel Hyperparameter Tuning").

    W&B looks at a trial after its epochs `min_iter * eta^k`, k = 0, 1, ...; or, given `max_iter` and `s`,
    after `max_iter / eta^k`, k = s, ..., 1. So the first rung is `min_iter`, or `max_iter / eta^s` (with the
    largest s that leaves a whole epoch), each next one is `eta` times later, and all lie below `max_iter`.
    (Where `max_iter` is no power of eta, this can be one rung more than W&B has.)

    Attributes:
        grace_period: the epochs of the first rung.
        max_epochs: no rung lies at or after this epoch. It does not end a trial: its `epochs` do.
        reduction_factor: eta; at each rung the best `1 / eta` of the trials go on.
        brackets: always 1: W&B has one series of rungs for all trials.
        strict: compare the metric at the rung; otherwise the best that the trial has had until then.
    """

    grace_period: int
    max_epochs: int | None
    reduction_factor: float
    brackets: int
    strict: bool

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """The epochs after which a trial of `epochs` epochs may be stopped."""
        last = min(epochs, self.max_epochs or epochs)
        rungs = (int(self.grace_period * self.reduction_factor**k) for k in range(MAX_RUNGS))
        return tuple(dict.fromkeys(itertools.takewhile(lambda rung: rung < last, rungs)))

    def problem(self, longest: int) -> str | None:
        """Why no trial could ever be stopped, however it went, if the longest has so many epochs."""
        if self.grace_period < longest:
            return None
        return (
            f"early_terminate first looks at a trial after epoch {self.grace_period}, but the longest has "
            f"{longest} epochs. Lower min_iter, or raise epochs."
        )


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says. With problems among the findings, what could be read of it.

    Attributes:
        names: the path and the line of each parameter, also of those that could not be read.
    """

    head: SweepSection | None = None
    method: str | None = None
    metric: MetricSection | None = None
    metric_line: int = 0
    names: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    parameters: tuple[SweepParameter, ...] = ()
    early_stopping: EarlyStopping | None = None


def parse_sweep(content: bytes) -> tuple[Sweep, Findings]:
    """Read a sweep file and find all that is wrong with it."""
    root, problems = read_yaml(content)
    findings = Findings(problems=list(problems))
    if not isinstance(root, Table):
        if root is not None:
            is_empty = root.plain() is None
            text = f"a sweep is a mapping (key: value), not {_thing(root)}."
            findings.problems.append(Finding(root.line, "the file is empty." if is_empty else text))
        return Sweep(), findings
    root = replace(root, line=0)  # what the whole file lacks is missing nowhere in particular
    head = check_section(SweepSection, root, findings)
    method = root.plain().get("method")
    names: Names = {}
    parameters = _parameters(root, names, findings)
    if method == "grid":
        parameters = tuple(_grid_axis(parameter, findings) for parameter in parameters)
    sweep = Sweep(
        head=head,
        method=method if method in ("grid", "random", "bayes") else None,
        metric=_metric(root, findings),
        metric_line=root.line_of(["metric", "name"]),
        names=names,
        parameters=parameters,
        early_stopping=_early_stopping(root, findings),
    )
    _note_unused(root, findings)
    _check_method(sweep, root, findings)
    return sweep, findings


def _metric(root: Table, findings: Findings) -> MetricSection | None:
    table = root.nodes.get("metric")
    if not isinstance(table, Table):
        return None
    return check_section(MetricSection, table, findings, where="metric.")


def _early_stopping(root: Table, findings: Findings) -> EarlyStopping | None:
    table = root.nodes.get("early_terminate")
    if not isinstance(table, Table):
        return None
    section = check_section(HyperbandSection, table, findings, where="early_terminate.")
    if section is None:
        return None
    first, last, s = section.min_iter, section.max_iter, section.s
    if last is not None and s is not None:
        steps = min(s, int(math.log(last, section.eta) + 1e-9))
        first = max(int(last / section.eta**steps), 1)
        if steps == 0:
            text = f"early_terminate: max_iter {last} leaves no epoch to stop at: it has to be eta or more."
            findings.problems.append(Finding(table.line_of(["max_iter"]), text))
    elif first is None:
        text = "early_terminate needs min_iter, or max_iter and s: the epochs at which to stop trials."
        findings.problems.append(Finding(root.line_of(["early_terminate"]), text))
        return None
    elif last is not None and first >= last:
        text = f"early_terminate: min_iter {first} is not below max_iter {last}."
        findings.problems.append(Finding(table.line_of(["max_iter"]), text))
    return EarlyStopping(first or 1, last, section.eta, 1, section.strict)


def _note_unused(root: Table, findings: Findings) -> None:
    unused = [(key, root.line_of([key])) for key in AGENT_KEYS if key in root.nodes]
    if unused:
        names, line = ", ".join(key for key, _ in unused), min(line for _, line in unused)
        verb = "is" if len(unused) == 1 else "are"
        findings.notices.append(Finding(line, f"{names} {verb} for W&B's agents and not used here."))
    metric = root.nodes.get("metric")
    for key in ("target", "impute", "impute_while_running"):
        if isinstance(metric, Table) and key in metric.nodes:
            text = f"metric.{key} is for W&B's controller and not used here."
            findings.notices.append(Finding(metric.line_of([key]), text))


def _check_method(sweep: Sweep, root: Table, findings: Findings) -> None:
    """What a method asks of the rest of the file."""
    line = root.line_of(["method"])
    if sweep.method == "bayes" and "metric" not in root.nodes:
        findings.problems.append(Finding(line, "method bayes needs a metric: what to optimize."))
    if sweep.method == "bayes" and sweep.names and all(map(_is_constant, sweep.parameters)):
        findings.problems.append(Finding(line, "method bayes needs a parameter that varies."))


def _is_constant(parameter: SweepParameter) -> bool:
    return parameter.distribution.values is not None and len(parameter.distribution.values) == 1


def _grid_axis(parameter: SweepParameter, findings: Findings) -> SweepParameter:
    """The parameter as a choice among the values that a grid tries; among the findings, why it cannot."""
    place, distribution = Finding(parameter.line, parameter.name), parameter.distribution
    n_values = grid_length(distribution)
    if parameter.weights is not None:
        text = "a grid tries every value, so probabilities have no meaning. Leave them out."
        findings.problems.append(_about(place, text))
    elif n_values is None:
        text = "a grid needs each value, not a range. Write values: [...], give it steps (q_uniform), "
        findings.problems.append(_about(place, f"{text}or use method random."))
    elif n_values > MAX_GRID:
        text = f"a grid tries every value, and these are more than {MAX_GRID:,}. Use method random."
        findings.refusals.append(_about(place, text))
    elif distribution.values is None:
        axis = Choice.of(grid_values(distribution))
        if isinstance(distribution, Rounded) and _lacks_its_max(distribution, axis):
            text = f"as with W&B, a grid of q_uniform leaves max out. It tries {axis}."
            findings.notices.append(_about(place, text))
        return replace(parameter, distribution=axis)
    return parameter


def _lacks_its_max(distribution: Rounded, axis: Choice) -> bool:
    """Whether a grid ends one step before the range does."""
    return math.isclose(axis.values[-1] + distribution.q, distribution.of.ppf(1.0))


def _about(place: Finding, text: str) -> Finding:
    """A finding about what stands at a place."""
    return Finding(place.line, f"{place.text}: {text}")


def _parameters(root: Table, names: Names, findings: Findings) -> tuple[SweepParameter, ...]:
    table = root.nodes.get("parameters")
    return tuple(_group(table, (), names, findings)) if isinstance(table, Table) else ()


def _group(
    table: Table, above: tuple[str, ...], names: Names, findings: Findings
) -> Iterator[SweepParameter]:
    for name, node in table.nodes.items():
        path, line = (*above, name), table.key_lines[name]
        if not _NAME.fullmatch(name):
            text = f"{shown(name)} is no parameter's name: letters, digits and _ . - only, a letter first."
            findings.problems.append(Finding(line, text))
        elif isinstance(node, Table) and "parameters" in node.nodes:
            inner = _inner_group(node, ".".join(path), findings)
            yield from _group(inner, path, names, findings)
        else:
            names[path] = line
            parameter = _parameter(node, path, line, findings)
            if parameter is not None:
                yield parameter


def _inner_group(node: Table, name: str, findings: Findings) -> Table:
    """The parameters of a group."""
    for key in node.nodes:
        if key != "parameters":
            text = f'{name}: a group has no key but "parameters"; "{key}" has no place in it.'
            findings.problems.append(Finding(node.key_lines[key], text))
    inner = node.nodes["parameters"]
    if isinstance(inner, Table) and inner.nodes:
        return inner
    text = f"{name}.parameters: {_thing(inner)} stands where a mapping of parameters belongs."
    findings.problems.append(Finding(node.key_lines["parameters"], text))
    return Table(node.line)


def _parameter(node: Node, path: tuple[str, ...], line: int, findings: Findings) -> SweepParameter | None:
    name = ".".join(path)
    if not isinstance(node, Table):
        findings.problems.append(Finding(line, _not_a_mapping(name, node)))
        return None
    kind, trouble = _kind_of(node.plain())
    if kind is None:
        findings.problems.append(Finding(node.line_of(["distribution"]), f"{name}: {trouble}"))
        return None
    n_before = len(findings.problems)
    section = _section(node, kind, name, findings)
    listed = _listed(node)
    for value, value_line in listed:
        if isinstance(value, float) and not math.isfinite(value):
            text = f"{name}: {value} is not a finite number."
            findings.problems.append(Finding(value_line, text))
    if section is None or len(findings.problems) > n_before:
        return None
    distribution = _distribution(section, kind, Finding(line, name), findings)
    if distribution is None:
        return None
    return SweepParameter(path, line, kind, distribution, listed, getattr(section, "probabilities", None))


def _section(node: Table, kind: str, name: str, findings: Findings) -> Section | None:
    """The keys of a parameter, those that are wrong among the findings."""
    model, plain = KINDS[kind].section, node.plain()
    own = {key: value for key, value in node.nodes.items() if key in model.model_fields}
    for key in plain:
        if key in own or key == "distribution":
            continue
        text = f'"{key}" is no key of a {kind} parameter.'
        if key not in PARAMETER_KEYS:
            text = f'there is no key "{key}". {did_you_mean(key, PARAMETER_KEYS)}'
        findings.problems.append(Finding(node.key_lines[key], f"{name}: {text}"))
    for key, text in inconsistencies(kind, plain):
        findings.problems.append(Finding(node.line_of([key]), f"{name}: {text}"))
    return check_section(model, replace(node, nodes=own), findings, where=f"{name}: ")


def _distribution(section: Section, kind: str, place: Finding, findings: Findings) -> Distribution | None:
    line, name = place
    try:
        distribution = KINDS[kind].build(section)
        low, high = distribution.ppf(0.0), distribution.ppf(1.0)
    except OverflowError:
        text = f"{name}: {kind} reaches numbers beyond any computer's."
        findings.problems.append(Finding(line, text))
        return None
    if kind in EXPONENT_KINDS:
        text = f"{name}: the bounds of {kind} are exponents of e, so its values go from {low:g} to {high:g}. "
        text += f"For bounds that are values themselves there is {kind}_values."
        findings.notices.append(Finding(line, text))
    return distribution


def _not_a_mapping(name: str, node: Node) -> str:
    if node.plain() is None:
        hint = "Give it value, values, or min and max."
    else:
        key = "values: [...]" if isinstance(node, Listing) else f"value: {node.plain()}"
        hint = f"Write {name.rpartition('.')[2]}: {{{key}}}."
    return f"{name}: {_thing(node)} stands where a mapping belongs. {hint}"


def _kind_of(plain: dict[str, Any]) -> tuple[str | None, str]:
    """The distribution that is named, or that W&B takes for these keys; or what is missing to tell."""
    named = plain.get("distribution")
    if named is not None:
        if isinstance(named, str) and named in KINDS:
            return named, ""
        return None, f"{shown(named)} is no distribution. {did_you_mean(str(named), tuple(KINDS))}"
    if "value" in plain:
        return "constant", ""
    if "values" in plain:
        return ("categorical_w_probabilities" if "probabilities" in plain else "categorical"), ""
    shapes = [key for key in ("q", "mu", "sigma", "a", "b") if key in plain]
    if shapes:
        verb = "tells" if len(shapes) == 1 else "tell"
        return None, f"{', '.join(shapes)} {verb} nothing without a distribution."
    if "min" in plain or "max" in plain:
        bounds = [as_number(plain.get(key)) for key in ("min", "max")]
        return ("int_uniform" if all(isinstance(bound, int) for bound in bounds) else "uniform"), ""
    strangers = [key for key in plain if key not in PARAMETER_KEYS]
    if strangers:
        return None, f'there is no key "{strangers[0]}". {did_you_mean(strangers[0], PARAMETER_KEYS)}'
    return None, "it has no value, no values, no min and max, and no distribution."


def _listed(node: Table) -> tuple[tuple[Any, int], ...]:
    if "value" in node.nodes:
        return ((node.nodes["value"].plain(), node.line_of(["value"])),)
    values = node.nodes.get("values")
    if not isinstance(values, Listing):
        return ()
    return tuple((item.plain(), item.line) for item in values.items)


def _thing(node: Node) -> str:
    return shown(node.plain())
