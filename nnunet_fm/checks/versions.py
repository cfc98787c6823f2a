"""Check the versions of the libraries, and which installation the shell's nnU-Net commands belong to."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from nnunet_fm.checks.finding import NOTE, OK, PROBLEM, Check

LIMITED_BY = ("nnunet-fm", "nnunetv2", "dynamic-network-architectures")
"""Distributions whose requirements limit the versions of others."""
SHOWN = ("torch", "nnunetv2", "dynamic-network-architectures", "timm", "monai")
"""Libraries whose versions are always printed; the others only if they are wrong."""


def versions() -> Iterator[Check]:
    """Compare installed versions with the requirements of this package, nnU-Net and its network library."""
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
    """Check that the shell's nnU-Net commands are those of this environment; others do not know this package."""
    mine, found = Path(sys.executable).with_name("nnUNetv2_train"), shutil.which("nnUNetv2_train")
    if found and Path(found).parent == mine.parent:
        yield Check("commands", OK, f"nnUNetv2_* in {mine.parent}")
    else:
        other = f"the shell finds those of {Path(found).parent}" if found else "the shell does not find them"
        yield Check("commands", NOTE, f"nnUNetv2_* of this environment are in {mine.parent}; {other}")
