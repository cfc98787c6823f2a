"""Principal components of the last feature map of a trained 2D model, as colours of a slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from skimage.filters import threshold_otsu

from nnunet_fm.inference.inputs import PredictionInputError
from nnunet_fm.inference.predictor import load_predictor
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D
from nnunet_fm.networks.slices import to_rgb, to_square

CPU = torch.device("cpu")
COLOURS = 3
PERCENTILES = (1.0, 99.0)
"""Of each component over the slice; what lies outside is clipped, so that single patches do not darken all others."""


@torch.inference_mode()
def feature_pca(
    model_folder: Path,
    fold: int | str,
    checkpoint: str,
    image_files: Sequence[Path],
    slice_index: int | None = None,
    *,
    device: torch.device = CPU,
    fade: float = 0.0,
) -> tuple[np.ndarray, np.ndarray] | None:
    """One slice of a case, preprocessed as the plan says, and the first three components of its features as RGB.

    The features are the backbone's map of its last block, adapters included, as the head gets it.

    Args:
        model_folder: nnU-Net's folder of the trained model.
        fold: number, or ``all``.
        checkpoint: name of the file in the fold's folder.
        image_files: channel files of one case.
        slice_index: counts from 0 along the axis that the model's slices are taken across, in the image as it was
            read; None is the middle one of those that are not empty.
        device: where the network runs.
        fade: how much of the colour is taken from background, that is pixels darker than Otsu's threshold: 0 to 1.

    Returns:
        The first channel of the slice ``(Y, X)``, and colours ``(Y, X, 3)``; both in [0, 1] and float32. Every element
        of the map is a square of one colour. None for networks without a 2D backbone: 3D models and U-Nets.

    Raises:
        PredictionInputError: for a model that is not there, or a slice that is outside of the image or empty.
    """
    predictor = load_predictor(Path(model_folder), (fold,), checkpoint, device=device)
    network = predictor.network
    if not isinstance(network, FoundationSegmenter2D):
        return None
    configuration = predictor.configuration_manager
    data, _, properties = configuration.preprocessor_class(verbose=False).run_case(
        [str(file) for file in image_files], None, predictor.plans_manager, configuration, predictor.dataset_json
    )
    pixels = np.asarray(data[:, _in_preprocessed(slice_index, properties)], dtype=np.float32)
    network.to(device).eval()
    batch = torch.from_numpy(pixels)[None].to(device)
    square = to_rgb(to_square(batch, network.image_size), network.stem)
    features = network.backbone_maps(square)[0][0].float().cpu().numpy()
    image = _to_unit(pixels[0], (0.0, 100.0))
    colours = _enlarged(features, image.shape)
    if fade and image.min() < image.max():
        colours[image < threshold_otsu(image)] *= 1 - fade
    return image, colours


def _in_preprocessed(slice_index: int | None, properties: dict[str, object]) -> int:
    """Index of a slice in the preprocessed volume, which lacks the empty margins; 2D plans keep the slices' spacing."""
    (first, end) = properties["bbox_used_for_cropping"][0]  # type: ignore[index]
    if slice_index is None:
        return int(end - first) // 2
    if not first <= slice_index < end:
        total = properties["shape_before_cropping"][0]  # type: ignore[index]
        raise PredictionInputError(
            f"slice {slice_index} is outside of the image or empty: it has {total}, {first} to {end - 1} are not empty",
            code="slice-outside",
        )
    return int(slice_index - first)


def _enlarged(features: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Colours ``(Y, X, 3)`` of a map ``(C, h, w)`` that covers the square whose upper left part is the slice."""
    side = max(size)
    rows, columns = (
        ((np.arange(edge) + 0.5) * cells / side).astype(int)
        for edge, cells in zip(size, features.shape[1:], strict=True)
    )
    # Padding is no part of the slice: elements beyond its edge have no say in the components.
    inside = features[:, : rows[-1] + 1, : columns[-1] + 1]
    return principal_colours(inside)[rows][:, columns]


def principal_colours(features: np.ndarray) -> np.ndarray:
    """The first three principal components of a map ``(C, h, w)`` over its elements, scaled to [0, 1]: ``(h, w, 3)``.

    The sign of a component is that of its largest loading. A component without variance is 0.5.
    """
    channels, *grid = features.shape
    elements = features.reshape(channels, -1).T.astype(np.float64)
    elements -= elements.mean(axis=0)
    _, strength, loadings = np.linalg.svd(elements, full_matrices=False)
    colours = np.full((len(elements), COLOURS), 0.5, dtype=np.float32)
    for i, loading in enumerate(loadings[:COLOURS]):
        if strength[i] > 1e-6 * max(strength[0], 1e-12):
            component = elements @ loading * np.sign(loading[np.abs(loading).argmax()])
            colours[:, i] = _to_unit(component, PERCENTILES)
    return colours.reshape(*grid, COLOURS)


def _to_unit(values: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Scale from two percentiles to [0, 1] and clip; constant values become 0."""
    low, high = np.percentile(values, percentiles)
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
