"""Shared parts of the two prostate datasets: labels, and the flat HDF5 files of the ETH Computer Vision Laboratory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from nnunet_fm.dataset_conversion.base import PLAIN_READER, Case, Listing
from nnunet_fm.dataset_conversion.flat_hdf5 import NOTE, flat_volumes
from nnunet_fm.dataset_conversion.labels import LabelTable
from nnunet_fm.dataset_conversion.problems import Invalid, Problem
from nnunet_fm.dataset_conversion.steps import Thesis
from nnunet_fm.dataset_conversion.tree import Tree

PROSTATE = LabelTable.of("peripheral_zone", "central_gland")

PIXEL = 0.625
"""mm in the plane of the thesis's slices."""

THESIS = Thesis("percentile", size=256, spacing=PIXEL, n4=True)

Part = Literal["train", "val", "test"]


def hdf5_listing(
    tree: Tree,
    parts: Iterable[tuple[str, str, Part, str, int]],
    problems: Iterable[Problem] = (),
    notes: Iterable[str] = (),
) -> Listing:
    """One case per volume.

    Args:
        tree: the source.
        parts: file, ending of its keys, part of the split, first half of a case's name, number of the first case.
        problems: found before.
        notes: of the tree.
    """
    cases, found, decisions = [], list(problems), [NOTE, *notes]
    for file, suffix, part, name, first in parts:
        try:
            volumes = flat_volumes(tree, file, PIXEL, suffix)
        except Invalid as fault:
            found.append(fault.problem())
            continue
        cases += [Case(f"{name}{first + v.index:02d}", (v.image,), (v.label,), part) for v in volumes]
        patients = [volume.patient for volume in volumes]
        if any(patients) and len(set(patients)) == len(patients):
            decisions.append(f"{file}: {name}{first:02d} and what follows are the patients {', '.join(patients)}")
    return Listing("hdf5", cases, found, decisions, slice_axis=0, reader=PLAIN_READER, intensities="0_to_1")
