"""Runs ``nnunet-fm`` in the process of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from nnunet_fm.cli.app import main

Command = Callable[..., tuple[int, str, str]]
"""Takes words of the command line; returns exit code, standard output, standard error."""


def make_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *first: str) -> Command:
    """A function that runs ``nnunet-fm``, always with the words ``first``."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nnunet-fm", *first, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
