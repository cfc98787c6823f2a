"""The folder of weights: names that are found, hashes that are remembered."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from nnunet_fm.weights import cache
from nnunet_fm.weights.cache import cache_folder, find, locate, sha256
from tests.helpers.errors import fails


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    return tmp_path


def test_cache_folder_follows_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == folder
    monkeypatch.setenv(cache.CACHE_VARIABLE, "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv(cache.CACHE_VARIABLE)
    assert cache_folder() == Path.home() / ".cache/nnunet_fm/weights"


def test_any_of_the_names_is_found(folder: Path) -> None:
    assert find(["a.pth", "b.pth"]) is None
    (folder / "b.pth").touch()
    assert find(["a.pth", "b.pth"]) == folder / "b.pth"
    assert locate("ab", ["a.pth", "b.pth"], page="", instead="") == folder / "b.pth"


def test_missing_file_says_what_to_do(folder: Path) -> None:
    with fails("weights-missing") as error:
        locate("stunet_small", ["a.model", "b.model"], page="https://example.org/x", instead="use fm_trainer_scratch")
    for part in ("stunet_small", "a.model", "b.model", "https://example.org/x", str(folder), "fm_trainer_scratch"):
        assert part in str(error.value)


def test_hash_is_computed_once_per_content(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "a.pth"
    file.write_bytes(b"one")
    assert sha256(file) == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "compute_sha256", lambda path: pytest.fail("hashed again"))
        assert sha256(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two!")
    assert sha256(file) == hashlib.sha256(b"two!").hexdigest()
    status = file.stat()
    file.write_bytes(b"tri!")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert sha256(file) == hashlib.sha256(b"tri!").hexdigest()


@pytest.mark.parametrize("content", ["", "[]", '{"a.pth": 3}', '{"a.pth": {"sha256": "x"}}'])
def test_damaged_hash_memory_is_ignored(folder: Path, content: str) -> None:
    (folder / cache.HASH_FILE).write_text(content)
    (folder / "a.pth").write_bytes(b"one")
    assert sha256(folder / "a.pth") == hashlib.sha256(b"one").hexdigest()


def test_hash_without_a_writable_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.pth").write_bytes(b"one")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert sha256(folder / "a.pth") == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(cache, "compute_sha256", lambda path: pytest.fail("hashed again"))
    assert sha256(folder / "a.pth") == hashlib.sha256(b"one").hexdigest()
