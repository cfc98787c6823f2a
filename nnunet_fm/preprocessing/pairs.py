"""Images and label maps of a raw dataset: each has its counterpart, and every file is a case's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nnunet_fm.io.image_folders import ImageFiles, find_images, find_label_maps, left_out_words, shown
from nnunet_fm.io.messages import listed
from nnunet_fm.planfile.schema import PlanError


def check_pairs(raw_folder: Path, dataset_json: Mapping[str, Any]) -> list[str]:
    """Compare names of images and label maps, and their number with ``numTraining``; no file is opened.

    Args:
        raw_folder: of the dataset in ``nnUNet_raw``.
        dataset_json: its ``dataset.json``; where it lists the files (``dataset``), no folder is searched.

    Returns:
        Warnings: images and label maps that no case takes.

    Raises:
        PlanError: for images without a label map, label maps without an image, or another number of cases.
    """
    if "dataset" in dataset_json:
        check_count(dataset_json, dataset_json["dataset"], str(raw_folder / "dataset.json"))
        return []
    ending = dataset_json["file_ending"]
    images = find_images(raw_folder / "imagesTr", ending)
    labels = find_label_maps(raw_folder / "labelsTr", ending)
    warnings = [
        f"{folder}: not taken: {left_out_words(found.left_out)}"
        for folder, found in ((raw_folder / "imagesTr", images), (raw_folder / "labelsTr", labels))
        if found.left_out
    ]
    hint = f". {'. '.join(warnings)}" if warnings else ""
    if without := [shown(f"{case}{ending}") for case in images.cases if case not in labels.cases]:
        raise PlanError(
            f"{raw_folder / 'labelsTr'} lacks the label maps of {len(without)} of {len(images.cases)} cases: "
            f"{listed(without)}. Add them, or take those images out of imagesTr{hint}",
            code="label-maps-missing",
        )
    _check_images(raw_folder, images, labels, ending, hint)
    check_count(dataset_json, images.cases, str(raw_folder), hint)
    return warnings


def check_images(raw_folder: Path, file_ending: str) -> None:
    """Raise a PlanError for label maps in ``labelsTr`` without an image, unless ``imagesTr`` is gone or empty."""
    if not (raw_folder / "imagesTr").is_dir():
        return
    images = find_images(raw_folder / "imagesTr", file_ending)
    if images.cases:  # else the raw images were put away after preprocessing
        _check_images(raw_folder, images, find_label_maps(raw_folder / "labelsTr", file_ending), file_ending)


def _check_images(raw_folder: Path, images: ImageFiles, labels: ImageFiles, ending: str, hint: str = "") -> None:
    if without := [shown(f"{case}_0000{ending}") for case in labels.cases if case not in images.cases]:
        raise PlanError(
            f"{raw_folder / 'imagesTr'} lacks the images of {len(without)} of {len(labels.cases)} label maps: "
            f"{listed(without)}. Add them, or take those label maps out of labelsTr{hint}",
            code="images-missing",
        )


def check_count(dataset_json: Mapping[str, Any], cases: Collection[str], where: str, hint: str = "") -> None:
    """Raise a PlanError if there are not as many training cases as ``numTraining`` of ``dataset.json`` says."""
    said = dataset_json.get("numTraining")
    if said is not None and str(said) != str(len(cases)):
        raise PlanError(
            f"dataset.json says numTraining {said}, but {where} has {len(cases)} training cases: add those that are "
            f"missing, or correct numTraining{hint}",
            code="cases-number",
        )
