"""A dataset as far as headers, fingerprint and plans tell: sizes of its images, classes, grid of a configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nnunet_fm.checks.finding import NOTE, OK, PROBLEM, Check
from nnunet_fm.io.dataset_json import canonical, channel_names
from nnunet_fm.io.dataset_names import DatasetNameError, dataset_name
from nnunet_fm.io.untrusted import read_json

Grid = tuple[tuple[int, ...], tuple[float, ...]]
"""Shape in voxels and spacing in mm of an image, (z, y, x)."""

PREFERRED = ("3d_fullres", "2d")
"""Configurations of which the first that a plan has is taken where none is named."""


class UnknownDatasetError(ValueError):
    """A dataset, plan or configuration that is not there; the message says what is."""


@dataclass(frozen=True)
class Planned:
    """One configuration of a plan.

    Attributes:
        plans: name of the plan.
        configuration: its name.
        spacing: mm of the network's grid, in the plan's order of axes; two numbers for 2D.
        transpose: the plan's order of axes.
        patch: edges in voxels.
        batch: size.
        linear: whether `nnunet-fm predict` makes label maps of these plans' logits block by block.
    """

    plans: str
    configuration: str
    spacing: tuple[float, ...]
    transpose: tuple[int, ...]
    patch: tuple[int, ...]
    batch: int
    linear: bool

    def voxels(self, grid: Grid) -> int:
        """Voxels of an image in the network's grid."""
        shape = [grid[0][axis] for axis in self.transpose]
        old = [grid[1][axis] for axis in self.transpose]
        new = [*old[: len(old) - len(self.spacing)], *self.spacing]
        return prod(max(1, round(n * o / s)) for n, o, s in zip(shape, old, new, strict=True))


@dataclass(frozen=True)
class KnownDataset:
    """What a forecast needs to know.

    Attributes:
        name: ``Dataset501_Name``.
        channels: of an image.
        outputs: of a network: classes with the background, or regions.
        cases: case -> grid, of training and test images.
        planned: None where there are no plans yet.
    """

    name: str
    channels: int
    outputs: int
    cases: Mapping[str, Grid]
    planned: Planned | None


def read(
    dataset: str, configuration: str | None, plans: str | None, tell: Callable[[str], None] = lambda text: None
) -> KnownDataset:
    """Look a dataset up by ID or name.

    Args:
        dataset: its ID or name.
        configuration: of the plans; None for the first of `PREFERRED` that they have.
        plans: their name; None for the newest of the dataset.
        tell: is told how far the reading of headers is.

    Raises:
        UnknownDatasetError: if dataset, plans or configuration are not there, or have no images.
    """
    try:
        name = dataset_name(dataset)
    except DatasetNameError as error:
        raise UnknownDatasetError(str(error)) from None
    raw, preprocessed = (_folder(variable, name) for variable in ("nnUNet_raw", "nnUNet_preprocessed"))
    folder = raw or preprocessed
    if folder is None:
        raise UnknownDatasetError(f"no dataset '{name}' in nnUNet_raw or nnUNet_preprocessed: see their folders")
    try:
        about = canonical(_json(folder / "dataset.json"))
        cases = (_headers(raw, about["file_ending"], tell) if raw else {}) or _fingerprint(preprocessed)
        outputs = _outputs(about["labels"])
        channels = len(channel_names(about))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnknownDatasetError(f"{folder} is no nnU-Net dataset: {type(error).__name__} {error}") from None
    if not cases:
        raise UnknownDatasetError(f"{folder.name} has no images that SimpleITK reads, and no fingerprint")
    return KnownDataset(folder.name, channels, outputs, cases, _planned(preprocessed, configuration, plans))


def training_data(name: str, tell: Callable[[str], None] = lambda text: None) -> Iterator[Check]:
    """Findings about a dataset's raw training cases: what is missing, not taken, or on another grid than its image.

    Args:
        name: of the dataset.
        tell: is told what is looked at.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    from nnunet_fm.planfile.schema import PlanError
    from nnunet_fm.preprocessing.grids import check_grids
    from nnunet_fm.preprocessing.raw import check_cases, read_dataset_json, training_cases

    raw = _folder("nnUNet_raw", name)
    if raw is None:
        return
    tell("comparing label maps with images")
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


def _headers(raw: Path, ending: str, tell: Callable[[str], None]) -> dict[str, Grid]:
    """Grids of all images whose header SimpleITK reads, by their first channel; none of images without a third axis."""
    from nnunet_fm.preprocessing.orientation import read_header

    files = sorted(file for part in ("imagesTr", "imagesTs") for file in (raw / part).glob(f"[!.]*_0000{ending}"))
    found: dict[str, Grid] = {}
    for number, file in enumerate(files):
        tell(f"reading headers, {number + 1} of {len(files)}")
        header = read_header(str(file))
        if header is None:
            continue
        shape, spacing = header.GetSize()[:3], header.GetSpacing()[:3]
        if len(shape) == 3:
            found[file.name.removesuffix(f"_0000{ending}")] = tuple(shape[::-1]), tuple(spacing[::-1])
    return found


def _fingerprint(preprocessed: Path | None) -> dict[str, Grid]:
    """Grids of the training images, after cropping."""
    if preprocessed is None or not (preprocessed / "dataset_fingerprint.json").is_file():
        return {}
    content = _json(preprocessed / "dataset_fingerprint.json")
    grids = zip(content["shapes_after_crop"], content["spacings"], strict=True)
    return {
        f"training case {number}": (tuple(map(int, shape)), tuple(map(float, spacing)))
        for number, (shape, spacing) in enumerate(grids)
    }


def _outputs(labels: Mapping[str, Any]) -> int:
    """Channels of a network's logits, as nnU-Net counts them."""
    names = [name for name in labels if name != "ignore"]
    if any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        return sum(labels[name] not in (0, [0]) for name in names)
    return len(names)


def _planned(preprocessed: Path | None, configuration: str | None, plans: str | None) -> Planned | None:
    files = {file.stem: file for file in preprocessed.glob("[!.]*Plans*.json")} if preprocessed else {}
    if not files and plans is None and configuration is None:
        return None
    if plans is not None and plans not in files:
        raise UnknownDatasetError(f"there are no plans '{plans}', only {', '.join(sorted(files)) or 'none'}")
    if not files:
        raise UnknownDatasetError(f"no plans have a configuration '{configuration}': the dataset was never planned")
    name = plans or max(files, key=lambda stem: files[stem].stat().st_mtime)
    content = _json(files[name])
    configurations: dict[str, Any] = content["configurations"]
    chosen = configuration or next((c for c in PREFERRED if c in configurations), next(iter(configurations)))
    if chosen not in configurations:
        raise UnknownDatasetError(
            f"plans '{name}' have no configuration '{chosen}', only {', '.join(configurations)}: pass another -c or -p"
        )
    entry: dict[str, Any] = {}
    parents: Sequence[str] = []
    following: str | None = chosen
    while following is not None and following not in parents:
        parents = [*parents, following]
        entry = {**configurations[following], **entry}
        following = configurations[following].get("inherits_from")
    return Planned(
        plans=name,
        configuration=chosen,
        spacing=tuple(map(float, entry["spacing"])),
        transpose=tuple(content["transpose_forward"]),
        patch=tuple(map(int, entry["patch_size"])),
        batch=int(entry["batch_size"]),
        linear=entry.get("resampling_fn_probabilities_kwargs", {}).get("order", 1) == 1,
    )
