"""Which axes a plan mirrors: all that its augmentation flips, but for left and right where labels tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_fm.data.presets import MIRRORING_PRESETS
from nnunet_fm.data.sides import find_sides
from nnunet_fm.models.card import Recipe, read_mirror
from nnunet_fm.models.plan_key import PlanError
from nnunet_fm.plans.orientation import lateral_axes
from nnunet_fm.plans.slices import AXES, read_conversion
from nnunet_fm.wording import listed

NAMES = ("z", "y", "x")
PUBLISHED = ("official", "thesis")
"""Variants that do as a publication did, whatever the labels are."""
SHOWN = 6
"""Labels that a sentence names."""


@dataclass(frozen=True)
class Data:
    """What of a dataset decides about its left and right.

    Attributes:
        raw: folder in ``nnUNet_raw``, where a converter may have left a ``conversion.json``.
        labels: of ``dataset.json``, by name.
        cases: as nnU-Net lists them.
        reader: name of nnU-Net's reader.
        transpose: the plan's order of the image axes.
    """

    raw: Path
    labels: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Any]]
    reader: str
    transpose: Sequence[int]

    def image_axis(self, axis: int, dim: int) -> int:
        """Index into (z, y, x) of the image, of an axis of patches with ``dim`` axes."""
        return self.transpose[axis + 3 - dim]


@dataclass
class Mirroring:
    """The axes of the patch that are mirrored, who chose them, and sentences for the plan."""

    axes: list[int]
    origin: str
    reasons: dict[str, str] = field(default_factory=dict)


def choose_mirroring(recipe: Recipe, wish: object, variant: str, data: Data, dim: int) -> Mirroring:
    """The axes that a training flips and its predictions mirror.

    Args:
        recipe: with the augmentation that is planned.
        wish: what the user asked for, see `read_mirror`; None leaves the choice to labels and variant.
        variant: of the card.
        data: the dataset that is trained on.
        dim: axes of a patch.

    Raises:
        PlanError: if the user names an axis that the patch does not have, or any where the augmentation flips nothing.
    """
    available = list(recipe.flipped_axes(dim))
    by_user = None if wish is None else _wanted(wish, recipe, data, dim)
    chosen = Mirroring(available, variant) if by_user is None else Mirroring(by_user, "user")
    if not available:
        return chosen
    pairs, alike = _sides(data)
    if not pairs:
        if alike and chosen.axes and wish is None:
            chosen.reasons["labels"] = (
                f"labels that only look as if they told left from right ({listed(alike, most=SHOWN)}) change nothing: "
                f"all axes are mirrored; if that exchanges them, --mirror leaves one out"
            )
            print(f"WARNING: {chosen.reasons['labels']}")
        return chosen
    lateral, unsure = _lateral(data)
    forbidden = [axis for axis in range(dim) if data.image_axis(axis, dim) in lateral]
    differ = f"{listed([f'{left} and {right}' for left, right in pairs], most=SHOWN)} differ by side"
    allowed = [axis for axis in available if axis not in forbidden]
    others = f"--mirror {','.join(NAMES[data.image_axis(axis, dim)] for axis in allowed) or 'none'}"
    if set(chosen.axes) <= set(allowed):
        if wish is None and not forbidden:
            chosen.reasons["mirror"] = (
                f"{differ}, but slices are cut across the left-right axis: no flip exchanges them"
            )
    elif wish is not None:
        chosen.reasons["mirror"] = f"as asked, though {differ} ({others} does not exchange them)"
    elif variant in PUBLISHED:
        chosen.reasons["mirror"] = f"as published, though {differ} ({others} does not exchange them)"
    else:
        chosen.axes, chosen.origin = allowed, "data"
        which = ", ".join(NAMES[data.image_axis(axis, dim)] for axis in forbidden)
        why = f"{which} may be the left-right axis, since {unsure}" if unsure else f"{which} is the left-right axis"
        chosen.reasons["mirror"] = f"{differ}, and {why}: not mirrored (--mirror overrides)"
    return chosen


def _wanted(wish: object, recipe: Recipe, data: Data, dim: int) -> list[int]:
    """The user's choice as indices into the patch."""
    try:
        wanted = read_mirror(wish)
    except ValueError as error:
        raise PlanError(f"recipe.{error}") from None
    if wanted == "all":
        wanted = list(range(dim))
    if wanted and recipe.augmentation not in MIRRORING_PRESETS:
        raise PlanError(
            f"recipe.mirror is {wish!r}, but augmentation '{recipe.augmentation}' flips nothing, and a network must "
            f"not predict mirrored images that it was not trained on: leave mirror out, or take one of the "
            f"augmentations {', '.join(sorted(MIRRORING_PRESETS))}"
        )
    patch = {NAMES[data.image_axis(axis, dim)]: axis for axis in range(dim)}
    axes = {patch.get(axis, -1) if isinstance(axis, str) else axis for axis in wanted}
    if not axes <= set(range(dim)):
        raise PlanError(
            f"recipe.mirror is {wish!r}, but a patch has the axes {', '.join(patch)}, or "
            f"{', '.join(map(str, range(dim)))}"
        )
    return sorted(axes)


def _sides(data: Data) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Pairs of labels that differ by side, by a converter's word or by their names; labels that only look so."""
    found = find_sides(data.labels)
    file = data.raw / "conversion.json"
    entry = read_conversion(file).get("left_right") or {}
    given = entry.get("pairs", []) if isinstance(entry, dict) else None
    if not isinstance(given, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        raise PlanError(f'{file}: left_right is no entry such as {{"axis": "x", "pairs": [["Kidney_L", "Kidney_R"]]}}')
    told = [(str(left), str(right)) for left, right in given if {str(left), str(right)} <= set(data.labels)]
    return list(dict.fromkeys((*told, *found.pairs))), found.alike


def _lateral(data: Data) -> tuple[frozenset[int], str | None]:
    """Image axes that may be the left-right axis, and why that is unsure, by the headers and a converter's word."""
    file = data.raw / "conversion.json"
    told = (read_conversion(file).get("left_right") or {}).get("axis")
    if told is not None and str(told).lower() not in AXES:
        raise PlanError(f"{file}: left_right.axis is {told!r}, legal are 0, 1, 2 (index into z, y, x), z, y, x")
    axes, unsure = lateral_axes(data.cases, data.reader)
    if told is None:
        return frozenset(range(3)) if axes is None else axes, unsure
    axis = AXES[str(told).lower()]
    if axes is None or axes == {axis}:
        return frozenset({axis}), None
    return axes | {axis}, unsure or f"conversion.json says that it is {NAMES[axis]}"
