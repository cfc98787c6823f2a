"""FMPreprocessor: nnU-Net's preprocessing into folders that are shared, kept while current, replaced in one step."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_fm.data.sharing import check_not_leased, is_current, lock, raw_stamp, replace_folder
from nnunet_fm.models.plan_key import PlanError
from nnunet_fm.plans.raw import training_cases

PREPROCESSING_VERSION = 1
"""Raised whenever the code changes what preprocessing writes for the same settings."""

_READS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)


def preprocessing_settings(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Everything in a plan that preprocessing reads, as plain JSON values."""
    entry = plans["configurations"][configuration]
    settings: dict[str, Any] = {name: entry[name] for name in _READS}
    settings["version"] = PREPROCESSING_VERSION
    settings["reader"] = plans["image_reader_writer"]
    settings["transpose"] = plans["transpose_forward"]
    properties = plans["foreground_intensity_properties_per_channel"]
    # Only CTNormalization reads the dataset's numbers; other schemes would be redone for nothing.
    settings["intensities"] = {
        str(i): properties[str(i)] for i, s in enumerate(entry["normalization_schemes"]) if s == "CTNormalization"
    }
    return json.loads(json.dumps(settings, default=float))


def data_identifier(plans: Mapping[str, Any], configuration: str) -> str:
    """Folder name that two plans share exactly if preprocessing would write the same for both."""
    text = json.dumps(preprocessing_settings(plans, configuration), sort_keys=True)
    return f"fm_{configuration}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class FMPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessing, run only when the folder does not hold the result already.

    A stamp beside the folder records the settings and the size and time of every raw file. If it is equal,
    `run` says so and returns. Otherwise the cases are written to a temporary folder under a lock, which then
    takes the old folder's place: an interrupted run loses nothing, two processes do not clash, and a folder that
    a running training reads is not replaced.
    """

    def run(
        self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int
    ) -> None:
        dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        base = Path(nnUNet_preprocessed, dataset_name)
        raw = Path(nnUNet_raw, dataset_name)
        plans = json.loads((base / f"{plans_identifier}.json").read_text(encoding="utf-8"))
        settings = preprocessing_settings(plans, configuration_name)
        identifier = plans["configurations"][configuration_name]["data_identifier"]
        expected = data_identifier(plans, configuration_name)
        if identifier != expected:
            raise PlanError(
                f"the preprocessing settings of {plans_identifier}.json were changed by hand, but not their "
                f"data_identifier: plan again, or set it to '{expected}'"
            )
        folder = base / identifier
        dataset = training_cases(raw, json.loads((raw / "dataset.json").read_text(encoding="utf-8")))
        base.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            stamp = {"settings": settings, "raw": raw_stamp(dataset)}
            if is_current(folder, stamp):
                print(f"{len(dataset)} preprocessed cases in {folder} are up to date, nothing to do.")
                return
            if folder.is_dir():
                check_not_leased(folder)
            partial = self._write(plans, configuration_name, dataset_name, folder, num_processes)
            replace_folder(partial, folder, stamp)

    def _write(
        self, plans: dict[str, Any], configuration: str, dataset_name: str, folder: Path, num_processes: int
    ) -> Path:
        """Let nnU-Net write all cases to a temporary folder beside the real one; returns it."""
        partial = folder.with_name(f"{folder.name}.partial")
        plans["configurations"][configuration]["data_identifier"] = partial.name
        # nnU-Net reads the plan from a file in the dataset's folder; this one lives as long as the run.
        name = f".{partial.name}.{os.getpid()}"
        plan_file = folder.with_name(f"{name}.json")
        for stale in folder.parent.glob(f".{partial.name}.*.json"):  # left by a run that was killed
            stale.unlink()
        plan_file.write_text(json.dumps(plans), encoding="utf-8")
        try:
            super().run(dataset_name, configuration, name, num_processes)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            plan_file.unlink(missing_ok=True)
        return partial
