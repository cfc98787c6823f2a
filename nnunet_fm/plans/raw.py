"""A raw dataset: checked before anything is made of it, its training cases listed without twelve processes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_fm.data.image_folders import find_images, shown
from nnunet_fm.foreign import ForeignFileError, read_object
from nnunet_fm.models.plan_key import PlanError
from nnunet_fm.plans.pairs import check_pairs

SHOWN = 3
"""Number of offenders that a message names."""


def read_dataset_json(raw_folder: Path) -> dict[str, Any]:
    """The ``dataset.json`` of a raw dataset.

    Raises:
        PlanError: naming the file and what is missing or wrong in it.
    """
    file = raw_folder / "dataset.json"
    if not file.is_file():
        raise PlanError(
            f"{file} is missing: `nnunet-fm convert` writes one, or write it as nnU-Net's documentation says"
        )
    try:
        content = read_object(file)
    except ForeignFileError as error:
        raise PlanError(f"{error}: write it anew") from None
    fault = _fault_of_channels(content) or _fault_of_labels(content.get("labels"))
    if fault:
        raise PlanError(f"{file}: {fault}")
    return content


def check_cases(raw_folder: Path, dataset_json: Mapping[str, Any]) -> list[str]:
    """Look whether each training case has its images and its label map; no file is opened.

    Returns:
        Warnings: images and label maps that no case takes.

    Raises:
        PlanError: naming the cases that have not, or for another number of cases than ``numTraining``.
    """
    ending = dataset_json["file_ending"]
    if "dataset" not in dataset_json and not (raw_folder / "imagesTr").is_dir():
        raise PlanError(f"{raw_folder} has no folder imagesTr")
    cases = training_cases(raw_folder, dataset_json)
    if not cases:
        there = _listed(sorted(map(shown, os.listdir(raw_folder / "imagesTr")))) or "nothing"
        raise PlanError(
            f"{raw_folder / 'imagesTr'} holds no images named <case>_0000{ending}, the file_ending of dataset.json; it "
            f"holds {there}"
        )
    channels = len(dataset_json.get("channel_names", dataset_json.get("modality", ())))
    several = {name: files for name, files in cases.items() if len(files["images"]) != channels}
    inside = len(several) == len(cases) and all(len(files["images"]) == 1 for files in cases.values())
    if several and not (inside and _channels_in(next(iter(cases.values()))["images"][0], dataset_json) == channels):
        counts = _listed([f"{name} has {len(files['images'])}" for name, files in several.items()])
        raise PlanError(f"{raw_folder}: dataset.json has {channels} channels, but {counts}")
    absent = [
        str(file) for files in cases.values() for file in (*files["images"], files["label"]) if not Path(file).is_file()
    ]
    if absent and "dataset" in dataset_json:
        raise PlanError(f"{raw_folder / 'dataset.json'} lists files that are not there: {_listed(absent)}")
    return check_pairs(raw_folder, dataset_json)


def _channels_in(file: str, dataset_json: Mapping[str, Any]) -> int | None:
    """Channels of one file, which may hold all: colours, or a series; None where it cannot be read."""
    try:
        reader = determine_reader_writer_from_dataset_json(dataset_json, file, verbose=False)()
        return int(reader.read_images([file])[0].shape[0])
    except Exception:  # whatever is wrong with the file: it does not show that the channels are right
        return None


def _fault_of_channels(content: Mapping[str, Any]) -> str | None:
    names = content.get("channel_names", content.get("modality"))
    if not isinstance(names, dict) or sorted(names, key=str) != [str(i) for i in range(len(names))] or not names:
        return '\'channel_names\' must map the numbers of channels, "0", "1" …, to their names'
    ending = content.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith("."):
        return "'file_ending' must be the ending of image files, such as .nii.gz"
    return None


def _fault_of_labels(labels: Any) -> str | None:
    """What is wrong with the entry ``labels``; numbers without gaps are what nnU-Net's network outputs stand for."""
    example = '"labels": {"background": 0, "liver": 1}'
    if not isinstance(labels, dict) or not labels:
        return f"'labels' is missing: it maps names to numbers, {example}"
    numbers: dict[str, list[int]] = {}
    for name, value in labels.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(number) is int and number >= 0 for number in values):
            return f"label '{name}' is {value!r}: labels map names to whole numbers, {example}"
        numbers[name] = values
    if labels.get("background") != 0:
        return f"the label 'background' must be there and be 0, {example}"
    single = {name: value for name, value in labels.items() if isinstance(value, int)}
    twice = [names for value in set(single.values()) if len(names := [n for n, v in single.items() if v == value]) > 1]
    if twice:
        return f"{' and '.join(map(repr, twice[0]))} have the same label {single[twice[0][0]]}: give each its own"
    used = {number for name, values in numbers.items() if name != "ignore" for number in values}
    if missing := set(range(max(used))) - used:
        return f"labels must be 0, 1, 2 … without a gap: no class has {_listed(sorted(map(str, missing)))}"
    return None


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def training_cases(raw_folder: str | Path, dataset_json: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Case -> ``{"images": [a file for each channel], "label": file}``, as nnU-Net lists them, without hidden files.

    Args:
        raw_folder: the dataset's folder in ``nnUNet_raw``.
        dataset_json: its ``dataset.json``; where it lists the files itself (``dataset``), nnU-Net reads that list.
    """
    if "dataset" in dataset_json:
        listed: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(str(raw_folder), dataset_json)
        return listed
    ending = dataset_json["file_ending"]
    return {
        case: {"images": [str(file) for file in files], "label": str(Path(raw_folder, "labelsTr", f"{case}{ending}"))}
        for case, files in find_images(Path(raw_folder, "imagesTr"), ending).cases.items()
    }


def extract_fingerprint(dataset_name: str, processes: int) -> None:
    """Write nnU-Net's fingerprint of a raw dataset from the cases that `training_cases` lists."""
    extractor = DatasetFingerprintExtractor(dataset_name, processes, verbose=True)
    extractor.dataset = training_cases(extractor.input_folder, extractor.dataset_json)
    extractor.run(overwrite_existing=True)
