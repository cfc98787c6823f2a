"""Batched windows, mirrored versions, windows of one value, and label maps by blocks: equal to nnU-Net's own steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunet_fm.inference.label_map as label_map_module
import nnunet_fm.inference.predictor as predictor_module
import nnunet_fm.inference.sliding_window as sliding_window
from nnunet_fm.inference.inputs import read_dataset_json
from nnunet_fm.inference.label_map import label_map, linear_resampling
from nnunet_fm.inference.predict import predict_folder
from nnunet_fm.inference.predictor import FMPredictor
from nnunet_fm.inference.sliding_window import mirrored_mean, predictions
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.preprocessing.resampling import fm_resample_data_to_shape
from tests.helpers.datasets import write_dataset
from tests.helpers.errors import fails
from tests.helpers.tiny_models import LABELS, write_model

CPU = torch.device("cpu")
DEFAULT = partial(resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None)
OURS = partial(fm_resample_data_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None)
TORCH = partial(resample_torch_fornnunet, is_seg=False, force_separate_z=None, memefficient_seg_resampling=False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Windows


@pytest.fixture(scope="module", params=["3d_fullres", "2d"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model", configuration=request.param, channels=("MRI", "CT"))


def predictor(kind: type[nnUNetPredictor], model: Path, **options: Any) -> nnUNetPredictor:
    made = kind(device=CPU, allow_tqdm=False, **options)
    made.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    return made


def image(seed: int = 0) -> torch.Tensor:
    """Two channels, smaller than the patch of 8 along y, empty in the first slices and in one half of x."""
    data = torch.randn(2, 14, 7, 30, generator=torch.Generator().manual_seed(seed))
    data[:, :9] = -1.25
    data[..., 15:] = 0
    return data


@pytest.mark.parametrize("options", [{}, {"use_mirroring": False, "use_gaussian": False}, {"tile_step_size": 1}])
@pytest.mark.parametrize("voxels", [1, 8**3 * 3, 2**20])
def test_logits_are_those_of_nnunet(
    model: Path, options: dict[str, Any], voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the precision in which they are kept, however many images a batch holds."""
    monkeypatch.setattr(sliding_window, "FORWARD_VOXELS", voxels)
    ours, theirs = (
        predictor(kind, model, **options).predict_logits_from_preprocessed_data(image())
        for kind in (FMPredictor, nnUNetPredictor)
    )
    assert ours.dtype == theirs.dtype == torch.half and ours.shape == theirs.shape
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=2e-3, atol=2e-3)
    assert float((ours == theirs).float().mean()) > 0.99


def test_windows_of_one_value_are_predicted_once() -> None:
    data = torch.zeros(2, 4, 8, 8)
    data[1] = 7
    data[0, 2, 3, 3] = 1
    data[:, 3] = 5
    windows = [(slice(None), z, slice(x, x + 4), slice(0, 8)) for z in range(4) for x in (0, 4)]
    seen: list[torch.Tensor] = []

    def predict(x: torch.Tensor) -> torch.Tensor:
        seen.extend(x)
        return x.sum(1, keepdim=True)

    results = list(predictions(data, windows, predict))
    for window, result in zip(windows, results, strict=True):
        torch.testing.assert_close(result, data[window].sum(0, keepdim=True))
    # slices 0 and 1 and the half of 2 are air, predicted once; slice 3 is another value; one window has an image
    assert len(seen) == 1 + 2 + 1
    results[0] += 1  # weights are multiplied in place, and must not reach the others
    assert float(results[1].max()) == 7


def test_windows_without_air_are_all_predicted() -> None:
    data = torch.randn(1, 3, 4, 4)
    windows = [(slice(None), z, slice(0, 4), slice(0, 4)) for z in range(3)]
    torch.testing.assert_close(torch.stack(list(predictions(data, windows, lambda x: x * 2))), data.transpose(0, 1) * 2)


def test_an_axis_that_is_not_there_cannot_be_mirrored() -> None:
    with fails("mirror-axes", "2"):
        mirrored_mean(lambda x: x, torch.zeros(1, 1, 4, 4), (0, 1, 2))


def test_logits_beyond_half_precision_are_refused(model: Path) -> None:
    ours = predictor(FMPredictor, model)
    ours.network.forward = lambda x: torch.full((len(x), 3, *x.shape[2:]), 1e5)  # type: ignore[method-assign]
    with fails("logits-too-large"):
        ours.predict_logits_from_preprocessed_data(image())


# Label maps

GRIDS = [
    # old and new shape, old and new spacing
    ((6, 16, 15), (9, 25, 27), (1.5, 1.5, 1.5), (1.0, 0.96, 0.83)),
    ((9, 25, 27), (6, 30, 15), (1.0, 1.0, 1.0), (1.5, 0.83, 1.8)),
    ((5, 16, 15), (8, 20, 19), (5.0, 1.0, 1.0), (3.1, 0.8, 0.8)),
    ((5, 16, 15), (5, 20, 19), (5.0, 1.0, 1.0), (5.0, 0.8, 0.8)),
    ((16, 15, 5), (20, 19, 9), (1.0, 1.0, 4.0), (0.8, 0.8, 2.2)),
    ((1, 16, 15), (1, 40, 19), (1.0, 1.0, 1.0), (1.0, 0.4, 0.8)),
    ((4, 8, 9), (4, 8, 9), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
]


FUNCTIONS = {function.func.__name__: function for function in (DEFAULT, OURS, TORCH)}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_labels_by_blocks(grid: Sequence[Any], name: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few rows and columns; labels may differ only where two logits are equal but for rounding."""
    monkeypatch.setattr(label_map_module, "BLOCK", 400)
    monkeypatch.setattr(label_map_module, "COLUMNS", 8)
    old, new, *spacings = grid
    logits = np.random.default_rng(0).standard_normal((4, *old)).astype(dtype)
    found = linear_resampling(FUNCTIONS[name], old, new, *spacings)
    assert found is not None
    ours = np.full(new, 99, np.uint8)
    label_map_module._fill(ours, torch.from_numpy(logits), found, lambda block: block.max(0).indices.numpy())
    theirs = np.asarray(FUNCTIONS[name](logits, new, *spacings)).argmax(0)
    assert (ours != theirs).mean() <= 1e-3 and len(np.unique(ours)) == 4


REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}
MANY = {"background": 0, **{f"organ {i}": i for i in range(1, 300)}}


@pytest.mark.parametrize(
    ("labels", "order"), [(LABELS, None), (REGIONS, [1, 2]), (MANY, None)], ids=["classes", "regions", "300 labels"]
)
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_label_maps_are_those_of_nnunet(
    tmp_path: Path, configuration: str, name: str, labels: dict[str, Any], order: list[int] | None
) -> None:
    """Of an image with a margin that preprocessing has cut off, and axes in another order."""
    old, new, coarse, fine = ((9, 12, 10), (9, 17, 19), (3.0, 1.5, 1.5), (3.0, 1.06, 0.79))
    model = write_model(tmp_path / "model", configuration=configuration, folds=())
    content = read_object(model / "plans.json")
    entry = content["configurations"][configuration]
    entry["spacing"] = list(coarse[-len(entry["patch_size"]) :])
    entry["resampling_fn_probabilities"] = name
    entry["resampling_fn_probabilities_kwargs"] = FUNCTIONS[name].keywords
    plans = PlansManager(content)
    dataset_json = read_dataset_json(model / "dataset.json") | {"labels": labels, "regions_class_order": order}
    manager = plans.get_label_manager(dataset_json)
    properties = {
        "spacing": [fine[axis] for axis in plans.transpose_backward],
        "shape_after_cropping_and_before_resampling": new,
        "shape_before_cropping": tuple(edge + 3 for edge in new),
        "bbox_used_for_cropping": [[2, edge + 2] for edge in new],
    }
    heads = manager.num_segmentation_heads
    logits = np.random.default_rng(0).standard_normal((heads, *old)).astype(np.float16)
    arguments = plans.get_configuration(configuration), plans, manager
    ours = label_map(logits, properties, *arguments)
    theirs = convert_predicted_logits_to_segmentation_with_correct_shape(
        torch.from_numpy(logits.copy()), plans, arguments[0], manager, properties, num_threads_torch=1
    )
    assert ours is not None and ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert (ours != theirs).mean() <= 1e-3 and len(np.unique(ours)) > 2


@pytest.mark.parametrize(
    "function",
    [
        partial(resample_data_or_seg_to_shape, order=3),
        partial(resample_data_or_seg_to_shape, order=1, order_z=1),
        partial(resample_torch_fornnunet, mode="bicubic"),
        partial(resample_torch_fornnunet, is_seg=True),
        partial(np.zeros_like),
        resample_torch_fornnunet,
    ],
)
def test_other_resampling_is_left_to_nnunet(function: Any) -> None:
    assert linear_resampling(function, (4, 4, 4), (8, 8, 8), (2, 2, 2), (1, 1, 1)) is None


def test_large_logits_are_not_sent_to_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(tmp_path, 713, shape=(10, 12, 14), cases=0, test_cases=2) / "imagesTs"
    model = write_model(tmp_path / "model")
    here: list[int] = []
    monkeypatch.setattr(predictor_module, "SENT_BYTES", 0)
    monkeypatch.setattr(predictor_module, "export", lambda *arguments: here.append(len(arguments)) or 1.0)
    predict_folder(
        model, folder, tmp_path / "out", folds=[0], device=CPU, processes_preprocessing=0, processes_export=1
    )
    assert len(here) == 2
