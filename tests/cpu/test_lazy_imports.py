"""Imports that leave heavy packages for when they are used."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import gc, json, sys
from nnunet_fm.cpu.lazy_imports import HEAVY, importing_lightly
with importing_lightly():
    import nnunetv2.inference.predict_from_raw_data, nnunetv2.training.nnUNetTrainer.nnUNetTrainer
    import nnunetv2.utilities.crossval_split, timm
    assert not gc.isenabled()
assert gc.isenabled()
loaded = [name for name in HEAVY if name in sys.modules]
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.utilities.crossval_split import generate_crossval_split
import torch
linear = torch.nn.Linear(2, 2)
before = isinstance(linear, predict_from_raw_data.OptimizedModule)
splits = generate_crossval_split([str(i) for i in range(5)])
compiled = torch.compile(linear)
after = [isinstance(m, predict_from_raw_data.OptimizedModule) for m in (linear, compiled)]
import sklearn.model_selection, torch._dynamo
from torchvision.ops import roi_align
roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 2)
from timm.layers import disable_compiler
disabled = disable_compiler(lambda x: 2 * x)(3) == 6 and torch.compiler.disable.__module__ == "torch.compiler"
real = [disabled, hasattr(sklearn.model_selection, "__path__"), torch._dynamo.OptimizedModule is type(compiled)]
print(json.dumps([loaded, before, len(splits), after, real]))
"""


def test_heavy_packages_come_when_they_are_used() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], False, 5, [False, True], [True, True, True]]
