"""What a sweep file says and what of it a search could use, as a table or as JSON."""

import math
import sys
from dataclasses import asdict, dataclass
from typing import Any

from tune_inat.distributions import grid_length, identity
from tune_inat.errors import printable
from tune_inat.objective import DEFAULT_METRIC, GOALS, metric_name
from tune_inat.parameters import canonical_name, leaf_name
from tune_inat.sweep import DEFAULT_TRIALS, Sweep

ASSUMED_EPOCHS = 30  # of the longest trial, to show where one may be stopped, when the file does not say


@dataclass(frozen=True)
class SweepReport:
    """A sound sweep, whatever its parameters are called.

    Attributes:
        refusals: why a search would refuse it, a sentence each; none if it would not.
        notices: what a reader should know, a sentence each.
    """

    source: str
    sweep: Sweep
    refusals: tuple[str, ...]
    notices: tuple[str, ...]

    def described(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        sweep = self.sweep
        return {
            "file": self.source,
            "sound": True,
            "method": sweep.method,
            "metric": self._metric(),
            "run_cap": self._run_cap(),
            "early_stopping": asdict(sweep.early_stopping) if sweep.early_stopping else None,
            "parameters": {
                parameter.name: {"kind": parameter.kind, **identity(parameter.distribution)}
                for parameter in sweep.parameters
            },
            "refused": self.all_refusals(),
            "notices": self.notices,
        }

    def print(self) -> None:
        """The table and why a search would refuse the file on stdout, the notices on stderr."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(highlight=False, soft_wrap=True)
        console.print(Text(printable(f"{self.source} is a sound W&B sweep.\n")))
        table = Table("parameter", "distribution", "values", "in tune_inat")
        for parameter in self.sweep.parameters:
            name = canonical_name(leaf_name(parameter.path)) or "no such name"
            cells = (parameter.name, parameter.kind, str(parameter.distribution), name)
            table.add_row(*(Text(printable(cell), overflow="fold") for cell in cells))
        console.print(table)
        for title, text in self._summary():
            console.print(Text(printable(f"{title:<15} {text}")))
        refusals = self.all_refusals()
        if refusals:
            console.print(Text("\nA search would refuse it:"))
        for refusal in refusals:
            console.print(Text(printable(refusal)))
        for notice in self.notices:
            sys.stderr.write(f"Note: {printable(notice)}\n")

    def _summary(self) -> list[tuple[str, str]]:
        sweep, metric, run_cap = self.sweep, self._metric(), self._run_cap()
        n_points = math.prod(grid_length(each.distribution) or 0 for each in sweep.parameters)
        n_trials = f", {n_points:,} trials" if sweep.method == "grid" else ""
        rows = [
            ("method", f"{sweep.method}{n_trials}"),
            ("metric", f"{metric['name']}, {metric['goal']}"),
        ]
        if sweep.early_stopping is not None:
            rungs = ", ".join(map(str, sweep.early_stopping.rungs(self._longest() or ASSUMED_EPOCHS)))
            share = f"1 in {sweep.early_stopping.reduction_factor:g}"
            if rungs:
                rows.append(("early stopping", f"after epochs {rungs} the best {share} go on"))
        if run_cap is not None:
            rows.append(("run cap", f"{run_cap} trials"))
        elif sweep.method != "grid":
            rows.append(("trials", f"{DEFAULT_TRIALS}, unless run_cap or --trials says otherwise"))
        return rows

    def all_refusals(self) -> tuple[str, ...]:
        """Why a search would refuse it, also for what its parameters say together."""
        early, longest = self.sweep.early_stopping, self._longest()
        problem = early.problem(longest) if early is not None and longest is not None else None
        return self.refusals if problem is None else (*self.refusals, f"{self.source}: {problem}")

    def _longest(self) -> int | None:
        """The epochs of the longest trial, where the file says so."""
        for parameter in self.sweep.parameters:
            if canonical_name(leaf_name(parameter.path)) == "epochs":
                listed = parameter.distribution.values or (parameter.distribution.ppf(1.0),)
                if all(isinstance(epochs, int | float) for epochs in listed):
                    return int(max(listed))
        return None

    def _metric(self) -> dict[str, str]:
        """As the file names it, with the goal that a search would take."""
        section = self.sweep.metric
        if section is None:
            return asdict(DEFAULT_METRIC)
        name = metric_name(section.name)
        return {"name": section.name, "goal": section.goal or (GOALS[name] if name else "minimize")}

    def _run_cap(self) -> int | None:
        return self.sweep.head.run_cap if self.sweep.head else None
