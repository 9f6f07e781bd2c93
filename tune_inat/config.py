"""What a trial can be told: every parameter with its meaning, default and range."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEDULES_THAT_KNOW_THE_LAST_EPOCH = frozenset({"cosine", "onecycle"})

Share = Annotated[float, Field(ge=0.0, le=1.0)]
BlockName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*$")]


class TrialConfig(BaseModel):
    """One trial's configuration, complete: together with images and weights it fixes every number.

    The names are the keys of a sweep file's `parameters`. `model`, `weights`, `image_size` and `seed` have
    their defaults from the command (`--model`, ...), all else from here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    freeze: Share | BlockName = Field(
        0.8,
        description="share 0..1 of the parameter tensors to freeze, or the last frozen block",
    )
    epochs: int = Field(5, ge=1, description="passes over the training images")
    batch_size: int = Field(32, ge=1, description="images in a training step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the head; also `learning_rate`")
    weight_decay: float = Field(0.0, ge=0, description="weight decay, not applied to biases and norms")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="the optimizer: `adam`, `adamw` or `sgd`"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd (Nesterov when above 0)")
    schedule: Literal["constant", "cosine", "onecycle"] = Field(
        "constant", description="the learning rate over the epochs: `constant`, `cosine` or `onecycle`"
    )
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up; for onecycle, of its rise")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on lr for each unfrozen block below the head"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the training loss")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the head")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="`balanced` weighs classes by the inverse of their share of the images"
    )
    augment: Literal["none", "flip", "light", "strong"] = Field(
        "none",
        description="`flip`: mirror; `light`: mirror and crop; `strong`: light, colours and TrivialAugment",
    )
    views: Annotated[int, Field(ge=1, le=1000)] | Literal["fresh"] = Field(
        4, description="augmented views kept of each image, or `fresh` for new ones each epoch"
    )
    mixup: float = Field(0.0, ge=0, description="alpha of mixup at the cut (manifold mixup); 0 is none")
    image_size: int = Field(224, ge=16, le=4096, description="side of the square images in pixels")
    model: str = Field("resnet50", min_length=1, description="a torchvision name, or `timm/NAME`")
    weights: str = Field("default", min_length=1, description="`default`, `none` or a file")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything that is drawn in a trial")

    @property
    def knows_last_epoch(self) -> bool:
        """Whether the learning rate of an epoch depends on how many there will be."""
        return self.schedule in SCHEDULES_THAT_KNOW_THE_LAST_EPOCH

    def family(self) -> dict[str, Any]:
        """The part of the configuration that fixes what happens in each epoch.

        Trials with the same family train the same epochs; they differ in how many. What has no effect is
        left out: `momentum` without sgd, `views` without augmentation.
        """
        values = self.model_dump()
        if not self.knows_last_epoch:
            del values["epochs"]
        if self.optimizer != "sgd":
            del values["momentum"]
        if self.augment == "none":
            del values["views"]
        return values


ALIASES = {"learning_rate": "lr"}  # other names that the field uses for a parameter
PARAMETER_NAMES = tuple(TrialConfig.model_fields)
