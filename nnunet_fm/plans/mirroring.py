"""Choice of mirrored axes: those that the augmentation flips, except axes along which labels differ by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_fm.data.presets import MIRRORING_PRESETS
from nnunet_fm.data.sides import find_opposites, find_sides
from nnunet_fm.io.messages import listed
from nnunet_fm.models.card import Recipe, read_mirror
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.plans.geometry import AXES, read_conversion
from nnunet_fm.plans.plan import AXIS_NAMES, Decision, RawDataset
from nnunet_fm.preprocessing.orientation import patient_axes

PUBLISHED = ("official", "thesis")
"""Variants that mirror as published for any labels."""
SHOWN = 6
"""Most labels in a sentence."""


@dataclass(frozen=True)
class Data:
    """The part of a dataset that decides which axes are mirrored.

    Attributes:
        raw: folder in ``nnUNet_raw``, in which a converter may have written a ``conversion.json``.
        labels: labels of ``dataset.json`` by name.
        cases: nnU-Net's list of cases.
        reader: name of nnU-Net's reader.
        transpose: the plan's order of the image axes.
    """

    raw: Path
    labels: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Any]]
    reader: str
    transpose: Sequence[int]

    @classmethod
    def of(cls, dataset: RawDataset, axes: Sequence[int]) -> Data:
        """The part of a dataset for this choice, with the plan's order of the image axes."""
        return cls(dataset.raw, dataset.json["labels"], dataset.cases, dataset.reader, axes)

    def image_axis(self, axis: int, dim: int) -> int:
        """Index into (z, y, x) of the image for an axis of a patch with ``dim`` axes."""
        return self.transpose[axis + 3 - dim]


@dataclass(frozen=True)
class Opposites:
    """Pairs of labels for the two sides of a patient axis.

    Attributes:
        name: name of the axis, such as ``left-right``.
        pairs: names of labels.
        axes: image axes, indices into (z, y, x), along which mirroring may exchange the labels.
        unsure: why there may be several axes; None if there is one.
    """

    name: str
    pairs: list[tuple[str, str]]
    axes: frozenset[int]
    unsure: str | None

    @property
    def differ(self) -> str:
        """A clause about the labels."""
        return f"{listed([f'{one} and {other}' for one, other in self.pairs], most=SHOWN)} differ by side"

    def why(self, forbidden: Sequence[int]) -> str:
        """A clause about the image axes that are not mirrored because of these labels."""
        which = ", ".join(AXIS_NAMES[axis] for axis in forbidden if axis in self.axes)
        if self.unsure:
            return f"{which} may be the {self.name} axis, since {self.unsure}"
        return f"{which} is the {self.name} axis"


def choose_mirroring(recipe: Recipe, wish: object, variant: str, data: Data, dim: int) -> Decision[list[int]]:
    """Choose the axes of a patch that a training flips and its predictions mirror.

    Args:
        recipe: recipe with the planned augmentation.
        wish: the user's choice, see `read_mirror`; None leaves it to labels and variant.
        variant: name of the card's variant.
        data: the training dataset.
        dim: axes of a patch.

    Raises:
        PlanError: if the user names an axis that the patch does not have, or any where the augmentation flips nothing.
    """
    available = list(recipe.flipped_axes(dim))
    axes, origin = (available, variant) if wish is None else (_wanted(wish, recipe, data, dim), "user")
    if not available:
        return Decision(axes, origin)
    opposites, alike = _opposites(data)
    reasons = {}
    if alike and axes and wish is None:
        reasons["labels"] = (
            f"labels that only look as if they told left from right ({listed(alike, most=SHOWN)}) change nothing: "
            f"all axes are mirrored; if that exchanges them, --mirror leaves one out"
        )
    warnings = tuple(reasons.values())
    if not opposites:
        return Decision(axes, origin, reasons, warnings)
    forbidden = [axis for axis in range(dim) if any(data.image_axis(axis, dim) in each.axes for each in opposites)]
    differ = ", ".join(each.differ for each in opposites)
    allowed = [axis for axis in available if axis not in forbidden]
    others = f"--mirror {','.join(AXIS_NAMES[data.image_axis(axis, dim)] for axis in allowed) or 'none'}"
    if set(axes) <= set(allowed):
        if wish is None and not forbidden:
            reasons["mirror"] = (
                f"{differ}, but slices are cut across the {opposites[0].name} axis: no flip exchanges them"
            )
    elif wish is not None:
        reasons["mirror"] = f"as asked, though {differ} ({others} does not exchange them)"
    elif variant in PUBLISHED:
        reasons["mirror"] = f"as published, though {differ} ({others} does not exchange them)"
    else:
        axes, origin = allowed, "data"
        in_plane = [data.image_axis(axis, dim) for axis in forbidden]
        whys = [each.why(in_plane) for each in opposites if each.axes & set(in_plane)]
        reasons["mirror"] = f"{differ}, and {' and '.join(whys)}: not mirrored (--mirror overrides)"
    return Decision(axes, origin, reasons, warnings)


def _wanted(wish: object, recipe: Recipe, data: Data, dim: int) -> list[int]:
    """The user's choice as indices into the patch."""
    try:
        wanted = read_mirror(wish)
    except ValueError as error:
        raise PlanError(f"recipe.{error}", code="mirror-axes") from None
    if wanted == "all":
        wanted = list(range(dim))
    if wanted and recipe.augmentation not in MIRRORING_PRESETS:
        raise PlanError(
            f"recipe.mirror is {wish!r}, but augmentation '{recipe.augmentation}' flips nothing, and a network must "
            f"not predict mirrored images that it was not trained on: leave mirror out, or take one of the "
            f"augmentations {', '.join(sorted(MIRRORING_PRESETS))}",
            code="mirror-augmentation",
        )
    patch = {AXIS_NAMES[data.image_axis(axis, dim)]: axis for axis in range(dim)}
    axes = {patch.get(axis, -1) if isinstance(axis, str) else axis for axis in wanted}
    if not axes <= set(range(dim)):
        raise PlanError(
            f"recipe.mirror is {wish!r}, but a patch has the axes {', '.join(patch)}, or "
            f"{', '.join(map(str, range(dim)))}",
            code="mirror-axes",
        )
    return sorted(axes)


def _opposites(data: Data) -> tuple[list[Opposites], tuple[str, ...]]:
    """Labels that differ by side, for each patient axis; and labels whose names only seem to mean left and right.

    Left and right are also checked in images without an orientation, because the two sides of a patient look alike.
    """
    pairs, alike = _sides(data)
    found = [Opposites("left-right", pairs, *_lateral(data))] if pairs else []
    for patient_axis, name in ((1, "front-back"), (2, "top-bottom")):
        if others := find_opposites(data.labels, patient_axis):
            axes, unsure = patient_axes(data.cases, data.reader, patient_axis)
            if axes is not None:
                found.append(Opposites(name, list(others), axes, unsure))
    return found, () if pairs else alike


def _sides(data: Data) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Pairs of left and right labels, from a converter or from their names; and labels that only look like it."""
    found = find_sides(data.labels)
    file = data.raw / "conversion.json"
    entry = read_conversion(file).get("left_right") or {}
    given = entry.get("pairs", []) if isinstance(entry, dict) else None
    if not isinstance(given, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        raise PlanError(
            f'{file}: left_right is no entry such as {{"axis": "x", "pairs": [["Kidney_L", "Kidney_R"]]}}',
            code="conversion-form",
        )
    told = [(str(left), str(right)) for left, right in given if {str(left), str(right)} <= set(data.labels)]
    return list(dict.fromkeys((*told, *found.pairs))), found.alike


def _lateral(data: Data) -> tuple[frozenset[int], str | None]:
    """Image axes that may be the left-right axis, from headers and a converter, and why that is unsure."""
    file = data.raw / "conversion.json"
    told = (read_conversion(file).get("left_right") or {}).get("axis")
    if told is not None and str(told).lower() not in AXES:
        raise PlanError(
            f"{file}: left_right.axis is {told!r}, legal are 0, 1, 2 (index into z, y, x), z, y, x",
            code="conversion-form",
        )
    axes, unsure = patient_axes(data.cases, data.reader)
    if told is None:
        return frozenset(range(3)) if axes is None else axes, unsure
    axis = AXES[str(told).lower()]
    if axes is None or axes == {axis}:
        return frozenset({axis}), None
    return axes | {axis}, unsure or f"conversion.json says that it is {AXIS_NAMES[axis]}"
