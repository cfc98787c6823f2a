"""The Python page: its blocks of code run as they stand, on small models and data."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint
from tests.helpers.official_files import write_official
from tests.helpers.tiny_models import write_model

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_blocks_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNUNET_FM_WEIGHTS", str(tmp_path / "weights"))
    write_official("stunet_s", tmp_path / "weights")
    folders = nnunet_folders(tmp_path, monkeypatch)
    raw = write_dataset(folders["nnUNet_raw"], 501, cases=2)
    write_fingerprint(raw, [(60, 60, 60)] * 2, [(1.5, 1.0, 1.0)] * 2)
    write_model(tmp_path / "MODEL_FOLDER")
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(100, 20, (9, 10, 11)).astype(np.float32))
    sitk.WriteImage(image, "patient_0000.nii.gz")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block.replace('"stunet_b"', '"stunet_s"'), {})
    printed = capsys.readouterr().out
    assert "matched" in printed and re.search(r"^\[\d+, \d+, \d+\]$", printed, re.MULTILINE)
    assert sitk.ReadImage("patient.nii.gz").GetSize() == image.GetSize()
