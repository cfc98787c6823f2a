"""The installed nnunetv2 against the versions that this package asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_fm import host
from nnunet_fm.cli.app import main
from tests.helpers.errors import fails


def pretend(folder: Path, version: str) -> Path:
    """A folder that says, once it is on the path, that nnunetv2 is installed in this version."""
    information = folder / f"nnunetv2-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: nnunetv2\nVersion: {version}\n")
    return folder


@pytest.fixture
def installed(tmp_path, monkeypatch):
    def install(version: str) -> None:
        monkeypatch.syspath_prepend(pretend(tmp_path, version))
        host.check_host.cache_clear()

    yield install
    host.check_host.cache_clear()


@pytest.mark.parametrize("version", ["2.8.1", "2.8.1+local.1", "2.8.1.post1", "2.8.17"])
def test_tested_versions_pass_in_silence(installed, version: str, capfd) -> None:
    installed(version)
    host.check_host()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("version", ["2.9", "2.9.0rc1", "2.10.3", "3.0", "of-somebody"])
def test_an_untested_version_is_named_once_in_a_line(installed, version: str, capfd) -> None:
    installed(version)
    host.check_host()
    host.check_host()
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("WARNING: ") and version in line and "<2.9,>=2.8.1" in line


@pytest.mark.parametrize("version", ["2.6.4", "2.8.0", "2.8.1rc1", "1.7.0"])
def test_an_older_version_is_refused_with_its_cure(installed, version: str) -> None:
    installed(version)
    with fails("nnunet-version") as error:
        host.check_host()
    assert str(error.value).startswith(f"nnunetv2 {version} is installed, <2.9,>=2.8.1 is needed")


COMMANDS = (
    "plan -d 1", "predict -i a -o b -d 1", "study x.yaml", "adapt --source a --target 1 --method entropymin", "demo",
    "convert verse a -d 1",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_works_with_nnunet_says_so_first(installed, command: str, monkeypatch, capsys) -> None:
    installed("2.6.4")
    monkeypatch.setattr(sys, "argv", ["nnunet-fm", *command.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("nnunet-fm: nnunetv2 2.6.4 is installed")


@pytest.mark.parametrize(("version", "code", "lines"), [("2.6.4", 1, 1), ("2.9.1", 0, 1), ("2.8.1", 0, 0)])
def test_stock_commands_say_so_through_the_hook(tmp_path, version: str, code: int, lines: int) -> None:
    find = (
        "import sys, types\n"
        "name = 'nnunet_fm.preprocessing.resampling'\n"
        "fake = sys.modules[name] = types.ModuleType(name)\n"
        "fake.fm_resample_seg_to_shape = None\n"
        "import nnunet_fm.hook; nnunet_fm.hook.install()\n"
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find\n"
        "find('folder', 'fm_resample_seg_to_shape', None)"
    )
    environment = os.environ | {"PYTHONPATH": str(pretend(tmp_path, version))}
    done = subprocess.run([sys.executable, "-c", find], env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "nnunetv2" in line]
    assert (done.returncode, len(said)) == (code, lines), done.stderr
    assert all(version in line and "2.8.1" in line for line in said)
    assert "Traceback" not in done.stderr
