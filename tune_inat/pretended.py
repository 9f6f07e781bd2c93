"""GPUs that are not there, for tests and trials of placement: Ray hands them out, trials compute on the CPU.

`TUNE_INAT_PRETENDED_GPUS` describes them in JSON, by the type that Ray gives a node's GPUs (`""` on a single
machine): `{"": {"n": 2, "gb": 16, "step_gb": 3, "images_per_second": {"1": 100, "2": 190, "4": 200}}}`.
"""

import json
import os
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tune_inat.errors import UserError
from tune_inat.packing import Card, Measured
from tune_inat.wording import complaint, shown

PRETENDED_VARIABLE = "TUNE_INAT_PRETENDED_GPUS"
NEEDED = 'It describes GPUs by their type, such as {"": {"n": 2, "gb": 16}}; without it, none are pretended.'


class PretendedGpus(BaseModel):
    """GPUs of one type: how many this machine has, their memory, and what trials take of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(1, ge=1)
    gb: float = Field(16.0, gt=0)
    step_gb: float = Field(1.0, gt=0)
    process_gb: float = Field(0.5, ge=0)
    images_per_second: Mapping[int, Annotated[float, Field(gt=0)]] = {1: 100.0}

    def card(self, name: str) -> Card:
        """The GPU."""
        return Card(f"pretended {name}".strip(), int(self.gb * 1e9), int(self.gb * 1e9))

    def measured(self) -> Measured:
        """What trials take of it."""
        return Measured(int(self.step_gb * 1e9), int(self.process_gb * 1e9), dict(self.images_per_second))


def pretended_gpus() -> Mapping[str, PretendedGpus]:
    """The GPUs to pretend, by their type; none where the variable is not set.

    Raises:
        UserError: it does not describe any.
    """
    text = os.environ.get(PRETENDED_VARIABLE)
    if not text:
        return {}
    try:
        return TypeAdapter(dict[str, PretendedGpus]).validate_python(json.loads(text))
    except ValidationError as error:
        found = error.errors()[0]
        where = "".join(f"{shown(key)}: " for key in found["loc"])
        raise UserError(f"{PRETENDED_VARIABLE}: {where}{complaint(found)} {NEEDED}") from error
    except ValueError as error:
        raise UserError(f"{PRETENDED_VARIABLE}: {shown(text)} is no JSON. {NEEDED}") from error


def n_pretended() -> int:
    """How many GPUs this machine pretends to have."""
    return sum(gpus.n for gpus in pretended_gpus().values())
