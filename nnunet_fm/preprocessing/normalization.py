"""The intensity normalisers that plans name, in nnU-Net's interface.

All of them refuse voxels that are not finite, and turn a constant image into zeros (into -1 where the range starts
there).
"""

from __future__ import annotations

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from numpy.typing import NDArray

from nnunet_fm.errors import InvalidValueError

PERCENTILES = (1.0, 99.0)
FOREGROUND_PERCENTILES = (0.5, 99.5)

__all__ = [
    "AdvancedNormalization",
    "FMPercentileNormalization",
    "FMSymmetricPercentileNormalization",
    "ScaleIntensity",
]


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
            return _scale(image, *_percentiles(image, PERCENTILES)).astype(self.target_dtype, copy=False)
        if seg is None:
            raise ValueError("use_mask_for_norm is set but no segmentation was given to take the nonzero mask from")
        mask = seg >= 0
        out = np.zeros(image.shape, dtype=self.target_dtype)
        if mask.any():
            inside = image[mask]
            out[mask] = _scale(inside, *_percentiles(inside, PERCENTILES))
        return out


class FMSymmetricPercentileNormalization(FMPercentileNormalization):
    """Normalise like `FMPercentileNormalization`, but to [-1, 1]; voxels that it sets to 0 become -1.

    Plans leave ``use_mask_for_norm`` off: with it nnU-Net sets voxels outside the mask to 0 in training, which is
    mid-grey here.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: NDArray[np.number], seg: NDArray[np.integer] | None = None) -> NDArray[np.floating]:
        """Image and seg ``(Z, Y, X)`` -> float ``(Z, Y, X)`` in [-1, 1]; raises as `FMPercentileNormalization`."""
        out = super().run(image, seg)
        out *= 2
        out -= 1
        return out


class ScaleIntensity(ImageNormalization):
    """Scale the image from its own minimum and maximum to [0, 1], as MONAI's transform of this name."""

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: NDArray[np.number], seg: NDArray[np.integer] | None = None) -> NDArray[np.floating]:
        """Image ``(Z, Y, X)`` -> float ``(Z, Y, X)`` in [0, 1]; raises ValueError for voxels that are not finite."""
        _check_finite(image)
        return _scale(image, float(image.min()), float(image.max())).astype(self.target_dtype, copy=False)


class AdvancedNormalization(ImageNormalization):
    """Clip to the 0.5th and 99.5th percentile of the foreground, then subtract its mean and divide by its deviation.

    Foreground are the voxels above the image's minimum and, where ``seg`` is given, inside nnU-Net's nonzero region
    (``seg >= 0``). For MR with an empty background that is MONAI's rule, values above 0; for CT it is everything
    brighter than the darkest air or padding. Only the numbers come from the foreground: the whole image is clipped
    and scaled, ``use_mask_for_norm`` or not. Where the foreground holds a single value the whole image takes its
    place, and where the percentiles coincide minimum and maximum do.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: NDArray[np.number], seg: NDArray[np.integer] | None = None) -> NDArray[np.floating]:
        """Image and seg ``(Z, Y, X)`` -> float ``(Z, Y, X)``; raises ValueError for voxels that are not finite."""
        _check_finite(image)
        mask = image > image.min()
        if seg is not None:
            mask &= seg >= 0
        foreground = image[mask]
        if foreground.size == 0 or foreground.min() == foreground.max():
            foreground = image.ravel()
        lower, upper = _percentiles(foreground, FOREGROUND_PERCENTILES)
        if not lower < upper:
            return np.zeros(image.shape, dtype=self.target_dtype)
        clipped = np.clip(foreground, lower, upper, dtype=np.float32)
        out: NDArray[np.float32] = np.clip(image, lower, upper, dtype=np.float32)
        out -= clipped.mean()
        out /= clipped.std()
        return out.astype(self.target_dtype, copy=False)


def _check_finite(image: NDArray[np.number]) -> None:
    bad = image.size - int(np.count_nonzero(np.isfinite(image)))
    if bad:
        raise InvalidValueError(
            f"image of shape {image.shape} holds {bad} voxels that are NaN or infinite; "
            "replace them in the raw image file (for CT usually by -1024 HU)",
            code="image-not-finite",
        )


def _percentiles(image: NDArray[np.number], which: tuple[float, float]) -> tuple[float, float]:
    lower, upper = (float(p) for p in np.percentile(image, which))
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
