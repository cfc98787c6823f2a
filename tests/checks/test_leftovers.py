"""Files that killed commands left are found and removed, and nothing else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from nnunet_fm.checks import folders, leftovers
from nnunet_fm.io import locks
from nnunet_fm.io.atomic_write import SCRATCH, replacing
from tests.helpers.datasets import nnunet_folders


def age(path: Path, days: float = 2) -> Path:
    """Let a file, or a folder with all in it, be of the day before yesterday."""
    then = time.time() - days * 24 * 3600
    for inner in (*path.rglob("*"), path):
        os.utime(inner, (then, then))
    return path


def test_fix_makes_folders_and_removes_what_is_stale_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {name: tmp_path / name for name in folders.VARIABLES}
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "scratch"))
    assert list(leftovers.fix()) == [f"made {folder}" for folder in variables.values()]
    assert list(leftovers.fix()) == [] and not list(leftovers.left_behind())

    raw, preprocessed, results = variables.values()
    fold = results / "Dataset501_X" / "fm_trainer__FMPlans__3d_fullres" / "fold_0"
    weights = tmp_path / "weights"
    monkeypatch.setenv("NNUNET_FM_WEIGHTS", str(weights))
    stale = [raw / ".Dataset501_X.partial" / "imagesTr" / "a.nii.gz", raw / ".unpacking_1.partial" / "file",
             preprocessed / "Dataset501_X" / "fm_2d_1.partial" / "case.b2nd", fold / "checkpoint_final.pth.partial",
             preprocessed / "Dataset501_X" / "fm_2d_1.old" / "case.b2nd", fold / "not_finite_batch.pt.partial",
             raw / ".Dataset501_X.old" / "dataset.json", tmp_path / "scratch" / f"{SCRATCH}1" / "x"]  # fmt: skip
    for written in (fold / "training_record.json", fold / "pictures" / "a.png", weights / "a.pth",
                    preprocessed / "Dataset501_X" / "FMPlans.json", raw / "Dataset501_X" / "splits_final.json",
                    preprocessed / "Dataset501_X" / ".locks" / "plan.lock"):  # fmt: skip
        written.parent.mkdir(parents=True, exist_ok=True)
        with replacing(written) as partial:
            partial.touch()
        stale.append(partial)  # what a process leaves that is killed meanwhile
    kept = [raw / "Dataset501_X" / "imagesTr" / "a.nii.gz", preprocessed / "Dataset501_X" / "fm_2d_1" / "case.b2nd",
            preprocessed / "Dataset501_X" / "fm_2d_2.old" / "case.b2nd", fold / "checkpoint_final.pth",
            fold / "training_record.json", tmp_path / "scratch" / "somebody" / "x",
            preprocessed / "Dataset501_X" / "fm_2d_3.partial" / "held",
            raw / ".Dataset502_Y.partial" / "new"]  # fmt: skip
    for file in stale + kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"12345")
    for top in (raw, preprocessed, results, weights, tmp_path / "scratch"):
        age(top)
    age(kept[-1], days=0.5)
    with FileLock(preprocessed / "Dataset501_X" / "fm_2d_3.lock"):
        (check,) = leftovers.left_behind()
        assert (
            check.state == "note"
            and check.cure == "nnunet-fm doctor --fix"
            and check.detail.startswith(f"{len(stale)} left")
        )
        done = list(leftovers.fix())
    assert len(done) == len(stale) and all(line.startswith("removed ") for line in done)
    assert not any(file.exists() for file in stale) and all(file.exists() for file in kept)


def test_locks_of_dead_processes_are_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = nnunet_folders(tmp_path, monkeypatch)
    folder = Path(variables["nnUNet_results"], "Dataset501_X", ".locks")
    folder.mkdir(parents=True)
    alive = [os.getpid(), locks.start_of(os.getpid())]
    for name, process in (("alive", alive), ("dead", [alive[0], 1.0])):
        content = {"host": "here", "place": locks.this_place(), "processes": [process], "what": "test"}
        (folder / f"{name}.lock").write_text(json.dumps(content))
    age(folder)
    assert leftovers.leftovers() == [folder / "dead.lock"]
