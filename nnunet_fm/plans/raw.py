"""The training cases of a raw dataset, listed without the twelve processes that nnU-Net starts for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets


def training_cases(raw_folder: str | Path, dataset_json: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Case -> ``{"images": [a file for each channel], "label": file}``, as nnU-Net's own listing gives it.

    Args:
        raw_folder: the dataset's folder in ``nnUNet_raw``.
        dataset_json: its ``dataset.json``; where it lists the files itself (``dataset``), nnU-Net reads that list.
    """
    if "dataset" in dataset_json:
        listed: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(str(raw_folder), dataset_json)
        return listed
    ending = dataset_json["file_ending"]
    images, labels = Path(raw_folder, "imagesTr"), Path(raw_folder, "labelsTr")
    channel = re.compile(rf"(.*)_\d{{4}}{re.escape(ending)}")
    cases: dict[str, dict[str, Any]] = {}
    for name in sorted(file.name for file in images.iterdir() if file.is_file()):
        found = channel.fullmatch(name)
        if found:
            case = cases.setdefault(found[1], {"images": [], "label": str(labels / f"{found[1]}{ending}")})
            case["images"].append(str(images / name))
    return dict(sorted(cases.items()))
