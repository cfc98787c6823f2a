"""mkdocs' hooks: what lies outside of docs/ and belongs to the site, and links that fit both the site and the tree."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Pages that stand at the root of the tree, where people look for them."""
LINK = re.compile(r"(\]\()([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `OUTSIDE`."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


ERRORS = "<!-- errors -->"
"""Where the list of all errors goes: made when the site is, as messages change with the code."""


FAULTS = "<!-- faults -->"
"""Where the tables of faults go."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Pages as the site has them: with the messages of errors, and links that fit."""

    def fitted(found: re.Match[str]) -> str:
        """``../CONTRIBUTING.md`` from docs/, ``docs/speed.md`` from the root."""
        target = found[2]
        if page.file.src_path in OUTSIDE:
            target = target.removeprefix("docs/")
        elif target.startswith("../") and target.removeprefix("../") in OUTSIDE:
            target = target.removeprefix("../")
        return found[1] + target

    if ERRORS in markdown:
        errors = _module("errors")
        explained = errors.HEADING.findall(markdown)
        markdown = errors.with_messages(markdown).replace(ERRORS, errors.as_list(explained))
    if FAULTS in markdown:
        errors = _module("errors")
        tables = _module("faults").as_tables(lambda code: [errors.escaped(text) for text in errors.messages(code)])
        markdown = markdown.replace(FAULTS, tables)
    return LINK.sub(fitted, markdown)


def _module(name: str) -> Any:
    """A program of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
