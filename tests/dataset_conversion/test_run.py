"""A conversion as a whole: channels, splits, problems, interruptions, worker processes."""

from __future__ import annotations

import multiprocessing
import os
import zipfile
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from filelock import FileLock

from nnunet_fm.dataset_conversion import get_converter
from nnunet_fm.dataset_conversion import run as run_module
from nnunet_fm.dataset_conversion.base import (
    Case,
    ConversionOptions,
    ImageSource,
    Listing,
)
from nnunet_fm.dataset_conversion.flat_hdf5 import flat_volumes
from nnunet_fm.dataset_conversion.run import Report, convert
from nnunet_fm.dataset_conversion.tree import Tree
from tests.helpers.convert_tester import edit, fill, scene, snapshot, verify, voxels
from tests.helpers.errors import fails
from tests.helpers.images import write_volume
from tests.helpers.toy_converter import Toy, content, toy, write_aorta, write_toy, write_toys


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    return write_toys(tmp_path / "toys")


@pytest.fixture
def aorta(tmp_path: Path) -> Path:
    return write_aorta(tmp_path / "aorta")


def test_channels_tests_and_folds(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = toy(toys, tmp_path / "raw", {"split": "official"})
    assert (report.dataset, report.training, report.test) == ("Dataset007_Toy", 5, 1)
    assert report.folder is not None
    verify(report.folder, monkeypatch)
    assert [p.name for p in sorted((report.folder / "imagesTs").iterdir())] == ["t1_0000.nii.gz", "t1_0001.nii.gz"]
    assert not list((report.folder / "labelsTs").iterdir())
    folds = content(report, "splits_final.json")
    assert len(folds) == 5 and folds[0] == {"train": ["c1", "c3", "c4", "c5"], "val": ["c2"]}
    record = content(report, "conversion.json")
    assert (
        record["slice_axis"] == 1
        and record["split"]["test"] == ["t1"]
        and set(record["sources"]) == set(snapshot(toys))
    )
    image = sitk.ReadImage(report.folder / "imagesTr" / "c1_0001.nii.gz")
    assert image.GetDirection() == (0, 1, 0, 1, 0, 0, 0, 0, -1) and image.GetPixelID() == sitk.sitkInt16


def test_a_users_split_leaves_cases_out(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"train": ["c1", "c3"], "val": ["c4"], "test": ["c2"]}')
    report = toy(toys, tmp_path / "raw", {"split": str(tmp_path / "mine.json")})
    assert (report.training, report.test, report.unused) == (3, 1, ("c5", "t1"))
    assert report.folder is not None and (report.folder / "labelsTs" / "c2.nii.gz").is_file()
    assert content(report, "conversion.json")["options"]["split"] == "mine.json"
    (tmp_path / "mine.json").write_text('{"train": ["c1", "t1"]}')
    with fails("labels-missing", "t1_0.nii.gz"):
        toy(toys, tmp_path / "raw2", {"split": str(tmp_path / "mine.json")})


def test_domains_and_label_sets(toys: Path, tmp_path: Path) -> None:
    report = toy(toys, tmp_path / "raw", {"labels": "b", "domain": "y"})
    assert report.dataset == "Dataset007_Toy_Y" and content(report, "dataset.json")["labels"] == {
        "background": 0,
        "b": 1,
    }
    assert report.folder is not None
    _, label = scene(3, (1, 2))
    written = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "labelsTr" / "c3.nii.gz"))
    assert np.array_equal(written, label == 2)


def test_the_theses_steps(toys: Path, tmp_path: Path) -> None:
    (toys / "t1_0.nii.gz").unlink()  # a case without labels cannot be stripped by them
    (toys / "t1_1.nii.gz").unlink()
    report = toy(toys, tmp_path / "raw", {"thesis": True})
    assert report.folder is not None
    assert content(report, "dataset.json")["channel_names"] == {"0": "T1_0_to_1", "1": "CT_0_to_1"}
    image = sitk.ReadImage(report.folder / "imagesTr" / "c1_0000.nii.gz")
    assert image.GetSize() == (14, 16, 16)  # the patient's second axis is the file's x: its 14 slices stay
    assert image.GetSpacing() == pytest.approx((1.5, 0.7, 0.7))
    notes = content(report, "conversion.json")["cases"]["c1"]["notes"]
    assert [note.split(":")[0] for note in notes] == ["N4", "skull strip", "thesis"]
    plain = toy(toys, tmp_path / "raw2", {"thesis": True, "n4": False, "skull_strip": "no"})
    assert len(content(plain, "conversion.json")["cases"]["c1"]["notes"]) == 1 and plain.folder is not None
    array = sitk.GetArrayFromImage(sitk.ReadImage(plain.folder / "imagesTr" / "c1_0000.nii.gz"))
    assert array.min() == 0 and 0.5 < array.max() <= 1


def test_masks_of_users_strip_skulls(toys: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    inside = np.zeros((10, 12, 14), np.uint8)
    inside[4:6] = 1
    for case in ("c1", "c2", "c3", "c4", "c5", "t1"):
        write_toy(masks / f"{case}.nii.gz", inside)
    report = toy(toys, tmp_path / "raw", {"skull_strip": str(masks)})
    assert report.folder is not None
    array = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "imagesTs" / "t1_0000.nii.gz"))
    assert not array[inside == 0].any() and array[inside == 1].any()
    assert toy(toys, tmp_path / "raw", {"skull_strip": str(masks)}).status == "unchanged"
    write_toy(masks / "c1.nii.gz", 1 - inside)
    with fails("dataset-exists", "--force"):
        toy(toys, tmp_path / "raw", {"skull_strip": str(masks)})


def test_channels_on_other_grids_are_refused(toys: Path, tmp_path: Path) -> None:
    edit(toys / "c2_1.nii.gz", lambda array: array)
    write_volume(toys / "c2_1.nii.gz", scene(2, (1, 2))[0])
    with fails("grid-differs", "c2_1.nii.gz", "c2_0.nii.gz"):
        toy(toys, tmp_path / "raw")


def test_what_a_dataset_leaves_out_is_no_problem(toys: Path, tmp_path: Path) -> None:
    for role in ("0", "1", "seg"):
        (toys / f"c5_{role}.nii.gz").rename(toys / f"c9_{role}.nii.gz")
    report = toy(toys, tmp_path / "raw")
    assert report.left_out == {"c9": "nine is left out"} and report.training == 4 and report.problems == ()
    assert toy(toys, tmp_path / "raw").left_out == report.left_out


def test_all_problems_are_told_at_once(toys: Path, tmp_path: Path) -> None:
    edit(toys / "c2_seg.nii.gz", lambda array: array * 50)
    edit(toys / "c4_seg.nii.gz", lambda array: array * 0)
    (toys / "c5_1.nii.gz").unlink()
    with fails("problems-found", "3", "c5_") as raised:
        toy(toys, tmp_path / "raw")
    assert [problem.case for problem in raised.value.problems] == ["c5", "c2", "c4"]
    assert list((tmp_path / "raw").iterdir()) == []
    report = toy(toys, tmp_path / "raw", skip_invalid=True)
    assert report.training == 2 and [problem.case for problem in report.problems] == ["c5", "c2", "c4"]
    assert toy(toys, tmp_path / "raw", skip_invalid=True).status == "unchanged"
    with fails("problems-found", "3"):
        toy(toys, tmp_path / "raw")


def test_other_files_or_options_need_force(toys: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    first = snapshot(toy(toys, raw).folder)
    for options, change in (({"labels": "b"}, None), ({}, toys / "c1_0.nii.gz")):
        if change is not None:
            edit(change, lambda array: array + 1)
        with fails("dataset-exists", "Dataset007_Toy"):
            toy(toys, raw, options)
        report = toy(toys, raw, options, force=True)
        assert report.status == "converted" and snapshot(report.folder) != first
        assert toy(toys, raw, options).status == "unchanged"
        assert [path.name for path in raw.iterdir()] == ["Dataset007_Toy"]
    assert report.folder is not None
    (report.folder / "labelsTr" / "c1.nii.gz").unlink()  # no longer what the record says
    with fails("dataset-exists", "--force"):
        toy(toys, raw)


def test_a_number_that_is_taken_or_none_is_refused(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "raw" / "Dataset007_Mine").mkdir(parents=True)
    with fails("dataset-taken", "Dataset007_Mine"):
        toy(toys, tmp_path / "raw", force=True)
    with fails("dataset-number", "1000"):
        convert(Toy(), toys, 1000, Toy().options(), tmp_path / "raw")


def test_a_second_run_at_the_same_time_is_refused(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with (
        FileLock(tmp_path / "raw" / ".Dataset007.lock"),
        fails("dataset-busy", "7"),
    ):
        toy(toys, tmp_path / "raw")


def test_what_an_interrupted_run_left_is_checked(toys: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    raw = tmp_path / "raw"
    whole = snapshot(toy(toys, tmp_path / "whole").folder)
    for damage, kept in ((None, 3), ("image", 2), ("source", 2), ("options", 0)):
        with pytest.raises(KeyboardInterrupt):
            toy(toys, raw, {"labels": "b"} if damage == "options" else None, progress=interrupt)
        (partial,) = raw.iterdir()
        if damage == "image":
            (partial / "imagesTr" / "c2_0000.nii.gz").write_bytes(b"half")
        if damage == "source":
            edit(toys / "c3_1.nii.gz", lambda array: array + 1)
            whole = snapshot(toy(toys, tmp_path / "changed").folder)
        (partial / "imagesTr" / "gone_0000.nii.gz").write_bytes(b"of a case that is no longer there")
        report = toy(toys, raw)
        assert report.kept == kept and snapshot(report.folder) == whole
        assert report.folder is not None
        os.rename(report.folder, tmp_path / f"done_{damage}")
        assert list(raw.iterdir()) == []


def test_names_that_clash_or_are_none_are_refused(tmp_path: Path) -> None:
    class Clashing(Toy):
        names: ClassVar[tuple[str, ...]] = ("a", "A")

        def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
            return Listing("toy", [Case(name, (ImageSource("x"),), (ImageSource("y"),)) for name in self.names])

    fill(tmp_path / "source", "x", "y")
    with fails("case-twice"):
        convert(Clashing(), tmp_path / "source", 1, Toy().options(), tmp_path / "raw")
    Clashing.names = ("../a",)
    with fails("case-name", "../a"):
        convert(Clashing(), tmp_path / "source", 1, Toy().options(), tmp_path / "raw")


def test_masks_of_structures_are_merged_by_default(tmp_path: Path) -> None:
    class Organs(Toy):
        channels = ("CT",)

        def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
            masks = (ImageSource("a.nii.gz", structure="a"), ImageSource("b.nii.gz", structure="b"))
            return Listing("toy", [Case("one", (ImageSource("image.nii.gz"),), masks)])

    a, b = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
    a[1:3], b[2:4] = 1, 1
    for name, array in (("image", a * 100), ("a", a), ("b", b)):
        write_volume(tmp_path / "source" / f"{name}.nii.gz", array.astype(np.int16))

    def run(raw: str) -> Report:
        return convert(Organs(), tmp_path / "source", 1, Organs().options(), tmp_path / raw)

    report = run("raw")
    record = content(report, "conversion.json")["cases"]["one"]
    assert record["source_voxels"] == {"1": 60, "2": 60} and record["voxels"] == {"1": 30, "2": 60}
    assert record["notes"] == ["30 voxels of a are b as well, which wins"]
    write_volume(tmp_path / "source" / "a.nii.gz", (a + b).astype(np.int16))
    with fails("mask-values", "a.nii.gz"):
        run("raw2")
    write_volume(tmp_path / "source" / "a.nii.gz", 0 * a)
    with fails("mask-empty", "a.nii.gz"):
        run("raw3")


def test_files_of_several_cases_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(Toy):
        channels = ("T1",)

        def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
            volumes = flat_volumes(tree, "data.zip/a.hdf5", 0.7)
            return Listing("toy", [Case(f"c{v.index}", (v.image,), (v.label,)) for v in volumes])

    array = np.arange(9 * 5 * 6, dtype=np.float32).reshape(9, 5, 6)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["images"], file["labels"], file["nz"], file["pz"] = array, array % 3, [2, 3, 4], [3.0, 3.0, 3.0]
    (tmp_path / "source").mkdir()
    with zipfile.ZipFile(tmp_path / "source" / "data.zip", "w") as archive:
        archive.write(tmp_path / "a.hdf5", "a.hdf5")
    unpacked = []
    local = Tree.local
    monkeypatch.setattr(Tree, "local", lambda *a: (unpacked.append(a[1]), local(*a))[1])
    report = convert(Flat(), tmp_path / "source", 1, Toy().options(), tmp_path / "raw")
    assert report.training == 3 and len(unpacked) == 2  # to list its volumes, and to read them
    assert report.folder is not None
    label = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "labelsTr" / "c1.nii.gz"))
    assert voxels(label) == voxels(array[2:5] % 3)


def test_a_worker_that_dies_is_explained(aorta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_in_worker", _die)
    converter = get_converter("aortaseg24")
    with fails("process-killed", "-np"):
        convert(converter, aorta, 1, converter.options(), tmp_path / "raw", processes=2)
    assert list((tmp_path / "raw").iterdir()) == [] and not multiprocessing.active_children()


def _die(case: Case, part: str, write: bool) -> None:
    os._exit(9)


def test_workers_end_with_an_interruption(aorta: Path, tmp_path: Path) -> None:
    converter = get_converter("aortaseg24")

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(converter, aorta, 1, converter.options(), tmp_path / "raw", processes=2, progress=interrupt)
    assert not multiprocessing.active_children()
    report = convert(converter, aorta, 1, converter.options(), tmp_path / "raw", processes=2)
    assert report.kept >= 2 and report.training == 6
