"""``python -m tests.golden write FOLDER`` and ``python -m tests.golden compare FOLDER [OTHER]``."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PARTS = {
    "plans": ("plans", "adaptations"),
    "training": ("training",),
    "predictions": ("predictions",),
    "study": ("study",),
    "tables": ("tables",),
}
"""Part of a record -> its folders."""
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUDA_VISIBLE_DEVICES": "",
    "COLUMNS": "120",
    "nnUNet_n_proc_DA": "0",
    "nnUNet_def_n_proc": "1",
    "nnUNet_compile": "f",
    "NNUNET_FM_BF16": "0",
    "NNUNET_FM_ONEDNN": "1",
    "NNUNET_FM_CHANNELS_LAST": "1",
}
"""Variables that leave nothing to the machine."""


def make(parts: Sequence[str], names: Sequence[str] = (), *, everything: bool = False) -> Iterator[tuple[str, Any]]:
    """Subjects of the parts, as the present code makes them; with ``names``, those that are called so."""
    from tests.golden import plans, studies, tables, trainings

    folders = {folder for part in parts for folder in PARTS[part]}

    def wanted(subject: str) -> bool:
        folder, name = subject.split("/")
        return folder in folders and (not names or name in names)

    makers: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
        "plans": lambda root: plans.plans(root, wanted, everything=everything),
        "study": studies.studies,
        "tables": tables.tables,
        "training": lambda root: trainings.trainings(root, wanted),
    }
    for maker in dict.fromkeys(part.replace("predictions", "training") for part in parts):
        with _folders() as root:
            for subject, content in makers[maker](root):
                if wanted(subject):
                    yield subject, content


@contextmanager
def _folders() -> Iterator[Path]:
    """nnU-Net's folders in a temporary one, and an empty weights folder."""
    from tests.helpers.datasets import training_folders

    with TemporaryDirectory(prefix="golden_") as temporary:
        root = Path(temporary).resolve() / "root"
        os.environ["NNUNET_FM_WEIGHTS"] = str(root / "weights")
        with training_folders(root):
            yield root


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="write the record of the present code")
    compare = commands.add_parser("compare", help="compare the present code, or OTHER, with a record")
    for command in (write, compare):
        command.add_argument("folder", type=Path, help="folder of the record")
        command.add_argument("--only", choices=PARTS, action="append", help="this part; repeatable")
        command.add_argument("--name", action="append", default=[], help="this subject of the parts; repeatable")
        command.add_argument("--all", action="store_true", help="plans of every size of every model, too")
    compare.add_argument("other", type=Path, nargs="?", help="record to compare instead of the present code")
    compare.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW", help="expected; repeatable")
    compare.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="of 'subject: key'")
    compare.add_argument("--tolerance", type=float, default=0.0, help="relative, of numbers that are not whole")
    arguments = parser.parse_args()
    os.environ.update(SETTINGS)

    from tests.golden import record

    parts = arguments.only or list(PARTS)
    if arguments.command == "write":
        for subject, content in _timed(make(parts, arguments.name, everything=arguments.all)):
            record.write(arguments.folder, subject, content)
        return 0
    names = dict(pair.split("=", 1) for pair in arguments.renamed)
    before = record.renamed(record.read(arguments.folder), names)
    if arguments.other is None:
        after = record.plain(dict(_timed(make(parts, arguments.name, everything=arguments.all))))
    else:
        after = record.read(arguments.other)
    found = record.differences(before, after, tolerance=arguments.tolerance, ignore=arguments.ignore)
    print(*found, sep="\n")
    files = len({difference.file for difference in found})
    print(f"{len(found)} differences in {files} of {len(after)} files, of {len(before)} of the record")
    return 1 if found else 0


def _timed(subjects: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Say each subject and the processor's seconds that it took."""
    start = time.process_time()
    while True:
        with redirect_stdout(io.StringIO()):  # nnU-Net tells much
            made = next(subjects, None)
        if made is None:
            return
        subject, content = made
        now = time.process_time()
        print(f"{now - start:6.1f} s  {subject}", file=sys.stderr, flush=True)
        start = now
        yield subject, content


if __name__ == "__main__":
    sys.exit(main())
