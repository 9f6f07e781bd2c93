"""What a user asks of a search, and what follows from it for all of its trials."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tune_inat.config import TrialConfig
from tune_inat.errors import UserError
from tune_inat.wording import complaint, did_you_mean, shown

SAMPLE = "sample"
SAMPLE_MODEL = "timm/tf_efficientnet_lite0"
SAMPLE_IMAGE_SIZE = 96
WEIGHTS_WITHOUT_FILE = ("default", "none")
NOT_IN_PROJECTS = "/\\#?%:"
MAX_PROJECT_NAME = 128  # characters
MAX_NAME_BYTES = 120  # W&B's groups end at 128, file systems at 255


class SearchSettings(BaseModel):
    """The arguments of a search, as on the command line. `None` leaves a choice to the search."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    space: str = Field("grid", description="a search space that ships with tune_inat, or a sweep file")
    data: str = Field(SAMPLE, description="sample, inaturalist12k, a folder, or an s3:// or gs:// URI")
    model: str | None = Field(None, description="a torchvision name, or timm/NAME")
    weights: str | None = Field(None, description="default, none, or a file")
    image_size: int | None = Field(None, ge=16, le=4096, description="side of the square images in pixels")
    name: str | None = Field(None, min_length=1, description="the search's name: its folder in --storage")
    storage: str = Field(
        "runs",
        min_length=1,
        description="where the searches' folders are: a folder, or an s3:// or gs:// URI",
    )
    seed: int | None = Field(None, ge=0, lt=2**32, description="seed of the split and of all that is drawn")
    trials: int | None = Field(None, ge=1, description="how many trials at most")
    max_hours: float | None = Field(None, gt=0, description="hours after which the search ends")
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="GPUs of a trial: auto, a share (0.25) or a number; 0 runs on the CPU"
    )
    cpu_trials: bool = Field(False, description="let nodes without GPUs take trials of a search on GPUs, too")
    cpus_per_trial: int | None = Field(None, ge=1, description="CPU cores of a trial")
    max_concurrent: int | None = Field(None, ge=1, description="how many trials run at a time")
    max_failures: int = Field(1, ge=0, description="how often a trial that fails is tried again")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="fp32, bf16, or auto, which takes what is faster"
    )
    overrides: Mapping[str, Any] = Field(default_factory=dict, description="values that all trials share")
    reuse: bool = Field(True, description="share work between trials, and with earlier searches")
    cache_gb: float | None = Field(
        None, gt=0, description="how large the cache may grow, in GB; else nearly the whole disk"
    )
    dry_run: bool = Field(False, description="print the plan, with time, memory and disk, and train nothing")
    skip_bad_images: bool = Field(False, description="leave out images that cannot be read")
    allow_leakage: bool = Field(False, description="accept the same image in two given parts")
    wandb: Literal["online", "offline", "disabled"] | None = Field(
        None,
        description="W&B's mode: online, offline or disabled; else WANDB_MODE's, else online with a key",
    )
    wandb_project: str | None = Field(None, min_length=1, description="W&B's project")
    wandb_model: bool = Field(False, description="keep the best model in W&B, with its trial's run")
    address: str | None = Field(None, min_length=1, description="a running Ray cluster: auto, or host:port")

    def given(self) -> dict[str, Any]:
        """The parameters that the arguments fix, by name.

        Raises:
            UserError: an argument and `--set` name the same parameter.
        """
        named = {
            "model": self.model,
            "weights": self.weights,
            "image_size": self.image_size,
            "seed": self.seed,
        }
        chosen = {name: value for name, value in named.items() if value is not None}
        twice = [name for name in chosen if name in self.overrides]
        if twice:
            raise UserError([f"--set {name}: --{name.replace('_', '-')} says it already." for name in twice])
        return _with_whole_paths({**chosen, **self.overrides})

    def command(self) -> list[str]:
        """The words of the command that has these arguments, wherever they came from."""
        words = ["python", "-m", "tune_inat.search", "--space", self.space]
        for name, field in type(self).model_fields.items():
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if name in ("space", "overrides", "dry_run") or value == field.default:
                continue
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{name}")
            else:
                words += [flag, f"{value:.12g}" if isinstance(value, float) else str(value)]
        for name, value in self.overrides.items():
            words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
        return words

    def fixed(self) -> dict[str, Any]:
        """The values that trials share where the space does not vary them: what is given, and defaults."""
        is_sample = self.data == SAMPLE
        defaults = {
            "model": SAMPLE_MODEL if is_sample else TrialConfig.model_fields["model"].default,
            "image_size": SAMPLE_IMAGE_SIZE if is_sample else TrialConfig.model_fields["image_size"].default,
        }
        return {**defaults, **self.given()}


def make_settings(**arguments: Any) -> SearchSettings:
    """Settings from arguments, as a command or a notebook gives them.

    Raises:
        UserError: names every argument that does not exist or cannot have its value.
    """
    try:
        settings = SearchSettings(**arguments)
    except ValidationError as error:
        problems = {str(item["loc"][0]): _problem(item) for item in error.errors()}  # one for each argument
        raise UserError(list(problems.values())) from error
    further = [
        text
        for text in (
            _name_problem(settings),
            project_problem(settings.wandb_project),
            _model_problem(settings),
        )
        if text is not None
    ]
    if further:
        raise UserError(further)
    return settings


def _with_whole_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """A weights file by its whole path: the same trial, and found, wherever it is named."""
    weights = given.get("weights")
    if not isinstance(weights, str) or weights in WEIGHTS_WITHOUT_FILE:
        return dict(given)
    return {**given, "weights": str(Path(weights).expanduser().resolve())}


def _name_problem(settings: SearchSettings) -> str | None:
    """A name is one folder in --storage, and nothing else."""
    name = settings.name
    if name is None:
        return None
    if any(character in name for character in "/\\\0") or not name.strip(". "):
        return (
            f"--name {name}: it has to be the name of one folder, such as birds. --storage says where it is."
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"--name {name[:20]}...: it is longer than {MAX_NAME_BYTES} bytes."
    return None


def project_problem(project: str | None) -> str | None:
    """What is wrong with the name of a W&B project, by W&B's own rules."""
    if project is None:
        return None
    bad = sorted(set(project) & set(NOT_IN_PROJECTS))
    if bad:
        return f"W&B project {shown(project)}: its name cannot have {' '.join(bad)} in it."
    if len(project) > MAX_PROJECT_NAME:
        return f"W&B project {shown(project)}: its name is longer than {MAX_PROJECT_NAME} characters."
    return None


def _model_problem(settings: SearchSettings) -> str | None:
    """A model can only be kept in a W&B that is there."""
    if not settings.wandb_model:
        return None
    if settings.wandb == "disabled":
        return "--wandb-model: --wandb disabled leaves no run to keep a model with. Leave out one of them."
    if settings.wandb is None and os.environ.get("WANDB_MODE", "").lower() == "disabled":
        return "--wandb-model: WANDB_MODE=disabled leaves no run to keep a model with. --wandb offline would."
    return None


def _problem(item: Mapping[str, Any]) -> str:
    name = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        return f"there is no argument {name}. {did_you_mean(name, SearchSettings.model_fields)}"
    if name == "gpus_per_trial":
        return f"--gpus-per-trial: {shown(item['input'])} is not auto, a share (0.25) or a number from 0 on."
    return f"--{name.replace('_', '-')}: {complaint(item)}"
