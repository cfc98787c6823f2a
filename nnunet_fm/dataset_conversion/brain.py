"""Shared parts of the brain datasets: 15 classes, splits by position, the laboratory's HDF5 files, the thesis."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.dataset_conversion import flat_hdf5
from nnunet_fm.dataset_conversion.base import PLAIN_READER, Case, ConversionOptions, Converter, Listing, Work
from nnunet_fm.dataset_conversion.freesurfer import BRAIN
from nnunet_fm.dataset_conversion.labels import LabelTable
from nnunet_fm.dataset_conversion.problems import ConversionError, Invalid, Problem
from nnunet_fm.dataset_conversion.steps import Thesis, normalise, plane_grid
from nnunet_fm.dataset_conversion.tree import Tree
from nnunet_fm.io.volume import Grid, Volume, outside_fraction, resample

CLASSES = LabelTable.of(*BRAIN.foreground.values())
"""Of files that have the 15 classes already."""

CORTEX = range(1000, 3000)
"""Numbers of aparc+aseg that no other atlas of the same folder has, and that do not fit in 8 bit."""

MAX_UNLISTED = 0.003
"""Share of the labelled voxels with numbers that the table does not list, above which a label file is suspicious."""

FLAT = (
    r"data_{}_2d_size_\d+_\d+_depth_\d+_res_(?P<pixel>\d+\.\d+)[\d._]*"
    r"_from_(?P<start>\d+)_to_(?P<stop>\d+)\.(?:hdf5|h5)"
)
"""Names of the laboratory's files, with the sequence; subjects ``start`` to ``stop - 1``."""

DEPTH = 256
"""Slices of the thesis's volumes."""

Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Subjects:
    """Subjects of a tree of single files.

    Attributes:
        layout: key of `Converter.layouts`.
        cases: subject -> case.
        problems: of subjects that cannot be converted.
        notes: decisions that hold for the whole tree.
    """

    layout: str
    cases: Mapping[str, Case]
    problems: Sequence[Problem] = ()
    notes: Sequence[str] = ()


class BrainConverter(Converter):
    """A dataset with FreeSurfer's labels in 15 classes, and with domains; slices are coronal.

    Attributes:
        positions: part of the published split -> positions in the sorted list of all subjects; others are not used.
        depths: domain -> slices of the thesis's volumes, if not `DEPTH`.
        margin: ``--thesis`` first crops to the labels and so many voxels around; None: it does not.
        same_people: whether domains are images of the same people, rather than of those of several sites.
    """

    label_sets: ClassVar = {"default": BRAIN}
    slice_axis = 1
    n4 = False
    skull_strip = "no"
    splits: ClassVar = {
        "official": "by position in the sorted list of subjects, as the public reader of the laboratory's files",
        "thesis": "the same",
    }
    positions: ClassVar[Mapping[Part, range]]
    depths: ClassVar[Mapping[str, int]] = {}
    margin: ClassVar[int | None] = None
    same_people: ClassVar[bool] = False

    @abstractmethod
    def subjects(self, tree: Tree, options: ConversionOptions) -> Subjects:
        """Images with FreeSurfer's labels, of one domain."""

    @abstractmethod
    def flat_files(self, tree: Tree, options: ConversionOptions) -> list[tuple[str, Mapping[str, str]]]:
        """The laboratory's files of one domain, with the groups of `FLAT`."""

    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        """Cases of one domain.

        Raises:
            ConversionError: if the tree has another domain only, the published split needs more subjects than there
                are, or N4 or a skull strip is asked for of files that have them behind them.
        """
        listing = self._list(tree, options)
        if not listing.cases and not listing.problems and self.domain is not None:
            for other in self.domain.values:
                if self._list(tree, replace(options, domain=other, split=None)).cases:
                    raise ConversionError(
                        f"{tree.source}: has {other}, not {options.domain}: add --domain {other}", code="domain-other"
                    )
        return listing

    def case_table(self, case: Case, options: ConversionOptions) -> LabelTable:
        """The laboratory's files have the classes already."""
        return CLASSES if case.labels[0].details else self.table(options)

    def read_label(self, case: Case, grid: Grid, work: Work) -> Volume:
        """FreeSurfer's numbers grouped; with a note where too many are not listed.

        Raises:
            Invalid: in addition, if a file called aparc+aseg has no region of the cortex.
        """
        label = super().read_label(case, grid, work)
        file = case.labels[0].file
        if PurePosixPath(file).name.startswith("aparc+aseg") and not any(value in CORTEX for value in work.counts):
            raise Invalid(
                file,
                "has no region of the cortex (1000 to 2999): another atlas, or stored in 8 bit",
                code="atlas-other",
            )
        known = self.case_table(case, work.options).values
        labelled = sum(count for value, count in work.counts.items() if value != 0)
        unlisted = sum(count for value, count in work.counts.items() if value not in known)
        if unlisted > MAX_UNLISTED * labelled:
            work.note(
                f"warning: {file}: {100 * unlisted / labelled:.2g} % of the labelled voxels become background, for "
                "their numbers are not listed: is this aparc+aseg of FreeSurfer 5 or 6?"
            )
        return label

    def apply_thesis(
        self, images: list[Volume], label: Volume | None, axis: int, work: Work
    ) -> tuple[list[Volume], Volume | None]:
        """Crop to the labels where `margin` says so; scale; pixel size, edge and number of the slices."""
        settings = self.thesis
        assert settings is not None and label is not None  # no case of these datasets lacks labels
        box = _box(label.array)
        extent = box[axis].stop - box[axis].start
        if self.margin is not None:
            box = tuple(
                slice(max(0, b.start - self.margin), min(n, b.stop + self.margin))
                for b, n in zip(box, label.array.shape, strict=True)
            )
            images, label = [_crop(image, box) for image in images], _crop(label, box)
        depth = self.depths.get(work.options.domain or "", DEPTH)
        grid = _thesis_grid(label.grid, axis, settings, depth if extent <= depth else DEPTH)
        lost = outside_fraction(label, grid)
        if lost:
            work.note(f"thesis: {100 * lost:.2g} % of the labelled voxels lie outside of what is kept")
        images = [resample(normalise(image, settings.normalise), grid, label=False) for image in images]
        cropped = "" if self.margin is None else f"cropped to the labels and {self.margin} voxels around, "
        work.note(
            f"thesis: {cropped}{settings.normalise} to 0..1, {settings.spacing} mm, "
            f"{settings.size} x {settings.size} pixels, {grid.shape[axis]} slices"
        )
        return images, resample(label, grid, label=True)

    def _list(self, tree: Tree, options: ConversionOptions) -> Listing:
        found = self.subjects(tree, options)
        if found.cases or found.problems:
            return self._placed(tree, found, options)
        return self._flat(tree, options)

    def _part(self, position: int) -> Part | None:
        return next((part for part, positions in self.positions.items() if position in positions), None)

    def _placed(self, tree: Tree, found: Subjects, options: ConversionOptions) -> Listing:
        """Parts by position; subjects that cannot be converted keep theirs, so that others do not move up."""
        cases = list(found.cases.values())
        notes = list(found.notes)
        if options.split in self.splits:
            subjects = sorted({*found.cases, *(problem.case for problem in found.problems if problem.case)})
            needed = max(positions.stop for positions in self.positions.values())
            if len(subjects) < needed:
                raise ConversionError(
                    f"{tree.source}: the published split goes by positions among {needed} subjects or more, there are "
                    f"{len(subjects)}: give a file to --split",
                    code="split-published",
                )
            parts = {subject: self._part(position) for position, subject in enumerate(subjects)}
            cases = [
                replace(case, part=part)
                for subject, case in found.cases.items()
                if (part := parts[subject]) is not None
            ]
            unused = sum(part is None for part in parts.values())
            notes.append(f"{unused} of {len(subjects)} subjects are in no part of the published split")
        return Listing(found.layout, cases, found.problems, notes)

    def _flat(self, tree: Tree, options: ConversionOptions) -> Listing:
        cases: dict[int, Case] = {}
        origin: dict[int, str] = {}
        problems = []
        for file, groups in self.flat_files(tree, options):
            start, stop = int(groups["start"]), int(groups["stop"])
            twice = next((origin[position] for position in range(start, stop) if position in origin), None)
            if twice is not None:
                problems.append(
                    Problem(file, f"a second file with subjects {start} to {stop - 1} is {twice}", code="case-twice")
                )
                continue
            try:
                volumes = flat_hdf5.flat_volumes(tree, file, float(groups["pixel"]))
            except Invalid as fault:
                problems.append(fault.problem())
                continue
            if len(volumes) != stop - start:
                problems.append(
                    Problem(file, f"has {len(volumes)} volumes, its name says {stop - start}", code="hdf5-counts")
                )
                continue
            patients = [volume.patient for volume in volumes]
            for position, volume in enumerate(volumes, start):
                origin[position] = file
                part = self._part(position)
                if part is None and options.split in self.splits:
                    continue
                # Names of patients may be cut off, so that two become one.
                other = "" if self.same_people else f"{self.name}_{options.domain}_{position:03d}"
                person = volume.patient if patients.count(volume.patient) == 1 else other
                cases[position] = Case(
                    f"{self.name}_{position:03d}", (volume.image,), (volume.label,), part or "train", person
                )
        if (cases or problems) and (options.n4 or options.skull_strip != "no") and not options.thesis:
            raise ConversionError(
                f"{tree.source}: the images of HDF5 files have been preprocessed: leave --n4 and --skull-strip out",
                code="images-preprocessed",
            )
        notes = [
            flat_hdf5.NOTE,
            "labels have the 15 classes already",
            "cases are named by their position in the published list of subjects",
        ]
        return Listing(
            "hdf5", list(cases.values()), problems, notes, slice_axis=0, reader=PLAIN_READER, intensities="0_to_1"
        )


def _box(label: NDArray[Any]) -> tuple[slice, ...]:
    """The smallest box around all labels."""
    bounds = []
    for axis in range(3):
        used = np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis)))
        bounds.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(bounds)


def _crop(volume: Volume, box: tuple[slice, ...]) -> Volume:
    array = volume.array[box]
    return Volume(array, _moved(volume.grid, array.shape[::-1], [b.start for b in reversed(box)]))


def _thesis_grid(grid: Grid, axis: int, settings: Thesis, depth: int) -> Grid:
    """Slices of the thesis, as many as it has: cropped or padded about the middle, with the smaller half in front."""
    grid = plane_grid(grid, axis, settings.size, settings.spacing)
    along = 2 - axis
    size, first = list(grid.size), [0, 0, 0]
    surplus = size[along] - depth
    first[along] = surplus // 2 if surplus >= 0 else -(-surplus // 2)
    size[along] = depth
    return _moved(grid, size, first)


def _moved(grid: Grid, size: Sequence[int], first: Sequence[int]) -> Grid:
    """A grid of another size on the same lattice, that begins at voxel ``first`` (x, y, z)."""
    step = np.reshape(grid.direction, (3, 3)) @ (np.asarray(grid.spacing) * first)
    x, y, z = (np.asarray(grid.origin) + step).tolist()
    width, height, depth = size
    return Grid((width, height, depth), grid.spacing, (x, y, z), grid.direction)
