"""What tests of ``nnunet-fm doctor`` share."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunet_fm.checks.finding import Check

GB = 10**9
Usage = namedtuple("Usage", ("total", "used", "free"))


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    """Findings by name, each problem with a cure in one line."""
    found = {check.name: check for check in checks}
    assert all(check.cure and "\n" not in check.cure for check in found.values() if check.state == "problem")
    return found


def write_planned(folder: Path, name: str = "nnUNetPlans", **configuration: Any) -> None:
    entry = {"spacing": [2.0, 1.0, 1.0], "patch_size": [32, 64, 64], "batch_size": 2} | configuration
    plans = {"transpose_forward": [2, 0, 1], "configurations": {
        "2d": {"spacing": [1.0, 1.0], "patch_size": [64, 64], "batch_size": 12},
        "3d_fullres": entry,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "batch_size": 4},
    }}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(plans))
