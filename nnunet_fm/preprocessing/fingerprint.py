"""nnU-Net's fingerprint of a raw dataset; where nnU-Net cannot take it, the file that is to blame."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    determine_reader_writer_from_file_ending,
)
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunet_fm.cpu.limits import shared_memory_fault
from nnunet_fm.errors import code_of
from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.io.image_faults import unreadable
from nnunet_fm.io.untrusted import RECORD_ENTRIES, read_json
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.preprocessing.raw import training_cases
from nnunet_fm.preprocessing.whole_images import whole_images


def fingerprint(dataset_name: str, dataset_json: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """The fingerprint of a dataset, taken if there is none yet.

    Args:
        dataset_name: of a dataset in ``nnUNet_raw``.
        dataset_json: its ``dataset.json``.
        processes: that read at the same time.

    Raises:
        PlanError: naming a file that cannot be read or does not fit, or because no label map has a class.
    """
    file = Path(nnUNet_preprocessed, dataset_name, "dataset_fingerprint.json")
    if not file.is_file():
        if fault := shared_memory_fault():  # nnU-Net reads the images in processes
            raise PlanError(fault, code="shared-memory")
        raw = Path(nnUNet_raw, dataset_name)
        cases = training_cases(raw, dataset_json)
        channels = len(channel_names(dataset_json))
        reader = _reader(next(iter(cases.values()))["images"][0], dataset_json)
        try:
            extractor = DatasetFingerprintExtractor(dataset_name, processes, verbose=True)
            extractor.dataset = cases  # nnU-Net's own listing takes hidden files for cases
            extractor.num_foreground_voxels_for_intensitystats /= channels  # else memory grows with them
            with _read_by(type(reader)):
                extractor.run(overwrite_existing=True)
        except Exception as error:  # whatever readers and numpy say: it names neither file nor case
            found = _fault(raw, cases, channels, reader)
            if found is None:
                raise
            raise found from error
    content: dict[str, Any] = read_json(file, RECORD_ENTRIES)
    return content


@contextmanager
def _read_by(reader: type[BaseReaderWriter]) -> Iterator[None]:
    """Have nnU-Net take fingerprints with a reader that refuses damaged files, where its processes can import it."""
    usual = fingerprint_extractor.determine_reader_writer_from_dataset_json
    if getattr(sys.modules[reader.__module__], reader.__name__, None) is reader:
        fingerprint_extractor.determine_reader_writer_from_dataset_json = lambda *_, **__: reader
    try:
        yield
    finally:
        fingerprint_extractor.determine_reader_writer_from_dataset_json = usual


def _reader(file: str, dataset_json: Mapping[str, Any]) -> BaseReaderWriter:
    """The reader that nnU-Net takes for all images of a dataset, since it reads this one."""
    with redirect_stderr(io.StringIO()):  # a traceback for each reader that cannot
        try:
            found = determine_reader_writer_from_dataset_json(dict(dataset_json), file, verbose=False)
        except RuntimeError:
            found = None
    usual = determine_reader_writer_from_file_ending(dataset_json["file_ending"], verbose=False)
    if found is None or (found is not usual and "overwrite_image_reader_writer" not in dataset_json):
        try:
            whole_images(usual)().read_images([file])
        except Exception as error:  # readers let through whatever their libraries say of a file
            if found is None:
                raise PlanError(unreadable(file, error), code=code_of(error, "case-unreadable")) from None
            print(
                f"WARNING: all images will be read by {found.__name__}: by {usual.__name__} {unreadable(file, error)}",
                file=sys.stderr,
            )
    assert found is not None
    return whole_images(found)()


def _fault(
    raw: Path, cases: Mapping[str, Mapping[str, Any]], channels: int, reader: BaseReaderWriter
) -> PlanError | None:
    """Reason why no fingerprint can be taken: a faulty case, or no label map with a class; None without one.

    Every file is read once more, in this process.
    """
    foreground = False
    for case, files in cases.items():
        try:
            images = reader.read_images(files["images"])[0]
        except Exception as error:  # as above
            return PlanError(unreadable(", ".join(files["images"]), error), code=code_of(error, "case-unreadable"))
        try:
            labels = reader.read_seg(files["label"])[0]
        except Exception as error:
            return PlanError(unreadable(files["label"], error), code=code_of(error, "case-unreadable"))
        if len(images) != channels:
            return PlanError(
                f"{', '.join(files['images'])}: {len(images)} channels, where dataset.json has {channels}",
                code="channels-count",
            )
        if images.shape[1:] != labels.shape[1:]:
            return PlanError(
                f"{case}: images of {images.shape[1:]} voxels come with a label map of {labels.shape[1:]}: put both on "
                "one grid",
                code="grid-differs",
            )
        if not np.isfinite(images.sum(dtype=np.float64)):
            return PlanError(
                f"{', '.join(files['images'])}: voxels that are NaN or infinite: replace them", code="image-not-finite"
            )
        foreground = foreground or bool((labels > 0).any())
    if foreground:
        return None
    return PlanError(
        f"none of the {len(cases)} label maps in {raw / 'labelsTr'} has a voxel of a class (foreground): there is "
        "nothing to learn, look at how they were made",
        code="classes-none",
    )
