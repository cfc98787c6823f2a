"""ABIDE: labels on another grid than the image, excluded subjects, sites, images without labels, N4, skull strip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion import steps
from nnunet_fm.dataset_conversion.tree import open_tree
from nnunet_fm.io.volume import Volume
from tests.helpers.brain_files import CLASSES, GROUPS, brain, write_flat
from tests.helpers.convert_tester import ConverterTester, Fault, label_voxels, verify, voxels
from tests.helpers.errors import fails
from tests.helpers.images import write_volume

LABORATORY = ("A00032872", "A00032873", "A00032875", "A00033264", "A00033493")
PUBLIC = ("0051456", "0051457", "0051458")
LABEL = "orig_labels_aligned_with_true_image.nii.gz"
SPACING, ORIGIN = (1.0, 1.2, 0.9), (-20.0, 30.0, 10.0)
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, -1, 0)
"""Directions of a scan whose slices are sagittal: x runs to posterior, y to inferior, z to left."""

LIA = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""Axes of FreeSurfer's conformed volumes: left, inferior, anterior; 1 mm."""

FLAT = "brain/abide/{}/data_T1_2d_size_256_256_depth_{}_res_0.7_0.7{}_from_{}_to_{}.hdf5"


def write_mgz(path: Path, array: np.ndarray, translation: tuple[float, float, float] = (8.0, 5.0, 6.0)) -> None:
    """A conformed volume; the array is (z, y, x), the translation right, anterior, superior in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = LIA.copy()
    affine[:3, 3] = translation
    dtype = np.float32 if array.dtype.kind == "f" else np.int32
    nibabel.save(nibabel.MGHImage(np.ascontiguousarray(array.T.astype(dtype)), affine), path)


def in_scanner(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A label map as scanned, 2 mm and turned, of boxes along the axes of the patient; and the same, conformed to 1 mm.

    Both are (z, y, x). A voxel of the first is 2 x 2 x 2 of the second.
    """
    rng = np.random.default_rng(3)
    ras = rng.choice((0, 2, 41, 1035, 2035, 17, 53, 16), shape)  # right, anterior, superior; 2 mm
    native = ras.transpose(2, 1, 0)  # stored along the patient's axes
    fine = ras.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    conformed_xyz = fine[::-1].transpose(0, 2, 1)[:, ::-1]  # to left, inferior, anterior
    return native, conformed_xyz.T


class TestABIDE(ConverterTester):
    name = "abide"
    variants = ("laboratory", "freesurfer", "nitrc", "bids")
    image = "CALTECH/A00032873/MPRAGE.nii"
    label = f"CALTECH/A00032873/{LABEL}"
    case = "abide_A00032873"
    slice_axis = 1
    illegal: ClassVar = (
        {"domain": "nyu"},
        {"labels": "lumbar"},
        {"split": "no_such_file.json"},
        {"skull_strip": "no_such_folder"},
        {"outside": "ignore"},
    )

    def make_tree(self, root: Path, variant: str) -> dict[str, dict[int, int]]:
        expected = {}
        for site, seed in (("Caltech", 0), ("Stanford", 100)):
            for number in LABORATORY if variant == "laboratory" else PUBLIC:
                seed += 1
                image, label, classes = brain(seed)
                excluded = site == "Caltech" and number in LABORATORY[3:]
                if site == "Caltech" and not excluded:
                    expected[f"abide_{number}"] = voxels(classes)
                if variant == "laboratory":
                    folder = root / site.upper() / number
                    for name, array in (("MPRAGE.nii", image), ("MPRAGE_n4.nii", image + 1), (LABEL, label)):
                        if not excluded or name != LABEL:  # what is left out needs no labels
                            write_volume(folder / name, array, SPACING, ORIGIN, SAGITTAL)
                    continue
                native = {
                    "nitrc": f"{site}_{number}/session_1/anat_1/mprage.nii.gz",
                    "bids": f"RawDataBIDS/{site}/sub-{number}/anat/sub-{number}_T1w.nii.gz",
                }
                folder = root / "Outputs/freesurfer/5.1" / f"{site}_{number}" / "mri"
                write_mgz(folder / "aparc+aseg.mgz", label)
                write_mgz(folder / "aseg.mgz", np.where(label >= 1000, 3, label))
                write_mgz(folder / "T1.mgz", image)
                if variant != "freesurfer":  # on the grid of the labels; other grids have tests of their own
                    path = root / native[variant]
                    path.parent.mkdir(parents=True)
                    conformed = nibabel.load(folder / "T1.mgz")
                    nibabel.save(nibabel.Nifti1Image(conformed.get_fdata(dtype=np.float32) + 5, conformed.affine), path)
        return expected

    def missing_image(self, root: Path) -> Fault:
        (root / self.image).unlink()
        return Fault(root, LABEL, "images-missing", "--n4")

    def foreign_label(self, root: Path) -> Fault:
        """Unlisted numbers are background; but none of FreeSurfer's is negative and far from the others."""
        image = sitk.ReadImage(root / self.label, sitk.sitkInt32)
        image[0, 0, 0] = -5_000_000
        sitk.WriteImage(image, root / self.label)
        return Fault(root, LABEL, "labels-range", "-5000000 to 2999")

    def link_that_leaves_the_tree(self, root: Path) -> Fault:
        (root / self.image).with_name("MPRAGE_n4.nii").unlink()
        return super().link_that_leaves_the_tree(root)

    def test_sites_are_datasets_with_the_same_labels(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "freesurfer")
        folders = {
            site: self.convert(tmp_path / "source", tmp_path / site, options={"domain": site}).folder
            for site in ("caltech", "stanford")
        }
        for i, (site, folder) in enumerate(folders.items()):
            assert folder is not None and folder.name == f"Dataset501_ABIDE_{site.upper()}"
            content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            assert content["labels"] == {name: number for number, name in enumerate(CLASSES)}
            assert content["channel_names"] == {"0": "T1w"}
            assert label_voxels(folder) == {
                f"abide_{number}": voxels(brain(100 * i + k)[2]) for k, number in enumerate(PUBLIC, 1)
            }

    def test_the_site_is_the_innermost_folder_that_names_one(self, tmp_path: Path) -> None:
        """The folder of one site may be the source itself."""
        source = tmp_path / "caltech_and_stanford"
        self.make_tree(source, "laboratory")
        both = self.convert(source, None, dry_run=True, options={"domain": "stanford"})
        one = self.convert(source / "STANFORD", None, dry_run=True, options={"domain": "stanford"})
        assert both.training == one.training == 5 and both.problems == ()
        with fails("domain-other", "--domain"):
            self.convert(source / "STANFORD", None, dry_run=True)

    def test_mgz_files_keep_their_place(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "freesurfer")
        folder = self.convert(tmp_path / "source", tmp_path / "raw").folder
        assert folder is not None
        written = nibabel.load(folder / "imagesTr" / "abide_0051457_0000.nii.gz")
        source = nibabel.load(tmp_path / "source/Outputs/freesurfer/5.1/Caltech_0051457/mri/T1.mgz")
        assert np.array_equal(written.get_fdata(), source.get_fdata())
        np.testing.assert_allclose(written.affine, source.affine)
        assert nibabel.aff2axcodes(written.affine) == ("L", "I", "A")

    @pytest.mark.parametrize("native", ["nitrc", "bids"])
    def test_labels_are_put_onto_the_image_in_space_never_by_index(self, native: str, tmp_path: Path) -> None:
        """Both arrays have one shape here, so that pairing them by index would raise no error."""
        label, conformed = in_scanner((6, 6, 6))
        conformed = conformed[:6, :6, :6]
        assert label.shape == conformed.shape
        path = {
            "nitrc": "Caltech_0051456/session_1/anat_1/mprage.nii.gz",
            "bids": "RawDataBIDS/Caltech/sub-0051456/anat/sub-0051456_T1w.nii.gz",
        }[native]
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = (-30, 4, 50)
        (tmp_path / "source" / path).parent.mkdir(parents=True)
        image = np.arange(6**3, dtype=np.float32).reshape(6, 6, 6)
        nibabel.save(nibabel.Nifti1Image(image.T, affine), tmp_path / "source" / path)
        # The first conformed voxel is the half of the native one at the right, to superior and posterior.
        right, posterior, superior = (affine @ (5, 0, 5, 1))[:3] + np.array((0.5, -0.5, 0.5))
        folder = tmp_path / "source/Outputs/freesurfer/5.1/Caltech_0051456/mri"
        write_mgz(folder / "aparc+aseg.mgz", conformed, (right, posterior, superior))
        write_mgz(folder / "T1.mgz", np.zeros((6, 6, 6), np.float32), (right, posterior, superior))
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and report.layout == native
        written = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "labelsTr" / "abide_0051456.nii.gz"))
        table = self.converter.label_sets["default"].values
        expected = np.vectorize(table.__getitem__)(label)
        # Six conformed voxels are three native ones: those at the right, posterior and superior.
        assert np.array_equal(written[3:, :3, 3:], expected[3:, :3, 3:])
        assert voxels(written) == voxels(written[3:, :3, 3:])
        kept = sitk.ReadImage(report.folder / "imagesTr" / "abide_0051456_0000.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(kept), image)
        assert any("nearest neighbour in physical space" in note for note in report.notes)

    def test_labels_elsewhere_in_the_scanner_are_refused(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "nitrc")
        _, label, _ = brain(2)
        file = tmp_path / "source/Outputs/freesurfer/5.1/Caltech_0051457/mri/aparc+aseg.mgz"
        write_mgz(file, label, (8.0, 5.0, 40.0))
        with fails("labels-outside"):
            self.convert(tmp_path / "source", tmp_path / "raw")

    @pytest.mark.parametrize("variant", ["nitrc", "bids"])
    def test_images_without_labels_are_refused(self, variant: str, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", variant)
        shutil.rmtree(tmp_path / "source" / "Outputs")
        report = self.convert(tmp_path / "source", None, dry_run=True)
        assert len(report.problems) == 3 and report.training == 0
        assert all(p.code == "labels-missing" and "mri/aparc+aseg.mgz" in p.rule for p in report.problems)
        with fails("problems-found", "3"):
            self.convert(tmp_path / "source", tmp_path / "raw")

    def test_aseg_stands_in_for_aparc(self, tmp_path: Path) -> None:
        expected = self.make_tree(tmp_path / "source", "freesurfer")
        folder = tmp_path / "source/Outputs/freesurfer/5.1/Caltech_0051457/mri"
        (folder / "aparc+aseg.mgz").unlink()
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and label_voxels(report.folder) == expected
        assert "1 cases have labels of aseg.mgz, for there is no aparc+aseg.mgz" in report.notes
        (folder / "aseg.mgz").rename(folder / "aparc+aseg.mgz")
        with fails("atlas-other"):
            self.convert(tmp_path / "source", tmp_path / "raw2")
        shutil.rmtree(folder)
        (folder.parent / "mri").mkdir()
        write_mgz(folder / "aseg.mgz", brain(2)[1])
        with fails("images-missing", "aseg.mgz"):
            self.convert(tmp_path / "source", tmp_path / "raw3")

    def test_subjects_are_excluded_and_say_so(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path, "laboratory")
        notes = self.convert(tmp_path, None, dry_run=True).notes
        assert [note for note in notes if "is left out" in note] == [
            f"{number} is left out, as the public reader does (it gives no reason)" for number in LABORATORY[3:]
        ]
        (tmp_path / "STANFORD/A00032872").rename(tmp_path / "STANFORD/A00033547")
        report = self.convert(tmp_path, None, dry_run=True, options={"domain": "stanford"})
        assert report.training == 4  # with Caltech's two numbers, which mean nothing here
        assert [note.split()[0] for note in report.notes if "is left out" in note] == ["A00033547"]

    @pytest.mark.parametrize("split", ["official", "thesis"])
    def test_the_split_goes_by_position_after_exclusions(self, split: str, tmp_path: Path) -> None:
        numbers = [f"A{33240 + i:08d}" for i in range(38)]  # 24 is A00033264
        for number in [*numbers, "A00033493"]:
            for name in ("MPRAGE.nii", LABEL):
                file = tmp_path / "CALTECH" / number / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        (tmp_path / "CALTECH" / numbers[12] / LABEL).unlink()
        options = self.converter.options(split=split)
        chosen = self.converter.split(split, self.converter.cases(open_tree(tmp_path, tmp_path), options).cases)
        left = [f"abide_{n}" for n in numbers if n != "A00033264"]
        assert chosen.train == tuple(left[:10]) and chosen.test == tuple(left[16:36])
        assert chosen.val == (left[10], left[11], left[13], left[14])

    def test_n4_takes_the_laboratory_s_result_or_is_computed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.make_tree(tmp_path / "source", "laboratory")
        (tmp_path / "source/CALTECH/A00032875/MPRAGE_n4.nii").unlink()
        (tmp_path / "source/CALTECH/A00032872/MPRAGE.nii").unlink()
        monkeypatch.setattr(steps, "n4", lambda volume: Volume(volume.array * 2, volume.grid))
        report = self.convert(tmp_path / "source", tmp_path / "raw", options={"n4": True})
        assert report.folder is not None
        for number, seed, expected in (
            ("A00032872", 1, lambda image: image + 1),
            ("A00032873", 2, lambda image: image + 1),
            ("A00032875", 3, lambda image: image * 2),
        ):
            image = sitk.ReadImage(report.folder / "imagesTr" / f"abide_{number}_0000.nii.gz")
            assert np.array_equal(sitk.GetArrayFromImage(image), expected(brain(seed)[0]))
        assert [note.split(":")[0] for note in report.notes if "N4: (" in note] == ["abide_A00032875"]

    def test_skull_strip_by_labels_and_by_masks(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "laboratory")
        image, label, _ = brain(2)
        mask = np.zeros(image.shape, np.uint8)
        mask[2:7] = 1
        for number in LABORATORY[:3]:
            write_volume(tmp_path / "masks" / f"abide_{number}.nii.gz", mask, SPACING, ORIGIN, SAGITTAL)
        for option, inside in (("labels", label > 0), (str(tmp_path / "masks"), mask > 0)):
            raw = tmp_path / f"raw_{option == 'labels'}"
            folder = self.convert(tmp_path / "source", raw, options={"skull_strip": option}).folder
            assert folder is not None
            written = sitk.ReadImage(folder / "imagesTr" / f"{self.case}_0000.nii.gz")
            assert np.array_equal(sitk.GetArrayFromImage(written), np.where(inside, image, 0))

    @pytest.mark.parametrize("site", ["caltech", "stanford"])
    def test_hdf5_files(self, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The folder tells sites apart, and ABIDE from HCP, whose files have the same names."""
        source = tmp_path / "source"
        depth, more = ("256", "_0.7") if site == "caltech" else ("132", "")
        expected = write_flat(source / FLAT.format(site, depth, more, 0, 10), 1, (4,) * 9 + (7,))
        expected += write_flat(source / FLAT.format(site, depth, "", 10, 15), 2, (4,) * 5)
        test = write_flat(source / FLAT.format(site, depth, "", 16, 36), 3, (3,) * 20)
        write_flat(source / FLAT.format(site, depth, "", 0, 20).replace(f"abide/{site}", "hcp"), 4, (3,) * 20)
        report = self.convert(source, tmp_path / "raw", options={"domain": site, "split": "thesis"})
        assert report.folder is not None and (report.training, report.test) == (15, 20)
        names = [f"abide_{i:03d}" for i in (*range(15), *range(16, 36))]
        assert label_voxels(report.folder) == dict(zip(names, expected + test, strict=True))
        record = json.loads((report.folder / "conversion.json").read_text(encoding="utf-8"))
        assert (record["layout"], record["slice_axis"]) == ("hdf5", 0)
        assert record["split"]["val"] == names[10:15]
        verify(report.folder, monkeypatch)
        alone = self.convert(source / f"brain/abide/{site}", None, dry_run=True, options={"domain": site})
        assert (alone.training, alone.test) == (15, 20)

    @pytest.mark.parametrize(("site", "slices"), [("caltech", 256), ("stanford", 132)])
    def test_the_thesis_preprocessing(self, site: str, slices: int, tmp_path: Path) -> None:
        """A brain in the corner of a sagittal scan comes out in the middle of coronal slices, stripped and scaled."""
        rng = np.random.default_rng(1)
        label = rng.choice(np.array(list(GROUPS), np.int16), (16, 18, 20))
        classes = np.vectorize(GROUPS.__getitem__)(label)
        image = rng.normal(100, 10, label.shape).astype(np.float32)
        shape, corner = (60, 70, 80), (44, 2, 60)  # the array's: z to left, y to inferior, x to posterior
        place = tuple(slice(a, a + n) for a, n in zip(corner, label.shape, strict=True))
        big_image, big_label = np.full(shape, 900, np.float32), np.zeros(shape, np.int16)
        big_image[place], big_label[place] = image, label
        folder = tmp_path / "source" / site.upper() / "A00032999"
        write_volume(folder / "MPRAGE_n4.nii", big_image, (0.7, 0.7, 0.7), ORIGIN, SAGITTAL)
        write_volume(folder / LABEL, big_label, (0.7, 0.7, 0.7), ORIGIN, SAGITTAL)
        report = self.convert(tmp_path / "source", tmp_path / "raw", options={"domain": site, "thesis": True})
        assert report.folder is not None
        written = sitk.ReadImage(report.folder / "imagesTr" / "abide_A00032999_0000.nii.gz")
        array = sitk.GetArrayFromImage(written)
        mapped = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "labelsTr" / "abide_A00032999.nii.gz"))
        assert written.GetSpacing() == pytest.approx((0.7, 0.7, 0.7)) and written.GetDirection() == SAGITTAL
        assert array.shape == (256, 256, slices)  # x of the file runs from front to back
        # The box of the labels and 20 voxels around, as far as there are any, in the middle of what is written.
        around = tuple(slice(max(0, p.start - 20), min(n, p.stop + 20)) for p, n in zip(place, shape, strict=True))
        stripped = np.where(big_label > 0, big_image, 0)[around]
        low, high = np.percentile(stripped, (1, 99))
        middle = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(array.shape, stripped.shape, strict=True))
        expected = np.zeros(array.shape, np.float32)
        expected[middle] = np.clip((stripped - low) / (high - low), 0, 1)
        assert low == 0 and expected.max() == 1
        np.testing.assert_allclose(array, expected, atol=1e-4)
        assert np.array_equal(mapped[middle][big_label[around] > 0], classes.ravel())
        assert np.count_nonzero(mapped) == classes.size
        assert any(f"{slices} slices" in note and "cropped to the labels" in note for note in report.notes)
