"""The parts of the README that are made from the code. `python -m tests.readme` prints them."""

from pathlib import Path
from typing import Any

from tune_inat.config import TrialConfig
from tune_inat.settings import SearchSettings

README = Path(__file__).parent.parent / "README.md"


def own_machines() -> str:
    """The cluster file for machines of one's own."""
    return README.read_text().split("### On machines of your own")[1].split("```yaml\n")[1].split("```")[0]


def parameter_rows() -> list[str]:
    """A row for each parameter of a trial."""
    return [
        f"| `{name}` | `{_plain(field.default)}` | {field.description} |"
        for name, field in TrialConfig.model_fields.items()
    ]


def option_rows() -> list[str]:
    """A row for each option of a search."""
    flags = {"reuse": "--reuse/--no-reuse", "cpu_trials": "--cpu-trials/--no-cpu-trials"}
    return [
        f"| `{flags.get(name, '--' + name.replace('_', '-'))}` "
        f"| {field.description}{_default(field.default)} |"
        for name, field in SearchSettings.model_fields.items()
        if name != "overrides"
    ]


def _default(value: Any) -> str:
    """Told where it is a value; what is not given otherwise is off or left to the search."""
    return "" if value is None or isinstance(value, bool) else f" (default: `{_plain(value)}`)"


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


if __name__ == "__main__":
    print("\n".join([*parameter_rows(), "", *option_rows()]))  # noqa: T201  # what this is for
