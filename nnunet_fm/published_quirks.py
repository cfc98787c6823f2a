"""Quirks of published code: where it departs from its paper or from common sense, and the code that repeats it.

`QUIRKS` lists all of them with their source and their switch. Quirks that official weights were trained with are always
on. `IDLE_LAYERS` lists layers that no output depends on; they are kept for published parameter counts and file names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Label = TypeVar("Label")


class Quirk(NamedTuple):
    """One departure of published code.

    Attributes:
        what: what the code does.
        source: whose code.
        switch: option that turns the quirk on; empty if it is always on.
        module: path of the module that it acts in, below ``nnunet_fm``.
    """

    what: str
    source: str
    switch: str
    module: str


THESIS = "the thesis on 2D backbones"

QUIRKS = (
    Quirk("DINOv2 sees BGR images that were normalised as RGB", THESIS, "network.faithful", "networks.segmenter2d"),
    Quirk("feature maps of MAE lack the final norm", THESIS, "network.faithful", "networks.segmenter2d"),
    Quirk("the tokens refined by Rein are thrown away", THESIS, "network.faithful", "networks.segmenter2d"),
    Quirk(
        "`warmup_linear` starts at a third of the learning rate and ends at half of it, whatever `final_rate` says",
        THESIS,
        "recipe.faithful",
        "trainers.schedule",
    ),
    Quirk(
        "`rare_class` draws the slices of every class from one list, in which a slice stands once for each class in it",
        THESIS,
        "recipe.faithful",
        "data.rare_class",
    ),
    Quirk(
        "self-training takes pseudo-labels from the pass that is trained on, in training mode and augmented",
        THESIS,
        "adapt --faithful",
        "trainers.selftraining",
    ),
    Quirk(
        'entropy minimisation trains only parameters of the head with "norm" in their names',
        THESIS,
        "adapt --faithful",
        "trainers.adaptation",
    ),
    Quirk("the labelled cases are the first by name", THESIS, "adapt --faithful", "trainers.adaptation"),
    Quirk(
        "the second stage's attention map is a softmax over a single channel, so that the embedding is doubled",
        "H-SAM",
        "head argument repaired=false",
        "heads.hsam_decoder",
    ),
    Quirk(
        "in the second stage tokens see the image through the prior masks only at 196 or 1024 patches",
        "H-SAM",
        "head argument repaired=false",
        "heads.hsam_decoder",
    ),
    Quirk(
        "different offsets of tokens share a row of the attention's bias table, and most rows are unused",
        "MIS-FM",
        "",
        "networks.pctnet",
    ),
    Quirk(
        "patch merging takes two of the eight sub-grids twice and two not at all",
        "MONAI up to 1.4, with which SuPreM, DAE and SwinMM were trained",
        "",
        "networks.swinunetr",
    ),
    Quirk(
        "patch merging pads odd sizes of one axis along another",
        "MONAI up to 1.4, with which SuPreM, DAE and SwinMM were trained",
        "",
        "networks.swinunetr",
    ),
)

IDLE_LAYERS = {
    "adapters.rein": ("transform", "merge"),
    "heads.da": ("pam_conv_seg", "cam_conv_seg"),
    "heads.sam_base": ("mask_decoder.iou_prediction_head", "prompt_encoder.point_embeddings"),
    "heads.hsam_decoder": ("self_attn", "self_attn2", "mlp", "med_sel", "MaskedAttention.norm1 to norm3"),
    "networks.pctnet": ("embeddings and pred_heads of other resolution modes", "convtrans_*.norm_layer"),
    "networks.spadnet": ("backbone.norm",),
}
"""Module below ``nnunet_fm`` -> its layers without effect."""

WARMUP_START, DECAY_END = 1 / 3, 1 / 2
"""Factors on the learning rate at the two ends of a faithful ``warmup_linear``."""

MERGED = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
"""Offsets (depth, height, width) of the sub-grids that patch merging concatenates in MONAI up to 1.4. Later versions
take every sub-grid once, with the same names and shapes of weights but other outputs."""

GRIDS_WITH_PRIOR = (196, 1024)
"""Numbers of patches at which H-SAM lets tokens see the image through the prior masks."""


def published_channels(backbone: str, images: Tensor) -> Tensor:
    """Normalised images ``(B, 3, Y, X)`` in the order of channels that the thesis's code feeds a backbone."""
    return images.flip(1) if backbone.startswith("dinov2") else images


def published_norm(backbone: str) -> Literal["none"] | None:
    """Feature maps that get the final norm in the code of the thesis; None for the backbone's own way."""
    return "none" if backbone.startswith("mae") else None


def published_slices(slices: Mapping[Label, NDArray[np.int32]]) -> dict[Label, NDArray[np.int32]]:
    """Slices ``(N, 2)`` of each label -> for each label the slices of all labels in one array."""
    together = np.concatenate(list(slices.values()))
    return dict.fromkeys(slices, together)


def trains_norms_only(method: str, faithful: bool) -> bool:
    """Whether an adaptation trains only the norms of the head."""
    return faithful and method == "entropymin"


def published_labelled(training: Sequence[str], count: int) -> list[str]:
    """Training cases whose labels the thesis's code uses."""
    return sorted(training)[:count]


def pct_bias_rows(offsets: Tensor, window: int) -> Tensor:
    """Row of MIS-FM's bias table for offsets ``(3, …)`` along z, y, x between tokens of a cubic window, int64 ``(…)``.

    The numbering without collisions has the factors ``(2 w - 1) ** 2``, ``2 w - 1`` and 1.
    """
    z, y, x = offsets + (window - 1)
    return z * (3 * window - 1) + y * (2 * window - 1) + x


def merging_padding(odd: Sequence[int]) -> tuple[int, ...]:
    """Padding, as of `torch.nn.functional.pad`, of ``(B, D, H, W, C)`` before patch merging.

    It pads the width by the depth's remainder, the height by the width's and the depth by the height's.

    Args:
        odd: remainders of D, H and W by two.
    """
    return (0, 0, 0, odd[0], 0, odd[2], 0, odd[1])
