"""Which of our networks a parity case is about: one file per family, one line per official module in `BUILDERS`."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from tests.parity.adapters import (
    dinov2,
    heads,
    ladder,
    mae,
    pctnet,
    rein,
    sam,
    sam_heads,
    spadnet,
    stunet,
    swin_unet,
    swinmm,
    swinunetr,
    unet,
)
from tests.parity.cases import Case, NotSupportedError

Builder = Callable[[Case], dict[str, Tensor]]

BUILDERS: dict[str, Builder] = {
    r"(?i)stunet": stunet.outputs,
    r"(?i)^pumit": spadnet.outputs,
    r"(?i)pct_?net": pctnet.outputs,
    r"(?i)^swinmm\b": swinmm.outputs,
    r"(?i)^suprem": swinunetr.suprem,
    r"(?i)^dae\b": swinunetr.dae,
    r"\breins\.(LoRA)?Reins\b": rein.outputs,
    r"\bLadderBackbone\b": ladder.merge,
    r"dinov2\.models\.vision_transformer\.vit_\w+$": dinov2.outputs,
    r"\bImageEncoderViT$": sam.encoder,
    r"^decoders\.ConvHeadLinear$": heads.linear,
    r"^decoders\.ResNetHead$": heads.resnet,
    r"^decoders\.UNetHead$": heads.unet,
    r"\bDAHead$": heads.da,
    r"(?i)\bSegformerHead$": heads.segformer,
    r"^segment_anything\.modeling MaskDecoder\.predict_masks": sam_heads.mask_decoder,
    r"\bMaskDecoderHQ\b": sam_heads.hq_mask_decoder,
    r"\bMaskDecoder\w* then MaskDecoder2": sam_heads.hsam_decoders,
    r"^decoders\.SAMdecHead$": sam_heads.samdec,
    r"^decoders\.HQSAMdecHead$": sam_heads.hqsam,
    r"^decoders\.(HQ)?HSAMdecHead$": sam_heads.two_stages,
    r"^benchmarks\.UNet\.unet\.UNet$": unet.outputs,
    r"\bmae_vit_\w+": mae.outputs,
    r"\bSwinTransformerSys$": swin_unet.outputs,
}
"""Regular expression on a case's module -> function that builds and fills our network and gives outputs by name."""


def builder(case: Case) -> Builder:
    """The function for a case; raises `NotSupportedError` where there is none."""
    for pattern, build in BUILDERS.items():
        if re.search(pattern, case.module):
            return build
    raise NotSupportedError(f"no network of ours corresponds to '{case.module}'")
