"""What holds for every converter: inherit `ConverterTester`, and say how a small tree in the real layout is made."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing.pool
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion import case as case_module
from nnunet_fm.dataset_conversion import get_converter
from nnunet_fm.dataset_conversion.base import Converter
from nnunet_fm.dataset_conversion.problems import ConversionError, Problem, UsageError
from nnunet_fm.dataset_conversion.run import Report, convert
from nnunet_fm.dataset_conversion.tree import Tree, open_tree
from nnunet_fm.preprocessing.raw import training_cases
from tests.helpers.errors import fails

NUMBER = 501
FAULTS = (
    "missing_label",
    "missing_image",
    "second_file",
    "empty_mask",
    "other_geometry",
    "flipped_direction",
    "foreign_label",
    "nan_in_the_image",
    "fractions_in_the_labels",
    "truncated_image",
    "truncated_label",
    "truncated_archive",
    "link_that_leaves_the_tree",
    "member_that_leaves_the_archive",
    "wrong_folder",
)
"""Methods of `ConverterTester` that do the damage; a full disk and an interruption are tests of their own."""


class Fault(NamedTuple):
    """What to convert after the damage, the file that is to be named, legal codes joined by ``|``, and another fact."""

    source: Path
    file: str
    code: str
    fact: str = ""

    def is_named_by(self, problem: Problem | ConversionError) -> bool:
        """Whether a line of the table of problems, or the error itself, says what was damaged."""
        return problem.code in self.code.split("|") and self.file in str(problem) and self.fact in str(problem)


class ConverterTester:
    """Tests of one converter; a subclass called ``Test…`` runs them.

    Attributes:
        name: of the dataset.
        variants: layouts that `make_tree` can make; the first is the one that is damaged.
        options: for `Converter.options` in these tests.
        image: path of one training case's image (one file) in the first variant.
        label: path of the same case's label map, or of one of its masks.
        case: the name of that case.
        slice_axis: expected in ``conversion.json``.
        sides: pairs of labels that differ by left and right, expected there.
        illegal: options that the dataset does not know.
    """

    name: ClassVar[str]
    variants: ClassVar[tuple[str, ...]]
    options: ClassVar[Mapping[str, Any]] = {}
    image: ClassVar[str]
    label: ClassVar[str]
    case: ClassVar[str]
    slice_axis: ClassVar[int]
    sides: ClassVar[int] = 0
    illegal: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    # What a subclass writes

    def make_tree(self, root: Path, variant: str) -> dict[str, dict[int, int]]:
        """Write a tree of at least three cases in the real layout, small in voxels.

        Returns:
            Case -> voxels per number of our labels, as they must be after the conversion.
        """
        raise NotImplementedError

    # What it may use

    @property
    def converter(self) -> Converter:
        return get_converter(self.name)

    def convert(self, source: Path, raw: Path | None, **changes: Any) -> Report:
        """Convert in this process; ``options`` among the changes replaces the class's."""
        options = self.converter.options(**changes.pop("options", self.options))
        return convert(self.converter, source, NUMBER, options, raw, **changes)

    # The faults: a subclass overrides those that its files show otherwise

    def missing_label(self, root: Path) -> Fault:
        (root / self.label).unlink()
        return Fault(root, Path(self.image).name, "file-missing")

    def missing_image(self, root: Path) -> Fault:
        (root / self.image).unlink()
        return Fault(root, Path(self.label).name, "file-missing")

    def second_file(self, root: Path) -> Fault:
        copy = root / "copy" / self.label
        copy.parent.mkdir(parents=True)
        shutil.copy(root / self.label, copy)
        return Fault(root, Path(self.label).name, "file-twice")

    def empty_mask(self, root: Path) -> Fault:
        edit(root / self.label, lambda array: array * 0)
        return Fault(root, Path(self.label).name, "mask-empty")

    def other_geometry(self, root: Path) -> Fault:
        image = sitk.ReadImage(root / self.label)
        image.SetOrigin([o + 1000 for o in image.GetOrigin()])
        sitk.WriteImage(image, root / self.label)
        return Fault(root, Path(self.label).name, "grid-differs|labels-outside")

    def flipped_direction(self, root: Path) -> Fault:
        image = sitk.ReadImage(root / self.label)
        image.SetDirection((np.reshape(image.GetDirection(), (3, 3)) @ np.diag([-1, -1, 1])).ravel().tolist())
        sitk.WriteImage(image, root / self.label)
        return Fault(root, Path(self.label).name, "grid-differs|labels-outside")

    def foreign_label(self, root: Path) -> Fault:
        def foreign(array: np.ndarray) -> np.ndarray:
            array[0, 0, 0] = 99
            return array

        edit(root / self.label, foreign)
        return Fault(root, Path(self.label).name, "labels-unknown", "99")

    def nan_in_the_image(self, root: Path) -> Fault:
        def spoiled(array: np.ndarray) -> np.ndarray:
            array = array.astype(np.float32)
            array[0, 0, 0] = np.nan
            return array

        edit(root / self.image, spoiled)
        return Fault(root, Path(self.image).name, "image-not-finite", "1")

    def fractions_in_the_labels(self, root: Path) -> Fault:
        edit(root / self.label, lambda array: array.astype(np.float32) * 0.75)
        return Fault(root, Path(self.label).name, "labels-fraction")

    def truncated_image(self, root: Path) -> Fault:
        truncate(root / self.image)
        return Fault(root, Path(self.image).name, "image-cut-off|image-damaged|dicom-damaged")

    def truncated_label(self, root: Path) -> Fault:
        truncate(root / self.label)
        return Fault(root, Path(self.label).name, "image-cut-off|image-damaged|hdf5-damaged")

    def truncated_archive(self, root: Path) -> Fault:
        archive = zipped(root)
        truncate(archive)
        return Fault(archive, archive.name, "archive-damaged")

    def link_that_leaves_the_tree(self, root: Path) -> Fault:
        elsewhere = root.parent / "elsewhere"
        (root / self.image).rename(elsewhere)
        (root / self.image).symlink_to(elsewhere)
        return Fault(root, Path(self.image).name, "link-refused")

    def member_that_leaves_the_archive(self, root: Path) -> Fault:
        archive = zipped(root)
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr("../../evil.txt", "evil")
        return Fault(archive, "evil.txt", "archive-escape")

    def wrong_folder(self, root: Path) -> Fault:
        shutil.rmtree(root)
        (root / "holidays").mkdir(parents=True)
        (root / "holidays" / "beach.jpg").write_bytes(b"jpg")
        return Fault(root, root.name, "source-unknown", self.name)

    # The tests

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_fault_is_named_and_nothing_is_left(self, fault: str, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", self.variants[0])
        damage: Callable[[Path], Fault] = getattr(self, fault)
        damaged = damage(tmp_path / "source")
        before, raw = snapshot(tmp_path), tmp_path / "raw"
        with pytest.raises(ConversionError) as raised:
            self.convert(damaged.source, raw)
        lines = [str(raised.value), *map(str, raised.value.problems)]
        assert any(map(damaged.is_named_by, (raised.value, *raised.value.problems))), lines
        assert not any("\n" in line for line in lines)
        assert list(raw.iterdir()) == []
        raw.rmdir()
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("wrong_folder", "truncated_archive")])
    def test_a_dry_run_lists_what_skipping_leaves_out(self, fault: str, tmp_path: Path) -> None:
        expected = self.make_tree(tmp_path / "source", self.variants[0])
        damaged: Fault = getattr(self, fault)(tmp_path / "source")
        checked = self.convert(damaged.source, None, dry_run=True)
        assert any(map(damaged.is_named_by, checked.problems)), checked.problems
        report = self.convert(damaged.source, tmp_path / "raw", skip_invalid=True)
        assert report.problems == checked.problems and report.folder is not None
        record = json.loads((report.folder / "conversion.json").read_text(encoding="utf-8"))
        assert [problem["rule"] for problem in record["problems"]] == [problem.rule for problem in report.problems]
        lost = set(expected) - set(record["cases"])
        assert lost <= {self.case} and (lost or fault == "member_that_leaves_the_archive")

    def test_every_layout_converts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for variant in self.variants:
            source = tmp_path / variant / "source"
            expected = self.make_tree(source, variant)
            before = snapshot(source)
            report = self.convert(source, tmp_path / variant / "raw")
            folder = report.folder
            assert folder is not None and report.problems == ()
            assert (report.status, report.layout in self.converter.layouts) == ("converted", True)
            assert {path.name for path in (tmp_path / variant / "raw").iterdir()} == {folder.name}
            assert label_voxels(folder) == expected
            assert snapshot(source) == before
            verify(folder, monkeypatch)
            record = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
            assert record["slice_axis"] == self.slice_axis
            sides = record.get("left_right", {"axis": 2, "pairs": []})
            assert sides["axis"] == 2 and len(sides["pairs"]) == self.sides

    def test_a_conversion_is_repeated_byte_for_byte(self, tmp_path: Path) -> None:
        """From a folder, from a zip, and beside what a Mac leaves in archives."""
        source = tmp_path / "source"
        self.make_tree(source, self.variants[0])
        folders = [self.convert(source, tmp_path / "first").folder]
        again = self.convert(source, tmp_path / "first")
        assert again.status == "unchanged" and again.folder == folders[0]
        for path in [p for p in source.rglob("*") if p.is_file()]:
            (path.parent / f"._{path.name}").write_bytes(b"Mac OS X")
        (source / "__MACOSX").mkdir()
        (source / "__MACOSX" / Path(self.image).name).write_bytes(b"Mac OS X")
        folders += [self.convert(source, tmp_path / "second").folder]
        folders += [self.convert(zipped(source), tmp_path / "third").folder]
        assert snapshot(folders[0]) == snapshot(folders[1]) == snapshot(folders[2])

    def test_a_dry_run_writes_nothing(self, tmp_path: Path) -> None:
        expected = self.make_tree(tmp_path / "source", self.variants[0])
        before = snapshot(tmp_path)
        report = self.convert(tmp_path / "source", tmp_path / "raw", dry_run=True)
        assert (report.status, report.problems, report.training + report.test) == ("checked", (), len(expected))
        assert snapshot(tmp_path) == before

    def test_a_full_disk_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.make_tree(tmp_path / "source", self.variants[0])
        written = []

        def full(path: Path, array: np.ndarray, grid: Any) -> str:
            if len(written) == 3:
                path.write_bytes(b"half of it")
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            written.append(path)
            return write_image(path, array, grid)

        write_image = case_module.write_image
        monkeypatch.setattr(case_module, "write_image", full)
        with fails("disk-full"):
            self.convert(tmp_path / "source", tmp_path / "raw")
        assert len(written) == 3 and list((tmp_path / "raw").iterdir()) == []

    def test_an_interrupted_run_is_continued(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.make_tree(tmp_path / "source", self.variants[0])
        whole = self.convert(tmp_path / "source", tmp_path / "whole").folder

        def interrupt(done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.convert(tmp_path / "source", tmp_path / "raw", progress=interrupt)
        (left,) = (tmp_path / "raw").iterdir()
        assert left.name.startswith(".")
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.kept == 2 and snapshot(report.folder) == snapshot(whole)

    def test_unknown_options_are_bad_usage(self) -> None:
        assert self.illegal
        for options in self.illegal:
            with pytest.raises(UsageError, match=self.name):
                self.converter.options(**options)

    def test_the_facts_are_complete(self) -> None:
        converter = self.converter
        for text in (converter.title, converter.size, converter.licence, converter.licence_source):
            assert text and not text.endswith(".")
        assert converter.reference.startswith("https://")
        assert converter.checked and converter.unknown
        for table in converter.label_sets.values():
            assert table.names["background"] == 0
            assert table.regions_class_order or set(table.values.values()) == set(table.names.values())


def scene(
    seed: int, values: tuple[int, ...], shape: tuple[int, int, int] = (10, 12, 14)
) -> tuple[np.ndarray, np.ndarray]:
    """An int16 image and a label map (int16, z, y, x) with a box of each value at another place; none at the border."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.int16)
    inside = label[1:-1, 1:-1, 1:-1].reshape(-1)  # a copy, which is put back below
    starts = np.sort(rng.choice(len(inside) - 4, len(values), replace=False))
    for start, value in zip(starts, values, strict=True):
        inside[start : start + int(rng.integers(1, 4))] = value
    label[1:-1, 1:-1, 1:-1] = inside.reshape(tuple(n - 2 for n in shape))
    image = rng.integers(-100, 100, shape).astype(np.int16) + 20 * label
    return image, label


def voxels(label: np.ndarray) -> dict[int, int]:
    """Voxels per number, background left out."""
    values, counts = np.unique(label, return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True) if v != 0}


def edit(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the array of a file and keep its geometry."""
    image = sitk.ReadImage(path)
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, path)


def truncate(path: Path) -> None:
    """Cut a file in half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def zipped(folder: Path) -> Path:
    """A zip of a folder's content, beside it."""
    return Path(shutil.make_archive(str(folder), "zip", folder))


def snapshot(folder: Path | None) -> dict[str, str]:
    """Relative path -> hash of all files, or the target of a link."""
    assert folder is not None
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def label_voxels(folder: Path) -> dict[str, dict[int, int]]:
    """Case -> voxels per number, of all written label maps."""
    files = [*(folder / "labelsTr").iterdir(), *(folder / "labelsTs").iterdir()]
    return {f.name.removesuffix(".nii.gz"): voxels(sitk.GetArrayFromImage(sitk.ReadImage(f))) for f in sorted(files)}


def verify(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own check of a raw folder, with threads for the processes that it would start."""
    from nnunetv2.experiment_planning import verify_dataset_integrity as stock

    pool = SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)
    monkeypatch.setattr(stock, "multiprocessing", SimpleNamespace(get_context=lambda method: pool))
    monkeypatch.setattr(stock, "get_filenames_of_train_images_and_targets", training_cases)
    stock.verify_dataset_integrity(str(folder), num_processes=1)


def opened(source: Path, tmp_path: Path) -> Tree:
    """The tree of a download, unpacked below ``tmp_path``."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return open_tree(source, scratch)


def fill(folder: Path, *names: str) -> Path:
    """Write files that contain their own name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def new_folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def rotation_z(angle: float) -> tuple[float, ...]:
    """Direction of a grid that is turned about its z axis, in radians."""
    c, s = np.cos(angle), np.sin(angle)
    return tuple(float(v) for v in (c, -s, 0, s, c, 0, 0, 0, 1))
