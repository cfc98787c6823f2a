"""The demo, run as a user would in a fresh environment, for a fraction of its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_the_demo_learns_and_shows_it(fresh_venv: Any, tmp_path: Path) -> None:
    output = tmp_path / "demo"
    done = fresh_venv.run("nnunet-fm", "demo", "--minutes", "1", "--output", output, "--json", timeout=900)
    result = json.loads(done.stdout)
    assert set(result["dice_per_class"]) == {"anterior", "posterior"}
    assert 0.5 < result["mean_dice"] < 1  # a minute; six give about 0.88
    assert set(result["seconds"]) == {"fingerprint", "plan", "preprocess", "train", "predict", "report", "total"}
    page = Path(result["page"]).read_text(encoding="utf-8")
    assert "nnUNetv2_train 904 3d_fullres all" in page and page.count("data:image/png;base64") >= 3
    for key in ("plans", "model", "predictions"):
        assert Path(result[key]).exists()
    assert len(list(Path(result["predictions"]).glob("*.nii.gz"))) == 10
    assert "$ nnUNetv2_predict" in done.stderr and "$ export nnUNet_raw=" in done.stderr

    again = fresh_venv.run("nnunet-fm", "demo", "--output", output, check=False)
    assert again.returncode == 1 and "not empty" in again.stderr
