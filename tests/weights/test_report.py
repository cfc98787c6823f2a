"""The load report as text and JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from nnunet_fm.weights.load import load_checkpoint
from tests.helpers.official_weights import load_official
from tests.helpers.weight_files import Small, small_file


def test_report_in_both_forms(tmp_path: Path) -> None:
    torch.save({"net": small_file(channels=3, classes=7)}, tmp_path / "a.pth")
    report = load_checkpoint(Small(), tmp_path / "a.pth") + load_official(Small(), small_file(), part="neck")
    report.write(tmp_path)
    first, second = json.loads((tmp_path / "weights_report.json").read_text())
    assert first["part"] == "backbone"
    assert first["file"] == "a.pth"
    assert first["sha256"] == hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    assert first["counts"] == {"matched": 1, "adapted": 1, "dropped": 1, "missing": 1}
    assert second["part"] == "neck"
    text = (tmp_path / "weights_report.txt").read_text()
    for line in ("backbone: a.pth", "matched 1 tensors", "stem.weight: input channels 3 -> 1", "neck: a state dict"):
        assert line in text
