"""2D decode heads on given feature maps."""

from __future__ import annotations

from parity.cases import Case, NotSupportedError
from torch import Tensor

from nnunet_fm.heads import create_head
from nnunet_fm.heads.base import FeatureMaps


def linear(case: Case) -> dict[str, Tensor]:
    """``out``: logits at the resolution of the maps."""
    features = list(case.inputs().values())
    widths = set(case.constructor["in_channels"])
    if len(widths) != 1:
        raise NotSupportedError(f"feature maps of different widths: {sorted(widths)}")
    height, width = features[0].shape[2:]
    maps = FeatureMaps(widths.pop(), (height, width))
    head = create_head("linear", maps, case.constructor["num_classes"], maps=len(features))
    case.expect_names(head)
    case.fill(head)
    return {"out": head.eval()(features)[0]}
