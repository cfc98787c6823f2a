"""nnU-Net's Gaussian blur, several times as fast: the same kernels and channels are drawn, equal to rounding."""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, _build_kernel
from torch import Tensor
from torch.nn.functional import pad

TRUNCATE = 6
"""Edges of the kernel in standard deviations, as in batchgeneratorsv2."""


class BlurTransform(GaussianBlurTransform):
    """Stock's transform; a sum of shifted images, as its kernels have few elements, in place of a convolution."""

    @classmethod
    def like(cls, stock: GaussianBlurTransform) -> BlurTransform:
        """A transform with the settings of ``stock``."""
        own = cls.__new__(cls)
        own.__dict__.update(stock.__dict__)
        return own

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        sigmas = params["sigmas"]
        for position, channel in enumerate(torch.where(params["apply_to_channel"])[0].tolist()):
            blurred = img[channel]
            for axis, sigma in enumerate(sigmas if self.synchronize_channels else sigmas[position]):
                blurred = blur(blurred, sigma, axis)
            img[channel] = blurred
        return img


def blur(image: Tensor, sigma: float, axis: int) -> Tensor:
    """Smooth along one axis, reflected at the borders, by a Gaussian of ``sigma`` voxels.

    Args:
        image: ``(Z, Y, X)`` or ``(Y, X)``.
    """
    kernel = _build_kernel(sigma, truncate=TRUNCATE).tolist()
    edge, half = image.shape[axis], len(kernel) // 2
    margins = [half if a == axis else 0 for a in reversed(range(image.ndim)) for _ in range(2)]
    padded = pad(image[None, None], margins, mode="reflect")[0, 0]
    total = padded.narrow(axis, half, edge) * kernel[half]
    for shift, weight in enumerate(kernel):
        if shift != half:
            total.add_(padded.narrow(axis, shift, edge), alpha=weight)
    return total
