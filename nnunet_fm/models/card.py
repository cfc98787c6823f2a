"""The model card: the validated schema of ``plans/cards/<model>.yaml``, the single place that describes a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from nnunet_fm.models.names import Parts

Spacing = Annotated[list[PositiveFloat], Field(min_length=2, max_length=3)]
Size = Annotated[list[PositiveInt], Field(min_length=2, max_length=3)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Recipe(_Strict):
    """How a network is trained; a plan carries one, and ``--set recipe.<field>=<value>`` changes a field."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 1e-2
    weight_decay: float = Field(3e-5, ge=0)
    momentum: float = Field(0.99, ge=0, lt=1, description="SGD with Nesterov momentum")
    schedule: Literal["poly", "warmup_cosine", "warmup_linear", "constant"] = "poly"
    poly_exponent: PositiveFloat = 0.9
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the training with linearly rising rate")
    loss: Literal["nnunet", "ce"] = Field("nnunet", description="nnunet: Dice + cross-entropy; ce: cross-entropy alone")
    augmentation: Literal["nnunet", "light", "none"] = "nnunet"
    mirror: bool = Field(True, description="mirroring in training and at test time")
    oversample_foreground: float = Field(0.33, ge=0, le=1, description="share of patches centred on foreground")
    deep_supervision: bool = True
    gradient_clip: PositiveFloat = 12.0
    iterations_per_epoch: PositiveInt = 250
    validation_iterations: PositiveInt = 50
    save_every: PositiveInt = Field(50, description="epochs between two writings of checkpoint_latest")
    max_minutes: PositiveFloat | None = Field(None, description="stop here; the learning rate reaches zero then")
    seed: int = 42


class Geometry(_Strict):
    """Voxel spacing in mm (z, y, x), patch in voxels and batch size; ``None`` leaves the choice to the data."""

    spacing: Spacing | Literal["native"] | None = None
    patch: Size
    batch: PositiveInt = 2


class Intensity(_Strict):
    """How grey values reach the network.

    ``zscore``: per image, nnU-Net's ZScoreNormalization. ``ct``: nnU-Net's CTNormalization with the dataset's own
    numbers. ``window``: clip to ``window`` (HU) and scale to [0, 1], as CTNormalization with edited numbers.
    ``percentile``: clip to the 1st and 99th percentile of the image, scale to [0, 1]. ``minmax``: scale to [0, 1].
    """

    ct: Literal["zscore", "ct", "window", "percentile", "minmax"]
    other: Literal["zscore", "percentile", "minmax"] = "zscore"
    window: tuple[float, float] | None = Field(None, description="HU")

    @model_validator(mode="after")
    def _window_given(self) -> Intensity:
        if self.ct == "window" and self.window is None:
            raise ValueError("intensity.ct is 'window' but no window (HU) is given")
        return self


class Variant(_Strict):
    """One way to plan a model: where the geometry, the intensities and the recipe come from."""

    geometry: Geometry
    intensity: Intensity
    recipe: Recipe
    iterations: PositiveInt | None = Field(None, description="instead of the card's count by dataset")


class Checkpoint(_Strict):
    """An official weights file, described well enough to find, read and check it."""

    name: str = Field(description="name in the weights cache and in plans")
    files: list[str] = Field(min_length=1, description="file names under which the publisher offers it")
    page: str = Field(description="where a person downloads it")
    licence: str
    container: list[str] = Field(default_factory=list, description="keys that may wrap the state dict")
    drop: list[str] = Field(default_factory=list, description="regular expressions of names left out on purpose")
    bytes: PositiveInt | None = None
    sha256: str | None = None


class Pretraining(_Strict):
    """What the weights have seen, to warn of test leakage and of foreign intensities."""

    datasets: list[str] = Field(default_factory=list)
    modality: list[str] = Field(default_factory=list)
    note: str = ""


class NetworkCard(_Strict):
    """The class that builds the network, its arguments, and which patches are legal for it."""

    class_path: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    max_pooling: int | None = Field(None, description="most halvings along one axis; the planner derives the strides")
    deep_supervision: bool = Field(False, description="whether the network has an output per decoder stage")
    input_range: bool = Field(False, description="whether the network must be told if inputs are in [0, 1] or z-scored")
    multiple: PositiveInt = Field(1, description="a patch edge must be a multiple of this, strides aside")
    min_edge: PositiveInt = Field(16, description="smallest legal patch edge where the axis is pooled at all")

    @property
    def resizes(self) -> bool:
        """True if the network resizes its input to one size inside, so that a smaller patch saves no memory."""
        return "image_size" in self.arguments


class ModelCard(_Strict):
    """One model: what it is, what it may be used for, how it is planned and trained, where its weights come from."""

    name: str
    title: str
    family: str
    dim: Literal[2, 3]
    summary: str
    paper: str
    code_licence: str
    weights_licence: str
    aliases: list[str] = Field(default_factory=list)
    pretraining: Pretraining = Field(default_factory=Pretraining)
    network: NetworkCard
    heads: list[str] = Field(default_factory=list, description="legal decode heads, default first; empty: its own")
    adapters: list[str] = Field(default_factory=list, description="legal adapters, default first; empty: none")
    parameters: dict[int, int] = Field(description="number of classes -> parameters, one input channel")
    iterations: dict[str, PositiveInt] = Field(description="dataset name (lower case) or 'default' -> iterations")
    variants: dict[Literal["mission", "official", "thesis", "nnunet"], Variant]
    checkpoint: Checkpoint | None = None
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _complete(self) -> ModelCard:
        missing = {"mission", "official", "thesis", "nnunet"} - set(self.variants)
        if missing:
            raise ValueError(f"card '{self.name}' lacks the variants {sorted(missing)}")
        if "default" not in self.iterations:
            raise ValueError(f"card '{self.name}' lacks iterations.default")
        return self

    @property
    def configuration(self) -> Literal["2d", "3d_fullres"]:
        """nnU-Net configuration that this model plans."""
        return "2d" if self.dim == 2 else "3d_fullres"

    @property
    def default_head(self) -> str | None:
        """The decode head of a name or plan that gives none; None for a network with its own."""
        return self.heads[0] if self.heads else None

    @property
    def default_adapter(self) -> str | None:
        """The adapter of a name or plan that gives none; None for a model without pre-training."""
        return self.adapters[0] if self.adapters else None

    @property
    def parts(self) -> Parts:
        """Head and adapter names that may follow the model's name."""
        return Parts(tuple(self.heads), tuple(self.adapters), tuple(self.aliases))
