"""Training transforms of slices: elastic deformation, small motions, photometric distortion.

Images are ``(C, Y, X)`` of any float range, segmentations ``(C, Y, X)`` integers; both move alike, all channels alike.
Numbers are drawn from numpy's generator, which is seeded apart in every loader process, as torch's is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from batchgenerators.augmentations.utils import elastic_deform_coordinates
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from numpy.typing import NDArray
from skimage.color import hsv2rgb, rgb2hsv
from torch import Tensor
from torch.nn.functional import grid_sample

WHITE = 255.0
"""Grey level of the brightest pixel; the published strengths are in these levels."""
HUES = 180
"""Hues of the colour circle, two degrees each, as in 8-bit HSV images."""


@dataclass(frozen=True)
class Chance:
    """Probability of a step, and the range of its strength, which is drawn uniformly."""

    probability: float
    strength: tuple[float, float]

    def happens(self) -> bool:
        return bool(np.random.random() < self.probability)

    def draw(self) -> float:
        return float(np.random.uniform(*self.strength))


class GreyLevels(ComposeTransforms):
    """Run transforms on an image scaled to grey levels of 0 to 255, then scale back.

    Black and white are -1 and 1 in the channels that are said to have this range, 0 and 1 in a channel whose values lie
    between, otherwise (z-score) the channel's own extremes. The image that is passed in stays as it is.

    Args:
        transforms: applied in this order.
        symmetric_channels: channels whose values lie in [-1, 1].
    """

    def __init__(self, transforms: Sequence[BasicTransform], symmetric_channels: Sequence[int] = ()) -> None:
        super().__init__(list(transforms))
        self.symmetric_channels = tuple(symmetric_channels)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        image = data_dict["image"]
        black, width = self._range(image)
        out: dict[str, Any] = super().apply({**data_dict, "image": (image - black) * (WHITE / width)})
        out["image"] = out["image"] * (width / WHITE) + black
        return out

    def _range(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Black, and white minus black, of every channel, ``(C, 1, 1)`` each."""
        low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
        unit = (low >= 0) & (high <= 1)
        low[unit], high[unit] = 0.0, 1.0
        for channel in self.symmetric_channels:
            low[channel], high[channel] = -1.0, 1.0
        width = high - low
        width[width == 0] = 1.0
        return low, width


class WarpTransform(BasicTransform):
    """Take every pixel from another position: linear between the pixels of an image, the nearest one of labels.

    A subclass draws the ``positions`` ``(2, Y, X)`` in pixels (y, x), or None for nothing to do.
    """

    outside: Literal["zeros", "reflection"]

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return self._sample(img, params["positions"], "bilinear")

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        return self._sample(segmentation, params["positions"], "nearest")

    def _sample(self, values: Tensor, positions: NDArray[np.float64] | None, mode: str) -> Tensor:
        if positions is None:
            return values
        height, width = values.shape[1:]
        # grid_sample wants (x, y), with -1 and 1 at the outer edges of the image
        grid = np.stack([(2 * positions[1] + 1) / width - 1, (2 * positions[0] + 1) / height - 1], axis=-1)
        found = grid_sample(
            values[None].float(),
            torch.from_numpy(grid)[None].float(),
            mode=mode,
            padding_mode=self.outside,
            align_corners=False,
        )
        return found[0].to(values.dtype)


class ElasticTransform(WarpTransform):
    """Displace every pixel along each axis by uniform noise smoothed with a Gaussian; the border reflects.

    batchgenerators' function draws the noise in [-1, 1), smooths it as if zeros lay around, and multiplies by the
    largest displacement afterwards: the published definition, to the letter.

    Args:
        chance: of a deformation; its strength is the range of the noise in pixels, symmetric about zero.
        sigma: of the Gaussian, in pixels.
    """

    outside = "reflection"

    def __init__(self, chance: Chance, sigma: float) -> None:
        super().__init__()
        self.chance, self.sigma = chance, sigma

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        if not self.chance.happens():
            return {"positions": None}
        pixels = np.indices(data_dict["image"].shape[1:])
        return {"positions": elastic_deform_coordinates(pixels, self.chance.strength[1], self.sigma)}


class MotionTransform(WarpTransform):
    """Translate, rotate about the centre, scale about the centre: three draws that do not depend on one another.

    The composed motion is interpolated once. One interpolation for each, as published, blurs more, and loses what a
    translation moves out of the picture although a smaller scale would bring it back. What lies outside is black (0)
    in the image and background (0) in the labels.

    Args:
        translation: in pixels, drawn for each axis.
        rotation: angle in rad.
        scale: factor, rounded to hundredths; above 1 enlarges.
    """

    outside = "zeros"

    def __init__(self, translation: Chance, rotation: Chance, scale: Chance) -> None:
        super().__init__()
        self.translation, self.rotation, self.scale = translation, rotation, scale

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        shift, angle, factor = np.zeros(2), 0.0, 1.0
        if self.translation.happens():
            shift = np.array([self.translation.draw(), self.translation.draw()])
        if self.rotation.happens():
            angle = self.rotation.draw()
        if self.scale.happens():
            factor = round(self.scale.draw(), 2)
        shape = data_dict["image"].shape[1:]
        moved = bool(shift.any() or angle or factor != 1)
        return {"positions": self._positions(shape, shift, angle, factor) if moved else None}

    @staticmethod
    def _positions(
        shape: Sequence[int], shift: NDArray[np.float64], angle: float, factor: float
    ) -> NDArray[np.float64]:
        """Source positions of the pixels ``(2, Y, X)``: back through scale, rotation and translation, in this order."""
        centre = (np.array(shape) - 1) / 2
        cos, sin = np.cos(angle), np.sin(angle)
        back = np.array([[cos, sin], [-sin, cos]]) / factor
        from_centre = np.indices(shape) - centre[:, None, None]
        source: NDArray[np.float64] = np.einsum("ij,jyx->iyx", back, from_centre)
        return source + (centre - shift)[:, None, None]


class PhotometricTransform(ImageOnlyTransform):
    """Brightness, contrast, saturation and hue of an image of grey levels 0 to 255, after Liu et al., SSD.

    A coin decides if contrast comes before or after saturation and hue. Every step that happens clips to 0..255 and
    truncates to whole levels. Saturation and hue need three channels, red, green and blue. Other images count as grey,
    on which these two steps do nothing but truncate: a grey image repeated to three channels stays grey.

    Args:
        chances: of ``brightness`` (levels to add), ``contrast`` and ``saturation`` (factors), ``hue`` (whole steps of
            `HUES` to add).
    """

    def __init__(self, chances: Mapping[str, Chance]) -> None:
        super().__init__()
        self.chances = dict(chances)

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        colour = ["saturation", "hue"]
        order = ["contrast", *colour] if np.random.random() < 0.5 else [*colour, "contrast"]
        happening = [step for step in ("brightness", *order) if self.chances[step].happens()]
        return {"steps": [(step, self._strength(step)) for step in happening]}

    def _strength(self, step: str) -> float:
        low, high = self.chances[step].strength
        return float(np.random.randint(int(low), int(high) + 1)) if step == "hue" else self.chances[step].draw()

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        for step, strength in params["steps"]:
            if step == "brightness":
                img = img + strength
            elif step == "contrast":
                img = img * strength
            elif len(img) == 3:
                img = (_saturate if step == "saturation" else _turn_hue)(_whole(img), strength)
            img = _whole(img)
        return img


def _whole(image: Tensor) -> Tensor:
    return image.clamp(0, WHITE).floor()


def _saturate(image: Tensor, factor: float) -> Tensor:
    """An RGB image of whole grey levels ``(3, Y, X)`` with its saturation times a factor, 1 at most.

    Hue and value of HSV stay, so that the distances of all channels to the largest grow alike.
    """
    value = image.amax(0)
    chroma = value - image.amin(0)
    largest = value / chroma.clamp(min=1)  # where saturation reaches 1; levels are whole, and grey has no chroma
    return value - (value - image) * largest.clamp(max=factor)


def _turn_hue(image: Tensor, steps: float) -> Tensor:
    """An RGB image of whole grey levels ``(3, Y, X)`` with its hue turned by steps of `HUES`."""
    hsv = rgb2hsv(image.numpy() / WHITE, channel_axis=0)
    hsv[0] = (hsv[0] + steps / HUES) % 1
    # Truncation follows: the way to HSV and back must not lose a level to rounding.
    return torch.from_numpy(hsv2rgb(hsv, channel_axis=0).astype(np.float32) * WHITE + 1e-3)
