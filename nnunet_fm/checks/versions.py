"""Versions of the libraries, and where the nnU-Net commands of the shell come from."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from nnunet_fm.checks.finding import NOTE, OK, PROBLEM, Check

LIMITED_BY = ("nnunet-fm", "nnunetv2", "dynamic-network-architectures")
"""Distributions whose requirements decide which versions work together."""
SHOWN = ("torch", "nnunetv2", "dynamic-network-architectures", "timm", "monai")
"""Libraries whose versions are printed when they are right; the others are named only when they are wrong."""


def versions() -> Iterator[Check]:
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


def commands() -> Iterator[Check]:
    """Whether the shell's nnU-Net commands are those of this environment; no others know this package."""
    mine, found = Path(sys.executable).with_name("nnUNetv2_train"), shutil.which("nnUNetv2_train")
    if found and Path(found).parent == mine.parent:
        yield Check("commands", OK, f"nnUNetv2_* in {mine.parent}")
    else:
        other = f"the shell finds those of {Path(found).parent}" if found else "the shell does not find them"
        yield Check("commands", NOTE, f"nnUNetv2_* of this environment are in {mine.parent}; {other}")
