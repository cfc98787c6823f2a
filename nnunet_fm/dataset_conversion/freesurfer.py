"""FreeSurfer's numbers of aseg and aparc+aseg as the 15 classes of the brain datasets."""

from __future__ import annotations

from nnunet_fm.dataset_conversion.labels import LabelTable

_GROUPS: dict[str, tuple[int, ...]] = {
    "cerebellum_gm": (8, 47),
    "cerebellum_wm": (7, 46),
    # with accumbens (26, 58) and all regions of the cortex
    "cerebral_gm": (3, 42, 26, 58, *range(1000, 3000)),
    # with inferior lateral ventricles (5, 44), vessels (30, 62), hypointensities (77, 80) and the optic chiasm (85)
    "cerebral_wm": (2, 41, *range(251, 256), 5, 44, 30, 62, 77, 80, 85),
    "thalamus": (10, 49),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    # with choroid plexus (31, 63)
    "ventricles": (4, 43, 14, 15, 72, 31, 63),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "ventral_dc": (28, 60),
    "csf": (24,),
    "brain_stem": (16,),
}

BRAIN = LabelTable(
    names={"background": 0, **{name: number for number, name in enumerate(_GROUPS, 1)}},
    values={0: 0} | {value: number for number, values in enumerate(_GROUPS.values(), 1) for value in values},
    unlisted=0,
)
"""Grouping of the public reader by N. Karani (ETH) that the thesis's brain files were made with; others are background.

That makes wmparc's 3000 and above, a2009s's 11100 and above and further structures of FreeSurfer 7 background.
"""
