"""The bundled demo data, hippocampus MRI of the Medical Segmentation Decathlon, as an nnU-Net raw folder."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

from nnunet_fm.errors import ExistingFileError, InvalidValueError
from nnunet_fm.io.atomic_write import PARTIAL

NAME = "Hippocampus"
CREDIT = "Medical Segmentation Decathlon, Task04_Hippocampus (Vanderbilt University Medical Center), CC BY-SA 4.0"


def unpack(raw: Path, dataset_id: int) -> Path:
    """Write the demo data as ``<raw>/Dataset<ID>_Hippocampus`` and return that folder.

    24 training cases (``imagesTr``, ``labelsTr``) and 10 test cases with labels (``imagesTs``, ``labelsTs``),
    1 mm isotropic, labels 0 background, 1 anterior, 2 posterior.

    Args:
        raw: the ``nnUNet_raw`` folder; created if it does not exist.
        dataset_id: 1 to 999.

    Raises:
        ValueError: if the number is not a dataset number.
        FileExistsError: if the number is taken in ``raw``.
    """
    if not 1 <= dataset_id <= 999:
        raise InvalidValueError(f"{dataset_id} is not a dataset number: nnU-Net takes 1 to 999", code="dataset-number")
    taken = sorted(raw.glob(f"Dataset{dataset_id:03d}_*"))
    if taken:
        raise ExistingFileError(f"dataset number {dataset_id} is taken by {taken[0]}", code="dataset-taken")
    raw.mkdir(parents=True, exist_ok=True)
    archive = resources.files("nnunet_fm.dataset_conversion").joinpath("demo_data").joinpath("hippocampus.zip")
    # Under a temporary name first: a folder that nnU-Net can find is always complete.
    partial = Path(tempfile.mkdtemp(prefix=".unpacking_", suffix=PARTIAL, dir=raw))
    try:
        with archive.open("rb") as stream, zipfile.ZipFile(stream) as members:
            members.extractall(partial)
        partial.chmod(0o755)
        return partial.rename(raw / f"Dataset{dataset_id:03d}_{NAME}")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
