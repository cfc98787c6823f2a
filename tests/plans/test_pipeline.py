"""Steps of planning as pure functions: a decision is a value that nothing changes afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nnunet_fm.io.dataset_names import short_name
from nnunet_fm.models.card import Recipe
from nnunet_fm.plans.pipeline import choose_length, slices_first, told
from nnunet_fm.plans.plan import Decision, merge_reasons, observation, origins
from nnunet_fm.preprocessing.orientation import read_header
from tests.helpers.datasets import write_image

SAMPLES = {"0": 10, "1": 12, "all": 22}


@pytest.mark.parametrize(("changed", "per_epoch", "validation"), [({}, 3, 3), ({"iterations_per_epoch": 250}, 250, 50)])
def test_a_pass_is_an_epoch_unless_the_user_says_otherwise(
    changed: dict[str, int], per_epoch: int, validation: int
) -> None:
    recipe = Recipe(iterations_per_epoch=250, validation_iterations=50)
    before = recipe.model_dump()
    length = choose_length(recipe, changed, SAMPLES, 4, 2, 5, None, "mission")
    assert (length.value.iterations, length.value.epochs, length.origin) == (15, 5, "mission")
    assert length.value.recipe.iterations_per_epoch == per_epoch
    assert length.value.recipe.validation_iterations == validation
    assert length.reasons["iterations"].startswith("5 epochs over 10 slices of the training cases of fold 0")
    assert length.reasons["iterations"].endswith("in batches of 4; other folds count theirs (12 to 12)")
    assert recipe.model_dump() == before


def test_iterations_of_the_user_win_over_passes() -> None:
    length = choose_length(Recipe(), {}, SAMPLES, 4, 3, 5, 7, "user")
    assert (length.value.iterations, length.value.epochs, length.reasons) == (7, None, {})


def test_reasons_keep_their_order_and_warnings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    patch = Decision([8, 8], "data", {"patch_size": "small images"})
    fitted = Decision([4, 4], "memory", {"patch_size": "too large"})
    alarm = told(observation("memory", "nothing fits", warn=True))
    assert capsys.readouterr().err == "WARNING: nothing fits\n"
    assert told(observation("memory", None, warn=True)) == Decision(None) and not capsys.readouterr().err
    assert list(merge_reasons(patch, alarm, fitted).items()) == [
        ("patch_size", "too large"),
        ("memory", "nothing fits"),
    ]
    assert origins(patch_size=fitted, slice_axis=Decision([0, 1, 2])) == {"patch_size": "memory"}
    with pytest.raises(AttributeError):
        patch.value = [1, 1]  # type: ignore[misc]


def test_slices_come_first() -> None:
    assert [slices_first(axis) for axis in range(3)] == [[0, 1, 2], [1, 0, 2], [2, 0, 1]]


@pytest.mark.parametrize(
    ("name", "word"),
    [("Dataset501_A_b", "A_b"), ("Dataset1000_C", "C"), ("Dataset501", "Dataset501"), ("HCP_T1", "HCP_T1")],
)
def test_short_names(name: str, word: str) -> None:
    assert short_name(name) == word


def test_a_header_is_read_again_once_the_file_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "case.nii.gz"
    assert read_header(str(file)) is None
    write_image(file, np.zeros((2, 3, 4), np.float32), (1, 1, 1))
    header = read_header(str(file))
    assert header is not None and header.GetSize() == (4, 3, 2) and read_header(str(file)) is header
    write_image(file, np.zeros((5, 3, 4), np.float32), (1, 1, 1))
    os.utime(file, ns=(0, 1))
    changed = read_header(str(file))
    assert changed is not None and changed.GetSize() == (4, 3, 5)
    file.write_bytes(b"no image")
    assert read_header(str(file)) is None
