"""The classic 2D U-Net of any widths and input size."""

from __future__ import annotations

from torch import Tensor, nn

from nnunet_fm.networks.unet import DoubleConv, VanillaUNet2D
from tests.parity.cases import Case, NotSupportedError


def outputs(case: Case) -> dict[str, Tensor]:
    """``logits`` at the input's resolution."""
    arguments = case.constructor
    if arguments.get("bilinear", False):
        raise NotSupportedError("our U-Net enlarges by transposed convolutions, not bilinearly")
    shapes = case.meta["state_dict"]
    levels = sum(key.endswith("maxpool_conv.1.double_conv.0.weight") for key in shapes)
    widths = [shapes[f"down{i}.maxpool_conv.1.double_conv.0.weight"][0] for i in range(1, levels + 1)]
    widths.insert(0, shapes["inc.double_conv.0.weight"][0])
    network = VanillaUNet2D(3, arguments["n_classes"], channels=widths, image_size=None)
    if arguments["n_channels"] != 3:  # ours maps other channels to three first; leave that step out
        network.stem = nn.Identity()
        network.inc = DoubleConv(arguments["n_channels"], widths[0])
    case.expect_names(network)
    case.fill(network)
    (x,) = case.inputs()
    logits = network.eval()(x)
    assert isinstance(logits, Tensor)
    return {"logits": logits}
