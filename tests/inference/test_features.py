"""Components of the feature maps of trained 2D models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_fm.inference.features import feature_pca, principal_colours
from nnunet_fm.inference.predictor import load_predictor
from tests.helpers.datasets import write_image
from tests.helpers.errors import fails
from tests.helpers.tiny_models import write_fm_model, write_model

SHAPE = (9, 34, 50)
EMPTY = 2
"""Slices at the start of the image that have nothing in them."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume whose slices have bright and dark parts, the first ones nothing."""
    file = tmp_path_factory.mktemp("image") / "case_0000.nii.gz"
    volume = np.random.default_rng(0).uniform(20, 40, SHAPE).astype(np.float32)
    volume[:, 5:28, 10:38] += 150
    volume[:EMPTY] = 0
    write_image(file, volume, (3.0, 1.0, 1.0))
    return file


@pytest.fixture(scope="module", params=["resnet18", "dinov2_s_linear_full"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = write_fm_model(tmp_path_factory.mktemp("nnunet"), f"FMPlanner_{request.param}", SHAPE, (3.0, 1.0, 1.0))
    yield folder
    (folder / "fold_0" / "checkpoint_final.pth").unlink()


def test_colours_are_components_of_what_the_head_gets(model: Path, image: Path) -> None:
    """Against the map that reaches the head when the network runs, and an eigendecomposition."""
    shown = feature_pca(model, 0, "checkpoint_final.pth", [image], 4)
    assert shown is not None
    pixels, colours = shown
    assert colours.shape == (*pixels.shape, 3) and colours.dtype == pixels.dtype == np.float32
    assert pixels.min() == colours.min() == 0 and pixels.max() == colours.max() == 1

    network = load_predictor(model, (0,), device=torch.device("cpu")).network.eval()
    maps: list[torch.Tensor] = []
    network.head.register_forward_pre_hook(lambda head, arguments: maps.append(arguments[0][0]))
    spread = torch.from_numpy(pixels)[None, None]  # the plan scales to [0, 1] by the volume, this by the slice
    with torch.inference_mode():
        network(spread)
    (features,) = maps[0].float().numpy()
    channels, height, width = features.shape
    inside = features[
        :, : -(-height * pixels.shape[0] // max(pixels.shape)), : -(-width * pixels.shape[1] // max(pixels.shape))
    ]
    elements = inside.reshape(channels, -1).T.astype(np.float64)
    elements -= elements.mean(0)
    _, vectors = np.linalg.eigh(elements.T @ elements)
    first = (elements @ vectors[:, -1]).reshape(inside.shape[1:])
    rows, columns = (
        ((np.arange(edge) + 0.5) * cells / max(pixels.shape)).astype(int)
        for edge, cells in zip(pixels.shape, (height, width), strict=True)
    )
    enlarged = first[rows][:, columns]
    assert abs(np.corrcoef(enlarged.ravel(), colours[..., 0].ravel())[0, 1]) > 0.95
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) <= elements.shape[0] < pixels.size

    faded = feature_pca(model, 0, "checkpoint_final.pth", [image], 4, fade=1)
    assert faded is not None
    dark = pixels < 0.5
    assert 0.2 < dark.mean() < 0.9 and np.array_equal(faded[1][~dark], colours[~dark])
    assert colours[dark].any(axis=-1).mean() > 0.95 and faded[1][dark].any(axis=-1).mean() < 0.05


@pytest.mark.parametrize("model", ["resnet18"], indirect=True)
def test_slices_count_as_in_the_image(model: Path, image: Path) -> None:
    middle = feature_pca(model, 0, "checkpoint_final.pth", [image])
    fifth = feature_pca(model, 0, "checkpoint_final.pth", [image], EMPTY + (SHAPE[0] - EMPTY) // 2)
    assert middle is not None and fifth is not None and np.array_equal(middle[0], fifth[0])
    with fails("slice-outside", SHAPE[0], EMPTY, SHAPE[0] - 1):
        feature_pca(model, 0, "checkpoint_final.pth", [image], EMPTY - 1)


def test_other_networks_have_none(image: Path, tmp_path: Path) -> None:
    assert feature_pca(write_model(tmp_path / "model"), 0, "checkpoint_final.pth", [image]) is None
    with fails("checkpoint-missing", "-f", "0"):
        feature_pca(tmp_path / "model", 3, "checkpoint_final.pth", [image])


def test_components_of_known_maps() -> None:
    """Two orthogonal patterns of unlike strength, and no third."""
    y, x = np.meshgrid(np.linspace(-1, 1, 6), np.linspace(-1, 1, 8), indexing="ij")
    features = np.zeros((5, 6, 8))
    features[1], features[3], features[4] = 3 * x, y, 7
    colours = principal_colours(features)
    assert np.corrcoef(colours[..., 0].ravel(), x.ravel())[0, 1] > 0.99
    assert np.corrcoef(colours[..., 1].ravel(), y.ravel())[0, 1] > 0.99
    assert (colours[..., 2] == 0.5).all() and colours.shape == (6, 8, 3)
    assert (principal_colours(np.ones((4, 2, 2))) == 0.5).all()
    assert principal_colours(np.random.default_rng(0).normal(size=(2, 1, 3))).shape == (1, 3, 3)
