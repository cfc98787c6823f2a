"""The preset of 2D training: probabilities and strengths in 2,000 draws, the mathematics of every step, bookkeeping."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy import ndimage
from skimage.color import hsv2rgb, rgb2hsv

from nnunet_fm.data.augmentation import initial_patch_size, preset_transforms, with_preset
from nnunet_fm.data.slice_augmentation import (
    Chance,
    ElasticTransform,
    GreyLevels,
    MotionTransform,
    PhotometricTransform,
    WarpTransform,
)
from tests.helpers.errors import fails

DRAWS = 2000
NEVER = Chance(0, (0, 0))
STRENGTHS = {
    "translation y": (-10, 10),
    "translation x": (-10, 10),
    "rotation": (-math.radians(10), math.radians(10)),
    "scale": (0.9, 1.1),
    "brightness": (-32, 32),
    "contrast": (0.5, 1.5),
    "saturation": (0.5, 1.5),
    "hue": (-18, 18),
}
"""Written from the publication."""
WHOLE_STEPS = {"scale": 0.01, "hue": 1}


@pytest.fixture(autouse=True)
def seeded() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


def parts(preset: GreyLevels | None = None) -> tuple[ElasticTransform, MotionTransform, PhotometricTransform]:
    """The three transforms of the preset, in the published order."""
    elastic, motion, photometric = (preset or slices()).transforms
    assert isinstance(elastic, ElasticTransform)
    assert isinstance(motion, MotionTransform)
    assert isinstance(photometric, PhotometricTransform)
    return elastic, motion, photometric


def slices(edge: int = 64, symmetric: tuple[int, ...] = ()) -> GreyLevels:
    (made,) = preset_transforms("slices", (edge, edge), symmetric)
    assert isinstance(made, GreyLevels)
    return made


def assert_share(count: int, probability: float, draws: int = DRAWS) -> None:
    assert abs(count - draws * probability) <= 4 * math.sqrt(draws * probability * (1 - probability))


def assert_uniform(drawn: list[float], low: float, high: float, step: float) -> None:
    margin = (high - low) * 12 / len(drawn) + step  # uniform: the extremes come this near, but for 1 in 10^5
    assert low - 1e-6 <= min(drawn) <= low + margin
    assert high - margin <= max(drawn) <= high + 1e-6
    assert abs(np.mean(drawn) - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * len(drawn)) + step / 10


# Probabilities and strengths


def test_motions_are_three_draws_of_a_quarter_each(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[float]] = defaultdict(list)
    moves = 0

    def note(shape: Any, shift: Any, angle: float, factor: float) -> str:
        nonlocal moves
        moves += 1
        if shift.any():
            drawn["translation y"].append(shift[0])
            drawn["translation x"].append(shift[1])
        if angle:
            drawn["rotation"].append(angle)
        if factor != 1:
            drawn["scale"].append(factor)
            assert round(factor, 2) == factor
        return "positions"

    monkeypatch.setattr(MotionTransform, "_positions", staticmethod(note))
    _, motion, _ = parts()
    image = torch.rand(1, 8, 8)
    for _ in range(DRAWS):
        motion.get_parameters(image=image)
    for name in ("translation y", "translation x", "rotation"):
        assert_share(len(drawn[name]), 0.25)
    assert_share(len(drawn["scale"]), 0.25 * 19 / 20)  # one in twenty is 1.00
    assert_share(moves, 1 - 0.75**2 * (1 - 0.25 * 19 / 20))  # independent of one another
    assert np.corrcoef(drawn["translation y"], drawn["translation x"])[0, 1] < 0.2
    for name, values in drawn.items():
        assert_uniform(values, *STRENGTHS[name], WHOLE_STEPS.get(name, 0))


def test_photometric_steps_happen_half_of_the_time_in_two_orders() -> None:
    _, _, photometric = parts()
    drawn: dict[str, list[float]] = defaultdict(list)
    early = complete = 0
    for _ in range(DRAWS):
        steps = photometric.get_parameters()["steps"]
        names = [name for name, _ in steps]
        assert names == [n for n in ("brightness", "contrast", "saturation", "hue") if n in names] or names == [
            n for n in ("brightness", "saturation", "hue", "contrast") if n in names
        ]
        for name, strength in steps:
            drawn[name].append(strength)
        if "contrast" in names and {"saturation", "hue"} & set(names):
            complete += 1
            early += names.index("contrast") < names.index("hue" if "hue" in names else "saturation")
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert_share(len(drawn[name]), 0.5)
        assert_uniform(drawn[name], *STRENGTHS[name], WHOLE_STEPS.get(name, 0))
    assert set(drawn["hue"]) == set(range(-18, 19))
    assert_share(early, 0.5, complete)


def test_elastic_deformations_happen_a_quarter_of_the_time() -> None:
    elastic, _, _ = parts()
    image = torch.rand(1, 4, 4)
    assert_share(sum(elastic.get_parameters(image=image)["positions"] is not None for _ in range(DRAWS)), 0.25)


# Geometry


def test_elastic_displacements_are_smoothed_uniform_noise() -> None:
    """Standard deviation in pixels: 1000 / sqrt(3) of the noise, times the norm of a Gaussian of sigma 20 in 2D."""
    elastic, _, _ = parts()
    elastic.chance = Chance(1, elastic.chance.strength)
    shape = (224, 224)
    fields = np.stack([elastic.get_parameters(image=torch.empty(1, *shape))["positions"] for _ in range(12)])
    displacements = fields - np.indices(shape)
    far_from_border = displacements[:, :, 80:-80, 80:-80]
    expected = 1000 / math.sqrt(3) / math.sqrt(4 * math.pi * 20**2)
    independent = 24 * 64 * 64 / (4 * math.pi * 20**2)  # values in the fields, given the correlation's extent
    assert far_from_border.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * independent))
    assert abs(far_from_border.mean()) < 4 * expected / math.sqrt(independent)
    assert np.abs(np.diff(displacements, axis=-1)).max() < 5 * expected / (20 * math.sqrt(2))  # smooth
    # as if zeros lay around: half of the noise at the edge, a quarter at a corner
    edge, corner = displacements[:, 0, 0, 80:-80].std(), displacements[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].std()
    assert edge == pytest.approx(expected / math.sqrt(2), rel=0.4) and corner == pytest.approx(expected / 2, rel=0.4)


@pytest.mark.parametrize("warp", ["elastic", "motion"])
@pytest.mark.parametrize("shape", [(40, 40), (37, 52)])
def test_pixels_are_interpolated_as_scipy_does(warp: str, shape: tuple[int, int]) -> None:
    elastic, motion, _ = parts()
    transform: WarpTransform = elastic if warp == "elastic" else motion
    image = torch.from_numpy(ndimage.gaussian_filter(np.random.rand(2, *shape), (0, 1, 1))).float()
    labels = torch.randint(-1, 15, (2, *shape), dtype=torch.int16)
    positions = np.indices(shape) + ndimage.gaussian_filter(np.random.normal(0, 60, (2, *shape)), (0, 4, 4))
    out = transform.apply({"image": image, "segmentation": labels}, positions=positions)
    mode = "reflect" if warp == "elastic" else "constant"
    inside = ((positions > 0) & (positions < np.array(shape)[:, None, None] - 1)).all(0)
    assert not inside.all()
    for before, after, order in ((image, out["image"], 1), (labels, out["segmentation"], 0)):
        assert after.dtype == before.dtype and after.shape == before.shape
        for channel, result in zip(before.numpy(), after.numpy(), strict=True):
            expected = ndimage.map_coordinates(channel, positions, order=order, mode=mode)
            where = np.ones(shape, bool) if warp == "elastic" else inside
            np.testing.assert_allclose(result[where], expected[where], atol=1e-4)
    if warp == "motion":
        outside = ((positions < -1) | (positions > np.array(shape)[:, None, None])).any(0)
        assert outside.any() and (out["image"][:, outside] == 0).all() and (out["segmentation"][:, outside] == 0).all()


@pytest.mark.parametrize("edge", [64, 65])
@pytest.mark.parametrize(
    ("shift", "angle", "factor"),
    [((7.0, -4.0), 0.0, 1.0), ((0.0, 0.0), 0.17, 1.0), ((0.0, 0.0), 0.0, 0.9), ((-6.0, 9.0), -0.12, 1.1)],
)
def test_a_marked_pixel_goes_where_the_motion_says(
    edge: int, shift: tuple[float, float], angle: float, factor: float
) -> None:
    """Translated first, then rotated and scaled about the centre; image and label alike."""
    motion = MotionTransform(NEVER, NEVER, NEVER)
    positions = motion._positions((edge, edge), np.array(shift), angle, factor)
    image, labels = torch.zeros(1, edge, edge), torch.zeros(1, edge, edge, dtype=torch.int16)
    image[0, 38:41, 24:27] = 1
    labels[0, 38:41, 24:27] = 5
    out = motion.apply({"image": image, "segmentation": labels}, positions=positions)
    centre = (edge - 1) / 2
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    expected = factor * rotation @ (np.array([39, 25]) + shift - centre) + centre
    for found in (out["image"][0].numpy(), (out["segmentation"][0] == 5).numpy()):
        assert np.allclose(ndimage.center_of_mass(found), expected, atol=0.35)
    assert set(out["segmentation"].unique().tolist()) == {0, 5}
    assert out["image"].sum().item() == pytest.approx(9 * factor**2, rel=0.1)


def test_what_lies_outside_is_black_background() -> None:
    motion = MotionTransform(NEVER, NEVER, Chance(1, (0.9, 0.9)))
    image, labels = torch.full((1, 100, 100), 80.0), torch.full((1, 100, 100), 3, dtype=torch.int16)
    out = motion(image=image, segmentation=labels)
    for values, inside in ((out["image"], 80), (out["segmentation"], 3)):
        assert torch.allclose(values[0, 6:-6, 6:-6].float(), torch.tensor(float(inside)))
        assert (values[0, :4] == 0).all() and (values[0, :, -4:] == 0).all()


# Grey levels


def steps(image: torch.Tensor, *wanted: tuple[str, float]) -> torch.Tensor:
    return PhotometricTransform({}).apply({"image": image}, steps=wanted)["image"]


def test_brightness_and_contrast_clip_and_truncate() -> None:
    image = torch.tensor([0.0, 3.7, 100.2, 200.9, 255.0]).reshape(1, 1, 5)
    assert steps(image, ("brightness", 20.5)).tolist() == [[[20, 24, 120, 221, 255]]]
    assert steps(image, ("brightness", -30.0)).tolist() == [[[0, 0, 70, 170, 225]]]
    assert steps(image, ("contrast", 1.5)).tolist() == [[[0, 5, 150, 255, 255]]]
    assert steps(image, ("brightness", 0.9), ("contrast", 0.5)).tolist() == [[[0, 2, 50, 100, 127]]]


def test_colour_steps_of_grey_images_only_truncate() -> None:
    grey = torch.rand(1, 16, 16) * 300 - 20
    wanted = (("saturation", 1.4), ("hue", 11.0))
    whole = grey.clamp(0, 255).floor()
    for channels in (1, 2, 3, 4):
        assert torch.equal(steps(grey.repeat(channels, 1, 1), *wanted), whole.repeat(channels, 1, 1))


def test_colours_change_as_hsv_says() -> None:
    image = torch.randint(0, 256, (3, 32, 32)).float()
    for step, strength in (("saturation", 0.6), ("saturation", 1.5), ("hue", -18.0), ("hue", 13.0)):
        hsv = rgb2hsv(image.numpy() / 255, channel_axis=0)
        if step == "saturation":
            hsv[1] = np.clip(hsv[1] * strength, 0, 1)
        else:
            hsv[0] = (hsv[0] + strength / 180) % 1
        expected = hsv2rgb(hsv, channel_axis=0) * 255
        changed = steps(image, (step, strength)).numpy()
        assert (changed == np.floor(changed)).all()
        assert (changed <= expected + 0.01).all() and (changed > expected - 1.01).all()
    assert torch.equal(steps(image, ("saturation", 1.0)), image) and torch.equal(steps(image, ("hue", 0.0)), image)
    pure = torch.tensor([200.0, 0.0, 0.0]).reshape(3, 1, 1)
    assert steps(pure, ("hue", 30.0)).flatten().tolist() == [200, 200, 0]  # 60 degrees from red: yellow


class Add(PhotometricTransform):
    """Adds ten grey levels."""

    def __init__(self) -> None:
        super().__init__({})

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        image = data_dict["image"]
        assert image.min() >= -1e-3 and image.max() <= 255 + 1e-3
        return {"steps": [("brightness", 10.0)]}


@pytest.mark.parametrize(
    ("low", "high", "symmetric", "black", "white"),
    [
        (0.1, 0.7, (), 0.0, 1.0),
        (0.0, 1.0, (), 0.0, 1.0),
        (-0.8, 0.5, (0, 1), -1.0, 1.0),
        (0.1, 0.7, (0, 1), -1.0, 1.0),
        (-2.5, 4.0, (), -2.5, 4.0),
    ],
)
def test_every_normalisation_reaches_grey_levels_and_comes_back(
    low: float, high: float, symmetric: tuple[int, ...], black: float, white: float
) -> None:
    image = torch.linspace(low, high, 128).reshape(2, 8, 8)
    image[:, 0, 0], image[:, -1, -1] = low, high
    nothing = GreyLevels([], symmetric)(image=image)["image"]
    torch.testing.assert_close(nothing, image, atol=1e-5, rtol=0)
    level = (white - black) / 255
    added = GreyLevels([Add()], symmetric)(image=image)["image"]
    difference = added - image
    unclipped = image < white - 10 * level
    assert (difference[unclipped] > 9 * level - 1e-4).all() and (difference <= 10 * level + 1e-4).all()
    assert added.max() <= white + 1e-5


def test_channels_have_their_own_grey_levels_and_constants_survive() -> None:
    image = torch.stack([torch.full((4, 4), 7.0), torch.rand(4, 4), torch.zeros(4, 4), torch.randn(4, 4) * 3])
    torch.testing.assert_close(GreyLevels([])(image=image)["image"], image, atol=1e-5, rtol=0)
    out = GreyLevels([Add()])(image=image)["image"]
    assert torch.isfinite(out).all()
    assert torch.allclose(out[2], torch.full((4, 4), 10 / 255)) and out[1].max() <= 1 and out[0].min() >= 7


# The preset as a whole


@pytest.mark.parametrize(("channels", "symmetric"), [(1, ()), (2, (1,)), (3, ())])
def test_labels_stay_a_subset_and_inputs_as_they_were(channels: int, symmetric: tuple[int, ...]) -> None:
    preset = slices(48, symmetric)
    image = torch.rand(channels, 48, 48)
    labels = torch.randint(-1, 4, (1, 48, 48), dtype=torch.int16)
    kept = image.clone(), labels.clone()
    low = torch.tensor([-1.0 if c in symmetric else 0.0 for c in range(channels)])[:, None, None]
    changed = moved = 0
    for _ in range(100):
        out = preset(image=image, segmentation=labels)
        assert out["image"].shape == image.shape and out["image"].dtype == torch.float32
        assert (out["image"] >= low - 1e-6).all() and out["image"].max() <= 1 + 1e-6
        assert out["segmentation"].dtype == torch.int16 and set(out["segmentation"].unique().tolist()) <= set(
            range(-1, 4)
        )
        changed += not torch.equal(out["image"], image)
        moved += not torch.equal(out["segmentation"], labels)
    assert torch.equal(image, kept[0]) and torch.equal(labels, kept[1])
    assert changed > 90 and 45 < moved < 90


def test_image_and_labels_move_alike_and_all_channels_alike() -> None:
    elastic, motion, _ = parts()
    elastic.chance = Chance(1, elastic.chance.strength)
    both = ComposeTransforms([elastic, motion])
    disc = torch.zeros(2, 128, 128)
    rows, columns = np.ogrid[:128, :128]
    disc[:, torch.from_numpy((rows - 60) ** 2 + (columns - 70) ** 2 < 400)] = 1
    for _ in range(20):
        out = both(image=disc, segmentation=disc[:1].to(torch.int16))
        assert torch.equal(out["image"][0], out["image"][1])
        assert ((out["image"][:1] >= 0.5) != (out["segmentation"] == 1)).float().mean() < 0.01
        assert out["segmentation"].sum() > 600


def test_the_same_seed_gives_the_same_slices() -> None:
    image, labels = torch.rand(3, 32, 32), torch.randint(0, 3, (1, 32, 32), dtype=torch.int16)
    runs = []
    for seed in (5, 5, 6):
        np.random.seed(seed)
        preset = pickle.loads(pickle.dumps(slices(32)))  # loaders may be other processes
        runs.append([preset(image=image, segmentation=labels) for _ in range(8)])
    for key in ("image", "segmentation"):
        same, other = ([torch.equal(a[key], b[key]) for a, b in zip(runs[0], run, strict=True)] for run in runs[1:])
        assert all(same) and not all(other)


def test_the_preset_takes_the_place_of_nnunets_augmentation() -> None:
    """Labels outside, mask, regions and ignore label remain nnU-Net's."""
    stock = nnUNetTrainer.get_training_transforms(
        (32, 24), (-0.5, 0.5), None, (0, 1), False, use_mask_for_norm=[True], foreground_labels=[1, 2],
        regions=[(1, 2), 2], ignore_label=3,
    )  # fmt: skip
    transforms = with_preset("slices", stock, (32, 24))
    assert initial_patch_size("slices", (32, 24)) == [32, 24]
    labels = torch.randint(0, 4, (1, 32, 24), dtype=torch.int16)
    labels[:, :, :6] = -1
    image = torch.rand(1, 32, 24)
    image[:, :, :6] = 0
    for _ in range(30):
        out = transforms(image=image.clone(), segmentation=labels.clone())
        target = out["segmentation"]
        assert out["image"].shape == (1, 32, 24) and target.shape == (3, 32, 24) and target.dtype == torch.bool
        assert (target[0] | ~target[1]).all() and not (target[2] & target[0]).any()


def test_volumes_are_refused() -> None:
    with fails("recipe-dimension", "slices"):
        preset_transforms("slices", (8, 8, 8))
