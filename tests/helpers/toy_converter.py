"""A made-up dataset that knows every option of conversion, and small cases of AortaSeg24."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nnunet_fm.dataset_conversion.base import (
    AllowedValues,
    Case,
    ConversionOptions,
    Converter,
    ImageSource,
    Listing,
    Work,
)
from nnunet_fm.dataset_conversion.labels import LabelTable
from nnunet_fm.dataset_conversion.problems import LeftOut
from nnunet_fm.dataset_conversion.run import Report, convert
from nnunet_fm.dataset_conversion.steps import Thesis
from nnunet_fm.dataset_conversion.tree import Tree
from nnunet_fm.io.volume import Volume
from tests.helpers.convert_tester import scene
from tests.helpers.images import write_volume


class Toy(Converter):
    """A made-up dataset that knows every option: two channels, masks of structures, several scans of a subject."""

    name = "toy"
    dataset = "Toy"
    title, size, licence, licence_source, reference = "Toy", "few", "CC0", "here", "https://example.org"
    label_sets: ClassVar = {
        "all": LabelTable.of("a", "b"),
        "b": LabelTable({"background": 0, "b": 1}, {0: 0, 1: 0, 2: 1}),
    }
    layouts: ClassVar = {"toy": "c1_0.nii.gz, c1_1.nii.gz and c1_seg.nii.gz"}
    channels = ("T1", "CT")
    slice_axis = 1
    domain = AllowedValues(("x", "y"))
    splits: ClassVar = {"official": "train and test by name"}
    n4 = False
    skull_strip = "no"
    thesis = Thesis("percentile", 16, 0.7, n4=True, skull_strip=True)

    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        found, problems = tree.collect(
            {
                "one": r"(?P<case>[ct]\d)_0\.nii\.gz",
                "two": r"(?P<case>[ct]\d)_1\.nii\.gz",
                "label": r"(?P<case>[ct]\d)_seg\.nii\.gz",
            },
            optional={"label"},
        )
        cases = [
            Case(
                name,
                (ImageSource(files["one"]), ImageSource(files["two"])),
                tuple(ImageSource(files[role]) for role in ("label",) if role in files),
                "test" if name.startswith("t") else "val" if name == "c2" else "train",
            )
            for name, files in found.items()
        ]
        return Listing("toy", cases, problems)

    def read_case(self, case: Case, work: Work) -> tuple[list[Volume], Volume | None]:
        if case.name == "c9":
            raise LeftOut("nine is left out")
        return super().read_case(case, work)


def write_toy(path: Path, array: np.ndarray) -> None:
    write_volume(path, array, (1.5, 1.0, 1.0), direction=(0, 1, 0, 1, 0, 0, 0, 0, -1))  # x runs to posterior


def toy(source: Path, raw: Path | None, options: dict[str, Any] | None = None, **changes: Any) -> Report:
    converter = Toy()
    return convert(converter, source, 7, converter.options(**options or {}), raw, **changes)


def content(report: Report, name: str) -> Any:
    assert report.folder is not None
    return json.loads((report.folder / name).read_text(encoding="utf-8"))


def write_toys(folder: Path) -> Path:
    """Five training cases, one of them for validation, and a test case without labels; coronal slices along x."""
    for case in ("c1", "c2", "c3", "c4", "c5", "t1"):
        image, label = scene(int(case[1]), (1, 2))
        for channel in range(2):
            write_toy(folder / f"{case}_{channel}.nii.gz", image + 50 * channel)
        if case != "t1":
            write_toy(folder / f"{case}_seg.nii.gz", label)
    return folder


def write_aorta(folder: Path) -> Path:
    """Six small cases in the layout of AortaSeg24."""
    for number in range(1, 7):
        image, label = scene(number, tuple(range(1, 24)))
        write_volume(folder / f"images/subject{number:03d}_CTA.mha", image)
        write_volume(folder / f"masks/subject{number:03d}_label.mha", label.astype(np.uint8))
    return folder
