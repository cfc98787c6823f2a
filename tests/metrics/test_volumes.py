"""Volumes of structures without references."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from nnunet_fm.errors import FMError
from nnunet_fm.metrics.volumes import COLUMNS, measure_volumes
from tests.helpers.commands import make_command


def write(folder: Path, name: str, labels: dict[int, int], spacing: tuple[float, ...] = (1.0, 2.0, 2.5)) -> None:
    """A label map with so many voxels of each label."""
    voxels = np.zeros((10, 10, 10), np.uint8)
    flat = voxels.reshape(-1)
    start = 0
    for label, count in labels.items():
        flat[start : start + count] = label
        start += count
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    folder.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))


def test_volumes_of_classes_and_regions(tmp_path: Path) -> None:
    write(tmp_path, "a", {1: 30, 2: 20})
    write(tmp_path, "b", {2: 8}, (1.0, 1.0, 1.0))
    found = measure_volumes(tmp_path)
    assert list(found.columns) == list(COLUMNS)
    assert found.values.tolist() == [
        ["a", "1", 30, 0.15],
        ["a", "2", 20, 0.1],
        ["b", "1", 0, 0.0],
        ["b", "2", 8, 0.008],
    ]
    content = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "file_ending": ".nii.gz", "channel_names": {}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    regions = measure_volumes(tmp_path, processes=2)
    assert regions[["class", "voxels"]].values.tolist() == [["whole", 50], ["core", 20], ["whole", 8], ["core", 8]]


def test_what_is_refused(tmp_path: Path) -> None:
    for folder, code in ((tmp_path / "no", "folder-missing"), (tmp_path, "label-maps-missing")):
        with pytest.raises(FMError) as refused:
            measure_volumes(folder)
        assert refused.value.code == code


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "pred", "a", {1: 30})
    run = make_command(monkeypatch, capsys, "evaluate")
    code, out, err = run(str(tmp_path / "pred"), "--volumes", "-o", str(tmp_path / "volumes.csv"))
    assert code == 0 and out.splitlines()[-1].split() == ["a", "1", "30", "0.15"], err
    assert pd.read_csv(tmp_path / "volumes.csv")["ml"].tolist() == [0.15]
    assert json.loads(run(str(tmp_path / "pred"), "--volumes", "--json")[1])[0]["voxels"] == 30
    assert run(str(tmp_path / "pred"))[0] == 2
    assert run(str(tmp_path / "pred"), str(tmp_path / "pred"), "--volumes")[0] == 2
