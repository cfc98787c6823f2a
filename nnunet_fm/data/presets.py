"""`PRESETS`: the table of the augmentation presets that models were published with, without anything that is heavy.

How likely each transform is, how strong, and who says so. `nnunet_fm.data.augmentation` makes transforms of it. All
strengths are drawn uniformly and alike for all channels; *in plane* means the last two axes, which are the axial plane
of a 3D plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "rotation", "zoom", "flip", "rot90", "noise", "smoothing", "scale", "shift", "contrast", "low_resolution", "gamma"
]
SliceKind = Literal["elastic", "translation", "tilt", "resizing", "brightness", "grey contrast", "saturation", "hue"]

DAE = "DAE and SwinMM, official fine-tuning"
SUPREM = "SuPreM, official fine-tuning"
PUMIT = "PUMIT (SPAD-Nets), official fine-tuning on BTCV"
MIS_FM = "MIS-FM, official fine-tuning"
THESIS_2D = "thesis on 2D backbones"
MMSEG = "mmsegmentation, photometric distortion"

ELASTIC_SIGMA = 20.0
"""Pixels; the Gaussian that smooths the displacements of elastic deformations."""

GAMMA_WEIGHTS = {"nothing": 9, "gamma": 3, "inverted gamma": 1}


@dataclass(frozen=True)
class Step:
    """One random transform of a preset.

    rotation: in plane, by an angle in rad. zoom: of all axes by one factor, above 1 shrinks what is seen. flip: each
    axis by itself. rot90: in plane, by one, two or three quarter turns. noise: Gaussian, standard deviation.
    smoothing: Gaussian, standard deviation in voxels, per axis. scale: times a factor. shift: plus an offset.
    contrast: times a factor about the channel's mean, clipped to its range. low_resolution: in plane, nearest
    neighbour down by a factor and linear up. gamma: power of the channel scaled to [0, 1]; plain and inverted exclude
    each other, with `GAMMA_WEIGHTS`.

    Slices only, on grey levels of 0 to 255 (see `nnunet_fm.data.slice_augmentation`): elastic: displacement in pixels
    before it is smoothed. translation: in pixels. tilt: rotation in rad. resizing: by a factor, above 1 enlarges.
    brightness: plus grey levels. grey contrast: times a factor about black. saturation: times a factor. hue: plus
    180ths of the colour circle.
    """

    kind: Kind | SliceKind
    probability: float
    strength: tuple[float, float]
    source: str


_DEGENERATE = (0.0, 0.0)
_FLIPS = Step("flip", 0.5, _DEGENERATE, MIS_FM)
_GAMMA = Step("gamma", 1 - GAMMA_WEIGHTS["nothing"] / sum(GAMMA_WEIGHTS.values()), (0.7, 1.5), PUMIT)
# The thesis that compares these models lists this preset's transforms without numbers; PUMIT's are the only published.
_SUPREM_THESIS = (
    Step("rotation", 0.2, (-math.pi / 2, math.pi / 2), PUMIT),
    Step("zoom", 0.2, (0.7, 1.4), PUMIT),
    Step("noise", 0.1, (0.0, 0.1), PUMIT),
    Step("smoothing", 0.1, (0.8, 1.2), PUMIT),
    Step("contrast", 0.15, (0.75, 1.25), PUMIT),
    Step("low_resolution", 0.15, (0.5, 1.0), PUMIT),
)

PRESETS: dict[str, tuple[Step, ...]] = {
    "none": (),
    "flips": (_FLIPS,),
    # The thesis gives no numbers for its vanilla U-Net: flips as MIS-FM, whose other data handling it shares, and
    # quarter turns as DAE, so that no voxel is interpolated.
    "flips_rotations": (_FLIPS, Step("rot90", 0.2, _DEGENERATE, DAE)),
    "stunet_dae": (
        Step("flip", 0.2, _DEGENERATE, DAE),
        Step("rot90", 0.2, _DEGENERATE, DAE),
        Step("scale", 0.1, (0.9, 1.1), DAE),
        Step("shift", 0.1, (-0.1, 0.1), DAE),
    ),
    "suprem_official": (
        Step("rot90", 0.1, _DEGENERATE, SUPREM),
        Step("shift", 0.2, (-0.1, 0.1), SUPREM),
    ),
    "suprem": _SUPREM_THESIS,
    "spad": (*_SUPREM_THESIS, _GAMMA),
    "spad_official": (
        *_SUPREM_THESIS[:2],
        Step("flip", 0.5, _DEGENERATE, PUMIT),
        *_SUPREM_THESIS[2:4],
        Step("scale", 0.15, (0.75, 1.25), PUMIT),
        *_SUPREM_THESIS[4:],
        _GAMMA,
    ),
    "slices": (
        Step("elastic", 0.25, (-1000.0, 1000.0), THESIS_2D),
        Step("translation", 0.25, (-10.0, 10.0), THESIS_2D),
        Step("tilt", 0.25, (-math.radians(10), math.radians(10)), THESIS_2D),
        Step("resizing", 0.25, (0.9, 1.1), THESIS_2D),
        Step("brightness", 0.5, (-32.0, 32.0), MMSEG),
        Step("grey contrast", 0.5, (0.5, 1.5), MMSEG),
        Step("saturation", 0.5, (0.5, 1.5), MMSEG),
        Step("hue", 0.5, (-18.0, 18.0), MMSEG),
    ),
}

SPATIAL_PRESETS = frozenset(
    {"nnunet"} | {name for name, steps in PRESETS.items() if {"rotation", "zoom"} & {s.kind for s in steps}}
)
"""Presets that rotate by any angle or scale, and therefore need patches larger than the network's to cut from."""

MIRRORING_PRESETS = frozenset(
    {"nnunet"} | {name for name, steps in PRESETS.items() if "flip" in {s.kind for s in steps}}
)
"""Presets that flip images, each axis by itself: the only ones whose networks have seen a mirrored image.

A quarter or half turn is none: it moves left to right and front to back together, as a patient who is turned does,
and does not make a left hand of a right one.
"""
