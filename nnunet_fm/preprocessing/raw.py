"""A raw dataset: checked before anything is made of it, its training cases listed without twelve processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_fm.io.dataset_json import canonical, channel_names, fault, named_channels, out_of_order
from nnunet_fm.io.image_folders import find_images, shown
from nnunet_fm.io.messages import listed
from nnunet_fm.io.untrusted import ForeignFileError, read_object
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.preprocessing.pairs import check_pairs


def read_dataset_json(raw_folder: Path) -> dict[str, Any]:
    """The ``dataset.json`` of a raw dataset, `canonical`.

    Raises:
        PlanError: naming the file and what is missing or wrong in it.
    """
    file = raw_folder / "dataset.json"
    if not file.is_file():
        raise PlanError(
            f"{file} is missing: `nnunet-fm convert` writes one, or write it as nnU-Net's documentation says",
            code="dataset-json-missing",
        )
    try:
        content = canonical(read_object(file))
    except ForeignFileError as error:
        raise PlanError(f"{error}: write it anew", code=error.code) from None
    if reason := fault(content):
        raise PlanError(f"{file}: {reason}", code="dataset-json")
    return content


def check_cases(raw_folder: Path, dataset_json: Mapping[str, Any]) -> list[str]:
    """Look whether each training case has its images and its label map; no file is opened.

    Returns:
        Warnings: images and label maps that no case takes, and channels that stock nnU-Net would take otherwise.

    Raises:
        PlanError: naming the cases that have not, or for another number of cases than ``numTraining``.
    """
    ending = dataset_json["file_ending"]
    if "dataset" not in dataset_json and not (raw_folder / "imagesTr").is_dir():
        raise PlanError(f"{raw_folder} has no folder imagesTr", code="images-missing")
    cases = training_cases(raw_folder, dataset_json)
    if not cases:
        there = listed(sorted(map(shown, os.listdir(raw_folder / "imagesTr")))) or "nothing"
        raise PlanError(
            f"{raw_folder / 'imagesTr'} holds no images named <case>_0000{ending}, the file_ending of dataset.json; it "
            f"holds {there}",
            code="images-missing",
        )
    check_channels(raw_folder, dataset_json, cases)
    if "dataset" in dataset_json:  # else the folders were searched
        files = [str(file) for case in cases.values() for file in (*case["images"], case["label"])]
        if absent := [file for file in files if not Path(file).is_file()]:
            raise PlanError(
                f"{raw_folder / 'dataset.json'} lists files that are not there: {listed(absent)}", code="files-missing"
            )
    warnings = check_pairs(raw_folder, dataset_json)
    if out_of_order(read_object(raw_folder / "dataset.json")):
        warnings.append(
            f"{raw_folder / 'dataset.json'} does not list its channels by number. They are "
            f"{named_channels(dataset_json)} here; plans of stock nnU-Net normalise them in the file's order: list 0 "
            "first, then 1 …"
        )
    return warnings


def check_channels(raw_folder: Path, dataset_json: Mapping[str, Any], cases: Mapping[str, dict[str, Any]]) -> None:
    """Compare the files of each case with the channels, by number; where the dataset lists its files, by count.

    A single file may hold all channels: colours, or a series.

    Raises:
        PlanError: naming the cases that have other channels.
    """
    channels = len(channel_names(dataset_json))
    found: dict[str, str] = {}
    single = True
    for case, files in cases.items():
        numbers = list(range(len(files["images"])))
        if "dataset" not in dataset_json:
            numbers = [int(Path(file).name.removesuffix(dataset_json["file_ending"])[-4:]) for file in files["images"]]
        if numbers != list(range(channels)):
            found[case] = f"{case} has {', '.join(f'{number:04d}' for number in numbers) or 'none'}"
        single = single and numbers == [0]
    if dataset_json["file_ending"] in NaturalImage2DIO.supported_file_endings:
        if single or not found:
            found = dict(_colours(cases, channels))
    elif single and found:
        file = next(iter(cases.values()))["images"][0]
        inside = _channels_in(file, dataset_json)
        if inside == channels:
            return
        if inside is not None and inside > 1:
            found = {"": f"the file {file} has {inside} channels"}
    if found:
        raise PlanError(
            f"{raw_folder}: dataset.json has the channels {named_channels(dataset_json)}, but "
            f"{listed(list(found.values()), '; ')}",
            code="channels-count",
        )


def _colours(cases: Mapping[str, dict[str, Any]], channels: int) -> Iterator[tuple[str, str]]:
    """Find pictures of other colours than the dataset's channels, and label maps in colour: case -> fault.

    Headers tell them; what looks wrong is read to be certain.
    """
    for case, files in cases.items():
        for kind, names, wanted in (("image", files["images"], channels), ("label map", [files["label"]], 1)):
            if _bands(names) == wanted:
                continue
            try:
                has = len(NaturalImage2DIO().read_images(names)[0])
            except Exception:  # damaged, not there or of a format of another reader: that is said elsewhere
                continue
            if has != wanted:
                yield case, f"the {kind} of {case} ({Path(names[0]).name}) has {has} channel{'s' * (has != 1)}"


def _bands(files: Sequence[str]) -> int | None:
    """Colours, with alpha, of all files together, as their headers say; None where PIL does not know them.

    Nor does the header of a picture with a palette: nnU-Net's reader makes three or four colours of it.
    """
    from PIL import Image

    total = 0
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode == "P":
                    return None
                total += len(image.getbands())
        except Exception:  # as above
            return None
    return total


def _channels_in(file: str, dataset_json: Mapping[str, Any]) -> int | None:
    """Channels of one file, which may hold all, as a series does; None where it cannot be read."""
    try:
        reader = determine_reader_writer_from_dataset_json(dataset_json, file, verbose=False)()
        return int(reader.read_images([file])[0].shape[0])
    except Exception:  # whatever is wrong with the file: it does not show that the channels are right
        return None


def training_cases(raw_folder: str | Path, dataset_json: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Case -> ``{"images": [a file for each channel], "label": file}``, as nnU-Net lists them, without hidden files.

    Args:
        raw_folder: the dataset's folder in ``nnUNet_raw``.
        dataset_json: its ``dataset.json``; where it lists the files itself (``dataset``), nnU-Net reads that list.
    """
    if "dataset" in dataset_json:
        files: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(str(raw_folder), dataset_json)
        return files
    ending = dataset_json["file_ending"]
    return {
        case: {"images": [str(file) for file in files], "label": str(Path(raw_folder, "labelsTr", f"{case}{ending}"))}
        for case, files in find_images(Path(raw_folder, "imagesTr"), ending).cases.items()
    }
