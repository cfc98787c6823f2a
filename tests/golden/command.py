"""Runs commands of ``nnunet-fm`` in this process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from nnunet_fm.cli.app import app


def run(*words: str | Path) -> dict[str, Any]:
    """Run a command; return its printed lines, and its exit code where that is not 0."""
    with warnings.catch_warnings():  # libraries tell of their future once per process, whoever comes first
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        done = CliRunner().invoke(app, [str(word) for word in words])
    said = {"out": done.stdout.splitlines(), "err": done.stderr.splitlines()}
    if done.exit_code == 0:
        return said
    reason = "" if isinstance(done.exception, SystemExit) else " ".join(str(done.exception).split())
    return said | {"exit": done.exit_code, "refused": reason}


def succeed(*words: str | Path) -> dict[str, Any]:
    """Run a command that must succeed; return its printed lines."""
    said = run(*words)
    if "exit" in said:
        raise RuntimeError(f"nnunet-fm {' '.join(map(str, words))}: {said}")
    return said
