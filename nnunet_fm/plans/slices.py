"""What a plan of a 2D model takes from the dataset: choices by its name, the axis of its slices and their number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_fm.data.folds import Fold, first_cases, training_cases_of
from nnunet_fm.data.samples import count_samples
from nnunet_fm.io.untrusted import RECORD_ENTRIES, ForeignFileError, read_json
from nnunet_fm.models.card import DatasetChoice, Variant
from nnunet_fm.models.registry import merge
from nnunet_fm.planfile.schema import PlanError

AXES = {"z": 0, "y": 1, "x": 2, "0": 0, "1": 1, "2": 2}
"""Name of an image axis -> index into (z, y, x)."""

PLANES = {"axial": "SI", "coronal": "AP", "sagittal": "LR"}
"""Name of a plane -> the two directions in the patient of the axis across it."""


def dataset_choice(datasets: Mapping[str, DatasetChoice], dataset_name: str) -> DatasetChoice:
    """What a variant does otherwise on a dataset.

    Every key that the name begins with applies, longer ones on top of shorter ones.

    Args:
        datasets: the variant's, by the beginning of a name in lower-case letters and digits.
        dataset_name: nnU-Net's, ``Dataset501_HCP-T1``.
    """
    name = re.sub("[^a-z0-9]", "", dataset_name.split("_", 1)[-1].lower())
    chosen: dict[str, Any] = {}
    for key in sorted((key for key in datasets if name.startswith(key)), key=len):
        chosen = merge(chosen, datasets[key].model_dump(exclude_unset=True))
    return DatasetChoice(**chosen)


def on_dataset(variant: Variant, dataset_name: str, adapter: str | None) -> Variant:
    """The variant with the spacing, intensities, epochs and learning rate that it has on this dataset.

    The learning rate is the dataset's for the adapter, else the variant's for the adapter, else the dataset's
    default, else the recipe's.
    """
    choice = dataset_choice(variant.datasets, dataset_name)
    geometry, intensity, recipe = variant.geometry, variant.intensity, variant.recipe
    if choice.spacing is not None:
        in_plane = choice.spacing if isinstance(choice.spacing, str) else [choice.spacing] * 2
        geometry = geometry.model_copy(update={"spacing": in_plane})
    if choice.intensity is not None:
        intensity = intensity.model_copy(update={"ct": choice.intensity, "other": choice.intensity})
    rates = (choice.learning_rate.get(adapter or ""), variant.learning_rate.get(adapter or ""))
    rate = next((rate for rate in (*rates, choice.learning_rate.get("default")) if rate), recipe.learning_rate)
    return variant.model_copy(
        update={
            "geometry": geometry,
            "intensity": intensity,
            "epochs": choice.epochs or variant.epochs,
            "recipe": recipe.model_copy(update={"learning_rate": rate}),
        }
    )


def samples_by_fold(
    shapes: Mapping[str, Sequence[int]],
    patch: Sequence[int],
    folds: Sequence[Fold],
    *,
    train_cases: int | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Number of a fold, or ``all`` -> samples of one pass over its training cases.

    Args:
        shapes: case -> shape, as for `count_samples`; so is ``patch``.
        folds: of the dataset; those that have too few cases, or cases of unknown shape, are left out.
        train_cases: restricts each fold to so many cases; None for all.
        seed: of their choice.
    """
    counted = {}
    for number in [*map(str, range(len(folds))), "all"]:
        cases = training_cases_of(folds, number, list(shapes))
        if not cases or not shapes.keys() >= set(cases) or len(cases) < (train_cases or 0):
            continue
        chosen = cases if train_cases is None else first_cases(cases, train_cases, seed)
        counted[number] = count_samples([shapes[case] for case in chosen], patch)
    return counted


def count_iterations(epochs: int, samples: Mapping[str, int], batch: int, dim: int) -> tuple[int, int, str]:
    """Iterations of a number of passes over the first fold of ``samples``, those of one pass, and the reason for both.

    Args:
        epochs: passes.
        samples: fold -> samples of one pass.
        batch: samples per iteration.
        dim: of the model, which says what a sample is.
    """
    fold, count = next(iter(samples.items()))
    one_pass = -(-count // batch)
    what = "slices" if dim == 2 else "patches, which hold the voxels of the volumes,"
    where = "all images" if fold == "all" else f"the training cases of fold {fold}"
    others = {number for key, number in samples.items() if key not in (fold, "all")}
    more = f"; other folds count theirs ({min(others):,} to {max(others):,})" if others - {count} else ""
    return epochs * one_pass, one_pass, f"{epochs} epochs over {count:,} {what} of {where} in batches of {batch}{more}"


def slice_axis(given: object, orientations: Mapping[str, int]) -> int:
    """The axis across the slices as an index into (z, y, x).

    Args:
        given: an index, the name of an axis, or that of a plane of the patient.
        orientations: axis codes of the training images (see `dataset_orientations`) with counts.

    Raises:
        ValueError: for anything else, or a plane that is not the same axis in all images.
    """
    word = str(given).lower()
    if word in AXES:
        return AXES[word]
    if word not in PLANES:
        raise ValueError(f"is {given!r}, legal are 0, 1, 2 (index into z, y, x), {_words(AXES)}, {_words(PLANES)}")
    # Axis codes name x, y, z.
    found = {2 - next(i for i, letter in enumerate(codes) if letter in PLANES[word]) for codes in orientations}
    if len(found) != 1:
        seen = ", ".join(f"{count} {codes}" for codes, count in orientations.items())
        why = f"differ in their axes ({seen})" if found else "have no direction"
        raise ValueError(f"is {given!r}, but the training images {why}: legal are 0, 1, 2 or {_words(AXES)}")
    return found.pop()


def read_conversion(file: Path) -> dict[str, Any]:
    """What a converter has written beside the raw data; empty without the file.

    Raises:
        PlanError: if the file is no JSON object.
    """
    if not file.is_file():
        return {}
    try:
        content = read_json(file, RECORD_ENTRIES)
    except ForeignFileError as error:
        raise PlanError(str(error)) from None
    if not isinstance(content, dict):
        raise PlanError(f'{file} holds no JSON object such as {{"slice_axis": "y"}}')
    return content


def converter_slice_axis(file: Path, orientations: Mapping[str, int]) -> int | None:
    """The anatomy's axis that a converter has written beside the raw data; None without the file or such an entry.

    Raises:
        PlanError: if the file is no JSON object, or names no legal axis.
    """
    given = read_conversion(file).get("slice_axis")
    try:
        return None if given is None else slice_axis(given, orientations)
    except ValueError as error:
        raise PlanError(f"{file}: slice_axis {error}") from None


def _words(table: Mapping[str, object]) -> str:
    return ", ".join(word for word in table if word.isalpha())
