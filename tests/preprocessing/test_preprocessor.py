"""FMPreprocessor: shared folders are kept while current, redone when something changed, and never half-written."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.preprocessing.preprocessor import FMPreprocessor
from nnunet_fm.preprocessing.raw import training_cases
from nnunet_fm.preprocessing.shared_cache import is_current, lease, replace_folder, stamp_path
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint, write_image
from tests.helpers.errors import fails

SHAPE = (10, 12, 11)


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A dataset of two cases with a plan; nothing preprocessed yet."""
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    variables = nnunet_folders(tmp_path, monkeypatch)
    folder = write_dataset(variables["nnUNet_raw"], 801, shape=SHAPE, cases=2, test_cases=0)
    write_fingerprint(folder, [SHAPE] * 2, [(1.0, 1.0, 1.0)] * 2)
    return plan("FMPlans_one")


def plan(name: str, planner: str = "FMPlanner_stunet_s", **options: Any) -> dict[str, Any]:
    return planner_class(planner)(801, 40, plans_name=name, options=Options(**options)).plan_experiment()


def run(plans: dict[str, Any], processes: int = 1) -> Path:
    """Preprocess; returns the folder."""
    FMPreprocessor(verbose=False).run(801, "3d_fullres", plans["plans_name"], processes)
    return Path(
        os.environ["nnUNet_preprocessed"], "Dataset801_Blobs", plans["configurations"]["3d_fullres"]["data_identifier"]
    )


def written(folder: Path) -> dict[str, int]:
    """Times of the files in a folder: equal before and after if nothing was done."""
    return {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}


def test_kept_redone_and_protected(planned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(planned)
    assert len(list(folder.glob("*.pkl"))) == 2 and not list(folder.parent.glob("*.partial*"))
    first = written(folder)

    # A second plan of the same preprocessing finds the folder.
    other = plan("FMPlans_two", "FMPlanner_stunet_b")
    assert run(other) == folder and written(folder) == first
    assert "up to date" in capsys.readouterr().out

    # A changed raw file redoes it, unless a training reads the folder.
    image = next((tmp_path / "nnUNet_raw" / "Dataset801_Blobs" / "imagesTr").glob("*.nii.gz"))
    os.utime(image, (time.time() + 5, time.time() + 5))
    reading = lease(folder)
    assert reading is not None
    with fails("preprocessed-in-use"):
        run(planned)
    assert written(folder) == first
    reading.close()
    assert run(planned) == folder and written(folder) != first
    assert not list(folder.parent.glob("*.old")) and not list(folder.parent.glob(".fm_*"))

    # Another setting goes to another folder.
    redone = written(folder)
    elsewhere = run(plan("FMPlans_three", spacing=[1.5, 1.0, 1.0]))
    assert elsewhere != folder and written(folder) == redone

    # What an interrupted run left is no obstacle, and a folder without its stamp is not trusted.
    stamp_path(folder).unlink()
    folder.with_name(folder.name + ".partial").mkdir()
    assert (
        run(planned) == folder
        and written(folder) != redone
        and is_current(folder, json.loads(stamp_path(folder).read_text()))
    )


def test_two_processes_do_not_clash(planned: dict[str, Any]) -> None:
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=run, args=(planned,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(list(run(planned).glob("*.pkl"))) == 2


def test_settings_changed_by_hand_are_noticed(planned: dict[str, Any]) -> None:
    file = Path(os.environ["nnUNet_preprocessed"], "Dataset801_Blobs", "FMPlans_one.json")
    planned["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    file.write_text(json.dumps(planned))
    with fails("plan-identifier", "data_identifier"):
        run(planned)


def change_dataset_json(**changes: Any) -> None:
    file = Path(os.environ["nnUNet_raw"], "Dataset801_Blobs", "dataset.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def located(folder: Path) -> list[Any]:
    """The classes whose voxels are listed beside a preprocessed case."""
    return list(pickle.loads(next(folder.glob("*.pkl")).read_bytes())["class_locations"])


def test_other_labels_are_preprocessed_again(planned: dict[str, Any]) -> None:
    folder = run(planned)
    assert located(folder) == [1, 2]
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    for labels, order, expected in (
        (regions, [1, 2], [(1, 2), 2]),
        (regions, [2, 1], [(1, 2), 2]),
        ({"background": 0, "one": 1, "two": 2, "ignore": 3}, None, [1, 2, (-1, 0, 1, 2)]),
        ({"background": 0, "two": 2, "one": 1}, None, [1, 2]),
    ):
        before = written(folder)
        change_dataset_json(labels=labels, regions_class_order=order)
        with lease(folder) as reading, fails("preprocessed-in-use"):  # type: ignore[union-attr]
            assert reading
            run(planned)
        assert run(planned) == folder and written(folder) != before and located(folder) == expected
        copied = json.loads((folder.parent / "dataset.json").read_text())
        assert (copied["labels"], copied["regions_class_order"]) == (labels, order)
    kept = written(folder)
    change_dataset_json(description="another", numTraining="2")
    assert run(planned) == folder and written(folder) == kept
    assert json.loads((folder.parent / "dataset.json").read_text())["numTraining"] == "2"  # trainings compare it


def test_a_folder_of_an_older_version_is_kept_if_its_classes_are_the_present_ones(planned: dict[str, Any]) -> None:
    folder = run(planned)
    kept, stamp = written(folder), json.loads(stamp_path(folder).read_text())
    old = json.dumps({name: value for name, value in stamp.items() if name != "labels"})
    stamp_path(folder).write_text(old)
    assert run(planned) == folder and written(folder) == kept
    change_dataset_json(labels={"background": 0, "whole": [1, 2]}, regions_class_order=[1])
    assert run(planned) == folder and written(folder) != kept and located(folder) == [(1, 2)]


@pytest.mark.parametrize("name", ["FMPlans_of_801", None])
def test_plans_move_between_datasets(planned: dict[str, Any], name: str | None) -> None:
    """By nnU-Net's command, to a dataset of another file ending, which another reader reads."""
    source = Path(os.environ["nnUNet_raw"], "Dataset801_Blobs")
    target = write_dataset(source.parent, 802, shape=SHAPE, cases=2, test_cases=0)
    change = json.loads((target / "dataset.json").read_text())
    (target / "dataset.json").write_text(
        json.dumps({**change, "overwrite_image_reader_writer": "NibabelIOWithReorient"})
    )
    prepared = Path(os.environ["nnUNet_preprocessed"], target.name)
    prepared.mkdir()
    move_plans_between_datasets(801, 802, "FMPlans_one", name)
    moved = json.loads((prepared / f"{name or 'FMPlans_one'}.json").read_text())
    assert moved["image_reader_writer"] == "NibabelIOWithReorient"
    FMPreprocessor(verbose=False).run(802, "3d_fullres", moved["plans_name"], 1)
    folder = prepared / moved["configurations"]["3d_fullres"]["data_identifier"]
    assert len(list(folder.glob("*.pkl"))) == 2 and (prepared / "dataset.json").is_file()


def test_a_configuration_that_inherits_shares_the_folder(planned: dict[str, Any]) -> None:
    folder = run(planned)
    kept = written(folder)
    planned["configurations"]["larger_batch"] = {"inherits_from": "3d_fullres", "batch_size": 5}
    (folder.parent / "FMPlans_one.json").write_text(json.dumps(planned))
    FMPreprocessor(verbose=False).run(801, "larger_batch", "FMPlans_one", 1)
    assert written(folder) == kept


def test_a_failed_replacement_leaves_the_old_folder(tmp_path: Path) -> None:
    folder, new = tmp_path / "data", tmp_path / "data.partial"
    folder.mkdir()
    (folder / "old").touch()
    new.mkdir()
    with lease(folder) as reading:  # type: ignore[union-attr]
        assert reading
        with fails("preprocessed-in-use"):
            replace_folder(new, folder, {"a": 1})
    assert (folder / "old").exists() and new.is_dir()
    replace_folder(new, folder, {"a": 1})
    assert is_current(folder, {"a": 1}) and not is_current(folder, {"a": 2}) and not (folder / "old").exists()
    stamp_path(folder).write_text('{"a": ')
    assert not is_current(folder, {"a": 1})


def test_several_processes_write_what_one_writes(planned: dict[str, Any]) -> None:
    alone = run(planned)
    kept = {f.name: f.read_bytes() for f in alone.iterdir()}
    stamp_path(alone).unlink()
    assert {f.name: f.read_bytes() for f in run(planned, processes=3).iterdir()} == kept


class Killed(FMPreprocessor):
    """Its worker processes end as if the system had no memory left for them."""

    def run_case_save(self, *_: Any) -> None:
        os._exit(9)


def test_a_case_that_fails_leaves_nothing(planned: dict[str, Any], tmp_path: Path) -> None:
    write_image(
        tmp_path / "nnUNet_raw/Dataset801_Blobs/labelsTr/case_01.nii.gz", np.zeros((3, 4, 5), np.uint8), [1] * 3
    )
    with fails("grid-differs", "case_01_0000.nii.gz", "case_01.nii.gz"):
        run(planned)
    assert not list((tmp_path / "nnUNet_preprocessed" / "Dataset801_Blobs").glob("fm_*/"))


@pytest.mark.slow
def test_a_killed_process_is_reported(planned: dict[str, Any], tmp_path: Path) -> None:
    with fails("process-killed", "-np 1"):
        Killed(verbose=False).run(801, "3d_fullres", planned["plans_name"], 2)
    assert not list((tmp_path / "nnUNet_preprocessed" / "Dataset801_Blobs").glob("fm_*/"))


@pytest.mark.parametrize("listed", [False, True])
def test_cases_are_listed_as_nnunet_lists_them(tmp_path: Path, listed: bool) -> None:
    folder = write_dataset(tmp_path, 1, cases=3, channels=("T1", "T2"), shape=(4, 4, 4))
    for stray in ("notes.txt", "case_01_0000.nii.gz.part", ".DS_Store"):
        (folder / "imagesTr" / stray).touch()
    content = json.loads((folder / "dataset.json").read_text())
    if listed:
        content["dataset"] = {"a": {"images": ["imagesTr/case_00_0000.nii.gz"], "label": "labelsTr/case_00.nii.gz"}}
    stock = get_filenames_of_train_images_and_targets(str(folder), copy.deepcopy(content))
    assert training_cases(folder, content) == stock and len(stock) == (1 if listed else 3)
