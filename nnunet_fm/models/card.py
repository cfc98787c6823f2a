"""The model card: the validated schema of ``plans/cards/<model>.yaml``, the single place that describes a model."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from nnunet_fm.data.presets import MIRRORING_PRESETS
from nnunet_fm.models.names import VARIANTS, Parts

Spacing = Annotated[list[PositiveFloat], Field(min_length=2, max_length=3)]
Value = TypeVar("Value")
Table = Annotated[dict[str, Value], BeforeValidator(lambda table: table or {})]
"""A table by name; a variant can empty it with ``null``."""
Size = Annotated[list[PositiveInt], Field(min_length=2, max_length=3)]


class _CardPart(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ScratchRecipe(_CardPart):
    """Recipe fields with another value in trainings from random weights; None: the recipe's value."""

    optimizer: Literal["sgd", "adam", "adamw"] | None = None
    learning_rate: PositiveFloat | None = None
    weight_decay: float | None = Field(None, ge=0)
    layer_decay: float | None = Field(None, gt=0, le=1)
    warmup: float | None = Field(None, ge=0, lt=1)

    def changes(self) -> dict[str, Any]:
        """Set fields -> their values."""
        return self.model_dump(exclude_none=True)


class Recipe(_CardPart):
    """Recipe of a training, stored in the plan; ``--set recipe.<field>=<value>`` changes a field."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 1e-2
    scratch: ScratchRecipe | None = Field(
        None, description="changes for a training from random weights (a trainer that ends in _scratch)"
    )
    weight_decay: float = Field(3e-5, ge=0)
    decay_norms: bool = Field(True, description="weight decay on norms, biases and positions, too")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate for each layer below the head")
    momentum: float = Field(0.99, ge=0, lt=1, description="SGD with Nesterov momentum")
    schedule: Literal["poly", "warmup_cosine", "warmup_linear", "constant"] = "poly"
    poly_exponent: PositiveFloat = 0.9
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the training with linearly rising learning rate")
    final_rate: float = Field(0.0, ge=0, description="learning rate at the end of the decay")
    loss: Literal["nnunet", "dice_ce", "ce"] = Field(
        "nnunet", description="nnunet: nnU-Net's Dice + cross-entropy; dice_ce: MONAI's; ce: cross-entropy alone"
    )
    augmentation: Literal[
        "nnunet",
        "light",
        "none",
        "flips",
        "flips_rotations",
        "stunet_dae",
        "suprem",
        "suprem_official",
        "spad",
        "spad_official",
        "slices",
    ] = Field("nnunet", description="a preset of `nnunet_fm.data.augmentation`")
    mirror: Literal["all"] | list[Annotated[int, Field(ge=0, le=2)]] = Field(
        "all",
        description="axes of the patch that training flips and that prediction may mirror, as indices; all: every axis "
        "that the augmentation flips; [] none",
    )
    test_time_mirroring: bool = Field(
        True,
        description="average over images mirrored along the axes that training flips; false: flips in training alone",
    )
    sampling: Literal["nnunet", "pos_neg", "balanced", "rare_class"] = Field(
        "nnunet", description="how patches are drawn, see `nnunet_fm.data.sampling`"
    )
    oversample_foreground: float = Field(0.33, ge=0, le=1, description="share of patches centred on foreground")
    deep_supervision: bool = True
    supervision: Literal["targets", "outputs"] = Field(
        "targets", description="deep supervision: downsample the targets (nnU-Net) or upsample the outputs"
    )
    gradient_clip: PositiveFloat | None = 12.0
    overlap: float = Field(0.5, ge=0, lt=1, description="sliding-window overlap that the authors predict with")
    iterations_per_epoch: PositiveInt = 250
    validation_iterations: PositiveInt = 50
    save_every: PositiveInt = Field(50, description="epochs between two writings of checkpoint_latest")
    volume_dice_every: int = Field(
        0,
        ge=0,
        description="epochs between two measurements of the validation volumes' Dice, which chooses "
        "checkpoint_best; 0: nnU-Net's moving average over patches chooses",
    )
    faithful: bool = Field(
        False, description="sampling and learning rate of the 2D thesis's code, where it departs from the text"
    )
    feature_cache: float = Field(
        0,
        ge=0,
        description="GB of memory for feature maps of a frozen 2D backbone, so that each slice is encoded once; "
        "without augmentation (none or flips)",
    )
    max_minutes: PositiveFloat | None = Field(None, description="stop here; the learning rate reaches zero then")
    patience: PositiveInt | None = Field(
        None,
        description="end after so many epochs in a row without a new best of nnU-Net's moving average of the Dice; "
        "the schedule of the learning rate stays that of the full budget",
    )
    seed: int = 42

    @model_validator(mode="before")
    @classmethod
    def _older_mirror(cls, content: Any) -> Any:
        """Read ``mirror: true`` and ``mirror: false``, which meant mirroring at test time.

        In training they only switched nnU-Net's own flips: with another preset that flips, ``false`` meant a training
        with all flips and a prediction without mirrored images.
        """
        if not isinstance(content, dict) or not isinstance(content.get("mirror"), bool):
            return content
        if content["mirror"]:
            return {**content, "mirror": "all"}
        if content.get("augmentation", "nnunet") == "nnunet":
            return {**content, "mirror": []}
        return {**content, "mirror": "all", "test_time_mirroring": False}

    @model_validator(mode="before")
    @classmethod
    def _read_scratch_rate(cls, content: Any) -> Any:
        """Read the field ``scratch_rate`` of older plans and cards as ``scratch.learning_rate``."""
        if not isinstance(content, dict) or "scratch_rate" not in content:
            return content
        content = dict(content)
        rate = content.pop("scratch_rate")
        return {**content, "scratch": None if rate is None else {"learning_rate": rate}}

    @model_validator(mode="after")
    def _mirrors_what_it_flips(self) -> Recipe:
        if self.mirror and self.mirror != "all" and self.augmentation not in MIRRORING_PRESETS:
            raise ValueError(
                f"mirror is {self.mirror}, but augmentation '{self.augmentation}' flips nothing: leave mirror out, or "
                f"take one of the augmentations {', '.join(sorted(MIRRORING_PRESETS))}"
            )
        return self

    def flipped_axes(self, dim: int) -> tuple[int, ...]:
        """Axes of a patch with ``dim`` axes that training flips: indices into (z, y, x) or (y, x).

        Training, validation and prediction all use this function.
        """
        if self.augmentation not in MIRRORING_PRESETS:
            return ()
        return tuple(range(dim)) if self.mirror == "all" else tuple(sorted(set(self.mirror)))

    def predicted_axes(self, dim: int) -> tuple[int, ...] | None:
        """Axes along which a prediction averages over mirrored images, those flipped in training; None for none."""
        return (self.flipped_axes(dim) if self.test_time_mirroring else ()) or None

    def from_scratch(self) -> Recipe:
        """The recipe of a training from random weights."""
        return self.model_copy(update={**(self.scratch.changes() if self.scratch else {}), "scratch": None})


_AXES: dict[str, int | str] = {"0": 0, "1": 1, "2": 2, "z": "z", "y": "y", "x": "x"}


def read_mirror(given: object) -> Literal["all"] | list[int | str]:
    """Read a user's choice of mirrored axes: ``all``, or a list of axes.

    Args:
        given: ``true`` or ``all``; ``false``, ``none`` or an empty list; a list of axes, or text such as ``z,y``. An
            axis is its index in the patch, or its name in the images: z, y or x.

    Raises:
        ValueError: for anything else.
    """
    if given is True or given == "all":
        return "all"
    if given is False or given in ("none", []):
        return []
    words = re.findall(r"[^\s,]+", given) if isinstance(given, str) else given
    axes = [_AXES.get(str(word).lower()) for word in words] if isinstance(words, list) else []
    known = [axis for axis in axes if axis is not None]
    if not known or len(known) < len(axes):
        raise ValueError(f"mirror is {given!r}, legal are all, none, and axes such as z,y")
    return known


class Geometry(_CardPart):
    """Voxel spacing, patch and batch."""

    spacing: Spacing | Literal["native"] | None = Field(
        None, description="mm, (z, y, x) or (y, x); native: the data's own; null: nnU-Net's choice from the data"
    )
    patch: Size = Field(description="voxels, same axes")
    batch: PositiveInt = Field(2, description="patches per iteration")


class Intensity(_CardPart):
    """Normalisation of grey values.

    ``zscore``: per image, nnU-Net's ZScoreNormalization. ``ct``: nnU-Net's CTNormalization with the dataset's own
    numbers. ``window``: clip to ``window`` (HU) and scale to ``range``, as CTNormalization with edited numbers.
    ``percentile``: clip to the 1st and 99th percentile of the image, scale to ``range``. ``minmax``: from the image's
    minimum and maximum to [0, 1]. ``foreground``: clip to percentiles of the foreground, z-score of the foreground.
    """

    ct: Literal["zscore", "ct", "window", "percentile", "minmax", "foreground"] = Field(
        description="scheme of channels that are CT"
    )
    other: Literal["zscore", "percentile", "minmax", "foreground"] = Field(
        "zscore", description="scheme of all other channels"
    )
    window: tuple[float, float] | None = Field(None, description="HU")
    range: tuple[float, float] = Field((0.0, 1.0), description="what `window` and `percentile` scale to")

    @model_validator(mode="after")
    def _window_given(self) -> Intensity:
        if self.ct == "window" and self.window is None:
            raise ValueError("intensity.ct is 'window' but no window (HU) is given")
        if self.range not in ((0.0, 1.0), (-1.0, 1.0)):
            raise ValueError(f"intensity.range is {self.range}, legal are [0, 1] and [-1, 1]")
        return self


class DatasetChoice(_CardPart):
    """Values of a variant on one dataset; None: the variant's value."""

    spacing: PositiveFloat | Literal["native"] | None = Field(None, description="in-plane spacing in mm")
    epochs: PositiveInt | None = Field(None, description="passes over the training slices")
    intensity: Literal["zscore", "percentile", "minmax", "foreground"] | None = Field(
        None, description="scheme of the channels that are not CT"
    )
    learning_rate: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="adapter or 'default' -> learning rate"
    )


class Variant(_CardPart):
    """One way to plan a model: geometry, intensities and recipe."""

    geometry: Geometry = Field(description="voxels, patch and batch")
    intensity: Intensity = Field(description="how grey values reach the network")
    recipe: Recipe = Field(description="how the network is trained")
    iterations: PositiveInt | None = Field(None, description="instead of the card's count by dataset")
    epochs: PositiveInt | None = Field(
        None, description="passes over the training slices, from which the iterations are counted instead"
    )
    learning_rate: Table[PositiveFloat] = Field(
        default_factory=dict, description="adapter -> learning rate, where it is not the recipe's"
    )
    datasets: Table[DatasetChoice] = Field(
        default_factory=dict, description="beginning of a dataset's name (lower case, no signs) -> what differs there"
    )


class Checkpoint(_CardPart):
    """Description of an official weights file: how to find, read and check it."""

    name: str = Field(description="name in the weights cache and in plans")
    files: list[str] = Field(min_length=1, description="file names under which the publisher offers it")
    page: str = Field(description="where a person downloads it")
    urls: list[str] = Field(
        default_factory=list,
        description="where a program downloads it, tried in order: https://… or hf://owner/repository/file, or a zip",
    )
    licence: str = Field(description="what the publisher states for the file")
    container: list[str] = Field(default_factory=list, description="keys that may wrap the state dict")
    prefix: str = Field("", description="names in the file that belong to the network start with this")
    drop: list[str] = Field(default_factory=list, description="regular expressions of names left out on purpose")
    new: list[str] = Field(
        default_factory=list, description="regular expressions of the network's names that the file does not hold"
    )
    bytes: PositiveInt | None = Field(None, description="size of the file, where it is known")
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{6,64}$", description="published hash or its first digits; another file is refused"
    )
    md5: str | None = Field(None, pattern="^[0-9a-f]{6,32}$", description="likewise, where the publisher gives an MD5")
    note: str = Field(default="", description="a sentence for the reader of docs/models.md")

    @model_validator(mode="before")
    @classmethod
    def _one_address(cls, content: Any) -> Any:
        """Read ``url``, the field of older cards, as a list of one address."""
        if isinstance(content, dict) and content.get("url"):
            content = {**content, "urls": [content["url"], *content.get("urls", [])]}
        return {k: v for k, v in content.items() if k != "url"} if isinstance(content, dict) else content

    @property
    def published(self) -> str | None:
        """The publisher's hash, or its first digits: ``sha256:…`` or ``md5:…``; None where none is known."""
        return f"sha256:{self.sha256}" if self.sha256 else f"md5:{self.md5}" if self.md5 else None

    @property
    def required(self) -> str | None:
        """The publisher's whole SHA-256, without which a file is refused; a file with another MD5 gets a warning."""
        return self.sha256 if self.sha256 and len(self.sha256) == 64 else None


class Pretraining(_CardPart):
    """Data of the pre-training, for warnings of test leakage, other intensities and another orientation."""

    datasets: list[str] = Field(default_factory=list, description="a model is not tested on what it has seen")
    modality: list[str] = Field(default_factory=list, description="CT, MR, photographs, …")
    orientation: str | None = Field(default=None, description="axis codes of the image axes x, y, z, as nibabel's: RAS")
    note: str = Field(default="", description="how the images were prepared")


class NetworkCard(_CardPart):
    """The class that builds the network, its arguments, and which patches are legal for it."""

    class_path: str = Field(description="dotted path of a subclass of `nnunet_fm.networks.base.FoundationNetwork`")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="of its constructor; `--set network.<argument>=<value>` changes one"
    )
    max_pooling: int | None = Field(None, description="most halvings along one axis; the planner derives the strides")
    deep_supervision: bool = Field(False, description="whether the network has an output per decoder stage")
    input_range: bool = Field(False, description="whether the network must be told if inputs are in [0, 1] or z-scored")
    multiple: PositiveInt = Field(1, description="number of which the patch size must be a multiple, strides aside")
    min_edge: PositiveInt = Field(16, description="smallest legal patch size of an axis that is pooled")

    @property
    def resizes(self) -> bool:
        """Whether the network resizes its input to one size, so that a smaller patch saves no memory."""
        return "image_size" in self.arguments


class ModelCard(_CardPart):
    """A model: description, licences, network, variants for planning and training, official weights."""

    name: str = Field(description="as in trainer and planner names; the file is called after it")
    title: str = Field(description="for people")
    family: str = Field(description="models that differ in size")
    dim: Literal[2, 3] = Field(description="2 plans `2d`, 3 plans `3d_fullres`")
    summary: str = Field(description="one sentence")
    paper: str = Field(description="authors, title, place")
    code_licence: str = Field(description="of the official code")
    weights_licence: str = Field(description="of the official files")
    weights_use: Literal["open", "research", "unclear"] = Field(
        "unclear",
        description="open: under, or beside code under, an open licence; research: non-commercial; unclear: ask",
    )
    aliases: list[str] = Field(default_factory=list, description="other names that mean this model")
    pretraining: Pretraining = Field(default_factory=Pretraining, description="what the weights have seen")
    network: NetworkCard = Field(description="what is built")
    head_weights: dict[str, str] = Field(
        default_factory=dict,
        description="short name -> official file for heads that start from one of their own, default first",
    )
    heads: list[str] = Field(default_factory=list, description="legal decode heads, default first; empty: its own")
    adapters: list[str] = Field(default_factory=list, description="legal adapters, default first; empty: none")
    parameters: dict[int, int] = Field(
        description="number of classes -> parameters with the default head, one input channel, positions as published"
    )
    iterations: dict[str, PositiveInt] = Field(description="dataset name (lower case) or 'default' -> iterations")
    variants: dict[Literal["mission", "official", "thesis", "nnunet", "quick"], Variant] = Field(
        description="the first four, and quick where the model has one; each holds only what differs from mission"
    )
    checkpoints: list[Checkpoint] = Field(default_factory=list, description="official files, default first")
    notes: list[str] = Field(default_factory=list, description="sentences for docs/models.md")

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
    def checkpoint(self) -> Checkpoint | None:
        """The default official file; None without pre-training."""
        return self.checkpoints[0] if self.checkpoints else None

    def find_checkpoint(self, name: str) -> Checkpoint | None:
        """The checkpoint of this name; None if the card has no such checkpoint."""
        return next((c for c in self.checkpoints if c.name == name), None)

    @property
    def default_head(self) -> str | None:
        """The default decode head; None for a network with its own."""
        return self.heads[0] if self.heads else None

    @property
    def default_adapter(self) -> str | None:
        """The default adapter; None for a model without pre-training."""
        return self.adapters[0] if self.adapters else None

    @property
    def parts(self) -> Parts:
        """Head, adapter and variant names that may follow the model's name."""
        variants = tuple(name for name in VARIANTS if name in self.variants)
        return Parts(tuple(self.heads), tuple(self.adapters), tuple(self.aliases), variants)
