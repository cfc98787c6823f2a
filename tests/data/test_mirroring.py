"""One value says which axes are mirrored, in training, validation and prediction; left and right are told apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from pydantic import ValidationError

from nnunet_fm.data.augmentation import FlipTransform, preset_transforms
from nnunet_fm.data.presets import MIRRORING_PRESETS
from nnunet_fm.data.sides import find_opposites, find_sides
from nnunet_fm.dataset_conversion.aortaseg24 import AortaSeg24
from nnunet_fm.dataset_conversion.hanseg import ORGANS
from nnunet_fm.models.card import Recipe, read_mirror
from nnunet_fm.models.registry import cards
from nnunet_fm.plans.mirroring import Data, choose_mirroring
from nnunet_fm.plans.pipeline import told
from nnunet_fm.plans.plan import Decision
from nnunet_fm.preprocessing.orientation import dataset_orientations, patient_axes
from nnunet_fm.preprocessing.raw import training_cases
from nnunet_fm.studies.schema import check_settings
from tests.helpers.datasets import write_dataset
from tests.helpers.errors import fails

PRESETS = get_args(Recipe.model_fields["augmentation"].annotation)
SIDED = {"background": 0, "Kidney_L": 1, "Kidney_R": 2}
PLAIN = "SimpleITKIO"
SWAPPED = [0, 1, 0, 1, 0, 0, 0, 0, -1]
"""Image axis y runs along the patient's left-right axis."""


# One value


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_mirrors_the_axes_of_the_plan_or_none(preset: str) -> None:
    for dim in (2, 3):
        recipe = Recipe(augmentation=preset)
        every = tuple(range(dim)) if preset in MIRRORING_PRESETS else ()
        assert recipe.flipped_axes(dim) == every and recipe.predicted_axes(dim) == (every or None)
        in_training = Recipe(augmentation=preset, test_time_mirroring=False)
        assert in_training.flipped_axes(dim) == every and in_training.predicted_axes(dim) is None
    if preset in MIRRORING_PRESETS:
        some = Recipe(augmentation=preset, mirror=[2, 0])
        assert some.flipped_axes(3) == some.predicted_axes(3) == (0, 2)
    else:
        with pytest.raises(ValidationError, match=f"augmentation '{preset}' flips nothing"):
            Recipe(augmentation=preset, mirror=[0])
    if preset not in ("nnunet", "light", "slices"):
        flips = [t.allowed_axes for t in preset_transforms(preset, (8, 8, 8), (), (0, 1)) if type(t) is FlipTransform]
        assert flips == ([(0, 1)] if preset in MIRRORING_PRESETS else [])


def test_no_card_predicts_what_it_did_not_train_on() -> None:
    """Every variant of every card, the planned ones and those that a stock plan is trained by."""
    for card in cards().values():
        for name, variant in card.variants.items():
            recipe, every = variant.recipe, tuple(range(card.dim))
            assert recipe.flipped_axes(card.dim) == (every if recipe.augmentation in MIRRORING_PRESETS else ()), name
            assert set(recipe.predicted_axes(card.dim) or ()) <= set(recipe.flipped_axes(card.dim))
        assert card.variants["nnunet"].recipe.predicted_axes(card.dim) == every
    published = {name: cards()[name].variants["official"].recipe for name in ("misfm", "dae", "swinmm", "spadnet")}
    assert all(recipe.flipped_axes(3) == (0, 1, 2) for recipe in published.values())
    averaged = {name for name, recipe in published.items() if recipe.predicted_axes(3)}
    assert averaged == {"spadnet"}  # the others flip in training alone
    assert cards()["spadnet"].variants["thesis"].recipe.predicted_axes(3) is None


@pytest.mark.parametrize(
    ("augmentation", "mirror", "flipped", "predicted"),
    [
        ("nnunet", True, (0, 1, 2), (0, 1, 2)),
        ("nnunet", False, (), None),
        ("light", True, (), None),
        ("none", False, (), None),
        ("slices", True, (), None),
        ("flips", False, (0, 1, 2), None),
        ("stunet_dae", True, (0, 1, 2), (0, 1, 2)),
        ("spad_official", False, (0, 1, 2), None),
    ],
)
def test_older_plans_mean_what_they_trained(augmentation: str, mirror: bool, flipped: Any, predicted: Any) -> None:
    recipe = Recipe.model_validate({"augmentation": augmentation, "mirror": mirror})
    assert recipe.flipped_axes(3) == flipped and recipe.predicted_axes(3) == predicted
    again = Recipe.model_validate(json.loads(json.dumps(recipe.model_dump())))
    assert again == recipe


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (True, "all"), ("all", "all"), (False, []), ("none", []), ([], []), ([0, 2], [0, 2]), ("z,y", ["z", "y"]),
        ("Z Y", ["z", "y"]), (["x"], ["x"]), ("0,1", [0, 1]),
    ],
)  # fmt: skip
def test_what_a_user_may_write(given: object, read: object) -> None:
    assert read_mirror(given) == read


def test_studies_take_names_of_axes() -> None:
    check_settings({"recipe.mirror": "z,y", "recipe.augmentation": "light"})
    with pytest.raises(ValueError, match="recipe.mirror is 'left'"):
        check_settings({"recipe.mirror": "left"})


@pytest.mark.parametrize("given", ["", "zy", "left", 3, [3], [None], 0.5, {"z": 1}])
def test_what_a_user_may_not_write(given: object) -> None:
    with pytest.raises(ValueError, match="all, none"):
        read_mirror(given)


# Names


@pytest.mark.parametrize(
    "pair",
    [
        ("Kidney_L", "Kidney_R"), ("kidney left", "KIDNEY RIGHT"), ("leftKidney", "rightKidney"),
        ("leftkidney", "rightkidney"), ("LKidney", "RKidney"), ("femurL", "femurR"), ("lt-lung", "rt-lung"),
        ("ctx-lh-insula", "ctx-rh-insula"), ("Ventriculus sinister", "ventriculus dexter"),
        ("A. renalis sinistra", "A. renalis dextra"), ("linke Niere", "rechte Niere"), ("L", "R"), ("left", "right"),
        ("Zone_10_L_(Left_Common_Iliac)", "Zone_10_R_(Right_Common_Iliac)"), ("rib.left.1", "rib.right.1"),
        ("Kidney_L", "R_Kidney"), ("Lung (l)", "Lung (r)"), ("Left_L1", "Right_L1"), ("左肾", "右肾"),
    ],
)  # fmt: skip
def test_pairs_of_labels(pair: tuple[str, str]) -> None:
    for names in ((*pair, "spleen"), (pair[1], "background", pair[0])):
        found = find_sides(names)
        assert found.pairs == (pair,) and not found.alike


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["liver_left_lobe", "tumour"], ["liver_left_lobe"]),
        (["LV", "RV", "MYO"], ["LV", "RV"]),
        (["Eye_AL", "Eye_AR", "lens"], ["Eye_AL", "Eye_AR"]),
        (["Kidney_R"], ["Kidney_R"]),
        (["L1", "L2", "T12", "S1"], []),
        (["cleft", "upright", "liver", "lung", "river_bed"], []),
        (["Anterior", "Posterior", "Edge"], []),
    ],
)
def test_labels_that_only_look_sided(names: list[str], alike: list[str]) -> None:
    assert not find_sides(names).pairs and list(find_sides(names).alike) == alike


@pytest.mark.parametrize(
    ("names", "axis", "pairs"),
    [
        (["background", "anterior", "posterior"], 1, [("anterior", "posterior")]),
        (["Posterior_Hippocampus", "Anterior hippocampus"], 1, [("Anterior hippocampus", "Posterior_Hippocampus")]),
        (["lung_upper_lobe_left", "lung_lower_lobe_left", "lung_middle_lobe_right"], 2,
         [("lung_upper_lobe_left", "lung_lower_lobe_left")]),
        (["vena cava superior", "vena cava inferior"], 2, [("vena cava superior", "vena cava inferior")]),
        (["anterior cingulate", "posterior fossa", "flower", "backbone"], 1, []),
        (["left", "right"], 1, []),
    ],
)  # fmt: skip
def test_pairs_of_front_and_back_and_of_top_and_bottom(
    names: list[str], axis: int, pairs: list[tuple[str, str]]
) -> None:
    assert list(find_opposites(names, axis)) == pairs
    assert not find_sides(names).pairs or names == ["left", "right"]


def test_datasets_that_are_converted() -> None:
    """Carotids, cochleae, lacrimal and submandibular glands, optic nerves, parotids; arteries below the heart."""
    assert len(find_sides(ORGANS.names).pairs) == 6
    assert len(find_sides(AortaSeg24.label_sets["default"].names).pairs) == 4


# Axes


def written(tmp_path: Path, directions: Sequence[Sequence[float]], labels: Mapping[str, Any] = SIDED) -> Data:
    folder = write_dataset(tmp_path, 1, cases=len(directions), test_cases=0, shape=(4, 4, 4), labels=labels)
    for number, direction in enumerate(directions):
        file = folder / "imagesTr" / f"case_{number:02d}_0000.nii.gz"
        image = sitk.ReadImage(file)
        image.SetDirection(direction)
        sitk.WriteImage(image, file)
    content = json.loads((folder / "dataset.json").read_text())
    return Data(folder, labels, training_cases(folder, content), PLAIN, [0, 1, 2])


def turned(degrees: float) -> list[float]:
    """An image turned about the patient's long axis."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return [c, -s, 0, s, c, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("directions", "axes", "unsure"),
    [
        ([turned(0)], {2}, None),
        ([turned(180), turned(0)], {2}, None),
        ([turned(20)], {2}, None),
        ([turned(45)], {1, 2}, "lie askew"),
        ([SWAPPED], {1}, None),
        ([turned(0), SWAPPED], {1, 2}, "differ in their axes"),
    ],
)
def test_the_left_right_axis(directions: list[list[float]], axes: set[int], unsure: str | None, tmp_path: Path) -> None:
    cases = written(tmp_path, directions).cases
    found, why = patient_axes(cases, PLAIN)
    assert found == axes and (why is None) == (unsure is None) and (unsure or "") in (why or "")
    if unsure != "lie askew":
        for reader in ("NibabelIOWithReorient", "SimpleITKIOWithReorient"):
            assert patient_axes(cases, reader) == ({2}, None)
            assert dataset_orientations(cases, reader) == {"RAS": len(cases)}
    assert patient_axes(cases, "NaturalImage2DIO")[0] is None


def test_headers_that_tell_nothing(tmp_path: Path) -> None:
    cases = dict(written(tmp_path, [turned(0)] * 2).cases)
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), None)
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    nibabel.save(image, cases["case_00"]["images"][0])
    axes, why = patient_axes(cases, PLAIN)
    assert axes is None and why is not None and "1 of 2 training images" in why


# Plans


def choose(
    data: Data, *, variant: str = "mission", wish: object = None, dim: int = 3, **recipe: Any
) -> Decision[list[int]]:
    return choose_mirroring(Recipe(**recipe), wish, variant, data, dim)


def test_left_and_right_are_not_mirrored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path, [turned(0)])
    for preset in MIRRORING_PRESETS:
        chosen = choose(data, augmentation=preset)
        assert chosen.value == [0, 1] and chosen.origin == "data"
        assert "Kidney_L and Kidney_R differ by side, and x is the left-right axis" in chosen.reasons["mirror"]
    assert choose(data, augmentation="light") == Decision([], "mission")
    assert choose(data, variant="nnunet").value == [0, 1]
    for variant in ("official", "thesis"):
        chosen = choose(data, variant=variant)
        assert chosen.value == [0, 1, 2] and chosen.reasons["mirror"].startswith("as published, though Kidney_L")
        assert "--mirror z,y" in chosen.reasons["mirror"]
    chosen = choose(data, wish="all")
    assert chosen.value == [0, 1, 2] and chosen.origin == "user" and "as asked" in chosen.reasons["mirror"]
    assert choose(data, wish="z") == Decision([0], "user")
    captured = capsys.readouterr()
    assert not captured.out and not captured.err


def test_front_and_back_are_not_mirrored(tmp_path: Path) -> None:
    """Images that do not tell how they lie are mirrored: unlike left and right, front and back do not look alike."""
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    data = written(tmp_path, [turned(0)], labels)
    chosen = choose(data)
    assert chosen.value == [0, 2] and chosen.origin == "data"
    assert "anterior and posterior differ by side, and y is the front-back axis" in chosen.reasons["mirror"]
    assert choose(Data(data.raw, labels, data.cases, "NaturalImage2DIO", [0, 1, 2])).value == [0, 1, 2]
    both = {**labels, "kidney left": 3, "kidney right": 4}
    chosen = choose(Data(data.raw, both, data.cases, PLAIN, [0, 1, 2]))
    assert chosen.value == [0]
    assert "x is the left-right axis and y is the front-back axis" in chosen.reasons["mirror"]
    coronal = Data(data.raw, labels, data.cases, PLAIN, [1, 0, 2])
    chosen = choose(coronal, dim=2)
    assert chosen.value == [0, 1] and "across the front-back axis" in chosen.reasons["mirror"]


def test_slices_follow_the_axes_of_the_images(tmp_path: Path) -> None:
    data = written(tmp_path, [turned(0)])
    for first, axes in ((0, [0]), (1, [0]), (2, [0, 1])):
        order = [first, *(axis for axis in range(3) if axis != first)]
        chosen = choose(Data(data.raw, data.labels, data.cases, PLAIN, order), dim=2)
        assert chosen.value == axes
    assert "slices are cut across the left-right axis" in chosen.reasons["mirror"]
    sagittal = Data(data.raw, data.labels, data.cases, PLAIN, [2, 0, 1])
    assert choose(sagittal, wish="y", dim=2).value == [1]
    with fails("mirror-axes", "x", "0", "1"):
        choose(sagittal, wish="x", dim=2)


def test_regions_and_a_converters_word(tmp_path: Path) -> None:
    labels = {"background": 0, "lungs": [1, 2], "left lung": 1, "right lung": 2}
    data = written(tmp_path, [SWAPPED], labels)
    assert choose(data).value == [0, 2]
    photographs = Data(data.raw, labels, data.cases, "NaturalImage2DIO", [0, 1, 2])
    assert choose(photographs).value == [] and "format does not tell" in choose(photographs).reasons["mirror"]
    told = {"left_right": {"axis": "x", "pairs": [["lungs", "left lung"], ["gone", "lost"]]}}
    (data.raw / "conversion.json").write_text(json.dumps(told))
    assert choose(photographs).value == [0, 1]
    assert choose(data).value == [0]  # headers and conversion.json disagree
    assert choose(data).reasons["mirror"].startswith("lungs and left lung, left lung and right lung differ by side")
    (data.raw / "conversion.json").write_text('{"left_right": {"axis": "w"}}')
    with fails("conversion-form", "left_right.axis", "w"):
        choose(data)


def test_labels_that_look_sided_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path, [turned(0)], {"background": 0, "LV": 1, "RV": 2})
    chosen = told(choose(data))
    assert chosen.value == [0, 1, 2] and chosen.origin == "mission"
    assert (
        "WARNING: labels that only look as if they told left from right (LV, RV) change nothing"
        in capsys.readouterr().err
    )
    assert choose(data, wish="none") == Decision([], "user") and choose(data, augmentation="light").reasons == {}


def test_axes_beside_a_preset_without_flips_are_refused(tmp_path: Path) -> None:
    data = written(tmp_path, [turned(0)])
    for wish in ([0, 1], "all", True):
        with fails("mirror-augmentation", "light"):
            choose(data, wish=wish, augmentation="light")
    assert choose(data, wish=False, augmentation="light").value == []
