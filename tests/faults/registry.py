"""The list of faults, and what a fault's function has at hand."""

from __future__ import annotations

import ctypes
import io
import json
import multiprocessing
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nnunet_fm.errors import one_line
from tests.helpers.convert_tester import snapshot
from tests.helpers.datasets import nnunet_folders, write_dataset
from tests.helpers.site_programs import site_program
from tests.helpers.tiny_models import write_model

STAGES = (
    "Installation and environment",
    "Converting",
    "Planning",
    "Preprocessing",
    "Weights",
    "Training",
    "Adapting",
    "Predicting",
    "Evaluating",
    "Studies",
)
SHAPE = (8, 10, 9)
"""Of the images of a fault, (z, y, x)."""
PATIENCE = 120
"""Seconds that a process may take that is expected to end by itself."""
PRELOADED = ["tests.faults.all", "nnunet_fm.inference.predict"]


class Seen(NamedTuple):
    """What a user sees of a fault: the code of the error, empty for one that is not ours, and the message."""

    code: str
    text: str


def seen_in(line: str) -> Seen:
    """What a printed line shows."""
    found = re.fullmatch(r"(?:nnunet-fm: |Error: )?(.*?)(?: \[([a-z0-9-]+)\])?", line, re.DOTALL)
    assert found is not None
    return Seen(found[2] or "", found[1])


@dataclass(frozen=True)
class Fault:
    """A fault that is made on purpose.

    Attributes:
        name: of its function, with spaces.
        stage: of `STAGES`.
        broken: what is broken, in a sentence.
        run: does it, and looks whether all is kept.
        happens: how it ends, in a few words.
        keeps: what was there before and is there still.
        code: of the error that the user sees.
        case: code of what a single case's failure is due to, where the error is that some have failed.
        says: fixed words of a message that is not of this package, or has no code.
        slow: needs more than two seconds.
    """

    name: str
    stage: str
    broken: str
    run: Callable[[Bench], Seen | None]
    happens: str
    keeps: str
    code: str = ""
    case: str = ""
    says: str = ""
    slow: bool = False


FAULTS: dict[str, Fault] = {}


def fault(stage: str, broken: str, **about: Any) -> Callable[[Callable[[Bench], Seen | None]], Any]:
    """Put a function on the list; ``about`` are the attributes of `Fault` from ``happens`` on."""
    assert stage in STAGES, stage

    def add(function: Callable[[Bench], Seen | None]) -> Callable[[Bench], Seen | None]:
        name = function.__name__.replace("_", " ")
        assert name not in FAULTS, name
        FAULTS[name] = Fault(name, stage, broken, function, **about)
        return function

    return add


def check(fault: Fault, seen: Seen | None) -> None:
    """Compare what was seen of a fault with what its decorator says."""
    if seen is None:
        assert not (fault.code or fault.says), "nothing was seen"
        return
    assert seen.code == fault.code and fault.says in seen.text, seen
    if fault.case:
        messages = site_program("errors").messages(fault.case)
        patterns = [".*".join(map(re.escape, text.strip("…: ").split("…"))) for text in messages]
        assert any(re.search(pattern, seen.text) for pattern in patterns), seen


class Bench:
    """A folder of its own with nnU-Net's three folders in it, and ways to break and to watch.

    Args:
        root: an empty folder.
        patch: undone when the fault is over.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        self.variables = nnunet_folders(root, patch)
        self.raw, self.preprocessed, self.results = (Path(folder) for folder in self.variables.values())
        patch.setenv("NNUNET_FM_WEIGHTS", str(root / "weights"))
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setenv("nnUNet_def_n_proc", "1")

    # Things to break

    def dataset(self, number: int = 501, **more: Any) -> Path:
        """A raw dataset of two training cases and a test case."""
        return write_dataset(self.raw, number, **{"shape": SHAPE, "cases": 2, **more})

    def images(self, cases: int = 2, **more: Any) -> Path:
        """A folder of images to predict: case_00, case_01 …"""
        return self.dataset(502, cases=0, test_cases=cases, **more) / "imagesTs"

    def model(self, **more: Any) -> Path:
        """The folder of a trained model."""
        return write_model(self.results / "Dataset501_Blobs" / "nnUNetTrainer__nnUNetPlans__3d_fullres", **more)

    # Ways to run

    def command(self, *arguments: str | Path) -> tuple[int, str]:
        """Run ``nnunet-fm`` in this process; its exit code and all that it printed."""
        from nnunet_fm.cli.app import main

        self.patch.setattr(sys, "argv", ["nnunet-fm", *map(str, arguments)])
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed), pytest.raises(SystemExit) as ended:
            main()
        assert "Traceback" not in printed.getvalue(), printed.getvalue()
        return int(ended.value.code or 0), printed.getvalue()

    def fails(self, *arguments: str | Path, exit_code: int = 1) -> Seen:
        """Run ``nnunet-fm``, which has to fail with this exit code; its last line."""
        ended, printed = self.command(*arguments)
        assert ended == exit_code, (ended, printed)
        return seen_in(printed.strip().splitlines()[-1])

    def raises(self, kind: type[BaseException] | tuple[type[BaseException], ...], run: Callable[[], object]) -> Seen:
        """Run a function, which has to raise an error with a message."""
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed), pytest.raises(kind) as raised:
            run()
        assert str(raised.value).strip()
        return seen_in(one_line(raised.value))

    def process(self, run: Callable[..., object], *arguments: Any, **variables: str) -> tuple[int, str]:
        """Run a function of a module in another process; its exit code (minus a signal) and what it printed.

        An error of ours is printed in one line, as commands print it.
        """
        process, output = self.start(run, *arguments, **variables)
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"still running after {PATIENCE} s: {output.read_text()}")
        assert process.exitcode is not None
        return process.exitcode, output.read_text(encoding="utf-8")

    def start(self, run: Callable[..., object], *arguments: Any, **variables: str) -> tuple[Any, Path]:
        """Start a function of a module in another process; the process, and the file that it prints into.

        It is forked from one that has imported the libraries, and takes a moment.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        output = self.root / "printed.txt"
        output.touch()
        names = (*self.variables, "NNUNET_FM_WEIGHTS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc")
        environment = {name: os.environ[name] for name in names if name in os.environ} | variables
        process = context.Process(target=_run, args=(output, environment, run, arguments))
        process.start()
        return process, output

    def limit(self) -> int:
        """Bytes that a file may grow to."""
        return resource.getrlimit(resource.RLIMIT_FSIZE)[0]

    @contextmanager
    def full_disk(self, left: int = 256) -> Iterator[None]:
        """No file can grow beyond so many bytes: writing comes up short, then fails, as on a full disk."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @contextmanager
    def read_only(self, folder: Path) -> Iterator[None]:
        """Nothing can be made, changed or removed in a folder, by root neither."""
        folder.chmod(0o555)
        try:
            with without_override():
                yield
        finally:
            folder.chmod(0o755)

    # Ways to watch

    @contextmanager
    def unchanged(self, *folders: Path) -> Iterator[None]:
        """Nothing in these folders, all by default, is written, changed or removed."""
        folders = folders or (self.root,)
        before = [snapshot(folder) for folder in folders]
        yield
        after = [snapshot(folder) for folder in folders]
        assert after == before, [set(a.items()) ^ set(b.items()) for a, b in zip(after, before, strict=True)]


@contextmanager
def without_override() -> Iterator[None]:
    """Permissions hold for this thread of root, too: its effective capabilities are those of any user (Linux)."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version of the interface, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for bits from 32 on
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    effective = sets[0]
    sets[0] = effective & ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        sets[0] = effective
        libc.capset(header, sets)


def _run(output: Path, environment: Mapping[str, str], run: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as in any process that was not forked from a server
    os.environ.update(environment)
    stream = open(output, "w", encoding="utf-8", buffering=1)  # noqa: SIM115  (as long as the process)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    try:
        run(*arguments)
    except BaseException as error:
        ours = type(error).__module__.startswith("nnunet_fm.") or isinstance(error, OSError)
        if not ours:
            raise
        print(f"Error: {one_line(error)}")
        sys.exit(1)


def change_json(file: Path, **entries: Any) -> None:
    """Replace entries of a JSON object; None removes one."""
    content = json.loads(file.read_text(encoding="utf-8")) | entries
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


def cut_in_half(file: Path) -> None:
    """What a full disk or a broken download leaves."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
