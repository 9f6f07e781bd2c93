"""The house keeps its shape: imports only point down, and Ray, wandb and the terminal keep to their rooms."""

from pathlib import Path

import tune_inat

PACKAGE = Path(tune_inat.__file__).parent
FLOORS = [
    "config errors meter objective disk wording distributions yaml_lines sweep_schema",
]
