"""Base of all converters: one file per dataset, a table of facts and a function that lists the cases.

A new converter is a subclass of `Converter` in a file of its own, and a line in `dataset_conversion/__init__.py`::

    class Spleen(Converter):
        name = "spleen"
        dataset = "Spleen"                        # Dataset501_Spleen
        title = "Medical Segmentation Decathlon, Task09"
        size = "41 labelled CT"
        licence, licence_source = "CC BY-SA 4.0", "dataset.json of the download"
        reference = "https://doi.org/10.1038/s41467-022-30695-9"
        channels = ("CT",)                        # "CT" switches on nnU-Net's normalisation of CT
        label_sets: ClassVar = {"default": LabelTable.of("spleen")}   # further sets become values of --labels
        slice_axis = 0                            # of (z, y, x) in RAS: axial
        layouts: ClassVar = {"msd": "imagesTr/spleen_2.nii.gz with labelsTr/spleen_2.nii.gz"}

        def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
            found, problems = tree.collect({
                "image": r"imagesTr/spleen_(?P<case>\\d+)\\.nii\\.gz",
                "label": r"labelsTr/spleen_(?P<case>\\d+)\\.nii\\.gz",
            })
            cases = [
                Case(f"spleen_{i}", (ImageSource(f["image"]),), (ImageSource(f["label"]),)) for i, f in found.items()
            ]
            return Listing("msd", cases, problems)

Everything else has a default: images are read, checked and written in the number type of the source; labels must be
whole numbers of the table on the image's grid, with some foreground. A dataset whose masks may lie on other grids sets
``label_grid = "resample"``; one that needs more overrides `Converter.read_image`, `Converter.read_label` or, for all of
a case at once, `Converter.read_case`. These get a `Work`: its `Work.path` gives a file on disk, `Work.note` records a
decision. Raise `Invalid` for what is wrong with one case, `LeftOut` where the dataset's rule leaves a sound case out.
Attributes that are ``None`` or empty mean that the dataset does not know the option: using it is bad usage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.dataset_conversion.labels import LabelTable, count_values, merge_masks, whole_numbers
from nnunet_fm.dataset_conversion.problems import Invalid, Problem, UsageError
from nnunet_fm.dataset_conversion.readers import read_dicom_series, read_hdf5, read_png_stack, read_volume
from nnunet_fm.dataset_conversion.splits import Split
from nnunet_fm.dataset_conversion.steps import Thesis, normalise, thesis_plane
from nnunet_fm.dataset_conversion.tree import Tree
from nnunet_fm.io.volume import Grid, Volume, outside_fraction, resample

REORIENTING_READER = "NibabelIOWithReorient"
"""nnU-Net's reader that turns every image to RAS, so that `Converter.slice_axis` holds for all of a dataset."""

PLAIN_READER = "SimpleITKIO"
"""nnU-Net's reader that leaves axes as they are, for sources that know no orientation."""

MAX_OUTSIDE = 0.001
"""Share of a label map that may lie outside of its image when it is resampled."""


@dataclass(frozen=True)
class AllowedValues:
    """Values that an option takes.

    Attributes:
        values: legal ones.
        default: without the option; None where leaving it out has a meaning of its own.
        help: one sentence.
    """

    values: tuple[str, ...]
    default: str | None = None
    help: str = ""


@dataclass(frozen=True)
class ConversionOptions:
    """Options of a conversion that a user chose; see `Converter.options`.

    Attributes:
        domain: which of several datasets of one anatomy.
        labels: key of `Converter.label_sets`.
        split: a name in `Converter.splits`, path of a file, or None for seeded folds alone.
        thesis: apply `Converter.thesis`.
        n4: correct the bias field.
        skull_strip: ``labels``, ``no``, or a folder or table of masks.
        outside: what becomes of voxels that one of several channels does not show.
    """

    domain: str | None = None
    labels: str = "default"
    split: str | None = None
    thesis: bool = False
    n4: bool = False
    skull_strip: str = "no"
    outside: str | None = None


@dataclass(frozen=True)
class ImageSource:
    """Source of one image, label map or mask.

    Attributes:
        file: path in the tree; of several files (DICOM slices, PNG slices) their common folder or stem.
        files: of several files, all of them; PNG slices in order.
        structure: of a mask of one structure, its name in the label table.
        details: further arguments of the reader: ``{"channel": 2}`` of a NIfTI file with four dimensions, ``{"spacing":
            (x, y, z)}`` of PNG slices, for HDF5 see `flat_hdf5`.
    """

    file: str
    files: tuple[str, ...] = ()
    structure: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_files(self) -> tuple[str, ...]:
        """Paths in the tree."""
        return self.files or (self.file,)


@dataclass(frozen=True)
class Case:
    """One case of the dataset.

    Attributes:
        name: of its files in nnU-Net's folders, without ending.
        images: one source per channel.
        labels: one label map, or one mask per structure; empty for test cases without labels.
        part: ``test`` goes to ``imagesTs``, ``val`` is validated on in fold 0 of the split ``official``.
        subject: the person; cases of one person are never split. Without it, the case's name.
        corrected: the images are free of the bias field as they are: N4 is not run again.
    """

    name: str
    images: tuple[ImageSource, ...]
    labels: tuple[ImageSource, ...] = ()
    part: Literal["train", "val", "test"] = "train"
    subject: str = ""
    corrected: bool = False

    @property
    def person(self) -> str:
        """Subject, or the case itself."""
        return self.subject or self.name

    @property
    def files(self) -> tuple[str, ...]:
        """All paths in the tree."""
        return tuple(file for source in (*self.images, *self.labels) for file in source.all_files)


@dataclass(frozen=True)
class Listing:
    """Content of a tree: cases, splits, problems.

    Attributes:
        layout: which of the known layouts was found, a key of `Converter.layouts`.
        cases: what can be converted.
        problems: of cases that cannot.
        notes: decisions that hold for the whole tree.
        slice_axis: instead of the converter's, where a layout stores other axes.
        reader: nnU-Net's reader instead of the converter's.
        intensities: where images of a layout have been preprocessed as in the thesis already, what their numbers are,
            such as ``0_to_255``: becomes part of the channels' names, and ``--thesis`` is refused.
        channels: instead of the converter's, where a layout has fewer.
    """

    layout: str
    cases: Sequence[Case]
    problems: Sequence[Problem] = ()
    notes: Sequence[str] = ()
    slice_axis: int | None = None
    reader: str | None = None
    intensities: str | None = None
    channels: tuple[str, ...] | None = None


class Work:
    """Tools of a converter while it converts one case.

    Attributes:
        options: the user's.
        sources: path in the tree -> SHA-256, of all files used so far.
        notes: decisions about this case.
        counts: voxels per number of the source's labels, before anything is done to them.
    """

    def __init__(
        self, options: ConversionOptions, tree: Tree, folder: Path, known: Mapping[str, tuple[Path, str]] | None = None
    ) -> None:
        self.options = options
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []
        self.counts: dict[int, int] = {}
        self._tree, self._folder, self._known = tree, folder, known or {}
        self._paths: dict[str, Path] = {}

    def path(self, name: str) -> Path:
        """A file of the tree on disk, its SHA-256 recorded.

        Raises:
            Invalid: if it cannot be had.
        """
        from nnunet_fm.weights.cache import compute_sha256

        if name not in self._paths:
            if name in self._known:
                self._paths[name], self.sources[name] = self._known[name]
            else:
                try:
                    path = self._tree.local(name, self._folder / str(len(self._paths)))
                    self.sources[name] = compute_sha256(path)
                except (PermissionError, FileNotFoundError) as error:
                    raise Invalid(name, f"cannot be opened ({error.strerror})", code="file-unreadable") from None
                self._paths[name] = path
        return self._paths[name]

    def note(self, text: str) -> None:
        """Record a decision about this case."""
        self.notes.append(text)


class Converter(ABC):
    """Facts about one dataset, and the reading of its download. Instances have no state.

    Attributes:
        name: as typed.
        dataset: name of nnU-Net's folder after the number; a domain is appended.
        title: one line for people.
        size: how many cases of what.
        licence: of the data.
        licence_source: where that is written.
        reference: paper or page.
        channels: names for ``dataset.json``.
        label_sets: values of ``--labels`` -> table; the first is the default.
        sides: pairs of labels that differ by left and right, where `find_sides` does not see it in their names.
        slice_axis: axis of the anatomy's slices, index into (z, y, x) of the image as nnU-Net's reader gives it.
        reader: nnU-Net's reader.
        layouts: known trees, name -> example.
        label_grid: whether labels on another grid than the image are refused (``same``) or resampled.
        background_only: accept a mask whose structures are all background in the label set.
        domain: values of ``--domain``.
        outside: values of ``--outside``.
        splits: values of ``--split`` -> what they are; besides a file.
        default_split: without ``--split``; None: seeded folds, test cases as the tree has them.
        n4: default of ``--n4``; None: not an option, as for CT.
        skull_strip: default of ``--skull-strip``; None: not an option.
        thesis: what ``--thesis`` does; None: not an option.
        notes: decisions that hold for every tree.
        checked: what was compared with a public source.
        unknown: what nobody has verified.
        version: raised when the code writes something else for the same source.
    """

    name: ClassVar[str]
    dataset: ClassVar[str]
    title: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]
    licence_source: ClassVar[str]
    reference: ClassVar[str]
    channels: ClassVar[tuple[str, ...]]
    label_sets: ClassVar[Mapping[str, LabelTable]]
    sides: ClassVar[tuple[tuple[str, str], ...]] = ()
    slice_axis: ClassVar[int]
    reader: ClassVar[str] = REORIENTING_READER
    layouts: ClassVar[Mapping[str, str]]
    label_grid: ClassVar[Literal["same", "resample"]] = "same"
    background_only: ClassVar[bool] = False
    domain: ClassVar[AllowedValues | None] = None
    outside: ClassVar[AllowedValues | None] = None
    splits: ClassVar[Mapping[str, str]] = {}
    default_split: ClassVar[str | None] = None
    n4: ClassVar[bool | None] = None
    skull_strip: ClassVar[str | None] = None
    thesis: ClassVar[Thesis | None] = None
    notes: ClassVar[tuple[str, ...]] = ()
    checked: ClassVar[tuple[str, ...]] = ()
    unknown: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1

    # What every converter writes itself

    @abstractmethod
    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        """List the cases of a tree; an empty listing means that the tree has none of the known layouts.

        Only names are looked at here (and headers, where a format keeps its cases in one file).
        """

    # What some converters override

    def dataset_name(self, options: ConversionOptions) -> str:
        """Name of nnU-Net's folder after the number."""
        return self.dataset if options.domain is None else f"{self.dataset}_{options.domain.upper()}"

    def channel_names(self, options: ConversionOptions) -> tuple[str, ...]:
        """Channels of a domain."""
        return self.channels

    def table(self, options: ConversionOptions) -> LabelTable:
        """Label table of the user's choice."""
        return self.label_sets[options.labels]

    def split(self, name: str, cases: Sequence[Case]) -> Split:
        """Return a published split by name, over the cases of the listing; ``official`` is that of the folders."""
        return Split.of({case.name: case.part for case in cases})

    def read_case(self, case: Case, work: Work) -> tuple[list[Volume], Volume | None]:
        """All channels of a case on one grid, and its label map on that grid, or None.

        Raises:
            Invalid: if a rule is broken.
            LeftOut: if the dataset's rule leaves the case out.
        """
        images = [self.read_image(source, work) for source in case.images]
        for source, image in zip(case.images[1:], images[1:], strict=True):
            if (difference := image.grid.difference(images[0].grid)) is not None:
                raise Invalid(
                    source.file, f"another grid than {case.images[0].file}: {difference}", code="grid-differs"
                )
        label = self.read_label(case, images[0].grid, work) if case.labels else None
        return images, label

    def read_image(self, source: ImageSource, work: Work) -> Volume:
        """One channel, with finite values."""
        volume = read_source(source, work)
        check_finite(volume, source.file)
        return volume

    def case_table(self, case: Case, options: ConversionOptions) -> LabelTable:
        """The table of one case, where numbers change their meaning from release to release."""
        return self.table(options)

    def read_label(self, case: Case, grid: Grid, work: Work) -> Volume:
        """The label map in our numbers on the image's grid: of one file, or merged if sources name structures."""
        if case.labels[0].structure is not None:
            return self.read_masks(case, grid, work)
        (source,) = case.labels
        label = read_source(source, work)
        label = Volume(whole_numbers(label.array, source.file), label.grid)
        mapped, work.counts, others = self.case_table(case, work.options).apply(label.array, source.file)
        if others:
            share = sum(others.values()) / sum(work.counts.values())
            work.note(
                f"{source.file}: {100 * share:.2g} % of voxels have numbers that are not listed: {sorted(others)}"
            )
        label = self.fit(Volume(mapped, label.grid), grid, source.file, work)
        if not label.array.any():
            if not (self.background_only and any(value != 0 for value in work.counts)):
                raise Invalid(source.file, "the mask is empty: no voxel has a label of the table", code="mask-empty")
            work.note(f"{source.file}: all that it labels is background here")
        return label

    def apply_thesis(
        self, images: list[Volume], label: Volume | None, axis: int, work: Work
    ) -> tuple[list[Volume], Volume | None]:
        """Apply the last steps of ``--thesis``: intensities to 0..1, then pixel size and size of the slices.

        Args:
            images: all channels.
            label: on their grid.
            axis: of the arrays (z, y, x) along which slices are taken.
            work: of the case.
        """
        settings = self.thesis
        assert settings is not None
        images = [thesis_plane(normalise(image, settings.normalise), axis, settings, label=False) for image in images]
        label = None if label is None else thesis_plane(label, axis, settings, label=True)
        plane = f"{settings.spacing} mm" if settings.spacing else "stretched"
        work.note(f"thesis: {settings.normalise} to 0..1, {plane}, {settings.size} x {settings.size} pixels")
        return images, label

    # What converters use

    def read_masks(self, case: Case, grid: Grid, work: Work, *, empty: Literal["refuse", "note"] = "refuse") -> Volume:
        """One label map of masks of single structures, painted in the order of ``case.labels``: later ones win.

        Voxels that two masks claim are noted per pair, and voxels per mask before painting are in ``work.counts``.

        Raises:
            Invalid: if a mask has other values than 0 and one more, lies on another grid (see `fit`), or is empty
                and ``empty`` is ``refuse``.
        """
        names = self.case_table(case, work.options).names

        def painted() -> Iterator[tuple[int, NDArray[Any]]]:
            for source in case.labels:
                mask = read_source(source, work)
                array = whole_numbers(mask.array, source.file)
                inside = {value: count for value, count in count_values(array).items() if value != 0}
                if len(inside) > 1 or any(value < 0 for value in inside):
                    raise Invalid(
                        source.file,
                        f"is no mask of one structure: it has the values {sorted(inside)}",
                        code="mask-values",
                    )
                if not inside:
                    if empty == "refuse":
                        raise Invalid(source.file, "the mask is empty", code="mask-empty")
                    work.note(f"{source.file}: the mask is empty")
                value = names[source.structure or ""]
                assert isinstance(value, int)
                work.counts[value] = sum(inside.values())
                yield value, self.fit(Volume((array != 0).view(np.uint8), mask.grid), grid, source.file, work).array

        merged, overlaps = merge_masks(grid.shape, painted())
        structures = {value: name for name, value in names.items()}
        for (below, winner), count in sorted(overlaps.items()):
            work.note(f"{count} voxels of {structures[below]} are {structures[winner]} as well, which wins")
        if not merged.any():
            raise Invalid(case.labels[0].file, "all masks of this case are empty", code="mask-empty")
        return Volume(merged, grid)

    def fit(self, label: Volume, grid: Grid, file: str, work: Work) -> Volume:
        """A label map or mask on the image's grid: as it is, or resampled if `label_grid` says so.

        Raises:
            Invalid: if the grids differ and the dataset's rule is ``same``, or the labels reach out of the image.
        """
        difference = label.grid.difference(grid)
        if difference is None:
            return Volume(label.array, grid)
        if self.label_grid == "same":
            raise Invalid(file, f"another grid than the image: {difference}", code="grid-differs")
        outside = outside_fraction(label, grid)
        if outside > MAX_OUTSIDE:
            raise Invalid(
                file,
                f"{100 * outside:.3g} % of the labelled voxels lie outside of the image ({difference})",
                code="labels-outside",
            )
        work.note(f"{file}: resampled onto the image's grid by nearest neighbour in physical space ({difference})")
        return resample(label, grid, label=True)

    def options(
        self,
        *,
        domain: str | None = None,
        labels: str | None = None,
        split: str | None = None,
        thesis: bool = False,
        n4: bool | None = None,
        skull_strip: str | None = None,
        outside: str | None = None,
    ) -> ConversionOptions:
        """The user's options, checked; None is the dataset's default.

        Raises:
            UsageError: if the dataset does not know the option or the value; the message has the legal ones.
        """
        legal = tuple(self.label_sets)
        if labels is not None and (len(legal) == 1 or labels not in legal):
            raise self._unknown("labels", labels, legal if len(legal) > 1 else ())
        if split is not None and split not in self.splits and not Path(split).is_file():
            raise self._unknown("split", split, (*self.splits, "a file that exists"))
        settings = self.thesis if thesis else None
        if thesis and settings is None:
            raise self._unknown("thesis", None, ())
        if n4 is not None and self.n4 is None:
            raise self._unknown("n4", None, ())
        if skull_strip is not None:
            if self.skull_strip is None:
                raise self._unknown("skull-strip", skull_strip, ())
            if skull_strip not in ("labels", "no") and not Path(skull_strip).exists():
                raise self._unknown("skull-strip", skull_strip, ("labels", "no", "a folder or table that exists"))
        default_strip = "labels" if settings and settings.skull_strip else self.skull_strip or "no"
        return ConversionOptions(
            domain=self._choose("domain", self.domain, domain),
            labels=labels or legal[0],
            split=split or self.default_split,
            thesis=thesis,
            n4=n4 if n4 is not None else bool(settings.n4 if settings else self.n4),
            skull_strip=skull_strip or default_strip,
            outside=self._choose("outside", self.outside, outside),
        )

    def known_options(self) -> dict[str, tuple[str, ...]]:
        """Options that this dataset takes, with their values."""
        known: dict[str, tuple[str, ...]] = {"split": (*self.splits, "FILE")}
        if self.domain:
            known["domain"] = self.domain.values
        if len(self.label_sets) > 1:
            known["labels"] = tuple(self.label_sets)
        if self.thesis:
            known["thesis"] = ()
        if self.n4 is not None:
            known["n4"] = ()
        if self.skull_strip is not None:
            known["skull-strip"] = ("labels", "FILE", "no")
        if self.outside:
            known["outside"] = self.outside.values
        return known

    def _choose(self, option: str, choice: AllowedValues | None, value: str | None) -> str | None:
        if choice is None:
            if value is not None:
                raise self._unknown(option, value, ())
            return None
        if value is not None and value not in choice.values:
            raise self._unknown(option, value, choice.values)
        return choice.default if value is None else value

    def _unknown(self, option: str, value: str | None, legal: Sequence[str]) -> UsageError:
        if legal:
            return UsageError(
                f"{self.name}: '{value}' is not a value of --{option}: {', '.join(legal)}", code="option-value"
            )
        known = "; ".join(f"--{o} {'|'.join(v)}".rstrip() for o, v in self.known_options().items())
        return UsageError(f"{self.name} has no option --{option}; it takes {known}", code="option-unknown")


def read_source(source: ImageSource, work: Work) -> Volume:
    """Read one source by the form it has: a DICOM series, PNG slices, a part of an HDF5 file, or a volume."""
    paths = [work.path(file) for file in source.all_files]
    kind = paths[0].suffix.lower()
    if kind == ".png":
        return read_png_stack(paths, source.all_files, source.details["spacing"])
    if source.files:
        return read_dicom_series(paths, source.file)
    if kind in (".hdf5", ".h5"):
        return read_hdf5(paths[0], source.file, **source.details)
    return read_volume(paths[0], source.file, **source.details)


def check_finite(volume: Volume, file: str) -> None:
    """Raise `Invalid` if an image has NaN or infinite values."""
    if volume.array.dtype.kind == "f":
        wrong = sum(int(np.count_nonzero(~np.isfinite(section))) for section in volume.array)
        if wrong:
            raise Invalid(file, f"the image has {wrong} voxels that are NaN or infinite", code="image-not-finite")
    elif volume.array.dtype.kind not in "iub":
        raise Invalid(file, f"the image's type {volume.array.dtype} is no number", code="image-type")


def voxels_per_label(label: Volume) -> dict[int, int]:
    """Voxels per number of our label map, background left out."""
    return {value: count for value, count in count_values(label.array).items() if value != 0}
