"""A dataset's image sizes, classes and planned grid, read from headers, fingerprint and plans; checks of its cases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nnunet_fm.checks.finding import NOTE, OK, PROBLEM, Check
from nnunet_fm.errors import FMError
from nnunet_fm.io.dataset_json import canonical, channel_names
from nnunet_fm.io.dataset_names import DatasetNameError, dataset_name
from nnunet_fm.io.untrusted import read_json

Grid = tuple[tuple[int, ...], tuple[float, ...]]
"""Shape in voxels and spacing in mm of an image, (z, y, x)."""

PREFERRED = ("3d_fullres", "2d")
"""Default configurations: the first one that a plan has."""


class UnknownDatasetError(FMError, ValueError):
    """A dataset, plan or configuration that does not exist; the message lists those that do."""


@dataclass(frozen=True)
class Planned:
    """One configuration of a plan.

    Attributes:
        plans: name of the plan.
        configuration: name of the configuration.
        spacing: of the network's grid in mm, in the plan's order of axes; two numbers for 2D.
        transpose: the plan's order of axes.
        patch: size of the patch in voxels.
        batch: batch size.
        linear: whether logits are resampled linearly, so that `nnunet-fm predict` exports them block by block.
    """

    plans: str
    configuration: str
    spacing: tuple[float, ...]
    transpose: tuple[int, ...]
    patch: tuple[int, ...]
    batch: int
    linear: bool

    def voxels(self, grid: Grid) -> int:
        """Number of voxels of an image, resampled to the network's grid."""
        shape = [grid[0][axis] for axis in self.transpose]
        old = [grid[1][axis] for axis in self.transpose]
        new = [*old[: len(old) - len(self.spacing)], *self.spacing]
        return prod(max(1, round(n * o / s)) for n, o, s in zip(shape, old, new, strict=True))


@dataclass(frozen=True)
class KnownDataset:
    """Facts about a dataset that a forecast of memory and disk needs.

    Attributes:
        name: ``Dataset501_Name``.
        channels: number of channels of an image.
        outputs: number of a network's outputs: classes with the background, or regions.
        cases: grid of each training and test image, by case.
        planned: the configuration to forecast; None if nothing is planned yet.
    """

    name: str
    channels: int
    outputs: int
    cases: Mapping[str, Grid]
    planned: Planned | None


def read(
    dataset: str, configuration: str | None, plans: str | None, progress: Callable[[str], None] = lambda text: None
) -> KnownDataset:
    """Read a dataset that is given by ID or name.

    Args:
        dataset: its ID or name.
        configuration: configuration of the plans; None for the first of `PREFERRED`.
        plans: name of the plans; None for the newest ones of the dataset.
        progress: called with a sentence on the reading of headers.

    Raises:
        UnknownDatasetError: if dataset, plans or configuration do not exist, or there are no images.
    """
    try:
        name = dataset_name(dataset)
    except DatasetNameError as error:
        raise UnknownDatasetError(str(error), code=error.code) from None
    raw, preprocessed = (_folder(variable, name) for variable in ("nnUNet_raw", "nnUNet_preprocessed"))
    folder = raw or preprocessed
    if folder is None:
        raise UnknownDatasetError(
            f"no dataset '{name}' in nnUNet_raw or nnUNet_preprocessed: see their folders", code="dataset-missing"
        )
    try:
        about = canonical(_json(folder / "dataset.json"))
        cases = (_headers(raw, about["file_ending"], progress) if raw else {}) or _fingerprint(preprocessed)
        outputs = _outputs(about["labels"])
        channels = len(channel_names(about))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnknownDatasetError(
            f"{folder} is no nnU-Net dataset: {type(error).__name__} {error}", code="dataset-unreadable"
        ) from None
    if not cases:
        raise UnknownDatasetError(
            f"{folder.name} has no images that SimpleITK reads, and no fingerprint", code="images-missing"
        )
    return KnownDataset(folder.name, channels, outputs, cases, _planned(preprocessed, configuration, plans))


def training_data(name: str, progress: Callable[[str], None] = lambda text: None) -> Iterator[Check]:
    """Check a dataset's raw training cases: missing files, ignored files, label maps on another grid than their image.

    Args:
        name: name of the dataset.
        progress: called with a sentence on what is checked.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    from nnunet_fm.planfile.schema import PlanError
    from nnunet_fm.preprocessing.grids import check_grids
    from nnunet_fm.preprocessing.raw import check_cases, read_dataset_json, training_cases

    raw = _folder("nnUNet_raw", name)
    if raw is None:
        return
    progress("comparing label maps with images")
    try:
        about = read_dataset_json(raw)
        warnings = check_cases(raw, about)
        cases = training_cases(raw, about)
        example = next(iter(cases.values()))["images"][0]
        reader = determine_reader_writer_from_dataset_json(about, example, verbose=False)
        warnings += check_grids(cases, reader.__name__)
    except PlanError as error:
        yield Check("training data", PROBLEM, str(error), "correct them: planning and preprocessing refuse them")
        return
    for warning in warnings:
        yield Check("training data", NOTE, warning)
    if not warnings:
        yield Check("training data", OK, f"{len(cases)} cases, each label map on the grid of its image")


def _folder(variable: str, name: str) -> Path | None:
    parent = os.environ.get(variable)
    folder = Path(parent, name) if parent else None
    return folder if folder is not None and folder.is_dir() else None


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object")
    return content


def _headers(raw: Path, ending: str, progress: Callable[[str], None]) -> dict[str, Grid]:
    """Grids of all 3D images whose header SimpleITK can read, from the file of their first channel."""
    from nnunet_fm.preprocessing.orientation import read_header

    files = sorted(file for part in ("imagesTr", "imagesTs") for file in (raw / part).glob(f"[!.]*_0000{ending}"))
    found: dict[str, Grid] = {}
    for number, file in enumerate(files):
        progress(f"reading headers, {number + 1} of {len(files)}")
        header = read_header(str(file))
        if header is None:
            continue
        shape, spacing = header.GetSize()[:3], header.GetSpacing()[:3]
        if len(shape) == 3:
            found[file.name.removesuffix(f"_0000{ending}")] = tuple(shape[::-1]), tuple(spacing[::-1])
    return found


def _fingerprint(preprocessed: Path | None) -> dict[str, Grid]:
    """Grids of the cropped training images, from the dataset's fingerprint."""
    if preprocessed is None or not (preprocessed / "dataset_fingerprint.json").is_file():
        return {}
    content = _json(preprocessed / "dataset_fingerprint.json")
    grids = zip(content["shapes_after_crop"], content["spacings"], strict=True)
    return {
        f"training case {number}": (tuple(map(int, shape)), tuple(map(float, spacing)))
        for number, (shape, spacing) in enumerate(grids)
    }


def _outputs(labels: Mapping[str, Any]) -> int:
    """Number of channels of a network's logits, counted as by nnU-Net."""
    names = [name for name in labels if name != "ignore"]
    if any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        return sum(labels[name] not in (0, [0]) for name in names)
    return len(names)


def _planned(preprocessed: Path | None, configuration: str | None, plans: str | None) -> Planned | None:
    from nnunet_fm.planfile.schema import PlanError
    from nnunet_fm.planfile.training_config import complete_entry

    files = {file.stem: file for file in preprocessed.glob("[!.]*Plans*.json")} if preprocessed else {}
    if not files and plans is None and configuration is None:
        return None
    if plans is not None and plans not in files:
        raise UnknownDatasetError(
            f"there are no plans '{plans}', only {', '.join(sorted(files)) or 'none'}", code="plans-missing"
        )
    if not files:
        raise UnknownDatasetError(
            f"no plans have a configuration '{configuration}': the dataset was never planned",
            code="configuration-missing",
        )
    name = plans or max(files, key=lambda stem: files[stem].stat().st_mtime)
    content = _json(files[name])
    configurations: dict[str, Any] = content["configurations"]
    chosen = configuration or next((c for c in PREFERRED if c in configurations), next(iter(configurations)))
    if chosen not in configurations:
        raise UnknownDatasetError(
            f"plans '{name}' have no configuration '{chosen}', only {', '.join(configurations)}: pass another -c or -p",
            code="configuration-missing",
        )
    try:
        entry = complete_entry(content, chosen)
    except PlanError as error:
        raise UnknownDatasetError(str(error), code=error.code) from None
    return Planned(
        plans=name,
        configuration=chosen,
        spacing=tuple(map(float, entry["spacing"])),
        transpose=tuple(content["transpose_forward"]),
        patch=tuple(map(int, entry["patch_size"])),
        batch=int(entry["batch_size"]),
        linear=entry.get("resampling_fn_probabilities_kwargs", {}).get("order", 1) == 1,
    )
