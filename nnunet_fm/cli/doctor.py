"""``nnunet-fm doctor``: is everything in place for nnU-Net to use this package, and if not, what cures it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

EPILOG = """
Examples:

  nnunet-fm doctor

  nnunet-fm doctor --json

Exits with 1 if something must be cured.
"""

OK, NOTE, PROBLEM = "ok", "note", "problem"
PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
EXTERNAL_TRAINERS = "nnUNet_extTrainer"
LIMITED_BY = ("nnunet-fm", "nnunetv2", "dynamic-network-architectures")
"""Distributions whose requirements decide which versions work together."""
SHOWN = ("torch", "nnunetv2", "dynamic-network-architectures", "timm", "monai")
"""Libraries whose versions are printed when they are right; the others are named only when they are wrong."""

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
"""What nnU-Net's own search answers for a name of ours, in a new interpreter like that of any nnU-Net command."""


@dataclass(frozen=True)
class Check:
    """One finding; a problem has a cure."""

    name: str
    state: str
    detail: str
    cure: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check versions, the import hook, nnU-Net's folders and the machine; each problem comes with its cure."""
    checks: list[Check] = []
    for check in _all():
        checks.append(check)
        if not as_json:
            _print(check)
    usable = all(check.state != PROBLEM for check in checks)
    if as_json:
        print(json.dumps({"usable": usable, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print("\nReady." if usable else "\nNot ready: see the problems above.")
    if not usable:
        raise typer.Exit(1)


def _all() -> Iterator[Check]:
    """All checks, each as soon as it is known: the first within a blink, the later ones import PyTorch."""
    yield from _versions()
    yield from _commands()
    yield (hook := _hook())
    yield from _folders()
    yield from _not_portable(hook.state == OK)
    yield from _machine()


def _print(check: Check) -> None:
    width = max(map(len, (*LIMITED_BY, *SHOWN, *PATHS)))
    print(f"{check.state:8}{check.name:{width}}  {check.detail}", flush=True)
    if check.cure:
        print(f"{'':8}{'':{width}}  cure: {check.cure}", flush=True)


def _versions() -> Iterator[Check]:
    """Installed libraries against what this package, nnU-Net and its network library ask of them."""
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    yield Check("python", OK, f"{sys.version.split()[0]} ({sys.executable})")
    limits: dict[str, list[Requirement]] = {}
    for distribution in LIMITED_BY:
        try:
            requirements = [Requirement(text) for text in metadata.requires(distribution) or []]
        except metadata.PackageNotFoundError:
            if distribution == "nnunet-fm":
                detail = "runs from a folder, not from an installation: versions it asks for are not checked"
                yield Check(distribution, NOTE, detail)
            continue
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                limits.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    for name in sorted({*limits, *SHOWN}):
        wanted = ",".join(sorted({part for r in limits.get(name, []) for part in str(r.specifier).split(",") if part}))
        cure = f'{sys.executable} -m pip install "{name}{wanted}"'
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, PROBLEM, f"not installed, {wanted or 'any version'} is needed", cure)
            continue
        if all(r.specifier.contains(version, prereleases=True) for r in limits.get(name, [])):
            if name in SHOWN:
                yield Check(name, OK, f"{version} (limits: {wanted or 'none'})")
        else:
            yield Check(name, PROBLEM, f"{version} is installed, {wanted} is needed", cure)


def _commands() -> Iterator[Check]:
    """Whether the shell's nnU-Net commands are those of this environment; no others know this package."""
    mine, found = Path(sys.executable).with_name("nnUNetv2_train"), shutil.which("nnUNetv2_train")
    if found and Path(found).parent == mine.parent:
        yield Check("commands", OK, f"nnUNetv2_* in {mine.parent}")
    else:
        other = f"the shell finds those of {Path(found).parent}" if found else "the shell does not find them"
        yield Check("commands", NOTE, f"nnUNetv2_* of this environment are in {mine.parent}; {other}")


def _hook() -> Check:
    """Asks nnU-Net for a class of ours; where it does not answer, says why and which way is left."""
    with tempfile.TemporaryDirectory() as elsewhere:  # so that nothing is importable just because it lies here
        done = subprocess.run([sys.executable, "-c", PROBE], cwd=elsewhere, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("hook", PROBLEM, f"nnU-Net cannot be imported: {last}", "cure the versions above first")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if answer["found"]:
        return Check("hook", OK, "nnU-Net finds the planners, trainers and preprocessors of nnunet-fm")
    reasons = [text for text in answer["status"].values() if text.startswith("left alone")]
    shim = _shim_folder()
    portable = f"only portable plans work: nnunet-fm plan --portable, and export {EXTERNAL_TRAINERS}={shim}"
    if os.environ.get("NNUNET_FM_HOOK") == "0":
        why, cure = "off, NNUNET_FM_HOOK=0 is set", "unset NNUNET_FM_HOOK"
    elif reasons:
        why, cure = reasons[0], f'{sys.executable} -m pip install "nnunetv2>=2.8.1,<2.9"'
    else:
        why = "not started: Python reads start-up lines in site-packages only, not in folders of PYTHONPATH or --target"
        cure = "install nnunet-fm with pip into the environment itself"
    if shim in (Path(p).resolve() for p in os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if p):
        return Check("hook", NOTE, f"{why}; {EXTERNAL_TRAINERS} points to {shim}, so portable plans work")
    return Check("hook", PROBLEM, why, f"{cure}; without it {portable}")


def _shim_folder() -> Path:
    """Folder with the one module through which nnU-Net finds our trainers without the hook."""
    import nnunet_fm

    return (Path(nnunet_fm.__file__).parent / "trainers" / "ext").resolve()


def _folders() -> Iterator[Check]:
    for name in PATHS:
        folder = os.environ.get(name)
        if not folder:
            yield Check(name, PROBLEM, "not set", f"export {name}=FOLDER")
        elif not Path(folder).is_dir():
            yield Check(name, PROBLEM, f"{folder} is not a folder", f"mkdir -p {folder}")
        else:
            yield Check(name, OK, folder)


def _not_portable(hook_is_alive: bool) -> Iterator[Check]:
    """Plans and trained folders that name a class of ours, which nnU-Net finds through the hook only."""
    places = (("plans", "nnUNet_preprocessed", "*/*.json"), ("trained", "nnUNet_results", "*/*__*__*/plans.json"))
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
    """Preprocessor, normalisers and resamplers of ours in a plans file; none in files that are no plans."""
    from nnunet_fm.hook.wrap import home

    try:
        plans = json.loads(file.read_text(encoding="utf-8"))
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


def _machine() -> Iterator[Check]:
    import torch

    from nnunet_fm.models.registry import cards
    from nnunet_fm.networks.base import cpu_autocast
    from nnunet_fm.weights.cache import cache_folder, find

    bf16 = "float32" if isinstance(cpu_autocast(torch.device("cpu")), nullcontext) else "bfloat16"
    cores = os.cpu_count() or 1
    yield Check("cpu", OK, f"{cores} cores, PyTorch uses {torch.get_num_threads()}, computes in {bf16}")
    unset = [name for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc") if name not in os.environ]
    if cores < 8 and unset:
        settings = " ".join(f"{name}={cores}" for name in unset)
        yield Check("processes", NOTE, f"nnU-Net starts more processes than there are cores; export {settings}")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        yield Check("cuda", OK, f"{properties.name}, {properties.total_memory / 1024**3:.0f} GB")
    elif torch.backends.mps.is_available():
        yield Check("mps", OK, "Apple GPU: train with -device mps")
    else:
        yield Check("cuda", NOTE, "no GPU: train with -device cpu")
    models = [name for name, card in cards().items() if card.checkpoint and find(card.checkpoint.files)]
    yield Check("weights", OK if models else NOTE, f"{cache_folder()} has those of: {', '.join(models) or 'no model'}")
