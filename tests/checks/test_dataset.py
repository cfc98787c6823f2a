"""Findings on a dataset: its cases, and what training and prediction need."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nnunet_fm.checks import dataset as dataset_checks
from nnunet_fm.checks import forecast, machine
from tests.helpers.checks import GB, Usage, by_name, write_planned
from tests.helpers.errors import fails


def test_a_dataset_is_known_by_its_headers_and_plans(dataset: Path) -> None:
    told: list[str] = []
    known = dataset_checks.read("690", None, None, told.append)
    assert (known.name, known.channels, known.outputs, known.planned) == ("Dataset690_Blobs", 2, 3, None)
    assert len(known.cases) == 3 and known.cases["large"] == ((8, 6, 8), (3, 1, 0.5))
    assert told[-1] == "reading headers, 3 of 3"
    write_planned(dataset)
    planned = dataset_checks.read("Dataset690_Blobs", None, None).planned
    assert planned is not None and (planned.plans, planned.configuration) == ("nnUNetPlans", "3d_fullres")
    # Axes (x, z, y): 8 at 0.5 mm to 2 mm, 8 at 3 mm to 1 mm, 6 at 1 mm to 1 mm.
    assert planned.voxels(known.cases["large"]) == 2 * 24 * 6
    slices = dataset_checks.read("690", "2d", "nnUNetPlans").planned
    assert slices is not None and slices.voxels(known.cases["large"]) == 8 * 24 * 6
    cascade = dataset_checks.read("690", "3d_cascade_fullres", None).planned
    assert cascade is not None and (cascade.batch, cascade.patch) == (4, (32, 64, 64))


def test_without_images_the_fingerprint_counts(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.mkdir()
    raw = Path(os.environ["nnUNet_raw"], "Dataset690_Blobs")
    (dataset / "dataset.json").write_bytes((raw / "dataset.json").read_bytes())
    (dataset / "dataset_fingerprint.json").write_text(
        json.dumps({"shapes_after_crop": [[4, 5, 6]], "spacings": [[1, 1, 1]]})
    )
    monkeypatch.delenv("nnUNet_raw")
    assert dict(dataset_checks.read("690", None, None).cases) == {"training case 0": ((4, 5, 6), (1.0, 1.0, 1.0))}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("42", None, None), ("dataset-missing", "42")),
        (("690", "3d_lowres", None), ("configuration-missing", "3d_lowres", "3d_fullres", "3d_cascade_fullres")),
        (("690", None, "FMPlans"), ("plans-missing", "FMPlans", "nnUNetPlans")),
    ],
)
def test_what_is_not_there_is_named(dataset: Path, arguments: tuple[Any, ...], expected: tuple[str, ...]) -> None:
    write_planned(dataset)
    with fails(*expected):
        dataset_checks.read(*arguments)


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        ({"background": 0, "one": 1, "ignore": 2}, 2),
        ({"background": 0, "whole": [1, 2], "core": 2}, 2),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, 2),
    ],
)
def test_outputs_are_counted_as_nnunet_counts_them(labels: dict[str, Any], outputs: int) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    order = [1, 2] if any(isinstance(value, list) for value in labels.values()) else None
    assert dataset_checks._outputs(labels) == outputs == LabelManager(labels, order).num_segmentation_heads


def test_the_forecast_of_a_large_prediction() -> None:
    """A CT of 512 × 512 × 700 with 105 classes: ours needs little more than logits and image, stock many times that."""
    grid = (700, 512, 512), (0.8, 0.8, 0.8)
    voxels = round(700 * 0.8 / 2) * round(512 * 0.8 / 1.5) ** 2
    found = forecast.forecast(grid, voxels, 105, 1)
    assert 4.3 * GB < found.ours < 9 * GB
    assert 60 * GB < found.stock < 80 * GB < 180 * GB < found.stock_default
    same = forecast.forecast(grid, 700 * 512 * 512, 105, 1)
    assert same.stock - found.stock < 5 * 2 * 105 * 700 * 512 * 512, "nothing is copied in float64"
    assert forecast.forecast(grid, voxels, 105, 1, linear=False).ours > 50 * GB


@pytest.mark.parametrize(
    ("left", "state", "cure"),
    [
        (10**12, "ok", ""),
        (3 * GB, "note", "predict with nnunet-fm predict -npp 0 -nps 0 or nnUNetv2_predict -nps 1"),
        (GB // 2, "problem", "end what else runs here"),
    ],
)
def test_memory_for_a_prediction(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, left: int, state: str, cure: str
) -> None:
    monkeypatch.setattr(forecast, "memory", lambda: (max(left, 4 * GB), left))
    monkeypatch.setattr(forecast, "forecast", lambda *_, **__: forecast.Forecast(2 * GB, 5 * GB, GB))
    found = by_name(forecast.predicting(dataset_checks.read("690", None, None)))
    assert "Dataset690_Blobs, " in found["largest case"].detail and "3 outputs (not planned yet" in (
        found["largest case"].detail
    )
    assert (found["prediction"].state, found["prediction"].cure) == (state, cure)


def test_room_for_preprocessed_cases(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_planned(dataset)
    known = dataset_checks.read("690", None, None)
    assert forecast.training_batch(known) == machine.batch_bytes(32 * 64 * 64, 2, 2)
    assert by_name(forecast.preprocessed(known))["preprocessed"].state == "ok"
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(100, 0, 100))
    found = by_name(forecast.preprocessed(known))["preprocessed"]
    assert found.state == "note" and "another disk" in found.cure
