"""Rules about the source tree as a whole."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "nnunet_fm"
INDIRECT = {"setuptools", "jinja2", "nnunet-fm"}
"""Declared, though nothing of ours imports it: nnU-Net's distutils need setuptools, pandas' LaTeX Jinja."""


def imported_modules() -> dict[str, set[str]]:
    """Top-level module -> files of the package that import it, wherever in the file."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(path.relative_to(REPOSITORY).as_posix())
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [requirement for extra in extras for requirement in project["optional-dependencies"][extra]]
    return {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in project["dependencies"] + optional}


def test_import_contracts() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_circle_of_files() -> None:
    """Imports inside functions count; those for type checkers alone do not."""
    paths = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }

    def imports(path: Path) -> set[str]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        typing = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
        unused = {inner for node in typing for statement in node.body for inner in ast.walk(statement)}
        found = set()
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node not in unused:
                inside = {f"{node.module}.{alias.name}" for alias in node.names} & paths.keys()
                found |= inside or {str(node.module)} & paths.keys()
            elif isinstance(node, ast.Import) and node not in unused:
                found |= {alias.name for alias in node.names} & paths.keys()
        return found

    graph = {name: imports(path) - {name} for name, path in paths.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(paths)  # or it raises a CycleError that names them


@pytest.mark.parametrize("name", ["trainers", "plans", "dataset_conversion"])
def test_links_at_the_top(name: str) -> None:
    link = REPOSITORY / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == PACKAGE / name


def test_imports_and_dependencies_agree() -> None:
    """Every library that is imported is declared, and the other way round."""
    providers = metadata.packages_distributions()
    libraries = set(imported_modules()) - sys.stdlib_module_names - {"nnunet_fm"}
    provided = {module: {normal(name) for name in providers.get(module, [module])} for module in libraries}
    undeclared = {module for module, names in provided.items() if not names & declared("study")}
    assert undeclared == set()
    assert declared() - INDIRECT == {name for names in provided.values() for name in names & declared()}


def test_no_paths_of_a_machine() -> None:
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=REPOSITORY, text=True)
    text = {".py", ".md", ".toml", ".yaml", ".yml", ".cff", ".in", ".pth", ".sh", ".txt", ""}
    pattern = re.compile(r"(?<![\w.~-])/(work|opt|root|home|tmp|Users|mnt)/\w")
    found = []
    for name in filter(None, listed.split("\0")):
        path = REPOSITORY / name
        if path.is_file() and not path.is_symlink() and path.suffix in text and path.name != "LICENSE":
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{name}:{number}: {line}" for number, line in enumerate(lines, 1) if pattern.search(line)]
    assert found == []


def test_no_bare_imports_of_the_links() -> None:
    assert not {"trainers", "plans", "dataset_conversion"} & set(imported_modules())


def test_former_class_paths_of_plans_lead_to_the_classes_of_today() -> None:
    from nnunet_fm.models.build import network_class
    from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D

    assert network_class("nnunet_fm.models.segmenter2d.FoundationSegmenter2D") is FoundationSegmenter2D


def test_former_paths_of_modules_lead_to_the_modules_of_today() -> None:
    """In a process of its own, which has loaded nothing yet."""
    from nnunet_fm.moved import FORMER_FOLDERS

    assert all((PACKAGE / folder.replace(".", "/")).exists() is False for folder in FORMER_FOLDERS)
    code = (
        "import importlib, sys, nnunet_fm.hook; nnunet_fm.hook.install()\n"
        "from nnunet_fm.moved import MOVED\n"
        "for before, now in MOVED.items():\n"
        "    found = importlib.import_module('nnunet_fm.' + before)\n"
        "    assert found is sys.modules['nnunet_fm.' + now] and found.__name__ == 'nnunet_fm.' + now, before\n"
        "from nnunet_fm.evaluation.record import TrainingRecord\n"
        "import nnunet_fm.records.training as today\n"
        "assert TrainingRecord is today.TrainingRecord\n"
        "try:\n    import nnunet_fm.evaluation.nothing\n"
        "except ModuleNotFoundError:\n    print('done')\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr


def test_first_lines_of_docstrings_are_imperatives_or_noun_phrases() -> None:
    """The first rule of CONTRIBUTING, as far as a program can see it."""
    riddle = re.compile(r"(What|How|Why|As|Of|From|Where|Which|Whose|By|Nor)\b")
    found = [
        f"{file.relative_to(REPOSITORY)}: {line}"
        for file in sorted((REPOSITORY / "nnunet_fm").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        for line in (ast.get_docstring(node) or "").splitlines()[:1]
        if riddle.match(line)
    ]
    assert not found, "\n".join(found)
