"""Swin-Unet of any widths, depths, window and input size."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import PatchEmbed
from torch import Tensor, nn

from nnunet_fm.networks.swin_unet import SwinUNet
from tests.parity.cases import Case, NotSupportedError

FIXED: dict[str, Any] = {
    "patch_size": 4,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "qk_scale": None,
    "ape": False,
    "patch_norm": True,
    "final_upsample": "expand_first",
}
"""Arguments of the official class that ours does not take."""

FREE = ("img_size", "in_chans", "num_classes", "embed_dim", "depths", "num_heads", "window_size")
"""Arguments that any value may have."""

NO_EFFECT = ("depths_decoder", "drop_rate", "attn_drop_rate", "drop_path_rate", "use_checkpoint")
"""Arguments that change nothing in eval mode."""


def _keep(found: dict[str, Tensor], name: str, module: nn.Module, args: object, out: Tensor) -> None:
    found[name] = out.flatten(1, 2)


def outputs(case: Case) -> dict[str, Tensor]:
    """``logits`` at the input's resolution, and ``enc<i>``, the tokens ``(B, h * w, C)`` after an encoder stage."""
    arguments = case.constructor
    for name, value in arguments.items():
        if name not in (*FREE, *NO_EFFECT) and FIXED.get(name) != value:
            raise NotSupportedError(f"our Swin-Unet has no {name} {value}")
    edge = arguments.get("img_size", 224)
    given = {name: arguments[name] for name in ("embed_dim", "depths", "num_heads", "window_size") if name in arguments}
    network = SwinUNet(3, arguments.get("num_classes", 1000), image_size=edge, **given)
    channels = arguments.get("in_chans", 3)
    if channels != 3:  # ours maps other channels to three first; leave that step out
        network.stem = nn.Identity()
        width = network.patch_embed.proj.out_channels
        network.patch_embed = PatchEmbed(edge, 4, channels, width, norm_layer=nn.LayerNorm, output_fmt="NHWC")
    case.expect_names(network)
    case.fill(network)
    found: dict[str, Tensor] = {}
    for index, layer in enumerate(network.layers):
        layer.register_forward_hook(partial(_keep, found, f"enc{index}"))
    (x,) = case.inputs()
    logits = network.eval()(x)
    assert isinstance(logits, Tensor)
    return {"logits": logits, **found}
