"""Check of the installed nnunetv2 against the versions in the requirements of this package."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

from nnunet_fm.errors import FMError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

HOST = "nnunetv2"


class HostVersionError(FMError, RuntimeError):
    """An nnunetv2 that is older than the oldest one that this package works with."""

    code = "nnunet-version"


def wanted() -> Requirement | None:
    """Required version of nnunetv2; None where the package runs from a folder, without an installation."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in requires("nnunet-fm") or []]
    except PackageNotFoundError:
        return None
    return next((r for r in requirements if r.name == HOST and r.marker is None), None)


def cure() -> str:
    """The command that installs an nnunetv2 that this package was tested with."""
    asked = wanted()
    return f'{sys.executable} -m pip install "{HOST}{"" if asked is None else asked.specifier}"'


@cache
def check_host() -> None:
    """Compare versions, without an import of nnunetv2; an untested one is named in a line on standard error.

    Raises:
        HostVersionError: for a version older than all that this package asks for.
    """
    from importlib.metadata import PackageNotFoundError, version

    from packaging.version import InvalidVersion, Version

    asked = wanted()
    try:
        found = version(HOST)
    except PackageNotFoundError:
        return
    if asked is None:
        return
    words = f"{HOST} {found} is installed, {asked.specifier} is needed"
    try:
        if asked.specifier.contains(found, prereleases=True):
            return
        too_old = any(s.operator == ">=" and Version(found) < Version(s.version) for s in asked.specifier)
    except InvalidVersion:
        too_old = False
    if too_old:
        raise HostVersionError(f"{words}: {cure()}")
    if _first_process():
        print(f"WARNING: {words}: this version was not tested, results may differ; {cure()}", file=sys.stderr)


def _first_process() -> bool:
    """Whether this is the process of the command itself; its workers need not repeat a warning."""
    from multiprocessing import parent_process

    return parent_process() is None
