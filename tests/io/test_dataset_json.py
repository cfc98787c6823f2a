"""dataset.json: channels by number, labels as numbers, and what is said of one that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_fm.io.dataset_json import canonical, channel_names, fault, named_channels
from nnunet_fm.preprocessing.raw import check_cases, read_dataset_json
from tests.helpers.datasets import write_dataset
from tests.helpers.errors import fails

LABELS = {"background": 0, "a": 1, "b": 2}


def content(**changed: Any) -> dict[str, Any]:
    return {"channel_names": {"0": "MR"}, "labels": LABELS, "file_ending": ".nii.gz", **changed}


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_channels_are_ordered_by_their_numbers(key: str) -> None:
    """Eleven channels, and two in the other order in the file, keep their places."""
    names = {str(number): f"b{number}" for number in sorted(range(11), key=str)}
    for raw, wanted in ((names, [f"b{n}" for n in range(11)]), ({"1": "PET", "0": "CT"}, ["CT", "PET"])):
        given = {"labels": LABELS, "file_ending": ".nii.gz", key: raw}
        assert channel_names(given) == wanted
        assert list(canonical(given)[key].values()) == wanted
        assert fault(canonical(given)) is None
    assert named_channels({key: {"1": "PET", "0": "CT"}}) == "0000 CT, 0001 PET"


def test_quoted_numbers_are_numbers() -> None:
    """In classes, regions, their order and the ignore label; nnU-Net's own class takes what comes out."""
    made = canonical(
        content(
            labels={"background": "0", "whole": ["1", "2"], "core": "2", "ignore": ["3"]},
            regions_class_order=["1", 2.0],
        )
    )
    assert made["labels"] == {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    assert made["regions_class_order"] == [1, 2]
    assert fault(made) is None
    manager = LabelManager(made["labels"], made["regions_class_order"])
    assert manager.foreground_regions == [(1, 2), 2] and manager.ignore_label == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"channel_names": {"1": "CT"}}, '"0", "1"'),
        ({"channel_names": {"0": "CT", "2": "PET"}}, '"0", "1"'),
        ({"channel_names": {"0": "CT", "00": "PET"}}, '"0", "1"'),
        ({"channel_names": {"CT": 0}}, '"0", "1"'),
        ({"channel_names": ["CT"]}, '"0", "1"'),
        ({"labels": {"background": 0, "a": "one"}}, "label 'a' is 'one'"),
        ({"labels": {"background": 0, "a": 1.5}}, "label 'a' is 1.5"),
        ({"labels": {"background": 0, "a": True}}, "label 'a' is True"),
        ({"labels": {**LABELS, "ignore": 255}}, "must be 3"),
        ({"labels": {**LABELS, "ignore": "255"}}, "must be 3"),
        ({"labels": {"background": 0, "a": 1, "ignore": 2, "b": 3}}, "must be 3"),
        ({"labels": {"background": 0, "a": [1, 2], "ignore": 4}, "regions_class_order": [1]}, "must be 3"),
        ({"labels": {**LABELS, "ignore": 2}}, "'b' and 'ignore' have the same label 2"),
        ({"labels": {"background": 0, "a": 1, "z": 12}}, "no class has 2, 3, 4 and 7 more"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, "list of 2 labels, one for each of the regions a, b"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1]}, "list of 2 labels"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(changed: dict[str, Any], said: str) -> None:
    assert said in str(fault(canonical(content(**changed))))


def test_labels_of_regions_may_have_gaps() -> None:
    """As those of BraTS; nnU-Net has an output for each region."""
    regions = {"background": 0, "whole": [1, 2, 4], "core": [1, 4], "enhancing": 4}
    about = content(labels={**regions, "ignore": 5}, regions_class_order=[2, 1, 4])
    assert fault(canonical(about)) is None
    manager = LabelManager(about["labels"], about["regions_class_order"])
    assert manager.num_segmentation_heads == 3
    about["labels"]["ignore"] = 3
    assert "must be 5" in str(fault(canonical(about)))


def dataset(tmp_path: Path, channels: tuple[str, ...] = ("T1", "T2"), **about: Any) -> Path:
    return write_dataset(tmp_path, 501, shape=(4, 5, 6), cases=3, test_cases=0, channels=channels, **about)


def test_a_case_with_other_channel_numbers_is_named(tmp_path: Path) -> None:
    """Two files are not enough: the second channel would be taken for the first."""
    folder = dataset(tmp_path)
    images = folder / "imagesTr"
    (images / "case_01_0000.nii.gz").rename(images / "case_01_0002.nii.gz")
    with fails("channels-count", "0000", "T1", "0001", "T2", "case_01", "0002"):
        check_cases(folder, read_dataset_json(folder))


def test_a_dataset_that_lists_its_files_may_call_them_anything(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    images = folder / "imagesTr"
    listed = {}
    for case in ("case_00", "case_01", "case_02"):
        (images / f"{case}_0000.nii.gz").rename(images / f"{case}_0005.nii.gz")
        listed[case] = {
            "images": [f"imagesTr/{case}_0005.nii.gz", f"imagesTr/{case}_0001.nii.gz"],
            "label": f"labelsTr/{case}.nii.gz",
        }
    file = folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "dataset": listed}))
    check_cases(folder, read_dataset_json(folder))


def test_a_file_with_a_channel_too_many_is_named(tmp_path: Path) -> None:
    """Colours with alpha, where the dataset has red, green and blue."""
    from PIL import Image
    from skimage.io import imsave

    folder = tmp_path / "Dataset501_Pictures"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in ("a", "b"):
        imsave(folder / f"imagesTr/{case}_0000.png", np.zeros((8, 9, 4), np.uint8), check_contrast=False)
        imsave(folder / f"labelsTr/{case}.png", np.zeros((8, 9), np.uint8), check_contrast=False)
    about = content(channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png")
    (folder / "dataset.json").write_text(json.dumps(about))
    with fails("channels-count", "0002", "a_0000.png", "4"):
        check_cases(folder, about)
    imsave(folder / "imagesTr/a_0000.png", np.zeros((8, 9, 3), np.uint8), check_contrast=False)
    with fails("channels-count", "b_0000.png", "4"):
        check_cases(folder, about)
    imsave(folder / "imagesTr/b_0000.png", np.zeros((8, 9, 3), np.uint8), check_contrast=False)
    check_cases(folder, about)
    imsave(folder / "imagesTr/b_0000.png", np.zeros((8, 9), np.uint8), check_contrast=False)
    with fails("channels-count", "b_0000.png", "1"):
        check_cases(folder, about)
    imsave(folder / "imagesTr/b_0000.png", np.zeros((8, 9, 3), np.uint8), check_contrast=False)
    imsave(folder / "labelsTr/b.png", np.zeros((8, 9, 3), np.uint8), check_contrast=False)
    with fails("channels-count", "b.png", "3"):
        check_cases(folder, about)
    palette = Image.fromarray(np.zeros((8, 9), np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(folder / "labelsTr/b.png")  # one number for each pixel, of which nnU-Net's reader makes colours
    with fails("channels-count", "b.png", "3"):
        check_cases(folder, about)


def test_channels_in_another_order_than_by_number_are_said(tmp_path: Path) -> None:
    """Stock nnU-Net gives them each other's normalisation."""
    folder = dataset(tmp_path)
    assert check_cases(folder, read_dataset_json(folder)) == []
    file = folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "channel_names": {"1": "PET", "0": "CT"}}))
    (said,) = check_cases(folder, read_dataset_json(folder))
    assert "0000 CT, 0001 PET here" in said
