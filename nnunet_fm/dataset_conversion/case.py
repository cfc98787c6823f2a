"""The conversion of one case, in a worker process: read, check, apply steps, write, record."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_fm.dataset_conversion import skull, steps
from nnunet_fm.dataset_conversion.base import (
    REORIENTING_READER,
    Case,
    ConversionOptions,
    Converter,
    Work,
    voxels_per_label,
)
from nnunet_fm.dataset_conversion.problems import Invalid, LeftOut, Problem
from nnunet_fm.dataset_conversion.tree import Tree
from nnunet_fm.dataset_conversion.writer import FILE_ENDING, fingerprint, read_json, storable, write_image, write_json
from nnunet_fm.errors import WriteError
from nnunet_fm.io.volume import Volume

RECORDS = ".records"
"""Folder beside the images in which finished cases are noted until the dataset is complete."""


@dataclass(frozen=True)
class ConversionJob:
    """Settings that all cases of a conversion share; sent to every worker once.

    Attributes:
        converter: the dataset's.
        options: the user's.
        tree: the source.
        target: folder to write to, on the disk of the result.
        scratch: folder for members of archives.
        slice_axis: as nnU-Net reads the files, index into (z, y, x).
        reader: nnU-Net's.
        shared: files of several cases, on disk and hashed already.
    """

    converter: Converter
    options: ConversionOptions
    tree: Tree
    target: Path
    scratch: Path
    slice_axis: int
    reader: str
    shared: Mapping[str, tuple[Path, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseOutcome:
    """Result of a case: the record of its conversion, a problem, or the reason to leave it out.

    The record has ``part``, ``subject``, ``sources`` and ``files`` (path -> SHA-256), ``shape`` and ``spacing``
    (z, y, x), ``source_voxels`` and ``voxels`` per label, and ``notes``.
    """

    case: str
    record: dict[str, Any] | None = None
    problem: Problem | None = None
    left_out: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    kept: bool = False


def convert_case(job: ConversionJob, case: Case, part: str, *, write: bool) -> CaseOutcome:
    """Convert one case.

    Args:
        job: the conversion.
        case: the case.
        part: ``train``, ``val`` or ``test``.
        write: False: read and check everything, write nothing.

    Raises:
        OSError: if the disk is full, or another fault that is not the data's.
    """
    folder = job.scratch / f"case_{case.name}"
    work = Work(job.options, job.tree, folder, job.shared)
    try:
        if write and (record := _finished(job, case, part, work)) is not None:
            return CaseOutcome(case.name, record, sources=work.sources, kept=True)
        with _one_thread():
            images, label = prepare(job, case, work)
        record = _describe(case, part, images, label, work)
        if write:
            record["files"] = _write(job.target, case, part, images, label)
            write_json(_record_path(job, case), {"key": _key(job, case, part), **record})
        return CaseOutcome(case.name, record, sources=work.sources)
    except Invalid as fault:
        return CaseOutcome(case.name, problem=fault.problem(case.name), sources=work.sources)
    except LeftOut as reason:
        return CaseOutcome(case.name, left_out=str(reason), sources=work.sources)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise WriteError(
                error.errno, f"{case.name}: the disk is full ({error.filename or job.target})", code="disk-full"
            ) from None
        raise
    except MemoryError:
        problem = Problem(case.files[0], "there is not enough memory to read it", case.name, "memory-too-small")
        return CaseOutcome(case.name, problem=problem, sources=work.sources)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepare(job: ConversionJob, case: Case, work: Work) -> tuple[list[Volume], Volume | None]:
    """Read a case and apply the steps of the options: N4, skull strip, then those of the thesis."""
    options, file = job.options, case.images[0].file
    images, label = job.converter.read_case(case, work)
    if options.n4 and not case.corrected:
        try:
            images = [steps.n4(image) for image in images]
        except ValueError as error:
            raise Invalid(file, str(error), code="n4-failed") from None
        work.note(f"N4: {steps.N4_ITERATIONS} iterations on every {steps.N4_SHRINK}th voxel, inside Otsu's mask")
    if options.skull_strip == "labels":
        if label is None:
            raise Invalid(file, "cannot be skull-stripped by labels: the case has none", code="labels-missing")
        images = [steps.strip(image, label.array) for image in images]
        work.note("skull strip: what has no label is 0")
    elif options.skull_strip != "no":
        mask = skull.mask_file(Path(options.skull_strip), case.name)
        brain = skull.read_mask(mask, images[0].grid)
        from nnunet_fm.weights.cache import compute_sha256

        work.sources[f"skull-strip/{mask.name}"] = compute_sha256(mask)
        images = [steps.strip(image, brain) for image in images]
        work.note(f"skull strip: what lies outside of {mask.name} is 0")
    if options.thesis:
        axis = job.slice_axis
        if job.reader == REORIENTING_READER:  # the axis is the patient's; files may store it as another one
            axis = images[0].grid.array_axis(axis)
        images, label = job.converter.apply_thesis(images, label, axis, work)
    return images, label


def _describe(case: Case, part: str, images: list[Volume], label: Volume | None, work: Work) -> dict[str, Any]:
    grid = images[0].grid
    return {
        "part": part,
        "subject": case.person,
        "sources": dict(sorted(work.sources.items())),
        "shape": list(grid.shape),
        "spacing": [round(s, 6) for s in reversed(grid.spacing)],
        "source_voxels": {str(value): count for value, count in work.counts.items()},
        "voxels": {} if label is None else {str(value): count for value, count in voxels_per_label(label).items()},
        "notes": work.notes,
    }


def _write(target: Path, case: Case, part: str, images: list[Volume], label: Volume | None) -> dict[str, str]:
    """Write a case; returns path in the target -> SHA-256."""
    ending = "Ts" if part == "test" else "Tr"
    grid = images[0].grid
    files = {}
    for channel, image in enumerate(images):
        name = f"images{ending}/{case.name}_{channel:04d}{FILE_ENDING}"
        files[name] = write_image(target / name, storable(image.array), grid)
    if label is not None:
        name = f"labels{ending}/{case.name}{FILE_ENDING}"
        files[name] = write_image(target / name, label.array.astype(np.uint8, copy=False), grid)
    return files


def _finished(job: ConversionJob, case: Case, part: str, work: Work) -> dict[str, Any] | None:
    """Return the record of an interrupted run, if the case's sources and files have not changed since."""
    from nnunet_fm.weights.cache import compute_sha256

    record = read_json(_record_path(job, case)) if job.options.skull_strip in ("labels", "no") else None
    if record is None or record.pop("key") != _key(job, case, part):
        return None
    for name, digest in record["files"].items():
        if not (job.target / name).is_file() or compute_sha256(job.target / name) != digest:
            return None
    try:
        for name in case.files:
            work.path(name)
    except Invalid:
        return None
    if any(record["sources"].get(name) != digest for name, digest in work.sources.items()):
        return None
    result: dict[str, Any] = record
    return result


def _record_path(job: ConversionJob, case: Case) -> Path:
    path = job.target / RECORDS / f"{case.name}.json"
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True)
    return path


def _key(job: ConversionJob, case: Case, part: str) -> str:
    """Cache key of a case: everything but the content of files that the result depends on."""
    return fingerprint(
        [job.converter.name, job.converter.version, asdict(job.options), asdict(case), part, job.slice_axis, job.reader]
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: sums over threads differ in the last bit. Cases run in parallel instead."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
