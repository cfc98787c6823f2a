"""HaN-Seg: 30 organs at risk in the head and neck, in CT and in T1 MR of the same patients."""

from __future__ import annotations

from dataclasses import replace
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
from nnunet_fm.dataset_conversion.labels import LabelTable, count_values
from nnunet_fm.dataset_conversion.problems import Invalid, Problem, UsageError
from nnunet_fm.dataset_conversion.registration import register_rigidly
from nnunet_fm.dataset_conversion.tree import Tree
from nnunet_fm.io.volume import Volume, resample

ORGANS = LabelTable.of(
    "A_Carotid_L", "A_Carotid_R", "Arytenoid", "Bone_Mandible", "Brainstem", "BuccalMucosa", "Cavity_Oral",
    "Cochlea_L", "Cochlea_R", "Cricopharyngeus", "Esophagus_S", "Eye_AL", "Eye_AR", "Eye_PL", "Eye_PR",
    "Glnd_Lacrimal_L", "Glnd_Lacrimal_R", "Glnd_Submand_L", "Glnd_Submand_R", "Glnd_Thyroid", "Glottis", "Larynx_SG",
    "Lips", "OpticChiasm", "OpticNrv_L", "OpticNrv_R", "Parotid_L", "Parotid_R", "Pituitary", "SpinalCord",
)  # fmt: skip
"""In the order of the numbers of the challenge, which is that of the masks' names."""

CASES = 42

MISSING = 1
"""Masks that the release lacks: it has 1259 of 42 x 30."""

IGNORE = 1 + max(ORGANS.foreground)
"""nnU-Net wants its ignore label to be the highest number."""

HU = (-500.0, 1000.0)
"""What the registration sees of a CT: air, soft tissue and bone, no metal."""


class HaNSeg(Converter):
    """The public cases. Truth is drawn on CT, so everything is written on the CT's grid.

    MR has a smaller view on a grid of its own and is not registered: where it is used, it is moved rigidly onto CT and
    resampled, 0 outside of its view.
    """

    name = "hanseg"
    dataset = "HaNSeg"
    title = "HaN-Seg: organs at risk in the head and neck, CT and T1 MR"
    size = "42 labelled pairs of CT and T1 MR; 14 more are hidden"
    licence = "CC BY-ND 4.0 (its page says CC BY-NC-ND 4.0): do not redistribute what is converted"
    licence_source = "README.md of the download; record 7442914 at Zenodo"
    reference = "https://doi.org/10.1002/mp.16197"
    channels = ("CT", "MR_T1")
    label_sets: ClassVar = {"default": ORGANS}
    sides = (("Eye_AL", "Eye_AR"), ("Eye_PL", "Eye_PR"))
    slice_axis = 0
    label_grid = "resample"
    domain = AllowedValues(("ct", "mr", "ctmr"), "ct", "CT, T1 MR registered to CT, or both as channels.")
    outside = AllowedValues(
        ("keep", "background", "ignore"),
        None,
        "Labels where MR shows nothing: by default kept for ctmr, background for mr.",
    )
    layouts: ClassVar = {
        "official": "set_1/case_01/case_01_IMG_CT.nrrd with case_01_IMG_MR_T1.nrrd and "
        "case_01_OAR_Brainstem.seg.nrrd (30 organs)",
    }
    notes = (
        "labels tell left from right: plans leave the left-right axis out of mirroring",
        "where masks overlap, the organ with the higher number wins; voxels per pair are noted with each case",
        "a mask on another grid than CT is resampled by nearest neighbour in physical space",
    )
    checked = (
        "numbers and names of organs against the challenge's template",
        "count of files against the record: one mask is missing",
        "MR has a grid of its own and is not registered to CT",
    )
    unknown = (
        "which organ of which case is missing",
        "where and how much masks overlap",
        "cases that the thesis trained and validated on",
        "how well the registration does on the real pairs",
    )

    def options(self, **chosen: Any) -> ConversionOptions:
        """Options of every converter; the default of ``outside`` depends on the domain."""
        options = super().options(**chosen)
        if options.domain == "ct":
            if options.outside is not None:
                raise UsageError(
                    f"{self.name}: --outside is about MR: it needs --domain mr or ctmr", code="option-incomplete"
                )
            return options
        return replace(options, outside=options.outside or ("keep" if options.domain == "ctmr" else "background"))

    def channel_names(self, options: ConversionOptions) -> tuple[str, ...]:
        """CT, MR or both."""
        return {"ct": self.channels[:1], "mr": self.channels[1:]}.get(options.domain or "ct", self.channels)

    def table(self, options: ConversionOptions) -> LabelTable:
        """With the ignore label, if there is one."""
        return replace(ORGANS, names={**ORGANS.names, "ignore": IGNORE}) if options.outside == "ignore" else ORGANS

    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        """Images and masks by name; the one mask that the release lacks is accepted, a second one is not."""
        organs = tuple(ORGANS.foreground.values())
        images = ["CT image"] if options.domain == "ct" else ["CT image", "MR image"]
        patterns = {"CT image": r"(?P<case>case_\d\d)_IMG_CT\.nrrd", "MR image": r"(?P<case>case_\d\d)_IMG_MR_T1\.nrrd"}
        found, problems = tree.collect(
            {image: patterns[image] for image in images}
            | {f"{organ} mask": rf"(?P<case>case_\d\d)_OAR_{organ}\.seg\.nrrd" for organ in organs},
            optional={f"{organ} mask" for organ in organs},
        )
        for name, match in tree.match(r"(?P<case>case_\d\d)_OAR_(?P<organ>[^/]+)\.seg\.nrrd"):
            if match["organ"] not in organs:
                problems.append(Problem(name, "the dataset has no organ of this name", match["case"], "labels-unknown"))
        missing = {
            case: absent
            for case, files in found.items()
            if (absent := [organ for organ in organs if f"{organ} mask" not in files])
        }
        notes = [f"{CASES - len(found)} of the {CASES} public cases are not used"] if len(found) < CASES else []
        if sum(map(len, missing.values())) <= MISSING:
            notes += [f"{case} has no mask of {absent[0]}: it is background there" for case, absent in missing.items()]
        else:
            for case, absent in missing.items():
                some = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
                rule = f"there is no mask of {len(absent)} organs for this case ({some}); the release lacks one in all"
                problems.append(Problem(found[case]["CT image"], rule, case, "mask-missing"))
        faulty = {problem.case for problem in problems}
        cases = [
            Case(
                case,
                tuple(ImageSource(files[image]) for image in images),
                tuple(ImageSource(files[role], structure=o) for o in organs if (role := f"{o} mask") in files),
            )
            for case, files in found.items()
            if case not in faulty
        ]
        return Listing("official", cases, problems, notes)

    def read_case(self, case: Case, work: Work) -> tuple[list[Volume], Volume | None]:
        """CT, or MR on the grid of CT, or both; labels on the grid of CT."""
        if work.options.domain == "ct":
            return super().read_case(case, work)
        ct_source, mr_source = case.images
        ct, mr = self.read_image(ct_source, work), self.read_image(mr_source, work)
        label = self.read_label(case, ct.grid, work)
        try:
            found = register_rigidly(mr, ct, HU)
        except ValueError as error:
            raise Invalid(
                mr_source.file, f"cannot be registered to {ct_source.file}: {error}", code="registration-failed"
            ) from None
        work.note(
            f"MR was moved onto CT by {found.shift:.2f} mm and {found.angle:.2f} degrees, starting from their "
            f"{found.start}: mutual information {found.information:.3f}"
        )
        moved = resample(Volume(mr.array, found.grid), ct.grid, label=False)
        view = resample(Volume(np.ones(mr.array.shape, np.uint8), found.grid), ct.grid, label=True)
        label = self._outside(label, view, mr_source.file, work)
        return [moved] if work.options.domain == "mr" else [ct, moved], label

    def _outside(self, label: Volume, view: Volume, file: str, work: Work) -> Volume:
        """Labels where MR shows nothing."""
        hidden = view.array == 0
        lost = {value: n for value, n in count_values(label.array * hidden).items() if value != 0}
        organs = ", ".join(f"{ORGANS.foreground[value]} {n}" for value, n in lost.items()) or "none"
        fate = {"keep": "stay", "background": "become background", "ignore": "are ignored, as all else there"}
        work.note(f"labelled voxels outside of the view of MR {fate[work.options.outside or 'keep']}: {organs}")
        if work.options.outside == "keep":
            return label
        if not (label.array * view.array).any():
            raise Invalid(file, "shows none of the organs", code="labels-missing")
        label.array[hidden] = IGNORE if work.options.outside == "ignore" else 0
        return label
