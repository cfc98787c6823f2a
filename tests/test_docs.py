"""README and docs: printed tables are current, links lead somewhere, and every name in them is real."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_fm.cli.app import app
from nnunet_fm.models.registry import cards, grammar

REPOSITORY = Path(__file__).parents[1]
PAGES = (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md")))
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_tables_are_printed_from_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "docs/tables.py", "--check"],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY)},
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
            assert found[0].rstrip("_") in legal, found[0]
    commands = {entry.name for entry in (*app.registered_commands, *app.registered_groups)}
    for found in re.findall(r"(?:`|^ {4,}|bin/)nnunet-fm ([a-z]+)", text, re.MULTILINE):
        assert found in commands, found


def test_readmes_two_commands() -> None:
    """CI runs the tests as the README says."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert ".venv/bin/nnunet-fm demo\n" in readme and "\n    .venv/bin/pytest\n" in readme
    pinned = re.search(r"torch==\S+ torchvision==\S+", readme)
    assert pinned is not None and pinned[0] in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
