"""Completion in a shell: what is there, at no cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_fm.cli import completion
from nnunet_fm.heads import HEADS
from nnunet_fm.models.registry import cards

REPOSITORY = Path(__file__).parents[2]


def test_completion_knows_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    (tmp_path / "raw" / "Dataset007_Heart").mkdir()
    (tmp_path / "results" / "Dataset501_A" / "fm_trainer__FMPlans_stunet_b__3d_fullres").mkdir(parents=True)
    assert completion.complete_datasets("") == ["501", "7"]
    assert completion.complete_datasets("Dataset0") == ["Dataset007_Heart"]
    assert completion.complete_trainers("fm") == ["fm_trainer"]
    assert completion.complete_plans("") == ["FMPlans_stunet_b"] and completion.complete_configurations("2") == []
    assert set(completion.complete_models("")) == set(cards())
    assert set(completion.complete_heads("")) == set(HEADS)
    assert completion.complete_adapters("rein") == ["rein", "rein_lora"]


def test_a_shell_is_answered_without_heavy_imports(tmp_path: Path) -> None:
    asked = {"_NNUNET_FM_COMPLETE": "complete_bash", "COMP_WORDS": "nnunet-fm plan -m stunet_", "COMP_CWORD": "3"}
    program = (
        "import sys; sys.argv = ['nnunet-fm']\n"
        "from nnunet_fm.cli.app import app\n"
        "try:\n    app(prog_name='nnunet-fm')\n"
        "finally:\n    print(sorted({'torch', 'nnunetv2', 'pandas', 'yaml'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | asked, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.split() == ["stunet_b", "stunet_h", "stunet_l", "stunet_s"], done.stderr
    assert done.stderr.strip().endswith("[]")
