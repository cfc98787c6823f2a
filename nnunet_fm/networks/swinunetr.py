"""SwinUNETR as its official checkpoints were trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MERGED = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
"""Offsets (depth, height, width) of the sub-grids that patch merging concatenates, in MONAI up to 1.4.

Two come twice and two not at all. Later versions of MONAI take every sub-grid once: same names and shapes, other
outputs. All SwinUNETR weights known to us were trained with this order.
"""


class PatchMerging(nn.Module):
    """Halves every axis of ``(B, D, H, W, C)`` and doubles the channels, as MONAI's layer did up to version 1.4.

    Args:
        dim: channels C of the input.
        norm_layer: normalisation of the concatenated channels, built with their number.
        spatial_dims: 3; MONAI hands it over.
    """

    def __init__(self, dim: int, norm_layer: type[nn.LayerNorm] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise ValueError(f"patch merging of volumes, got {spatial_dims} spatial dimensions")
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        odd = [edge % 2 for edge in x.shape[1:4]]
        if any(odd):  # the axes are mixed up as officially: width by depth, height by width, depth by height
            x = F.pad(x, (0, 0, 0, odd[0], 0, odd[2], 0, odd[1]))
        x = torch.cat([x[:, d::2, h::2, w::2] for d, h, w in MERGED], dim=-1)
        return self.reduction(self.norm(x))
