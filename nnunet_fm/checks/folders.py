"""Check nnU-Net's folders: variables set, folders writable, space left on their disks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nnunet_fm.checks.finding import GB, NOTE, OK, PROBLEM, Check, size
from nnunet_fm.io.dataset_names import VARIABLES, find_datasets, several

LITTLE, TOO_LITTLE = 20 * GB, GB
"""Free bytes for a note and for a problem: three checkpoints of a training take 200 MB to more than 10 GB."""


def folders() -> Iterator[Check]:
    """Check the folder of each of nnU-Net's variables."""
    for name in VARIABLES:
        yield _folder(name, os.environ.get(name))


def datasets() -> Iterator[Check]:
    """Find numbers that several datasets share, which nnU-Net's commands refuse."""
    for number, names in find_datasets().items():
        if len(names) > 1:
            yield Check("dataset number", NOTE, several(number, names), "rename one of them in all folders")


def missing() -> list[Path]:
    """Folders that the variables name and that do not exist."""
    named = [Path(folder) for name in VARIABLES if (folder := os.environ.get(name))]
    return [folder for folder in named if not folder.exists()]


def _folder(name: str, folder: str | None) -> Check:
    if not folder:
        return Check(name, PROBLEM, "not set", f"export {name}=FOLDER")
    if not Path(folder).exists():
        return Check(name, PROBLEM, f"{folder} does not exist", f"mkdir -p {folder}, or nnunet-fm doctor --fix")
    if not Path(folder).is_dir():
        return Check(name, PROBLEM, f"{folder} is not a folder", f"export {name}=FOLDER")
    free = shutil.disk_usage(folder).free
    detail = f"{folder} ({size(free)} free)"
    if not os.access(folder, os.W_OK | os.X_OK):
        if name == "nnUNet_raw":  # somebody else may own the images
            return Check(name, NOTE, f"{detail} is read-only: nothing can be converted into it")
        return Check(name, PROBLEM, f"{detail} is read-only", f"chmod u+w {folder}, or export {name}=ANOTHER_FOLDER")
    cure = f"remove what is not needed any more, or export {name} to a folder on another disk"
    if free < LITTLE and name != "nnUNet_raw":
        return Check(name, PROBLEM if free < TOO_LITTLE else NOTE, f"{detail}, which is little", cure)
    return Check(name, OK, detail)
