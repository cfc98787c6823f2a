"""Check that nnU-Net finds the classes of this package; list plans and models that need the import hook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_fm.checks.finding import NOTE, OK, PROBLEM, Check
from nnunet_fm.hook.own_classes import EXTERNAL_TRAINERS
from nnunet_fm.host import cure as install_host
from nnunet_fm.io.atomic_write import scratch_folder
from nnunet_fm.io.untrusted import read_json

PROBE = """
import json, os, sys
import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
module = "nnunetv2.preprocessing.preprocessors"
folder = os.path.join(nnunetv2.__path__[0], *module.split(".")[1:])
found = recursive_find_python_class(folder, "FMPreprocessor", module)
hook = sys.modules.get("nnunet_fm.hook")
print()
print(json.dumps({"found": found is not None, "status": hook.status() if hook else {}}))
"""
"""Program that runs nnU-Net's own search for a class of this package in a new interpreter."""


def hook() -> Check:
    """Let nnU-Net search for a class of this package; without success, give the reason and the remaining way."""
    with scratch_folder() as elsewhere:  # nothing may be importable just because it lies in the current folder
        done = subprocess.run([sys.executable, "-c", PROBE], cwd=elsewhere, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("hook", PROBLEM, f"nnU-Net cannot be imported: {last}", "cure the versions above first")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if answer["found"]:
        return Check("hook", OK, "nnU-Net finds the planners, trainers and preprocessors of nnunet-fm")
    reasons = [text for text in answer["status"].values() if text.startswith("left alone")]
    shim = shim_folder()
    portable = f"only portable plans work: nnunet-fm plan --portable, and export {EXTERNAL_TRAINERS}={shim}"
    if os.environ.get("NNUNET_FM_HOOK") == "0":
        why, cure = "off, NNUNET_FM_HOOK=0 is set", "unset NNUNET_FM_HOOK"
    elif reasons:
        why, cure = reasons[0], install_host()
    else:
        why = "not started: Python reads start-up lines in site-packages only, not in folders of PYTHONPATH or --target"
        cure = "install nnunet-fm with pip into the environment itself"
    if shim in (Path(p).resolve() for p in os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if p):
        return Check("hook", NOTE, f"{why}; {EXTERNAL_TRAINERS} points to {shim}, so portable plans work")
    return Check("hook", PROBLEM, why, f"{cure}; without it {portable}")


def shim_folder() -> Path:
    """Folder with the module by which nnU-Net finds our trainers without the hook."""
    import nnunet_fm

    return (Path(nnunet_fm.__file__).parent / "trainers" / "ext").resolve()


def not_portable(hook_is_alive: bool) -> Iterator[Check]:
    """Find plans and trained folders with classes of this package, which nnU-Net finds through the hook only."""
    places = (("plans", "nnUNet_preprocessed", "*/[!.]*.json"), ("trained", "nnUNet_results", "*/*__*__*/plans.json"))
    for what, variable, pattern in places:
        folder = os.environ.get(variable)
        for file in sorted(Path(folder).glob(pattern)) if folder else ():
            configuration = file.parent.name.split("__")[-1] if what == "trained" else None
            names = _names_of_ours(file, configuration)
            if names:
                place = file if what == "plans" else file.parent
                again = file.stem if what == "plans" else "its plans"
                detail = f"{place} needs the hook ({', '.join(names)})"
                cure = f"see hook above, or plan {again} again with --portable"
                yield Check(what, NOTE if hook_is_alive else PROBLEM, detail, "" if hook_is_alive else cure)


def _names_of_ours(file: Path, configuration: str | None) -> list[str]:
    """Preprocessor, normalisers and resamplers of this package in a plans file; empty for other files."""
    from nnunet_fm.hook.names import home

    try:
        plans = read_json(file)
    except (OSError, ValueError):
        return []
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    if not isinstance(configurations, dict):
        return []
    names: set[str] = set()
    for name, content in configurations.items():
        if configuration is None or name == configuration:
            values = [v for k, v in content.items() if k.startswith("resampling_fn_") and isinstance(v, str)]
            names |= {content.get("preprocessor_name", ""), *content.get("normalization_schemes", ()), *values}
    return sorted(name for name in names if home(name))
