"""FMPreprocessor: nnU-Net's preprocessing into folders that are shared, kept while current, replaced in one step."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from rich.console import Console
from rich.progress import track

from nnunet_fm.cpu.limits import startable
from nnunet_fm.errors import FMError
from nnunet_fm.io.atomic_write import PARTIAL
from nnunet_fm.io.dataset_json import canonical
from nnunet_fm.io.dataset_names import dataset_name, dataset_number
from nnunet_fm.io.image_files import DamagedImageError
from nnunet_fm.io.messages import space_left
from nnunet_fm.io.untrusted import ForeignFileError, read_object
from nnunet_fm.io.worker_processes import worker_processes
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.planfile.write import write_json
from nnunet_fm.preprocessing import normalization
from nnunet_fm.preprocessing.case_preprocessor import CaseError, CasePreprocessor, located_classes
from nnunet_fm.preprocessing.grids import check_grids
from nnunet_fm.preprocessing.raw import check_cases, read_dataset_json, training_cases
from nnunet_fm.preprocessing.shared_cache import (
    NOT_WRITABLE,
    check_not_leased,
    is_current,
    label_settings,
    lock,
    raw_stamp,
    replace_folder,
)

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


_WITHOUT_INTENSITIES = frozenset(
    {
        *("ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"),
        *normalization.__all__,
    }
)
"""Schemes that do not read the intensities of the dataset: data would be preprocessed again for nothing."""


def preprocessing_settings(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Everything in a plan that preprocessing reads, as plain JSON values."""
    entry = PlansManager(plans).get_configuration(configuration).configuration
    settings: dict[str, Any] = {name: entry[name] for name in _READS}
    settings["version"] = PREPROCESSING_VERSION
    settings["reader"] = plans["image_reader_writer"]
    settings["transpose"] = plans["transpose_forward"]
    properties = plans["foreground_intensity_properties_per_channel"]
    settings["intensities"] = {
        str(i): properties[str(i)]
        for i, scheme in enumerate(entry["normalization_schemes"])
        if scheme not in _WITHOUT_INTENSITIES
    }
    return json.loads(json.dumps(settings, default=float))


def data_identifier(plans: Mapping[str, Any], configuration: str) -> str:
    """Folder name that two plans share exactly if preprocessing would write the same for both."""
    return f"fm_{configuration}_{_digest(preprocessing_settings(plans, configuration))}"


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _check_identifier(plans: Mapping[str, Any], configuration: str, identifier: str) -> None:
    """Check that a folder is named after the plan's settings, so that no other plan of the dataset fills it otherwise.

    ``nnUNetv2_move_plans_between_datasets`` puts the plan's new name before the folder's, and the reader of the other
    dataset's files into the plan.

    Raises:
        PlanError: if the settings were edited and the name was not.
    """
    settings = preprocessing_settings(plans, configuration)
    readers = (settings["reader"], *(reader.__name__ for reader in LIST_OF_IO_CLASSES))
    known = {_digest({**settings, "reader": reader}) for reader in readers}
    if identifier.startswith(f"{plans['plans_name']}_") or identifier.rpartition("_")[2] in known:
        return
    raise PlanError(
        f"the preprocessing settings of {plans['plans_name']}.json were changed by hand, but not their "
        f"data_identifier: plan again, or set it to '{data_identifier(plans, configuration)}'",
        code="plan-identifier",
    )


def _keep_description(preprocessed: Path, dataset_json: Mapping[str, Any]) -> None:
    """Write ``dataset.json`` beside the preprocessed cases, if labels or ``numTraining`` are others there.

    Trainings compare both with the cases.
    """
    try:
        known = canonical(read_object(preprocessed)) if preprocessed.is_file() else {}
    except ForeignFileError:
        known = {}
    same_count = known.get("numTraining") == dataset_json.get("numTraining")
    if not same_count or label_settings(known) != label_settings(dataset_json):
        preprocessed.parent.mkdir(parents=True, exist_ok=True)
        write_json(dataset_json, preprocessed)


def _is_current_without_labels(
    folder: Path, stamp: Mapping[str, Any], plans: Mapping[str, Any], dataset_json: Mapping[str, Any]
) -> bool:
    """True for a folder of an older version, whose stamp lacks the labels, if its cases have the present classes."""
    if not is_current(folder, {name: value for name, value in stamp.items() if name != "labels"}):
        return False
    case = next(folder.glob("[!.]*.pkl"), None)
    if case is None:
        return False
    properties = pickle.loads(case.read_bytes())
    return list(properties["class_locations"]) == located_classes(PlansManager(plans), dict(dataset_json))


class PreprocessingError(FMError, RuntimeError):
    """Error that ends preprocessing; the message says why and what to do."""


class FMPreprocessor(CasePreprocessor):
    """nnU-Net's preprocessing, run only when the folder does not hold the result already.

    A stamp beside the folder records the settings, the labels of ``dataset.json``, and the size and time of every raw
    file. If it is equal, `run` says so and returns. Otherwise the cases are written to a temporary folder under a lock,
    which then takes the old folder's place: an interrupted run loses nothing, two processes do not clash, and a folder
    that a running training reads is not replaced.
    """

    def run(
        self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int
    ) -> None:
        name = dataset_name(dataset_name_or_id)
        base, raw = Path(nnUNet_preprocessed, name), Path(nnUNet_raw, name)
        plans = read_object(base / f"{plans_identifier}.json")
        settings = preprocessing_settings(plans, configuration_name)
        identifier = PlansManager(plans).get_configuration(configuration_name).data_identifier
        _check_identifier(plans, configuration_name, identifier)
        folder = base / identifier
        dataset_json = read_dataset_json(raw)
        for warning in check_cases(raw, dataset_json):
            print(f"WARNING: {warning}", file=sys.stderr)
        dataset = training_cases(raw, dataset_json)
        _keep_description(base / "dataset.json", dataset_json)
        with lock(folder):
            stamp = {"settings": settings, "raw": raw_stamp(dataset), "labels": label_settings(dataset_json)}
            if is_current(folder, stamp) or _is_current_without_labels(folder, stamp, plans, dataset_json):
                print(f"{len(dataset)} preprocessed cases in {folder} are up to date, nothing to do.")
                return
            if folder.is_dir():
                check_not_leased(folder)
            for warning in check_grids(dataset, plans["image_reader_writer"]):
                print(f"WARNING: {warning}", file=sys.stderr)
            partial = self._write(plans, configuration_name, dataset, dataset_json, folder, num_processes)
            replace_folder(partial, folder, stamp)

    def _write(
        self,
        plans: dict[str, Any],
        configuration: str,
        dataset: Mapping[str, Mapping[str, Any]],
        dataset_json: Mapping[str, Any],
        folder: Path,
        num_processes: int,
    ) -> Path:
        """Write all cases to a temporary folder beside the real one; returns it, or leaves nothing if one fails."""
        partial = folder.with_name(folder.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            state = "does not hold these data as they are now" if folder.is_dir() else "is not there"
            raise PreprocessingError(
                f"{folder} {state}, and this account cannot write to {folder.parent}: export nnUNet_preprocessed to a "
                "folder of your own, and plan and preprocess there",
                code="output-not-writable",
            ) from None
        manager = PlansManager(plans)
        shared = (
            manager,
            manager.get_configuration(configuration),
            dataset_json,
        )
        cases = [(str(partial / name), files["images"], files["label"], *shared) for name, files in dataset.items()]
        workers = startable(min(num_processes, len(cases)))
        try:
            done = self._in_processes(cases, workers) if workers > 1 else map(self._save, cases)
            console, hidden = Console(stderr=True), not self.show_progress_bar
            found = list(track(done, "Preprocessing cases", len(cases), console=console, disable=hidden))
            if not any(found):
                raise PreprocessingError(
                    f"none of the {len(cases)} label maps has a voxel of a class (foreground): there is nothing to "
                    "learn, look at how they were made",
                    code="classes-none",
                )
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return partial

    def _in_processes(self, cases: Sequence[tuple[Any, ...]], workers: int) -> Iterator[bool]:
        """Write cases in several processes; yields for each that is done whether it has foreground.

        Raises:
            PreprocessingError: if the system killed a process.
        """
        killed = PreprocessingError(
            f"one of {workers} preprocessing processes was killed, most likely because the memory "
            f"did not suffice: give nnU-Net fewer of them (-np {workers // 2})",
            code="process-killed",
        )
        with worker_processes(workers, killed=killed, end_at_once=True) as pool:
            for future in as_completed([pool.submit(self._save, case) for case in cases]):
                yield future.result()

    def _save(self, case: tuple[Any, ...]) -> bool:
        """Write a case; return whether it has foreground."""
        target = Path(case[0])
        try:
            self.run_case_save(*case)
            return self.has_foreground
        except CaseError as error:
            if not isinstance(error.__cause__, DamagedImageError):
                raise
            number = dataset_number(target.parent.parent.name)
            raise CaseError(
                f"{error}. If the dataset's fingerprint was taken of that file, take it again: "
                f"nnUNetv2_extract_fingerprint -d {number} --clean",
                code=error.code,
            ) from None
        except (OSError, RuntimeError) as error:
            if not any(target.parent.glob(f"{target.name}*.b2nd")):  # reading, which names its file
                raise
            raise PreprocessingError(
                f"{target.name} could not be written to {target.parent} ({error}; {space_left(target.parent)}): "
                "make room, or export nnUNet_preprocessed to another disk, and run the same command again",
                code="case-not-written",
            ) from None
