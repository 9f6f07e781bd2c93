"""The commands of tune_inat, a line each, for whoever types `python -m tune_inat`."""

import sys

from tune_inat.errors import UserError, run_command
from tune_inat.wording import nearest_word, shown

COMMANDS = {
    "search": "find the best fine-tuned classifier for a folder of labelled images",
    "report": "write a search's report.html anew, also while it runs",
    "results": "compare searches",
    "predict": "name the classes of images with the best model",
    "export": "write the best model as ONNX",
    "data": "audit images: classes, formats, unreadable files, copies, the split",
    "space": "check a search space (a W&B sweep file)",
}


def main() -> None:
    """Print the commands.

    Raises:
        UserError: an argument was given, as if this were a command itself.
    """
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in ("--help", "-h"):
        raise UserError(_hint(arguments[0]))
    sys.stdout.write("The commands of tune_inat; each takes --help:\n\n")
    for name, text in COMMANDS.items():
        sys.stdout.write(f"  python -m tune_inat.{name:<8} {text}\n")


def _hint(argument: str) -> str:
    """What to type instead."""
    if argument.startswith("-"):
        return f"{shown(argument)}: options belong to a command. python -m tune_inat lists them."
    name = nearest_word(argument, COMMANDS)
    if name is None:
        commands = ", ".join(f"tune_inat.{name}" for name in COMMANDS)
        return f"{shown(argument)}: there is no such command. After python -m there can be {commands}."
    return f"{shown(argument)}: a command's name follows a dot: python -m tune_inat.{name}"


if __name__ == "__main__":
    run_command(main)
