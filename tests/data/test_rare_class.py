"""Which slices are drawn: classes by rarity, slices uniformly; every kind of label; through nnU-Net's own files."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager

import nnunet_fm.trainers
from nnunet_fm.data.rare_class import RareClassDataLoader, survey
from nnunet_fm.data.slice_augmentation import GreyLevels
from nnunet_fm.models.names import Spec
from nnunet_fm.planfile.training_config import check_configuration, resolve
from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.trainers.loading import ThisProcessLoader
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint, write_image
from tests.helpers.errors import fails

DRAWS = 2000
EDGE = 20
LABELS: dict[str, Any] = {"background": 0, "large": 1, "small": 2, "tiny": 3}
IGNORE = {**LABELS, "ignore": 4}
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}


@pytest.fixture(autouse=True)
def seeded() -> None:
    np.random.seed(0)


class Cases:
    """What nnU-Net's dataset is to a loader; the image shows case and slice."""

    def __init__(self, segmentations: list[np.ndarray]) -> None:
        self.identifiers = [f"case_{i}" for i in range(len(segmentations))]
        self._segmentations = dict(zip(self.identifiers, segmentations, strict=True))
        self.loaded: Counter[str] = Counter()

    def load_case(self, identifier: str) -> Any:
        self.loaded[identifier] += 1
        seg = self._segmentations[identifier][None]
        image = np.zeros(seg.shape, np.float32)
        image[:] = 100 * self.identifiers.index(identifier) + np.arange(seg.shape[1])[None, :, None, None]
        return image, seg, None, {"class_locations": {}}


def segmentations() -> list[np.ndarray]:
    """Two volumes and a single slice; class 1 is common, class 2 rare, class 3 never has more than 4 pixels."""
    first = np.zeros((6, EDGE, EDGE), np.int8)
    first[:, :5] = -1
    first[:5, 5:15, 5:15] = 1
    first[2:4, 8:11, 8:11] = 2
    second = np.zeros((3, EDGE, EDGE), np.int8)
    second[0, 3, 3:8] = 2  # 5 pixels: just enough
    second[1, 3, 3:7] = 2  # 4 pixels
    second[2, 3:5, 3:5] = 3
    single = np.zeros((1, EDGE, EDGE), np.int8)
    single[0, :10] = 1
    return [first, second, single]


ELIGIBLE = {
    0: [(0, z) for z in range(6)] + [(1, z) for z in range(3)] + [(2, 0)],
    1: [(0, z) for z in range(5)] + [(2, 0)],
    2: [(0, 2), (0, 3), (1, 0)],
}
PIXELS = EDGE * EDGE
FREQUENCIES = {
    1: (3 * 100 + 2 * 91 + 200) / PIXELS / 10,
    2: (2 * 9 + 5 + 4) / PIXELS / 10,
}
FREQUENCIES[0] = 1 - FREQUENCIES[1] - FREQUENCIES[2] - 4 / PIXELS / 10


def expected_probabilities(frequencies: dict[int, float]) -> dict[int, float]:
    weights = {label: math.exp((1 - frequency) / 0.1) for label, frequency in frequencies.items()}
    return {label: weight / sum(weights.values()) for label, weight in weights.items()}


def loader(
    volumes: list[np.ndarray],
    labels: dict[str, Any] | None = None,
    patch: tuple[int, ...] = (EDGE, EDGE),
    faithful: bool = False,
) -> RareClassDataLoader:
    labels = labels or LABELS
    manager = LabelManager(labels, regions_class_order=[1, 2, 3] if "whole" in labels else None)
    return RareClassDataLoader(Cases(volumes), 4, patch, patch, manager, faithful=faithful)


def draw(made: RareClassDataLoader, batches: int = DRAWS // 4) -> list[tuple[int, int, int]]:
    """(label, case, slice) of every sample of some batches."""
    drawn = []
    for _ in range(batches):
        cases = [made.indices.index(identifier) for identifier in made.get_indices()]
        drawn += [(label, case, z) for case, (label, z) in zip(cases, made._drawn, strict=True)]
    return drawn


def assert_shares(counts: Counter[Any], expected: dict[Any, float]) -> None:
    """Within four standard deviations of a binomial each, and nothing else."""
    assert set(counts) <= set(expected)
    total = sum(counts.values())
    for key, share in expected.items():
        assert abs(counts[key] - total * share) <= 4 * math.sqrt(total * share * (1 - share)), (key, counts[key])


# The rule


def test_the_survey_counts_slices_and_shares() -> None:
    seen = survey(Cases(segmentations()))
    assert {label: [tuple(s) for s in slices.tolist()] for label, slices in seen.slices.items()} == ELIGIBLE
    assert dict(seen.frequencies) == pytest.approx(FREQUENCIES)
    assert list(seen.slices) == [0, 1, 2]  # class 3 has no slice with more than 4 pixels
    assert dict(zip(seen.slices, seen.probabilities, strict=True)) == pytest.approx(expected_probabilities(FREQUENCIES))


def test_long_volumes_are_read_by_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_fm.data.rare_class.SLAB", 4)
    seen = survey(Cases(segmentations()))
    assert {label: [tuple(s) for s in slices.tolist()] for label, slices in seen.slices.items()} == ELIGIBLE


def test_classes_by_rarity_and_slices_uniformly() -> None:
    drawn = draw(loader(segmentations()))
    assert len(drawn) == DRAWS
    assert_shares(Counter(label for label, *_ in drawn), expected_probabilities(FREQUENCIES))
    for label in (1, 2):
        slices = Counter((case, z) for drawn_label, case, z in drawn if drawn_label == label)
        assert_shares(slices, dict.fromkeys(ELIGIBLE[label], 1 / len(ELIGIBLE[label])))
    assert {(case, z) for label, case, z in drawn if label == 0} <= set(ELIGIBLE[0])


def test_common_classes_are_drawn_by_their_share_too() -> None:
    """Where all classes are as common as one another, so are the draws."""
    volume = np.repeat(np.arange(4, dtype=np.int8), 5)[None, :, None] * np.ones((8, 1, EDGE), np.int8)
    assert_shares(Counter(label for label, *_ in draw(loader([volume]))), dict.fromkeys(range(4), 0.25))


def test_the_published_code_draws_from_all_classes_slices() -> None:
    """A slice is as likely as it has classes, whichever class was drawn."""
    classes = Counter(entry for entries in ELIGIBLE.values() for entry in entries)
    total = sum(classes.values())
    expected = {entry: number / total for entry, number in classes.items()}
    drawn = draw(loader(segmentations(), faithful=True))
    assert_shares(Counter((case, z) for _, case, z in drawn), expected)
    assert_shares(Counter(label for label, *_ in drawn), expected_probabilities(FREQUENCIES))
    batch = next(loader(segmentations(), patch=(6, 6), faithful=True))  # slices without the class that was drawn
    assert batch["target"].shape == (4, 1, 6, 6)


def test_ignored_pixels_are_no_class() -> None:
    volumes = segmentations()
    volumes[0][2:4] = np.where(volumes[0][2:4] == 2, 2, 4)  # two slices of which only class 2 is labelled
    volumes[0][4] = 4
    seen = survey(Cases(volumes), ignore_label=4)
    slices = {label: {tuple(s) for s in own.tolist()} for label, own in seen.slices.items()}
    unlabelled = {(0, 2), (0, 3), (0, 4)}
    assert slices == {0: {*ELIGIBLE[0]} - unlabelled, 1: {*ELIGIBLE[1]} - unlabelled, 2: {*ELIGIBLE[2]}}
    # shares of labelled pixels, over the nine slices that have any
    assert seen.frequencies[2] == pytest.approx((1 + 1 + (5 + 4) / PIXELS) / 9)
    assert seen.frequencies[1] == pytest.approx((2 * 100 + 200) / PIXELS / 9)
    for label, case, z in draw(loader(volumes, IGNORE), 100):
        assert (case, z) in slices[label]
    with fails("labels-empty", "5"):
        loader([np.full((2, 8, 8), 4, np.int8)], IGNORE)


def test_classes_of_regions_are_the_labels() -> None:
    drawn = draw(loader(segmentations(), REGIONS))
    assert_shares(Counter(label for label, *_ in drawn), expected_probabilities(FREQUENCIES))


# Patches


@pytest.mark.parametrize("patch", [(EDGE, EDGE), (24, 30), (27, 12), (8, 8)])
def test_patches_of_slices_smaller_and_larger(patch: tuple[int, int]) -> None:
    made = loader(segmentations(), patch=patch)
    for _ in range(40):
        batch = next(made)
        assert batch["data"].shape == batch["target"].shape == (4, 1, *patch)
        drawn = [
            (made.indices.index(key), int(image.max())) for key, image in zip(batch["keys"], batch["data"], strict=True)
        ]
        assert all(value // 100 == case for case, value in drawn)  # the slice of the case that was drawn
        inside = (batch["target"] != -1) | (batch["data"] > 0)
        for axis, edge in ((3, patch[0]), (2, patch[1])):
            assert inside.any(dim=axis).sum(dim=-1).max() <= min(edge, EDGE)


def test_whole_slices_are_centred_in_larger_patches() -> None:
    volume = np.ones((2, 10, 10), np.int8)
    for target in next(loader([volume], patch=(16, 14)))["target"]:
        assert (target[0, 3:13, 2:12] == 1).all() and (target == 1).sum() == 100


def test_patches_are_centred_on_the_class() -> None:
    volume = np.zeros((2, 60, 60), np.int8)
    volume[0, 28:33, 30] = 2
    volume[1, 0, :5] = 3
    made = loader([volume], patch=(9, 9))
    corners: dict[int, list[tuple[int, int]]] = {0: [], 2: [], 3: []}
    for _ in range(DRAWS // 4):
        for identifier in made.get_indices():
            made.cases.load_case(identifier)
            label, z = made._drawn[0]
            lower, upper = made.get_bbox((2, 60, 60), True, None)
            assert (lower[0], upper[0]) == (z, z + 1) and np.array_equal(np.subtract(upper, lower), (1, 9, 9))
            assert min(lower) >= 0 and max(upper) <= 60
            corners[label].append((lower[1], lower[2]))
    assert {(y + 4, x + 4) for y, x in corners[2]} == {(y, 30) for y in range(28, 33)}
    assert {y for y, _ in corners[3]} == {0}  # the patch stays in the slice
    assert set(made.labels) == {0, 2, 3}


def test_background_patches_lie_anywhere_but_not_among_ignored_pixels() -> None:
    empty = np.zeros((1, 40, 40), np.int8)
    made = loader([empty], patch=(10, 10))
    corners = []
    for _ in range(100):
        for _ in made.get_indices():
            corners.append(made.get_bbox((1, 40, 40), True, None)[0][1:])
    assert np.min(corners, axis=0).tolist() == [0, 0] and np.max(corners, axis=0).tolist() == [30, 30]
    empty[:] = 4
    empty[0, 20, 20:26] = -1
    for target in next(loader([empty], IGNORE, patch=(9, 9)))["target"]:
        assert target[0, 4, 4] == -1


def test_every_segmentation_is_read_once_before_the_loader_is_sent_away() -> None:
    cases = Cases(segmentations())
    made = RareClassDataLoader(cases, 2, (8, 8), (8, 8), LabelManager(LABELS, None))
    assert cases.loaded == dict.fromkeys(cases.identifiers, 1)
    sent = pickle.loads(pickle.dumps(made))
    batches = []
    for one in (made, sent):
        np.random.seed(3)
        batches.append(next(SingleThreadedAugmenter(one, None)))
    assert torch.equal(batches[0]["data"], batches[1]["data"]) and batches[0]["keys"] == batches[1]["keys"]
    assert sum(cases.loaded.values()) == 3 + 2


def test_volumes_are_refused() -> None:
    with fails("recipe-dimension", "rare_class"):
        loader(segmentations(), patch=(4, 8, 8))


# Through nnU-Net's files and the trainer


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        nnunet_folders(root, patch)
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setenv("nnUNet_def_n_proc", "1")
        yield root
    shutil.rmtree(root)


def test_a_trainer_draws_preprocessed_slices(folders: Path) -> None:
    """Volumes and single slices, regions and an ignore label, the rule and the published code's."""
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    raw = write_dataset(folders / "nnUNet_raw", 700, shape=(8, 40, 44), labels=labels, regions_class_order=[1, 2])
    for case in range(3):  # two cases at most are for validation
        for file in (raw / f"imagesTr/case_{case:02d}_0000.nii.gz", raw / f"labelsTr/case_{case:02d}.nii.gz"):
            write_image(file, sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[3:4], (3.0, 1.0, 1.0))
    write_fingerprint(raw, [(1, 40, 44)] * 3 + [(8, 40, 44)] * 3, [(3.0, 1.0, 1.0)] * 6)
    content = json.loads((raw / "dataset.json").read_text())
    for faithful in (False, True):
        options = Options(iterations=4, recipe={"faithful": faithful}, force=True)
        plans = planner_class("FMPlanner_vanilla_unet2d")(700, 40, options=options).plan_experiment()
        preprocess_dataset(700, plans["plans_name"], ["2d"], [1], show_progress_bar=False)  # once: the second is as new
        trainer = nnunet_fm.trainers.fm_trainer(plans, "2d", 0, content, torch.device("cpu"))  # type: ignore[attr-defined]
        trainer._set_batch_size_and_oversample()
        training, validation = trainer.get_dataloaders()
        assert type(training) is type(validation) is ThisProcessLoader
        made = training.data_loader
        assert type(made) is RareClassDataLoader
        assert (len({id(slices) for slices in made.slices.values()}) == 1) == faithful
        assert isinstance(made.transforms.transforms[0], GreyLevels)
        patch = tuple(plans["configurations"]["2d"]["patch_size"])
        for _ in range(3):
            batch = next(training)
            assert batch["data"].shape == (trainer.batch_size, 1, *patch)
            assert batch["data"].min() >= -1e-6 and batch["data"].max() <= 1 + 1e-6
            assert batch["target"].shape == (trainer.batch_size, 3, *patch)  # two regions and what to ignore
            assert batch["target"].dtype == torch.bool and batch["target"][:, 0].any()


def test_trainings_of_volumes_refuse_what_is_for_slices(folders: Path) -> None:
    plans = {
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "configurations": {"3d_fullres": {"patch_size": [32, 32, 32], "batch_size": 2, "spacing": [1.0, 1.0, 1.0]}},
    }
    config = resolve(plans, Spec(model="stunet_s", scratch=True))
    assert check_configuration(config, plans, "3d_fullres") is None
    for name, value in (("augmentation", "slices"), ("sampling", "rare_class")):
        changed = replace(config, recipe=config.recipe.model_copy(update={name: value}))
        with fails("recipe-dimension", name, value, "stunet_s"):
            check_configuration(changed, plans, "3d_fullres")
