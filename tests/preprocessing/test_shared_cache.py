"""Preprocessed folders of a colleague: read-only, or in a folder of a group; what who may only read gets from locks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_fm.preprocessing.shared_cache import is_current, lease, lock, replace_folder
from nnunet_fm.trainers import loop
from nnunet_fm.trainers.callbacks.fold_lock import FILE, check_free, training_in
from nnunet_fm.trainers.loop import BudgetTrainer
from tests.helpers.errors import fails

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A preprocessed folder in a place where other accounts can look."""
    root = Path(tempfile.mkdtemp(prefix="nnunet_fm_test_"))
    root.chmod(0o755)
    (root / "new").mkdir()
    replace_folder(root / "new", root / "fm_3d", {"a": 1})
    yield root / "fm_3d"
    root.chmod(0o755)
    shutil.rmtree(root)


@contextmanager
def stranger(folder: Path) -> Iterator[bytes]:
    """Another process, of an account that owns nothing where this one may start such, which reads a folder.

    Yields what it found: whether the folder is current, and whether it could be held.
    """
    (from_child, to_parent), (from_parent, to_child) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setgid(NOBODY), os.setuid(NOBODY)
            with lock(folder):
                held = lease(folder)
                os.write(to_parent, f"{is_current(folder, {'a': 1})} {held is not None}".encode())
                os.close(to_child), os.read(from_parent, 1)
            code = 0
        finally:
            os._exit(code)
    os.close(to_parent), os.close(from_parent)
    yield os.read(from_child, 100)
    os.close(to_child), os.close(from_child)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="accounts and locks are those of Unix")
@pytest.mark.parametrize(
    ("mode", "locked", "leased"),
    [(0o555, True, True), (0o777, True, True), (0o555, False, False)],
    ids=["read-only", "of a group", "without files to lock"],
)
def test_who_may_only_read_waits_for_writers_and_keeps_them_off(
    folder: Path, mode: int, locked: bool, leased: bool
) -> None:
    for file in (folder.with_name("fm_3d.lock"), folder.with_name("fm_3d.inuse")):
        file.touch(0o644) if locked else file.unlink(missing_ok=True)
        if locked and os.getuid() != 0:
            file.chmod(0o444)
    folder.parent.chmod(mode)
    with stranger(folder) as found:
        assert found.decode().split() == ["True", str(leased)]
        if leased and os.getuid() == 0:
            (new := folder.with_name("new")).mkdir()
            with fails("preprocessed-in-use"):
                replace_folder(new, folder, {"a": 2})
    assert is_current(folder, {"a": 1})


def test_file_systems_without_locks_are_read_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle: object, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert lease(folder) is None


def test_a_split_that_cannot_be_saved_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    trainer = SimpleNamespace(print_to_log_file=said.append)
    save = BudgetTrainer._save_if_writable
    save(trainer, [{"train": ["a"], "val": []}], str(tmp_path / "splits.json"))  # type: ignore[arg-type]
    assert json.loads((tmp_path / "splits.json").read_text()) == [{"train": ["a"], "val": []}] and not said
    for number, kept in ((errno.EROFS, True), (errno.EACCES, True), (errno.ENOSPC, False)):

        def refuse(content: object, file: str, number: int = number) -> None:
            raise OSError(number, os.strerror(number), file)

        monkeypatch.setattr(loop, "save_json", refuse)
        if kept:
            save(trainer, [], "splits.json")  # type: ignore[arg-type]
        else:
            with pytest.raises(OSError, match="No space"):
                save(trainer, [], "splits.json")  # type: ignore[arg-type]
    assert said == ["The split is not saved: splits.json cannot be written."] * 2


def test_a_fold_of_another_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).write_text('{"host": "node7", "process": 4}')
    opened: list[str] = []
    real = Path.open

    def refuse_writing(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        opened.append(mode)
        if mode != "r":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, mode, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse_writing)
    check_free(tmp_path)
    with fails("fold-foreign"), training_in(tmp_path):
        pass
    assert opened == ["r", "a+"]
    assert lock(tmp_path / "fm_2d") is not None
