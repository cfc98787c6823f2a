"""SwinMM at any cubic patch: the official pass over two views."""

from __future__ import annotations

from torch import Tensor

from nnunet_fm.networks.swinmm import SwinMM, exchange
from tests.parity.cases import Case, NotSupportedError


def outputs(case: Case) -> dict[str, Tensor]:
    """Logits of both views, each in its own frame, and the mean of their softmaxes in the frame of the input."""
    arguments = case.constructor
    size = set(arguments["img_size"])
    if len(size) != 1 or arguments.get("feature_size", 48) != 48:
        raise NotSupportedError(f"the official positions need a cubic patch, our SwinMM 48 channels, not {arguments}")
    network = SwinMM(
        arguments["in_channels"],
        arguments["out_channels"],
        grid=size.pop() // 32,
        fusion_depth=arguments.get("fusion_depths", [2])[-1],
        in_origin_view=arguments.get("cross_attention_in_origin_view", False),
    )
    case.fill(network)
    (x,) = case.inputs()
    first, second = views = case.meta["views"]
    a, b = network.eval().forward_views(exchange(x, first), exchange(x, second), views)
    mean = (exchange(a, first).softmax(1) + exchange(b, second).softmax(1)) / 2
    return {"logits_view_a": a, "logits_view_b": b, "mean_softmax": mean}
