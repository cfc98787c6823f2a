"""README and docs: printed tables are current, links lead somewhere, and every name in them is real."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from nnunet_fm.cli.app import app
from nnunet_fm.models.registry import cards, grammar

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY)}
PAGES = (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_tables_are_printed_from_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "docs/tables.py", "--check"],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    models = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` | {card.title} |" in models and f"`{name}`" in readme for name, card in cards().items())


def test_a_stale_table_is_noticed() -> None:
    spec = importlib.util.spec_from_file_location("tables", REPOSITORY / "docs" / "tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = "before\n<!-- table: choice -->\nold\n<!-- end -->\nafter"
    new = tables.filled(text)
    assert new.startswith("before\n") and new.endswith("\nafter") and "old" not in new and "| 1 |" in new
    assert tables.filled(new) == new


@pages
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    for link in links:
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


@pages
def test_names_are_real(page: Path) -> None:
    """Trainer, planner and plans names, and sub-commands; names with a placeholder are not looked up."""
    text = page.read_text(encoding="utf-8")
    for pattern, legal in ((r"\bfm_trainer\w*", grammar().trainers), (r"\bFMPlanner\w*", grammar().planners)):
        for found in re.finditer(pattern + r"(?![\w<[…])", text):
            name = found[0].replace("toynet", "vanilla_unet3d")  # the model that add_a_model.md makes
            assert name.rstrip("_") in legal, found[0]
    commands = {entry.name for entry in (*app.registered_commands, *app.registered_groups)}
    for found in re.findall(r"(?:`|^ {4,}|bin/)nnunet-fm ([a-z]+)", text, re.MULTILINE):
        assert found in commands, found


@pages
def test_external_links_are_well_formed(page: Path) -> None:
    for link in re.findall(r"\]\((http[^)\s]*)", page.read_text(encoding="utf-8")):
        parts = urlsplit(link)
        assert parts.scheme == "https" and "." in parts.netloc and " " not in link, link


def test_every_model_has_its_costs_counted_at_its_plan() -> None:
    """The slow tests count some anew; here, that none is missing or of another plan."""
    costs = json.loads((REPOSITORY / "docs" / "costs.json").read_text(encoding="utf-8"))
    assert list(costs) == list(cards())
    for name, card in cards().items():
        geometry = card.variants["mission"].geometry
        assert costs[name]["batch"] == geometry.batch and len(costs[name]["patch"]) == card.dim, name
        assert all(counted >= wanted for counted, wanted in zip(costs[name]["patch"], geometry.patch, strict=True)), (
            name
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stunet_s", "resnet18", "vanilla_unet3d"])
def test_costs_are_counted_anew(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "docs/costs.py", name], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    costs = json.loads((REPOSITORY / "docs" / "costs.json").read_text(encoding="utf-8"))
    assert json.loads(done.stdout)[name] == costs[name]


@pytest.mark.parametrize("script", ["pictures"])
def test_pictures_of_the_project_are_current(script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"docs/{script}.py", "--check"],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for picture in (REPOSITORY / "docs" / "images").iterdir():
        assert picture.stat().st_size < 150_000, picture


def test_readme_and_ci_install_the_same_pytorch() -> None:
    readme, ci = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run"))
    pinned = re.search(r"torch==\S+ torchvision==\S+", readme)
    assert pinned is not None and pinned[0] in ci
