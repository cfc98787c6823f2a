"""Shared set-up: one thread, no loader workers, and fresh virtual environments for tests of an installed package."""

from __future__ import annotations

import locale
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
# nnUNetv2_train takes all cores whatever the variable above says. Beside another training, threads that wait by
# spinning hold up the ones that work: each took three times as long.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["nnUNet_n_proc_DA"] = "0"

LOCALE = locale.setlocale(locale.LC_CTYPE)
REPOSITORY = Path(__file__).parents[1]
PACKAGED = ("nnunet_fm", "build_backend", "pyproject.toml", "setup.py", "MANIFEST.in")
PACKAGED += ("README.md", "LICENSE", "CITATION.cff", "CONTRIBUTING.md")
LINKS = ("trainers", "plans", "dataset_conversion")
OURS = ("nnunet_fm*", "__editable__*nnunet_fm*")


@dataclass(frozen=True)
class FreshVenv:
    """A virtual environment without pip, which has the libraries of the running interpreter but not this package."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return next(self.root.glob("lib/python*/site-packages"))

    def environment(self, **changes: str) -> dict[str, str]:
        """Variables for a process: those of the tests less nnU-Net's folders and Python's paths, plus ``changes``."""
        dropped = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer", "NNUNET_FM_HOOK")
        kept = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("PYTHON")}
        return kept | {"PATH": f"{self.root / 'bin'}{os.pathsep}{kept['PATH']}"} | changes

    def run(
        self, *command: str | Path, env: Mapping[str, str] | None = None, check: bool = True, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's commands, by its name, outside of the source tree.

        ``env`` changes single variables. With ``check`` a failing command fails the test and shows its output.
        """
        program, *arguments = map(str, command)
        done = subprocess.run(
            [str(self.root / "bin" / program), *arguments],
            env=self.environment(**(env or {})),
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{program} {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def execute(self, code: str, **env: str) -> str:
        """Output of a piece of Python code, stripped."""
        return self.run("python", "-c", code, env=env).stdout.strip()

    def pip(self, *arguments: str | Path) -> None:
        """Run the tests' pip on this environment."""
        command = [sys.executable, "-m", "pip", "--python", self.python, *arguments, "--quiet"]
        done = subprocess.run(command, env=self.environment(), cwd=self.root, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")

    def borrow(self, without: tuple[str, ...] = ()) -> None:
        """Make the running interpreter's libraries importable, save this package and the patterns in ``without``."""
        borrowed = self.root / "borrowed"
        borrowed.mkdir()
        folders = [path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")]
        for entry in (entry for folder in folders for entry in folder.iterdir()):
            link = borrowed / entry.name
            if not link.exists() and not any(fnmatch(entry.name, pattern) for pattern in (*OURS, *without)):
                link.symlink_to(entry)
        (self.site_packages / "borrowed.pth").write_text(f"{borrowed}\n")
        shim = borrowed / "distutils-precedence.pth"  # setuptools' stand-in for the distutils that Python 3.12 dropped
        if shim.exists():
            (self.site_packages / shim.name).symlink_to(shim)
        self.write_commands("nnunetv2")

    def write_commands(self, distribution: str) -> None:
        """Create the console commands of a borrowed distribution."""
        for command in metadata.distribution(distribution).entry_points.select(group="console_scripts"):
            script = self.root / "bin" / command.name
            script.write_text(
                f"#!{self.python}\nimport sys\nfrom {command.module} import {command.attr}\n"
                f'if __name__ == "__main__":\n    sys.exit({command.attr}())\n'
            )
            script.chmod(0o755)


@pytest.fixture(autouse=True)
def _kept_locale() -> Iterator[None]:
    """ITK leaves the process in the C locale after it has written a DICOM file; log files would then be ASCII."""
    locale.setlocale(locale.LC_CTYPE, LOCALE)
    yield
    locale.setlocale(locale.LC_CTYPE, LOCALE)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks compute in float32, also where the processor has bfloat16."""
    monkeypatch.setenv("NNUNET_FM_BF16", "0")


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that builds leave nothing in the repository."""
    tree = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, tree / name)
    for name in LINKS:
        (tree / name).symlink_to((REPOSITORY / name).readlink())
    return tree


@pytest.fixture(scope="session")
def wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this package."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([*command, source_tree], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def make_venv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., FreshVenv]]:
    """Makes bare environments; ``make_venv(borrow=False)`` has the standard library only."""
    made: list[Path] = []

    def make(borrow: bool = True, without: tuple[str, ...] = ()) -> FreshVenv:
        root = tmp_path_factory.mktemp("venv")
        made.append(root)
        venv.create(root, symlinks=True, with_pip=False)
        environment = FreshVenv(root)
        if borrow:
            environment.borrow(without)
        return environment

    yield make
    for root in made:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def fresh_venv(make_venv: Callable[..., FreshVenv], wheel: Path) -> FreshVenv:
    """An environment with this package installed from its wheel; tests must leave the installation as it is."""
    environment = make_venv()
    environment.pip("install", "--no-deps", wheel)
    return environment
