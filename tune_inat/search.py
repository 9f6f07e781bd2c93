"""The command and the function `search`: reads inputs, runs the plan, writes the results."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tune_inat.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, UserError, run_command
from tune_inat.interrupts import interruptible
from tune_inat.progress import Terminal
from tune_inat.remote import hide_secrets
from tune_inat.settings import SearchSettings, make_settings

if TYPE_CHECKING:
    from tune_inat.export import Classifier

ENDING = "Ending: what runs is given up, what is done is kept... (Ctrl-C again ends at once)"


@dataclass(frozen=True)
class SearchResult:
    """What a search left. `summary` is the content of `summary.json`."""

    folder: Path
    summary: dict[str, Any] = field(repr=False)

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The trials, best first."""
        trials: list[dict[str, Any]] = self.summary["trials"]
        return trials

    @property
    def best(self) -> dict[str, Any] | None:
        """The best trial with its test accuracy, `None` when no trial came to an end."""
        best: dict[str, Any] | None = self.summary["best"]
        return best

    def load_model(self) -> "Classifier":
        """The best model, ready to predict.

        Raises:
            UserError: the search has left none.
        """
        from tune_inat.export import load_classifier
        from tune_inat.leaderboard import BEST_MODEL_FOLDER

        return load_classifier(self.folder / BEST_MODEL_FOLDER)


def search(space: str = "grid", **arguments: Any) -> SearchResult:
    """Search for the best fine-tuned classifier; the arguments are those of the command.

    `search("grid", data="photos", trials=8, reuse=True)`: names as in `SearchSettings`.

    Raises:
        UserError: whatever is wrong with the arguments or the inputs.
    """
    settings = make_settings(space=space, **arguments)
    if settings.dry_run:
        raise UserError("search(dry_run=True): call plan_search(...), which returns the plan.")
    return run_search(settings, Terminal())


def plan_search(space: str = "grid", **arguments: Any) -> dict[str, Any]:
    """The plan of a search, as `--dry-run --json` prints it: what is shared, time, memory and disk.

    Raises:
        UserError: whatever is wrong with the arguments or the inputs.
    """
    return _foresee(make_settings(space=space, dry_run=True, **arguments), Terminal())


def _foresee(settings: SearchSettings, terminal: Terminal) -> dict[str, Any]:
    terminal.say(f"Plan of search space {settings.space} on {hide_secrets(settings.data)}")
    from tune_inat.conduct import foresee_search

    return foresee_search(settings, terminal)


def run_search(settings: SearchSettings, terminal: Terminal) -> SearchResult:
    """Run a search, told on `terminal`.

    Raises:
        UserError: whatever is wrong with the settings or the inputs.
    """
    started = time.monotonic()
    terminal.say(f"Search space {settings.space} on {hide_secrets(settings.data)}")
    try:
        with interruptible() as interruption, interruption.announced(lambda: terminal.say(ENDING)):
            from tune_inat.conduct import conduct_search

            folder, summary = conduct_search(settings, terminal, started=started)
    except KeyboardInterrupt:  # before there was anything to show
        from tune_inat.summary import command_of

        terminal.go_on(command_of(settings))
        raise
    return SearchResult(folder, summary)


def _option(name: str, *flags: str) -> Any:
    """A typer option that says what the setting of this name says."""
    return typer.Option(*flags, help=SearchSettings.model_fields[name].description)


SET_HELP = "the value for all trials of a parameter that the space does not vary; may be repeated"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    context: typer.Context,
    space: Annotated[str, _option("space")] = "grid",
    data: Annotated[str, _option("data")] = "sample",
    model: Annotated[str | None, _option("model")] = None,
    weights: Annotated[str | None, _option("weights")] = None,
    image_size: Annotated[int | None, _option("image_size")] = None,
    name: Annotated[str | None, _option("name")] = None,
    storage: Annotated[str, _option("storage")] = "runs",
    seed: Annotated[int | None, _option("seed")] = None,
    trials: Annotated[int | None, _option("trials")] = None,
    max_hours: Annotated[float | None, _option("max_hours")] = None,
    gpus_per_trial: Annotated[str, _option("gpus_per_trial")] = "auto",
    cpu_trials: Annotated[bool, _option("cpu_trials", "--cpu-trials/--no-cpu-trials")] = False,
    cpus_per_trial: Annotated[int | None, _option("cpus_per_trial")] = None,
    max_concurrent: Annotated[int | None, _option("max_concurrent")] = None,
    max_failures: Annotated[int, _option("max_failures")] = 1,
    precision: Annotated[str, _option("precision")] = "auto",
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET_HELP)] = None,
    reuse: Annotated[bool, _option("reuse", "--reuse/--no-reuse")] = True,
    cache_gb: Annotated[float | None, _option("cache_gb")] = None,
    dry_run: Annotated[bool, _option("dry_run", "--dry-run")] = False,
    skip_bad_images: Annotated[bool, _option("skip_bad_images", "--skip-bad-images")] = False,
    allow_leakage: Annotated[bool, _option("allow_leakage", "--allow-leakage")] = False,
    wandb: Annotated[str | None, _option("wandb")] = None,
    wandb_project: Annotated[str | None, _option("wandb_project")] = None,
    wandb_model: Annotated[bool, _option("wandb_model", "--wandb-model")] = False,
    address: Annotated[str | None, _option("address")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print summary.json, or the plan, alone on stdout")
    ] = False,
) -> None:
    """Find the best classifier that fine-tuning can give for a folder of labelled images."""
    settings = make_settings(**read_arguments(context.params))
    terminal = Terminal(quiet_stdout=as_json)
    if settings.dry_run:
        printed = _foresee(settings, terminal)
        if not as_json:
            terminal.plan(printed)
        code = EXIT_DONE
    else:
        printed = run_search(settings, terminal).summary
        code = exit_code(printed)
    if as_json:
        sys.stdout.write(json.dumps(printed, indent=2) + "\n")
    raise typer.Exit(code)


def read_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a search from what the command line gave."""
    from tune_inat.space import parse_settings

    known = {key: value for key, value in given.items() if key in SearchSettings.model_fields}
    return {**known, "overrides": parse_settings(given["overrides"] or [])}


def exit_code(summary: dict[str, Any]) -> int:
    """0 when all was done, 1 when a trial or the export failed, 130 when the search was interrupted."""
    return {"DONE": EXIT_DONE, "FAILURES": EXIT_FAILED, "INTERRUPTED": EXIT_INTERRUPTED}[summary["status"]]


class _CallableModule(ModuleType):
    """This module, which is what `from tune_inat import search` gives: calling it calls its function."""

    def __call__(self, space: str = "grid", **arguments: Any) -> SearchResult:
        """See `search`."""
        return search(space, **arguments)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    run_command(app)
