"""2D decode heads on given feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_fm.heads import create_head
from nnunet_fm.heads.base import FeatureMaps, Head
from nnunet_fm.heads.da import DAHead
from tests.parity.cases import Case, NotSupportedError

UP_BLOCKS = {
    "bilinear": False,
    "conv_per_up_blk": 2,
    "res_con": True,
    "res_con_interv": None,
    "skip_first_res_con": False,
}
"""What the thesis's ResNet and U-Net heads can vary and ours do not, as its experiments have it."""
LAYERS = {"norm_cfg": "BN", "act_cfg": "ReLU"}
"""The same of MMSegmentation's heads."""


def linear(case: Case) -> dict[str, Tensor]:
    """``out``: logits at the resolution of the maps."""
    features = _features(case)
    return {"out": _filled(case, "linear", features, maps=len(features))(features)[0]}


def resnet(case: Case) -> dict[str, Tensor]:
    """``out``: logits at the resolution of the last block."""
    features = _features(case)
    arguments = _up_blocks(case.constructor)
    return {"out": _filled(case, "resdec", features, maps=len(features), **arguments)(features)[0]}


def unet(case: Case) -> dict[str, Tensor]:
    """``out``: logits at the resolution of the last level."""
    features = _features(case)
    arguments = {**_up_blocks(case.constructor), "group": case.constructor.get("input_group_cat_nb", 2)}
    return {"out": _filled(case, "unetdec", features, **arguments)(features)[0]}


def da(case: Case) -> dict[str, Tensor]:
    """``out``, and the logits of each branch's own classifier, ``pam_out`` and ``cam_out``."""
    _refuse_other(case.constructor, LAYERS)
    features = _features(case)
    arguments = {key: case.constructor[key] for key in ("channels", "pam_channels")}
    head = _filled(case, "da", features, maps=len(features), **arguments)
    assert isinstance(head, DAHead)
    positions, channels = head.branches(features)
    single = {"pam_out": head.pam_conv_seg(positions), "cam_out": head.cam_conv_seg(channels)}
    return {"out": head(features)[0], **single}


def segformer(case: Case) -> dict[str, Tensor]:
    """``out``: logits at the resolution of the maps."""
    _refuse_other(case.constructor, LAYERS)
    features = _features(case)
    arguments = {"maps": len(features), "channels": case.constructor["channels"]}
    return {"out": _filled(case, "segformer", features, **arguments)(features)[0]}


def _features(case: Case) -> list[Tensor]:
    """The maps that the head selects among the inputs.

    Raises:
        NotSupportedError: for maps of several widths or grids, which no backbone of ours gives.
    """
    features = case.inputs()
    indices = case.constructor.get("in_index", list(range(len(features))))
    features = [features[index] for index in ([indices] if isinstance(indices, int) else indices)]
    if len({feature.shape for feature in features}) != 1:
        raise NotSupportedError(f"feature maps of different shapes: {[tuple(f.shape) for f in features]}")
    return features


def _filled(case: Case, name: str, features: list[Tensor], **arguments: Any) -> Head:
    """Our head with the case's weights, in evaluation."""
    _, channels, height, width = features[0].shape
    maps = FeatureMaps(channels, (height, width))
    head = create_head(name, maps, case.constructor["num_classes"], **arguments)
    if head.maps != len(features):
        raise NotSupportedError(f"{len(features)} feature maps, where the head takes {head.maps}")
    case.expect_names(head)
    case.fill(head)
    return head.eval()


def _up_blocks(constructor: Mapping[str, Any]) -> dict[str, Any]:
    """Our arguments for a head of up blocks."""
    _refuse_other(constructor, UP_BLOCKS)
    factors: set[int] = set()
    for key in ("upsample_facs_ch", "upsample_facs_wh"):
        stated = constructor.get(key, 2)
        factors.update([stated] if isinstance(stated, int) else stated)
    steps = constructor.get("recursion_steps", 2) if constructor.get("recurrent", True) else 1
    if len(factors) != 1 or (steps == 1 and constructor.get("recurrent", True)):
        raise NotSupportedError(f"up blocks of factors {sorted(factors)}, convolutions of {steps} steps")
    blocks = constructor.get("nb_up_blocks", 4)
    return {"width": constructor["in_channels_red"], "blocks": blocks, "factor": factors.pop(), "steps": steps}


def _refuse_other(constructor: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    other = {key: constructor[key] for key in expected if constructor.get(key, expected[key]) != expected[key]}
    if other:
        raise NotSupportedError(f"no such head: {other}")
