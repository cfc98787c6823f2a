"""Convert a download to a raw folder: list, check, convert in parallel, put the folder in place in one step."""

from __future__ import annotations

import functools
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from nnunet_fm.cpu.limits import startable
from nnunet_fm.data.sides import find_sides
from nnunet_fm.dataset_conversion import skull
from nnunet_fm.dataset_conversion.base import REORIENTING_READER, Case, ConversionOptions, Converter, Listing
from nnunet_fm.dataset_conversion.case import RECORDS, CaseOutcome, ConversionJob, convert_case
from nnunet_fm.dataset_conversion.labels import LabelTable
from nnunet_fm.dataset_conversion.problems import ConversionError, Invalid, Problem
from nnunet_fm.dataset_conversion.splits import Split, make_folds, read_split
from nnunet_fm.dataset_conversion.tree import NOT_OPENED, Tree, open_tree
from nnunet_fm.dataset_conversion.writer import FILE_ENDING, fingerprint, read_json, versions, write_json
from nnunet_fm.io.atomic_write import OLD, PARTIAL, scratch_folder
from nnunet_fm.io.worker_processes import worker_processes

FORMAT = 1
"""Of ``conversion.json``."""

LEGAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Report:
    """Result of a conversion.

    Attributes:
        status: ``converted``; ``unchanged``, where an earlier run did the same; ``checked``, by a dry run.
        dataset: name of nnU-Net's folder.
        folder: where it is, or would be.
        layout: which of the dataset's layouts the source has.
        training: cases in ``imagesTr``.
        test: cases in ``imagesTs``.
        problems: of cases left out because of ``skip_invalid``, or found by a dry run.
        left_out: case -> reason, by the dataset's own rules.
        unused: cases that the split does not name.
        notes: decisions; those about a case begin with its name.
        kept: cases that an interrupted run had finished.
    """

    status: Literal["converted", "unchanged", "checked"]
    dataset: str
    folder: Path | None
    layout: str
    training: int
    test: int
    problems: tuple[Problem, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kept: int = 0


def convert(
    converter: Converter,
    source: Path,
    dataset_id: int,
    options: ConversionOptions,
    raw: Path | None,
    *,
    dry_run: bool = False,
    skip_invalid: bool = False,
    force: bool = False,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Convert a download to ``<raw>/Dataset<ID>_<Name>``.

    The folder appears complete or not at all. A run that was interrupted is continued by the next one; one that fails
    leaves nothing behind. The source is only read.

    Args:
        converter: the dataset's.
        source: folder, or zip or tar.
        dataset_id: 1 to 999.
        options: from `Converter.options`.
        raw: the ``nnUNet_raw`` folder; None only for a dry run.
        dry_run: read and check all cases, write nothing.
        skip_invalid: leave out what cannot be converted.
        force: replace a folder of the same name that was converted from other files or with other options.
        processes: cases converted at a time.
        progress: called with finished cases and all cases.

    Raises:
        ConversionError: with the reason and all problems found.
        OSError: if the disk is full or cannot be written to.
    """
    name = _folder_name(dataset_id, converter, options)
    folder = None if raw is None else raw / name
    with scratch_folder() as scratch, _locked(raw, dataset_id, dry_run):
        if raw is not None and not dry_run:
            _check_number(raw, dataset_id, name)
        tree = open_tree(source, Path(scratch))
        plan = _Plan.of(converter, tree, options)
        made = None if dry_run else folder
        if made is not None and (earlier := _earlier(made, plan, Path(scratch), skip_invalid, force)):
            return earlier
        target = Path(scratch) if folder is None else folder.with_name(f".{name}{PARTIAL}")
        try:
            outcomes = _convert_all(
                plan.job(target, Path(scratch)), plan, processes, progress, write=not dry_run, skip_invalid=skip_invalid
            )
            problems = _problems(plan, outcomes, refuse=not (skip_invalid or dry_run))
            content = _conversion_json(plan, outcomes, problems)
            if folder is not None and not dry_run:
                _check_training_cases(source, content, problems)
                _finish(target, folder, plan, content)
        except Exception:
            if not dry_run:
                shutil.rmtree(target, ignore_errors=True)
            raise
        kept = sum(outcome.kept for outcome in outcomes)
        return _report("checked" if dry_run else "converted", name, folder, content, problems, kept)


# Before: what there is to do


@dataclass(frozen=True)
class _Plan:
    """Source of a conversion, its cases, and the part that each belongs to."""

    converter: Converter
    options: ConversionOptions
    tree: Tree
    listing: Listing
    split: Split | None
    cases: tuple[tuple[Case, str], ...]
    unused: tuple[str, ...]
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, converter: Converter, tree: Tree, options: ConversionOptions) -> _Plan:
        listing = converter.cases(tree, options)
        if not listing.cases and not listing.problems:
            known = "; ".join(f"{name}: {example}" for name, example in converter.layouts.items())
            packed = [name for name in tree.entries if name.lower().endswith(NOT_OPENED)]
            cure = f"unpack {packed[0]} first; " if packed else ""
            raise ConversionError(
                f"{tree.source}: holds nothing that looks like {converter.name}; {cure}known layouts are {known}",
                tree.problems,
                code="source-unknown",
            )
        if listing.intensities is not None and options.thesis:
            raise ConversionError(
                f"{tree.source}: its images have been preprocessed as in the thesis already: leave --thesis out",
                code="images-preprocessed",
            )
        listed = sorted(listing.cases, key=lambda case: case.name)
        _check_names(converter, listed)
        split = None
        if options.split is not None and options.split in converter.splits:
            split = converter.split(options.split, listed)
        elif options.split is not None:
            split = read_split(Path(options.split), {case.name: case.person for case in listed})
        parts = {c.name: "test" if c.part == "test" else "train" for c in listed} if split is None else split.parts
        unlabelled = [
            Problem(case.files[0], "a training case without labels", case.name, "labels-missing")
            for case in listed
            if parts.get(case.name, "test") != "test" and not case.labels
        ]
        faulty = {problem.case for problem in unlabelled}
        return cls(
            converter,
            options,
            tree,
            listing,
            split,
            tuple((case, parts[case.name]) for case in listed if case.name in parts and case.name not in faulty),
            tuple(case.name for case in listed if case.name not in parts),
            (*tree.problems, *listing.problems, *unlabelled),
        )

    @property
    def slice_axis(self) -> int:
        return self.converter.slice_axis if self.listing.slice_axis is None else self.listing.slice_axis

    @property
    def reader(self) -> str:
        return self.listing.reader or self.converter.reader

    def job(self, target: Path, scratch: Path) -> ConversionJob:
        """Return the job for the workers; files of several cases are unpacked and hashed here, once."""
        from nnunet_fm.weights.cache import compute_sha256

        uses = Counter(name for case, _ in self.cases for name in dict.fromkeys(case.files))
        shared = {}
        for number, name in enumerate(name for name, count in uses.items() if count > 1):
            try:
                path = self.tree.local(name, scratch / f"shared_{number}")
                shared[name] = (path, compute_sha256(path))
            except (Invalid, PermissionError):
                continue  # each case that needs it says so
        return ConversionJob(
            self.converter, self.options, self.tree, target, scratch, self.slice_axis, self.reader, shared
        )

    def key(self) -> str:
        """Cache key of the run: everything but the content of files that the result depends on."""
        return fingerprint(
            [
                self.converter.name,
                self.converter.version,
                _public(self.options),
                None if self.split is None else asdict(self.split),
                [[asdict(case), part] for case, part in self.cases],
                self.slice_axis,
                self.reader,
            ]
        )


def _check_names(converter: Converter, cases: Sequence[Case]) -> None:
    """A converter that lists one name twice, or one that is no file name, has a fault itself."""
    counts = Counter(case.name.lower() for case in cases)
    for case in cases:
        if counts[case.name.lower()] > 1:
            raise ConversionError(f"{case.files[0]}: another case is called '{case.name}' as well", code="case-twice")
        if LEGAL_NAME.fullmatch(case.name) is None:
            raise ConversionError(
                f"{case.files[0]}: '{case.name}' is no name for files of {converter.name}", code="case-name"
            )


def _check_number(raw: Path, dataset_id: int, name: str) -> None:
    taken = [path.name for path in sorted(raw.glob(f"Dataset{dataset_id:03d}_*")) if path.name != name]
    if taken:
        raise ConversionError(f"dataset number {dataset_id} is taken by {raw / taken[0]}", code="dataset-taken")


@contextmanager
def _locked(raw: Path | None, dataset_id: int, dry_run: bool) -> Iterator[None]:
    """No second run for the same number; the lock's file does not stay."""
    if raw is None or dry_run:
        yield
        return
    raw.mkdir(parents=True, exist_ok=True)
    path = raw / f".Dataset{dataset_id:03d}.lock"
    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConversionError(
            f"dataset {dataset_id} is being converted by another process ({path})", code="dataset-busy"
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


# During: cases in parallel

_job: ConversionJob | None = None


def _start_worker(job: ConversionJob) -> None:
    """Take the job in a worker process, and leave Ctrl-C to the parent."""
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_worker(case: Case, part: str, write: bool) -> CaseOutcome:
    assert _job is not None
    return convert_case(_job, case, part, write=write)


def _convert_all(
    job: ConversionJob,
    plan: _Plan,
    processes: int,
    progress: Callable[[int, int], None],
    *,
    write: bool,
    skip_invalid: bool,
) -> list[CaseOutcome]:
    """Convert all cases; once one cannot be, the others are only checked, so that all problems are known at the end."""
    outcomes: dict[str, CaseOutcome] = {}
    sound = skip_invalid or not plan.problems
    total = len(plan.cases)
    progress(0, total)

    def done(outcome: CaseOutcome) -> None:
        nonlocal sound
        outcomes[outcome.case] = outcome
        sound = sound and (skip_invalid or outcome.problem is None)
        progress(len(outcomes), total)

    workers = startable(min(processes, total))  # none where every case has a fault
    if workers <= 1:
        for case, part in plan.cases:
            done(convert_case(job, case, part, write=write and sound))
        return list(outcomes.values())
    killed = ConversionError(
        "a worker process was ended from outside, most likely for lack of memory: convert fewer at a time (-np)",
        code="process-killed",
    )
    waiting: set[Future[CaseOutcome]] = set()
    with worker_processes(workers, functools.partial(_start_worker, job), killed=killed) as pool:
        for case, part in plan.cases:
            if len(waiting) > processes:  # few at a time: whether to write is decided when a case starts
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    done(future.result())
            waiting.add(pool.submit(_in_worker, case, part, write and sound))
        for future in waiting:
            done(future.result())
    return [outcomes[case.name] for case, _ in plan.cases]


# After: the folder in its place


def _conversion_json(plan: _Plan, outcomes: Sequence[CaseOutcome], problems: Sequence[Problem]) -> dict[str, Any]:
    """All that is needed to audit the conversion and to repeat it; nothing in it depends on time or place."""
    cases = {outcome.case: outcome.record for outcome in outcomes if outcome.record is not None}
    table = (
        plan.converter.case_table(plan.cases[0][0], plan.options) if plan.cases else plan.converter.table(plan.options)
    )
    split = Split.of({case: record["part"] for case, record in cases.items()})
    if plan.split is not None:
        split = plan.split.only(cases)
    return {
        "format": FORMAT,
        "dataset": plan.converter.name,
        "name": plan.converter.dataset_name(plan.options),
        "layout": plan.listing.layout,
        "options": _public(plan.options),
        "slice_axis": plan.slice_axis,
        "reader": plan.reader,
        "labels": {
            "names": dict(table.names),
            "from_source": {str(value): number for value, number in table.values.items()},
            "unlisted": table.unlisted,
        },
        **_left_right(plan, table),
        "decisions": [*plan.converter.notes, *plan.listing.notes],
        "split": asdict(split),
        "unused": list(plan.unused),
        "left_out": {outcome.case: outcome.left_out for outcome in outcomes if outcome.left_out is not None},
        "problems": [asdict(problem) for problem in problems],
        "cases": cases,
        "sources": dict(sorted(item for outcome in outcomes for item in outcome.sources.items())),
        "versions": dict(versions()),
        "key": plan.key(),
    }


def _left_right(plan: _Plan, table: LabelTable) -> dict[str, Any]:
    """Pairs of labels that differ by left and right, and the axis from one to the other, index into (z, y, x).

    The axis is known where nnU-Net's reader turns all images to RAS.
    """
    pairs = [pair for pair in plan.converter.sides if set(pair) <= set(table.names)]
    pairs += [pair for pair in find_sides(table.names).pairs if pair not in pairs]
    if not pairs:
        return {}
    axis = 2 if plan.reader == REORIENTING_READER else None
    return {"left_right": {"axis": axis, "pairs": [list(pair) for pair in pairs]}}


def _finish(target: Path, folder: Path, plan: _Plan, content: dict[str, Any]) -> None:
    """Write the JSON files, remove files of other runs, rename the folder."""
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    wanted = {name for record in content["cases"].values() for name in record["files"]}
    shutil.rmtree(target / RECORDS)
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (target / part).mkdir(exist_ok=True)
    for path in [path for path in target.rglob("*") if path.is_file()]:  # of an interrupted run with other options
        if path.relative_to(target).as_posix() not in wanted:
            path.unlink()
    converter, options = plan.converter, plan.options
    table = converter.table(options)
    split = Split(**content["split"])
    generate_dataset_json(
        str(target),
        {
            str(i): _channel(name, plan)
            for i, name in enumerate(plan.listing.channels or converter.channel_names(options))
        },
        {name: list(value) if isinstance(value, tuple) else value for name, value in table.names.items()},
        len(split.train) + len(split.val),
        FILE_ENDING,
        regions_class_order=table.regions_class_order,
        dataset_name=converter.dataset_name(options),
        description=converter.title,
        reference=converter.reference,
        license=converter.licence,
        overwrite_image_reader_writer=plan.reader,
        converted_by=f"nnunet-fm {content['versions']['nnunet-fm']}",
    )
    folds = make_folds(split, {case: record["subject"] for case, record in content["cases"].items()})
    if folds:
        write_json(target / "splits_final.json", folds)
    write_json(target / "conversion.json", content)
    old = folder.with_name(f".{folder.name}{OLD}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.is_dir():
        folder.rename(old)
    target.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _channel(name: str, plan: _Plan) -> str:
    """nnU-Net would normalise a channel called CT by HU again."""
    intensities = "0_to_1" if plan.options.thesis else plan.listing.intensities
    return f"{name}_{intensities}" if intensities else name


def _public(options: ConversionOptions) -> dict[str, Any]:
    """Options without the folders that a user's files lie in."""
    content = asdict(options)
    for name in ("split", "skull_strip"):
        if content[name] is not None:
            content[name] = Path(content[name]).name
    return content


def _problems(plan: _Plan, outcomes: Sequence[CaseOutcome], *, refuse: bool) -> tuple[Problem, ...]:
    """Problems of listing and of cases; raises a ConversionError if there are any that are to be refused."""
    problems = (*plan.problems, *(o.problem for o in outcomes if o.problem))
    if problems and refuse:
        raise _failure(problems)
    return problems


def _check_training_cases(source: Path, content: dict[str, Any], problems: tuple[Problem, ...]) -> None:
    """Raise a ConversionError if no training case is left."""
    if not content["split"]["train"]:
        why = f": {problems[0]}" if problems else ""
        raise ConversionError(f"{source}: no training case is left{why}", problems, code="cases-none")


def _folder_name(dataset_id: int, converter: Converter, options: ConversionOptions) -> str:
    if not 1 <= dataset_id <= 999:
        raise ConversionError(f"{dataset_id} is not a dataset number: nnU-Net takes 1 to 999", code="dataset-number")
    return f"Dataset{dataset_id:03d}_{converter.dataset_name(options)}"


def _earlier(folder: Path, plan: _Plan, scratch: Path, skip_invalid: bool, force: bool) -> Report | None:
    """Report of an earlier conversion that is the same; None without one, or for another that may be replaced.

    Raises:
        ConversionError: if that had problems that are not to be skipped, or the folder must not be replaced.
    """
    if not folder.is_dir():
        return None
    earlier = _same_as_before(folder, plan, scratch)
    if earlier is not None and earlier.problems and not skip_invalid:
        raise _failure(earlier.problems)
    if earlier is None and not force:
        raise ConversionError(
            f"{folder} was made from other files or with other options: add --force to replace it",
            code="dataset-exists",
        )
    return earlier


def _same_as_before(folder: Path, plan: _Plan, scratch: Path) -> Report | None:
    """A report, if the folder is complete and was made from the same files with the same options."""
    from nnunet_fm.weights.cache import compute_sha256

    earlier = read_json(folder / "conversion.json")
    if not isinstance(earlier, dict) or earlier.get("key") != plan.key():
        return None
    written = {name: digest for record in earlier["cases"].values() for name, digest in record["files"].items()}
    if not all((folder / name).is_file() and compute_sha256(folder / name) == d for name, d in written.items()):
        return None
    problems = [asdict(problem) for problem in plan.problems]
    if [p for p in earlier["problems"] if p in problems] != problems:
        return None
    for number, (name, digest) in enumerate(earlier["sources"].items()):
        unpacked = scratch / f"same_{number}"
        try:
            now = compute_sha256(_source_file(name, plan, unpacked))
        except (Invalid, OSError):
            return None
        shutil.rmtree(unpacked, ignore_errors=True)
        if now != digest:
            return None
    found = tuple(Problem(**problem) for problem in earlier["problems"])
    return _report("unchanged", folder.name, folder, earlier, found, 0)


def _source_file(name: str, plan: _Plan, folder: Path) -> Path:
    """A file of the source, or a mask that the user gave for skull stripping."""
    if name in plan.tree.entries:
        return plan.tree.local(name, folder)
    where = Path(plan.options.skull_strip)
    masks = (skull.mask_file(where, case.name) for case, _ in plan.cases)
    return next(mask for mask in masks if f"skull-strip/{mask.name}" == name)


def _report(
    status: Literal["converted", "unchanged", "checked"],
    name: str,
    folder: Path | None,
    content: Mapping[str, Any],
    problems: Sequence[Problem],
    kept: int,
) -> Report:
    split = content["split"]
    notes = [f"{case}: {note}" for case, record in content["cases"].items() for note in record["notes"]]
    return Report(
        status=status,
        dataset=name,
        folder=folder,
        layout=content["layout"],
        training=len(split["train"]) + len(split["val"]),
        test=len(split["test"]),
        problems=tuple(problems),
        left_out=content["left_out"],
        unused=tuple(content["unused"]),
        notes=(*content["decisions"], *notes),
        kept=kept,
    )


def _failure(problems: Sequence[Problem]) -> ConversionError:
    first = str(problems[0])
    if len(problems) == 1:
        return ConversionError(first, problems, code=problems[0].code)
    return ConversionError(
        f"{len(problems)} problems, the first: {first} (--dry-run lists all)", problems, code="problems-found"
    )
