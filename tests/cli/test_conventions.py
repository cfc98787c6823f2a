"""Conventions of all sub-commands: the same flags, JSON, quiet, no colours in a pipe."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from nnunet_fm.cli.app import app
from tests.helpers.errors import assert_refused

REPOSITORY = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-c", "from nnunet_fm.cli.app import main; main()")
SAME = {
    "dataset_id": "-d",
    "configuration": "-c",
    "plans": "-p",
    "trainer": "-tr",
    "folds": "-f",
    "checkpoint": "-chk",
    "output": "-o",
    "processes": "-np",
    "dry_run": "-n",
    "quiet": "-q",
}
"""A parameter's name -> the flag it has in every sub-command that takes it."""
MEANINGS = {
    # flag -> names of the parameters that may have it: one meaning, wherever it is
    "-d": {"dataset", "datasets", "dataset_id", "target"},
    "-c": {"configuration", "configurations"},
    "-p": {"plans", "name"},
    "-tr": {"trainer", "trainers"},
    "-f": {"fold", "folds"},
    "-m": {"model"},
    "-o": {"output"},
    "-i": {"images"},
    "-chk": {"checkpoint"},
    "-n": {"dry_run"},
    "-q": {"quiet"},
}


def commands(command: Any = None, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], list[Any]]:
    """Sub-command -> its options."""
    command = typer.main.get_command(app) if command is None else command
    if hasattr(command, "commands"):
        found: dict[tuple[str, ...], list[Any]] = {}
        for name, child in command.commands.items():
            found |= commands(child, (*path, name))
        return found
    return {path: [p for p in command.params if p.param_type_name == "option"]}


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return subprocess.run(
        [*PROGRAM, *arguments], cwd=REPOSITORY, env=kept | env, capture_output=True, text=True, timeout=120
    )


def test_a_flag_means_the_same_everywhere() -> None:
    for path, options in commands().items():
        for option in options:
            if option.name in SAME:
                flags = {"-d"} if option.name == "dataset_id" else {SAME[option.name], "-npfp"}
                assert flags & set(option.opts) or option.name == "folds", (path, option.name)
            for flag in set(option.opts) & set(MEANINGS):
                assert option.name in MEANINGS[flag], (path, flag, option.name)


def test_every_command_speaks_json_and_those_that_work_can_be_quiet() -> None:
    prints = {("list",), ("doctor",), ("weights", "list")}  # their output is all they do
    for path, options in commands().items():
        flags = {flag for option in options for flag in option.opts}
        assert "--json" in flags, path
        assert path in prints or {"-q", "--quiet"} <= flags, path


def test_underscores_and_hyphens_are_the_same(tmp_path: Path) -> None:
    """nnU-Net's way and the shell's; also where a flag takes several values."""
    folders = {"nnUNet_raw": str(tmp_path), "nnUNet_preprocessed": str(tmp_path), "nnUNet_results": str(tmp_path)}
    for flag in ("--step-size", "-step_size", "-step-size"):
        done = run("predict", "-i", "a", "-o", "b", "-d", "1", "-c", "2d", "--disable-tta", flag, "7", **folders)
        if flag.startswith("--"):
            assert done.returncode == 2 and "No such option" in done.stderr  # nnU-Net has one hyphen there
        else:
            assert done.returncode == 2
            assert_refused(done.stderr, "option-value", "7.0")
    done = run("plan", "-d", "1", "--control", "stock", "--eval_datasets", "5", "6", **folders)
    assert done.returncode == 2
    assert_refused(done.stderr, "option-conflict", "--eval-datasets")


def test_quiet_prints_nothing_and_fails_aloud(tmp_path: Path) -> None:
    done = run("demo", "--unpack", "904", "-q", nnUNet_raw=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "Dataset904_Hippocampus" / "dataset.json").is_file()
    again = run("demo", "--unpack", "904", "--quiet", nnUNet_raw=str(tmp_path))
    assert again.returncode == 1
    assert_refused(again.stderr, "dataset-taken", 904)
    said = run("demo", "--unpack", "905", "--json", nnUNet_raw=str(tmp_path))
    assert json.loads(said.stdout)["folder"].endswith("Dataset905_Hippocampus")
    folder = tmp_path / "Dataset904_Hippocampus" / "labelsTs"
    scored = ("evaluate", str(folder), str(folder), "--metrics", "Dice", "-np", "1", "-o", str(tmp_path / "scores.csv"))
    done = run(*scored, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 21


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_no_colours_outside_a_terminal_or_where_they_are_unwanted(tmp_path: Path, terminal: bool) -> None:
    (tmp_path / "Dataset904_Hippocampus").mkdir()
    failing = ("demo", "--unpack", "904")
    if not terminal:
        done = run(*failing, nnUNet_raw=str(tmp_path))
        text = done.stdout + done.stderr + run("--help").stdout + run("plan").stderr
    else:
        main, side = pty.openpty()
        env = os.environ | {"NO_COLOR": "1", "TERM": "xterm-256color", "nnUNet_raw": str(tmp_path)}
        subprocess.run([*PROGRAM, *failing], cwd=REPOSITORY, env=env, stdout=side, stderr=side, stdin=side)
        os.close(side)
        text = os.read(main, 65536).decode()
        os.close(main)
    assert "taken" in text and "\x1b[3" not in text and "\x1b[9" not in text
