"""HaN-Seg: one mask per organ, a mask that is missing, overlaps, MR that is not registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion.base import ConversionOptions
from nnunet_fm.dataset_conversion.hanseg import IGNORE, ORGANS
from nnunet_fm.dataset_conversion.registration import register_rigidly
from nnunet_fm.dataset_conversion.tree import Tree, open_tree
from nnunet_fm.io.volume import Grid, Volume, resample
from tests.helpers.convert_tester import (
    ConverterTester,
    Fault,
    edit,
    label_voxels,
    scene,
    snapshot,
    truncate,
    verify,
    voxels,
)
from tests.helpers.errors import fails
from tests.helpers.images import write_volume

NAMES = (
    "A_Carotid_L", "A_Carotid_R", "Arytenoid", "Bone_Mandible", "Brainstem", "BuccalMucosa", "Cavity_Oral",
    "Cochlea_L", "Cochlea_R", "Cricopharyngeus", "Esophagus_S", "Eye_AL", "Eye_AR", "Eye_PL", "Eye_PR",
    "Glnd_Lacrimal_L", "Glnd_Lacrimal_R", "Glnd_Submand_L", "Glnd_Submand_R", "Glnd_Thyroid", "Glottis", "Larynx_SG",
    "Lips", "OpticChiasm", "OpticNrv_L", "OpticNrv_R", "Parotid_L", "Parotid_R", "Pituitary", "SpinalCord",
)  # fmt: skip
"""Written down here once more, as the facts have it."""

ROOTS = {"official": "HaN-Seg", "doubled_root": "HaN-Seg/HaN-Seg"}
SPACING, ORIGIN = (0.9, 0.9, 2.5), (-120.0, -80.5, 900.0)


class TestHaNSeg(ConverterTester):
    name = "hanseg"
    variants = tuple(ROOTS)
    image = "HaN-Seg/set_1/case_02/case_02_IMG_CT.nrrd"
    label = "HaN-Seg/set_1/case_02/case_02_OAR_Brainstem.seg.nrrd"
    case = "case_02"
    slice_axis = 0
    sides = 8
    illegal: ClassVar = (
        {"domain": "t1"},
        {"labels": "lumbar"},
        {"split": "official"},
        {"thesis": True},
        {"n4": True},
        {"skull_strip": "labels"},
        {"outside": "ignore"},
        {"domain": "mr", "outside": "forget"},
    )

    def make_tree(self, root: Path, variant: str) -> dict[str, dict[int, int]]:
        """CT and masks; tests of the other domains add MR."""
        expected, top = {}, root / ROOTS[variant]
        for number in (1, 2, 42):
            image, label = scene(number, tuple(range(1, 31)), (6, 12, 14))
            folder = top / f"set_1/case_{number:02d}"
            write_volume(folder / f"case_{number:02d}_IMG_CT.nrrd", image, SPACING, ORIGIN)
            for value, organ in enumerate(NAMES, 1):
                path = folder / f"case_{number:02d}_OAR_{organ}.seg.nrrd"
                write_volume(path, (label == value).astype(np.uint8), SPACING, ORIGIN)
            expected[f"case_{number:02d}"] = voxels(label)
        for name in ("README.md", "LICENSE", "set_1/OAR_data.csv", "set_1/patient_data.csv"):
            (top / name).write_text("text")
        return expected

    # Faults: two masks have to be missing, and masks have no table

    def missing_label(self, root: Path) -> Fault:
        for organ in ("Brainstem", "Lips"):
            (root / self.label.replace("Brainstem", organ)).unlink()
        return Fault(root, Path(self.image).name, "mask-missing", "Brainstem, Lips")

    def missing_image(self, root: Path) -> Fault:
        (root / self.image).unlink()
        return Fault(root, "case_02_OAR_A_Carotid_L.seg.nrrd", "file-missing", "CT")

    def second_file(self, root: Path) -> Fault:
        return super().second_file(root)._replace(fact="Brainstem")

    def foreign_label(self, root: Path) -> Fault:
        return super().foreign_label(root)._replace(code="mask-values", fact="[1, 99]")

    def test_numbers_are_those_of_the_challenge(self) -> None:
        assert ORGANS.names == {"background": 0} | {name: i for i, name in enumerate(NAMES, 1)}

    @pytest.mark.parametrize("gone", ["A_Carotid_L", "Lips"])
    def test_the_one_missing_mask_is_noted_and_shifts_no_number(self, gone: str, tmp_path: Path) -> None:
        expected = self.make_tree(tmp_path / "s", "official")
        (tmp_path / "s/HaN-Seg/set_1/case_01" / f"case_01_OAR_{gone}.seg.nrrd").unlink()
        report = self.convert(tmp_path / "s", tmp_path / "raw")
        del expected["case_01"][1 + NAMES.index(gone)]
        assert report.folder is not None and label_voxels(report.folder) == expected
        assert f"case_01 has no mask of {gone}: it is background there" in report.notes
        assert "39 of the 42 public cases are not used" in report.notes
        names = json.loads((report.folder / "dataset.json").read_text(encoding="utf-8"))["labels"]
        assert len(names) == 31 and names["Lips"] == 23

    def test_one_missing_mask_in_two_cases_is_one_too_many(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "s", "official")
        for case in ("case_01", "case_42"):
            (tmp_path / f"s/HaN-Seg/set_1/{case}/{case}_OAR_Lips.seg.nrrd").unlink()
        problems = self.convert(tmp_path / "s", None, dry_run=True).problems
        assert [problem.case for problem in problems] == ["case_01", "case_42"]

    def test_an_organ_of_another_name_is_refused(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "s", "official")
        folder = tmp_path / "s/HaN-Seg/set_1/case_01"
        (folder / "case_01_OAR_Glnd_Thyroid.seg.nrrd").rename(folder / "case_01_OAR_Gland_Thyroid.seg.nrrd")
        with fails("labels-unknown", "Gland_Thyroid.seg.nrrd"):
            self.convert(tmp_path / "s", tmp_path / "raw")

    def test_overlaps_are_counted_and_the_higher_number_wins(self, tmp_path: Path) -> None:
        expected = self.make_tree(tmp_path / "s", "official")
        low, high = (
            tmp_path / f"s/HaN-Seg/set_1/case_02/case_02_OAR_{organ}.seg.nrrd" for organ in ("Bone_Mandible", "Lips")
        )
        lips = sitk.GetArrayFromImage(sitk.ReadImage(high))
        edit(low, lambda array: array | lips)
        report = self.convert(tmp_path / "s", tmp_path / "raw")
        assert report.folder is not None and label_voxels(report.folder) == expected  # 4 + 23 is no label
        note = f"case_02: {lips.sum()} voxels of Bone_Mandible are Lips as well, which wins"
        assert [n for n in report.notes if "as well" in n] == [note]

    def test_the_order_of_files_does_not_matter(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "s", "official")
        tree, options = open_tree(tmp_path / "s", tmp_path), self.converter.options()
        turned = Tree(tree.source, tree.scratch, dict(reversed(tree.entries.items())))
        cases = [list(self.converter.cases(t, options).cases) for t in (tree, turned)]
        assert cases[0] == cases[1]
        assert [source.structure for source in cases[0][0].labels] == list(NAMES)

    def test_a_mask_cropped_to_its_organ_is_put_in_its_place(self, tmp_path: Path) -> None:
        expected = self.make_tree(tmp_path / "s", "official")
        path = tmp_path / "s" / self.label
        mask = sitk.ReadImage(path)
        write_volume(
            path,
            sitk.GetArrayFromImage(mask)[1:, 1:, 1:],
            SPACING,
            tuple(o + s for o, s in zip(ORIGIN, SPACING, strict=True)),  # type: ignore[arg-type]  # three each
        )
        report = self.convert(tmp_path / "s", tmp_path / "raw")
        assert report.folder is not None and label_voxels(report.folder) == expected
        assert any("case_02_OAR_Brainstem.seg.nrrd: resampled" in note for note in report.notes)

    # MR

    def make_pair(self, root: Path) -> tuple[np.ndarray, np.ndarray, Volume]:
        """One case with MR; returns its labels, what MR sees of the CT's grid, and MR in its true place."""
        ct, mr, true = phantom()
        start = root / "set_1/case_01/case_01"
        write_volume(Path(f"{start}_IMG_CT.nrrd"), ct.array, ct.grid.spacing, ct.grid.origin)
        write_volume(Path(f"{start}_IMG_MR_T1.nrrd"), mr.array, mr.grid.spacing, mr.grid.origin, mr.grid.direction)
        labels = np.zeros(ct.array.shape, np.uint8)
        for value, organ in enumerate(NAMES, 1):
            labels[value, 12:16, 10 + value // 3] = value
            path = Path(f"{start}_OAR_{organ}.seg.nrrd")
            write_volume(path, (labels == value).astype(np.uint8), ct.grid.spacing, ct.grid.origin)
        seen = resample(Volume(np.ones_like(true.array, np.uint8), true.grid), ct.grid, label=True).array != 0
        return labels, seen, resample(true, ct.grid, label=False)

    def test_mr_is_moved_onto_ct(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        labels, seen, true = self.make_pair(tmp_path / "s")
        report = self.convert(tmp_path / "s", tmp_path / "raw", options={"domain": "ctmr"})
        folder = report.folder
        assert folder is not None and folder.name == "Dataset501_HaNSeg_CTMR"
        verify(folder, monkeypatch)
        names = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["channel_names"]
        assert names == {"0": "CT", "1": "MR_T1"}
        moved = sitk.GetArrayFromImage(sitk.ReadImage(folder / "imagesTr/case_01_0001.nii.gz"))
        written = sitk.GetArrayFromImage(sitk.ReadImage(folder / "labelsTr/case_01.nii.gz"))
        assert np.array_equal(written, labels)  # also where MR shows nothing
        assert np.corrcoef(moved[seen], true.array[seen])[0, 1] > 0.97
        assert np.count_nonzero(moved[~seen]) < 0.05 * np.count_nonzero(seen)
        assert any("MR was moved onto CT by" in note for note in report.notes)
        assert any("outside of the view of MR stay: A_Carotid_L" in note for note in report.notes)

        again = self.convert(tmp_path / "s", tmp_path / "again", options={"domain": "ctmr"}).folder
        assert snapshot(folder) == snapshot(again)

    @pytest.mark.parametrize("outside", [None, "ignore"])
    def test_mr_alone(self, outside: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        labels, seen, _ = self.make_pair(tmp_path / "s")
        folder = self.convert(tmp_path / "s", tmp_path / "raw", options={"domain": "mr", "outside": outside}).folder
        assert folder is not None and folder.name == "Dataset501_HaNSeg_MR"
        verify(folder, monkeypatch)
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        assert content["channel_names"] == {"0": "MR_T1"}
        assert content["labels"].get("ignore") == (IGNORE if outside else None)
        written = sitk.GetArrayFromImage(sitk.ReadImage(folder / "labelsTr/case_01.nii.gz"))
        inside = written != IGNORE if outside else seen
        assert np.count_nonzero(inside != seen) < 0.05 * np.count_nonzero(seen)
        both = inside & seen
        assert np.array_equal(written[both], labels[both])
        if outside is None:
            assert set(np.unique(written)) < set(np.unique(labels))

    def test_mr_that_cannot_be_registered_is_named(self, tmp_path: Path) -> None:
        self.make_pair(tmp_path)
        mr = tmp_path / "set_1/case_01/case_01_IMG_MR_T1.nrrd"
        edit(mr, lambda array: array * 0)
        report = self.convert(tmp_path, None, options={"domain": "ctmr"}, dry_run=True)
        (problem,) = report.problems
        assert problem.file.endswith(mr.name) and problem.code == "registration-failed"
        truncate(mr)
        report = self.convert(tmp_path, None, options={"domain": "mr"}, dry_run=True)
        assert report.problems[0].code == "image-cut-off"
        mr.unlink()
        report = self.convert(tmp_path, None, options={"domain": "mr"}, dry_run=True)
        assert report.problems[0].code == "file-missing" and "MR" in report.problems[0].rule
        assert self.convert(tmp_path, None, dry_run=True).problems == ()  # CT alone needs none

    def test_what_lies_outside_is_a_question_of_mr(self) -> None:
        with fails("option-incomplete", "--domain"):
            self.converter.options(outside="keep")
        chosen: dict[str, Any] = {"ctmr": "keep", "mr": "background", "ct": None}
        for domain, outside in chosen.items():
            options = self.converter.options(domain=domain)
            assert isinstance(options, ConversionOptions) and options.outside == outside


def phantom() -> tuple[Volume, Volume, Volume]:
    """CT; MR of the same head with other contrast, a smaller view and shifted coordinates; and MR in its true place."""
    rng = np.random.default_rng(0)
    grid = Grid((36, 32, 34), (4.0, 4.0, 4.0), (-70.0, -60.0, 10.0))
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij")
    head = ((x / 0.8) ** 2 + (y / 0.7) ** 2 + (z / 0.95) ** 2 < 1).astype(np.float32)
    tissue = np.zeros(grid.shape, np.float32)
    for _ in range(25):
        cx, cy, cz = rng.uniform(-0.6, 0.6, 3)
        tissue[(x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < rng.uniform(0.1, 0.3) ** 2] = rng.uniform(0.2, 1)
    ct = Volume((head * (40 + 800 * tissue) - 1000 * (1 - head)).astype(np.int16), grid)
    contrast = Volume((head * (300 + 400 * np.cos(4 * tissue))).astype(np.float32), grid)
    # A view of two thirds along z, tilted, on voxels of another size.
    place = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.12, -0.08, 0.1)
    direction = tuple(place.GetMatrix())
    true = Grid((30, 28, 24), (4.2, 4.0, 3.5), (-60.0, -52.0, 44.0), direction)
    array = resample(contrast, true, label=False).array.astype(np.int16)
    shift = sitk.Euler3DTransform((0.0, 0.0, 60.0), -0.06, 0.05, 0.08, (9.0, -7.0, 6.0))
    turned = np.reshape(shift.GetMatrix(), (3, 3)) @ np.reshape(direction, (3, 3))
    wrong = Grid(true.size, true.spacing, shift.TransformPoint(true.origin), tuple(turned.ravel().tolist()))
    return ct, Volume(array, wrong), Volume(array, true)


def test_registration_finds_the_place_from_both_starts() -> None:
    ct, mr, true = phantom()
    far = Volume(mr.array, Grid(mr.grid.size, mr.grid.spacing, (500.0, 500.0, -700.0), mr.grid.direction))
    for image, start in ((mr, None), (far, "centres")):
        found = register_rigidly(image, ct, (-500, 1000))
        assert start is None or found.start == start
        corners = np.array([[0, 0, 0], [29, 0, 0], [0, 27, 0], [0, 0, 23], [29, 27, 23]], dtype=float)
        errors = np.linalg.norm((true.grid.indices_of(corners, found.grid) - corners) * true.grid.spacing, axis=1)
        assert errors.max() < 4  # a voxel
