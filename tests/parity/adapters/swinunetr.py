"""SwinUNETR of SuPreM and of DAE, of any channels, classes and width."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nnunet_fm.networks.swinunetr import DAE, SwinUNETR
from tests.parity.cases import Case, NotSupportedError

FIXED: dict[str, Any] = {
    "patch_size": 2,
    "window_size": 7,
    "depths": [2, 2, 2, 2],
    "num_heads": [3, 6, 12, 24],
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "norm_name": "instance",
    "normalize": True,
    "patch_norm": False,
    "spatial_dims": 3,
}
"""Arguments of the official classes that ours do not take, as all checkpoints have them."""

FREE = ("img_size", "in_channels", "out_channels", "feature_size")
"""Arguments that any value may have."""

NO_EFFECT = ("drop_rate", "attn_drop_rate", "dropout_path_rate", "use_checkpoint")
"""Arguments that change nothing in eval mode."""


def _built(case: Case, network_class: type[SwinUNETR]) -> dict[str, Tensor]:
    arguments = case.constructor
    for name, value in arguments.items():
        if name not in (*FREE, *NO_EFFECT) and FIXED.get(name) != value:
            raise NotSupportedError(f"our SwinUNETR has no {name} {value}")
    network = network_class(
        arguments["in_channels"], arguments["out_channels"], feature_size=arguments.get("feature_size", 24)
    )
    case.fill(network)
    (x,) = case.inputs()
    logits = network.eval()(x)
    assert isinstance(logits, Tensor)
    return {"logits": logits}


def suprem(case: Case) -> dict[str, Tensor]:
    """``logits`` at full resolution, of the plain patch embedding."""
    return _built(case, SwinUNETR)


def dae(case: Case) -> dict[str, Tensor]:
    """``logits`` at full resolution, of the patch embedding with two convolutions."""
    return _built(case, DAE)
