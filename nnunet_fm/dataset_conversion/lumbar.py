"""Shared parts of the two spine datasets: five lumbar vertebrae, PNG slices and crop of the thesis."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from nnunet_fm.dataset_conversion.base import (
    PLAIN_READER,
    Case,
    ConversionOptions,
    Converter,
    ImageSource,
    Listing,
    Work,
)
from nnunet_fm.dataset_conversion.labels import LabelTable
from nnunet_fm.dataset_conversion.problems import ConversionError, Invalid, LeftOut
from nnunet_fm.dataset_conversion.steps import Thesis, normalise, plane_grid
from nnunet_fm.dataset_conversion.tree import Tree
from nnunet_fm.io.volume import Grid, Volume, outside_fraction, resample

LUMBAR = LabelTable.of("L1", "L2", "L3", "L4", "L5")

PIXEL = 0.7
"""mm in the plane of the thesis's slices."""

PNG_SPACING = (PIXEL, PIXEL, 1.0)
"""The distance between the slices of a PNG stack is in no file that is safe to open."""

PNG_NOTES = (
    "PNG slices have no orientation, and 1 mm between slices stands for an unknown distance: train 2D models on them",
    "colour pictures among the labels and scale_*.pickle are not read: pickle files can run any code",
)

Part = Literal["train", "val", "test"]


def lumbar_table(vertebrae: Mapping[int, int], others: Sequence[int]) -> LabelTable:
    """The five lumbar vertebrae of a source with more structures.

    Args:
        vertebrae: number in the source -> 1 (L1) to 5 (L5).
        others: numbers that become background.
    """
    return replace(LUMBAR, values={0: 0, **dict.fromkeys(others, 0), **vertebrae})


def part_of(tree: Tree, file: str, folders: Mapping[str, Part]) -> Part:
    """Train, val or test by the last folder or archive above a file that has a known name; the source counts too.

    Args:
        tree: the source.
        file: path in it.
        folders: regular expression for a folder's name, whatever follows a dot left out -> part.
    """
    for name in reversed([tree.source.resolve().name, *file.split("/")[:-1]]):
        for pattern, part in folders.items():
            if re.fullmatch(pattern, name.split(".", 1)[0], re.IGNORECASE):
                return part
    return "train"


class LumbarConverter(Converter):
    """A spine dataset whose slices are sagittal.

    Attributes:
        png_case: regular expression for a case in the names of PNG slices.
        thesis_slices: sagittal slices of a volume under ``--thesis``, None for all; smaller volumes are left out.
    """

    slice_axis: ClassVar[int] = 2
    thesis: ClassVar[Thesis | None] = Thesis("percentile", size=256, spacing=PIXEL)
    png_case: ClassVar[str]
    thesis_slices: ClassVar[int | None] = None

    def png_cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        """The thesis's slices: ``images/train/<case>_0000.png`` with ``labels/train/<case>_0000_labelTrainIds.png``.

        Raises:
            ConversionError: if other labels are asked for than these files have.
        """
        name = rf"(?:train|val|test)/(?P<case>{self.png_case})_(?P<slice>\d{{4}})"
        found, problems = tree.collect_stacks(
            {"image": rf"images/{name}\.png", "label": rf"labels/{name}_labelTrainIds\.png"}
        )
        if (found or problems) and options.labels != "lumbar":
            raise ConversionError(
                f"{tree.source}: PNG slices have the labels of --labels lumbar, no others", code="labels-option"
            )
        cases = [
            Case(
                case,
                (_stack(files["image"]),),
                (_stack(files["label"]),),
                part_of(tree, files["image"][0], {"train": "train", "val": "val", "test": "test"}),
                self.subject(case),
            )
            for case, files in found.items()
        ]
        return Listing("png", cases, problems, PNG_NOTES, slice_axis=0, reader=PLAIN_READER, intensities="0_to_255")

    def subject(self, case: str) -> str:
        """The person of a case."""
        return case

    def case_table(self, case: Case, options: ConversionOptions) -> LabelTable:
        """PNG slices have our numbers already."""
        return LUMBAR if case.images[0].file.endswith(".png") else super().case_table(case, options)

    def read_label(self, case: Case, grid: Grid, work: Work) -> Volume:
        """Read a label map like `Converter.read_label`; leave out a scan that shows other structures only."""
        try:
            return super().read_label(case, grid, work)
        except Invalid:
            wanted = {value for value, number in self.case_table(case, work.options).values.items() if number}
            shown = {value for value in work.counts if value}
            if shown and not shown & wanted:
                raise LeftOut(f"shows no lumbar vertebra, only labels {', '.join(map(str, sorted(shown)))}") from None
            raise

    def apply_thesis(
        self, images: list[Volume], label: Volume | None, axis: int, work: Work
    ) -> tuple[list[Volume], Volume | None]:
        """Slices are cut out about the middle of the labels: a scan may reach from the head to the knees."""
        settings, slices = self.thesis, self.thesis_slices
        assert settings is not None
        grid = images[0].grid
        if slices is not None and grid.shape[axis] < slices:
            raise LeftOut(f"has {grid.shape[axis]} sagittal slices, fewer than the {slices} of the thesis")
        grid = plane_grid(_about(grid, label, axis, slices), axis, settings.size, settings.spacing)
        images = [resample(normalise(image, settings.normalise), grid, label=False) for image in images]
        work.note(
            f"thesis: {settings.normalise} to 0..1, {settings.spacing} mm, {settings.size} x {settings.size} pixels "
            "about the middle of the labels" + (f", {slices} slices" if slices else "")
        )
        if label is not None:
            if outside := outside_fraction(label, grid):
                work.note(f"thesis: {100 * outside:.2g} % of the labelled voxels are cut off")
            label = resample(label, grid, label=True)
        return images, label


def _stack(files: tuple[str, ...]) -> ImageSource:
    return ImageSource(files[0], files, details={"spacing": PNG_SPACING})


def _about(grid: Grid, label: Volume | None, axis: int, slices: int | None) -> Grid:
    """A grid in line with another's voxels along the slice axis, its centre that of the labels' box in the plane."""
    box: Any = [(0, n - 1) for n in grid.shape]
    if label is not None:
        sections = (label.array.any(axis=tuple(other for other in range(3) if other != i)) for i in range(3))
        box = [(section.nonzero()[0][0], section.nonzero()[0][-1]) for section in sections]
    centre = np.array([(first + last) / 2 for first, last in reversed(box)])
    size = np.array(grid.size)
    along = 2 - axis
    count = slices or grid.size[along]
    start = int(np.clip(round(centre[along] - (count - 1) / 2), 0, grid.size[along] - count))
    size[along], centre[along] = count, start + (count - 1) / 2
    moved = np.reshape(grid.direction, (3, 3)) @ (np.asarray(grid.spacing) * (centre - (size - 1) / 2))
    origin = tuple((np.asarray(grid.origin) + moved).tolist())
    return replace(grid, size=tuple(size.tolist()), origin=origin)
