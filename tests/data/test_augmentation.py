"""Augmentation presets: every probability and every strength, in 2,000 draws each; image and labels move alike."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_fm.data.augmentation import (
    FlipTransform,
    initial_patch_size,
    preset_transforms,
    with_preset,
)
from nnunet_fm.data.presets import PRESETS, SPATIAL_PRESETS
from nnunet_fm.models.card import Recipe

DRAWS = 2000
CUBE = (6, 6, 6)

FLIPS = {"flip 0": 0.5, "flip 1": 0.5, "flip 2": 0.5}
DAE_FLIPS = dict.fromkeys(FLIPS, 0.2)
TURNS = ("rot90 1", "rot90 2", "rot90 3")
SUPREM = {
    "rotation": (0.2, -math.pi / 2, math.pi / 2),
    "zoom": (0.2, 0.7, 1.4),
    "noise": (0.1, 0.0, 0.1),
    "smoothing": (0.1, 0.8, 1.2),
    "contrast": (0.15, 0.75, 1.25),
    "low_resolution": (0.15, 0.5, 1.0),
}
GAMMAS = {"gamma": (3 / 13, 0.7, 1.5), "inverted gamma": (1 / 13, 0.7, 1.5)}
EXPECTED: dict[str, dict[str, Any]] = {
    "none": {},
    "flips": FLIPS,
    "flips_rotations": FLIPS | dict.fromkeys(TURNS, 0.2 / 3),
    "stunet_dae": DAE_FLIPS | dict.fromkeys(TURNS, 0.2 / 3) | {"scale": (0.1, 0.9, 1.1), "shift": (0.1, -0.1, 0.1)},
    "suprem_official": dict.fromkeys(TURNS, 0.1 / 3) | {"shift": (0.2, -0.1, 0.1)},
    "suprem": SUPREM,
    "spad": SUPREM | GAMMAS,
    "spad_official": SUPREM | FLIPS | {"scale": (0.15, 0.75, 1.25)} | GAMMAS,
}
"""Event -> probability, or (probability, smallest, largest strength). Written from the publications, not the table."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


def record(preset: str, patch: Sequence[int], draws: int = DRAWS) -> dict[str, list[float]]:
    """Strengths of everything that a preset did, by event, over many samples."""
    events: dict[str, list[float]] = defaultdict(list)
    transforms = ComposeTransforms(preset_transforms(preset, patch))
    for leaf in leaves(transforms):
        listen(leaf, events)
    loaded = initial_patch_size(preset, patch)
    image, labels = torch.rand(1, *loaded), torch.zeros(1, *loaded, dtype=torch.int16)
    for _ in range(draws):
        out = transforms(image=image.clone(), segmentation=labels)
        assert out["image"].shape == out["segmentation"].shape == (1, *patch)
    return events


def leaves(transform: Any) -> list[Any]:
    inner = [*getattr(transform, "transforms", ()), *set(getattr(transform, "list_of_transforms", ()))]
    inner += [transform.transform] if hasattr(transform, "transform") else []
    return [leaf for part in inner for leaf in leaves(part)] if inner else [transform]


def listen(leaf: Any, events: dict[str, list[float]]) -> None:
    """Note the parameters with which a transform is really applied."""
    kind, original = type(leaf).__name__, leaf._apply_to_image

    def apply(img: torch.Tensor, **p: Any) -> torch.Tensor:
        if kind == "FlipTransform":
            for axis in p["axes"]:
                events[f"flip {axis}"].append(1)
        elif kind == "Rot90Transform":
            assert [sorted(axes) for axes in p["axis_combinations"]] == [[img.ndim - 2, img.ndim - 1]]
            events[f"rot90 {p['num_rot_per_combination'][0]}"].append(1)
        elif kind == "SpatialTransform" and p["affine"] is not None:
            note_affine(p["affine"], events)
        elif kind == "GaussianNoiseTransform":
            events["noise"].append(p["sigmas"])
        elif kind == "GaussianBlurTransform":
            assert len(set(p["sigmas"])) == img.ndim - 1  # one per axis
            events["smoothing"].extend(p["sigmas"][:1])
        elif kind == "MultiplicativeBrightnessTransform":
            events["scale"].append(float(p["multipliers"][0]))
        elif kind == "ShiftTransform":
            events["shift"].append(p["offset"])
        elif kind == "ContrastTransform":
            events["contrast"].append(float(p["multipliers"][0]))
        elif kind == "SimulateLowResolutionTransform":
            scales = p["scales"][0].tolist()
            assert scales[-1] == scales[-2] and (len(scales) == 2 or scales[0] == 1)  # in plane
            events["low_resolution"].append(scales[-1])
        elif kind == "GammaTransform":
            name = "inverted gamma" if p["invert_image"].item() else "gamma"
            assert not p["retain_stats"].item()
            events[name].append(p["gamma"].item())
        return original(img, **p)

    leaf._apply_to_image = apply


def note_affine(affine: np.ndarray, events: dict[str, list[float]]) -> None:
    zooms = np.linalg.norm(affine, axis=0)
    assert np.allclose(zooms, zooms[0])  # one factor for all axes
    rotation = affine / zooms
    angle = math.atan2(rotation[-1, -2], rotation[-2, -2])
    if len(affine) == 3:
        assert np.allclose(rotation[0], [1, 0, 0])  # about z only
    if abs(zooms[0] - 1) > 1e-9:
        events["zoom"].append(zooms[0])
    if abs(angle) > 1e-9:
        events["rotation"].append(angle)


def assert_share(count: int, probability: float, what: str) -> None:
    """Within four standard deviations of a binomial: by chance one of 15,000 is not."""
    bound = 4 * math.sqrt(DRAWS * probability * (1 - probability))
    assert abs(count - DRAWS * probability) <= bound, f"{what}: {count} of {DRAWS}, expected {probability}"


@pytest.mark.parametrize("preset", EXPECTED)
def test_every_probability_and_every_strength(preset: str) -> None:
    events = record(preset, CUBE)
    assert set(events) == set(EXPECTED[preset])
    for what, expected in EXPECTED[preset].items():
        probability, *limits = expected if isinstance(expected, tuple) else (expected,)
        assert_share(len(events[what]), probability, what)
        if limits:
            low, high = limits
            margin = (high - low) * 12 / len(events[what])  # uniform: the extremes come this near, but for 1 in 10^5
            assert low - 1e-6 <= min(events[what]) <= low + margin, what
            assert high - margin <= max(events[what]) <= high + 1e-6, what
            assert abs(np.mean(events[what]) - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * len(events[what]))


def test_the_presets_are_those_that_recipes_name() -> None:
    assert set(PRESETS) == {*EXPECTED, "slices"}  # tested in test_slice_augmentation.py
    assert set(PRESETS) | {"nnunet", "light"} == set(Recipe.model_fields["augmentation"].annotation.__args__)
    assert {"nnunet", "suprem", "spad", "spad_official"} == SPATIAL_PRESETS
    assert all(step.source for steps in PRESETS.values() for step in steps)


@pytest.mark.parametrize("preset", EXPECTED)
@pytest.mark.parametrize("patch", [(6, 8, 4), (8, 6)])
def test_patches_that_are_no_cubes_and_2d(preset: str, patch: tuple[int, ...]) -> None:
    events = record(preset, patch, draws=150)
    assert not {"rot90 1", "rot90 3"} & set(events)  # a quarter turn does not fit
    if preset != "none":
        assert set(events) & {"flip 0", "rot90 2", "zoom"}


def test_square_2d_patches_turn() -> None:
    assert set(TURNS) <= set(record("flips_rotations", (6, 6), draws=300))


@pytest.mark.parametrize("patch", [(6, 6, 6), (7, 9, 5), (8, 8)])
@pytest.mark.parametrize("preset", ["flips", "flips_rotations", "stunet_dae"])
def test_image_and_labels_move_alike(preset: str, patch: tuple[int, ...]) -> None:
    numbers = torch.arange(math.prod(patch)).reshape(1, *patch)
    spatial = ComposeTransforms(preset_transforms(preset, patch)[:2])
    moved = 0
    for _ in range(40):
        out = spatial(image=numbers.float(), segmentation=numbers.to(torch.int16))
        assert torch.equal(out["image"], out["segmentation"].float())
        assert torch.equal(out["image"].flatten().sort().values, numbers.float().flatten())
        moved += not torch.equal(out["image"], numbers.float())
    assert moved > 10


def test_rotated_labels_cover_the_rotated_structure() -> None:
    loaded = initial_patch_size("suprem", (4, 24, 24))
    image = torch.zeros(1, *loaded)
    image[:, :, 14:20, 10:30] = 1
    affine = preset_transforms("suprem", (4, 24, 24))[0]
    affine.p_rotation = affine.p_scaling = 1
    for _ in range(10):
        out = affine(image=image, segmentation=image.to(torch.int16))
        inside = out["segmentation"] == 1
        assert inside.any() and out["image"][inside].mean() > 0.9 and out["image"][~inside].mean() < 0.05


def test_a_rotation_finds_voxels_everywhere() -> None:
    patch = (4, 16, 16)
    loaded = initial_patch_size("spad", patch)
    assert loaded == [5, 27, 27] and initial_patch_size("stunet_dae", patch) == [4, 16, 16]
    affine = preset_transforms("spad", patch)[0]
    affine.p_rotation, affine.p_scaling = 1, 0
    for angle in np.linspace(-math.pi / 2, math.pi / 2, 13):
        affine.rotation = lambda image, dim, angle=angle: angle if dim == 0 else 0.0
        assert affine(image=torch.ones(1, *loaded))["image"].min() > 0.999


def test_flips_with_probability_zero_and_one() -> None:
    image = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert torch.equal(FlipTransform((0, 1, 2), 0)(image=image)["image"], image)
    assert torch.equal(FlipTransform((0, 2), 1)(image=image)["image"], image.flip(1, 3))


def test_channels_in_a_symmetric_range_are_augmented_in_the_unit_range() -> None:
    unit = torch.rand(2, *CUBE)
    mixed = unit.clone()
    mixed[1] = 2 * unit[1] - 1
    plain, symmetric = (ComposeTransforms(preset_transforms("stunet_dae", CUBE, c)) for c in ((), (1,)))
    changed = 0
    for seed in range(60):
        results = []
        for transforms, image in ((plain, unit), (symmetric, mixed)):
            np.random.seed(seed)
            torch.manual_seed(seed)
            results.append(transforms(image=image.clone())["image"])
        expected = results[0].clone()
        expected[1] = 2 * expected[1] - 1
        torch.testing.assert_close(results[1], expected)
        changed += not torch.equal(expected.sort().values, mixed.sort().values)
    assert changed > 10


def stock_transforms(**changes: Any) -> ComposeTransforms:
    arguments: dict[str, Any] = {"use_mask_for_norm": [False], "foreground_labels": [1, 2]} | changes
    return nnUNetTrainer.get_training_transforms(
        CUBE, (-0.5, 0.5), [[1.0] * 3, [0.5] * 3], (0, 1, 2), True, **arguments
    )


@pytest.mark.parametrize("preset", [*EXPECTED, "light", "nnunet"])
def test_presets_work_in_nnunets_pipeline(preset: str) -> None:
    """Regions, ignore label, mask and targets of deep supervision are nnU-Net's, whatever the preset."""
    stock = stock_transforms(use_mask_for_norm=[False, True], regions=[(1, 2), 2], ignore_label=3)
    transforms = pickle.loads(pickle.dumps(with_preset(preset, stock, CUBE)))  # loaders may be other processes
    loaded = initial_patch_size(preset, CUBE) if preset in SPATIAL_PRESETS - {"nnunet"} else list(CUBE)
    image = torch.rand(2, *loaded) + 1
    labels = torch.randint(-1, 4, (1, *loaded), dtype=torch.int16)
    for _ in range(30):
        out = transforms(image=image.clone(), segmentation=labels.clone())
        assert out["image"].shape == (2, *CUBE) and out["image"].dtype == torch.float32
        full, half = out["segmentation"]
        assert full.shape == (3, *CUBE) and half.shape == (3, 3, 3, 3) and full.dtype == torch.bool
        assert torch.isfinite(out["image"]).all()
        assert (full[0] | ~full[1]).all() and not (full[2] & full[0]).any()  # region 2 lies in (1, 2); ignore apart
    if preset == "none":
        outside = labels[0] == -1
        assert (out["image"][1][outside] == 0).all() and (out["image"][0] > 0).all()


def test_nnunet_is_left_as_it_is() -> None:
    stock = stock_transforms()
    assert with_preset("nnunet", stock, CUBE) is stock
