"""The intensity normaliser that plans name, in nnU-Net's interface."""

from __future__ import annotations

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from numpy.typing import NDArray

PERCENTILES = (1.0, 99.0)

__all__ = ["FMPercentileNormalization"]


class FMPercentileNormalization(ImageNormalization):
    """Clip to the image's own 1st and 99th percentile, then scale to [0, 1].

    With ``use_mask_for_norm`` percentiles and scaling concern the voxels with ``seg >= 0`` (nnU-Net's nonzero
    region); all others become 0. Where both percentiles coincide (an almost empty image) minimum and maximum take
    their place; a constant image becomes 0 everywhere.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = True

    def run(self, image: NDArray[np.number], seg: NDArray[np.integer] | None = None) -> NDArray[np.floating]:
        """Image and seg ``(Z, Y, X)`` -> float ``(Z, Y, X)`` in [0, 1].

        Raises:
            ValueError: for voxels that are not finite, or a missing seg where the mask is asked for.
        """
        _check_finite(image)
        if not self.use_mask_for_norm:
            return _scale(image, *_percentiles(image)).astype(self.target_dtype, copy=False)
        if seg is None:
            raise ValueError("use_mask_for_norm is set but no segmentation was given to take the nonzero mask from")
        mask = seg >= 0
        out = np.zeros(image.shape, dtype=self.target_dtype)
        if mask.any():
            inside = image[mask]
            out[mask] = _scale(inside, *_percentiles(inside))
        return out


def _check_finite(image: NDArray[np.number]) -> None:
    bad = image.size - int(np.count_nonzero(np.isfinite(image)))
    if bad:
        raise ValueError(
            f"image of shape {image.shape} holds {bad} voxels that are NaN or infinite; "
            "replace them in the raw image file (for CT usually by -1024 HU)"
        )


def _percentiles(image: NDArray[np.number]) -> tuple[float, float]:
    lower, upper = (float(p) for p in np.percentile(image, PERCENTILES))
    return (lower, upper) if lower < upper else (float(image.min()), float(image.max()))


def _scale(image: NDArray[np.number], lower: float, upper: float) -> NDArray[np.float32]:
    """Clip to [lower, upper] and map linearly to [0, 1]; zeros where the range is empty."""
    if not lower < upper:
        return np.zeros(image.shape, dtype=np.float32)
    out: NDArray[np.float32] = np.clip(image, lower, upper, dtype=np.float32)
    out -= np.float32(lower)
    out /= np.float32(upper - lower)
    np.clip(out, 0.0, 1.0, out=out)  # rounding may leave 1.0000001
    return out
